"""Start the engine as a process."""

from services.engine.main import main
from shared.process import run

run("engine", main)
