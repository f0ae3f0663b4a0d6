"""Start the engine as a process."""

from services.engine.loop import main
from shared.process import run

run("engine", main)
