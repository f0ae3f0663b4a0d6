"""A turn of the engine: what has come in is applied, and what is to be done about it comes out as one object.

Decides in which order subscribers, ingest and the store are served, and knows no socket. What is in snapshots, commands
and batches is snapshots.py's, engine.py's and saving.py's.
"""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from services.engine.engine import KlineEngine
from services.engine.log_lines import Line, LogLines
from services.engine.snapshots import Message, Snapshots
from shared.config import Config
from shared.wire import AppEvent, Command, DirtyBatch


class Ready(NamedTuple):
    """What is to be done at the end of a turn, in the order of the fields.

    Subscribers come first, because a moment matters to them; then ingest, which fetches what is missing; the store can
    wait. Snapshots and the batch are made while they are taken: to make a batch takes a millisecond, and whoever is
    served before should not wait for it.
    """

    snapshots: Iterator[Message]
    """Rows that have changed, figures, and the current rows that new subscribers are owed."""
    commands: list[Command]
    batch: Iterator[DirtyBatch]
    """One or none. Who cannot send it calls `Turns.lost`."""
    log: list[Line]


class Turns:
    """An engine and its subscribers."""

    def __init__(self, config: Config, session: int) -> None:
        """`session` differs from that of every engine before it."""
        self.engine = KlineEngine(config.engine, config.exchange.clock_speed, session, config.audit)
        self.snapshots = Snapshots(self.engine, session, config.engine.publish_interval_ms)
        self._log = LogLines(self.engine)

    def apply(self, event: AppEvent, now_ns: int) -> None:
        """Take an event. Raises WireError on rows that are none."""
        self.engine.apply(event, now_ns)

    def subscription(self, message: bytes) -> None:
        """Take what was subscribed, or is subscribed by nobody any more (publisher.py)."""
        self.snapshots.subscription(message)

    def ready(self, now_ns: int, store_is_there: bool, last: bool = False) -> Ready:
        """Let the clock tick and return what is to be done; `last`: with whatever is unsaved, due or not."""
        self.engine.tick(now_ns)
        return Ready(
            chain(self.snapshots.due(now_ns), self.snapshots.owed(now_ns)),
            self.engine.take_commands(),
            self._batch(now_ns, store_is_there, last),
            self._log.due(now_ns),
        )

    def _batch(self, now_ns: int, store_is_there: bool, last: bool) -> Iterator[DirtyBatch]:
        if not last and not self.engine.saving.due(now_ns):
            return
        if not store_is_there:
            self.engine.saving.store_absent(now_ns)
            return
        batch = self.engine.take_batch(now_ns, last)
        if batch is not None:
            yield batch

    def lost(self, now_ns: int) -> None:
        """The batch could not be sent."""
        self.engine.saving.lost(now_ns)

    @property
    def is_saved(self) -> bool:
        """Everything is in the store, and acknowledged."""
        return not self.engine.saving.under_way and not self.engine.saving.unsaved_rows

    def wait_ms(self, now_ns: int) -> int:
        """Return how long until there is something to do without an event, ms."""
        if self.snapshots.owes:
            return 0
        engine, snapshots = self.engine.wait_ms(now_ns), self.snapshots.wait_ms(now_ns)
        # A poll that rounds down would spin through the last millisecond before a timer.
        return 1 + (snapshots if engine is None else min(engine, snapshots))
