"""Start the simulator as a process."""

from services.simulator.loop import main
from shared.process import run

run("simulator", main)
