"""Start the simulator as a process."""

from services.simulator.main import main
from shared.process import run

run("simulator", main)
