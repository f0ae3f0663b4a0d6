"""Start the persist as a process."""

from services.persist.loop import main
from shared.process import run

run("persist", main)
