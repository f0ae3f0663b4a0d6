"""Start the embedded PostgreSQL as a process."""

from services.postgres.loop import main
from shared.process import run

run("postgres", main)
