"""Start the ingest as a process."""

from services.ingest.loop import main
from shared.process import run

run("ingest", main)
