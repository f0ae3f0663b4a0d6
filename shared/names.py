"""Names of symbols that come from outside: which of them klagg takes.

Decides the one rule of ingest, replay and store. A name becomes a topic, a key in SQL and a folder of an export, so it
is text that can be seen and no path. Which names an exchange has is not known here: some are not ASCII.
"""

NAME_MAX = 64
"""Characters; the longest that an exchange has are some 30."""


def is_name(name: str) -> bool:
    """Say whether a symbol may be called so: printable (so no NUL), no `/` or `\\`, 1 to 64 characters, no `.` or `..`.

    A blank is printable.
    """
    return 0 < len(name) <= NAME_MAX and name.isprintable() and not set(name) & set("/\\") and name not in (".", "..")
