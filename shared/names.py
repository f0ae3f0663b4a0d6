"""Names of symbols: which of them klagg accepts.

One rule for ingest, replay and store. A name becomes a topic, a key in SQL and a folder of an export, so that it is
printable text and no path. Which names an exchange has is not known here: some are not ASCII.
"""

NAME_MAX = 64
"""Characters; the longest that an exchange has are some 30."""


def is_name(name: str) -> bool:
    """Say whether it may name a symbol: printable (so no NUL), no `/` or `\\`, 1 to 64 characters, no `.` or `..`.

    A blank is printable.
    """
    return 0 < len(name) <= NAME_MAX and name.isprintable() and not set(name) & set("/\\") and name not in (".", "..")
