"""Start the viz as a process."""

from services.viz.loop import main
from shared.process import run

run("viz", main)
