"""What the store has last: what persist tells of it and the engine holds against what it knows.

Decides when a store is another than the one that was saved into. Knows no table.
"""

import msgspec

from shared.bounds import Number


class StorePoint(msgspec.Struct, frozen=True, array_like=True):
    """What the store has last: told with every answer and held against what the other side knows.

    A store that was emptied, or set back by a backup or a failover that lagged, has another one.
    """

    tables: str = ""
    """Which tables: another text means others, or the same emptied; empty: nothing was ever saved."""
    session: Number = 0
    """The engine that made the last batch, ..."""
    batch: Number = 0
    """... and the batch's number."""

    def continues(self, known: "StorePoint", session: int) -> bool:
        """Say whether this is what an engine knows, or has since got batches of it that it was not told of."""
        if self == known:
            return True
        told = known.batch if known.session == session else -1
        return self.session == session and self.batch >= told and known.tables in ("", self.tables)
