"""A ban by the exchange, remembered across restarts: who goes on asking while banned is banned for longer.

The file says whom it is about and when it ends by this machine's clock. A crash in the middle leaves the former file.
A disk that takes nothing is asked again until the ban is over; this process obeys it all the same.
"""

import json
from pathlib import Path


class Ban:
    def __init__(self, path: Path, rest: str) -> None:
        """Keep in `path` until when `rest`, an address, may not be asked."""
        self._path = path
        self._rest = rest
        self._noted = self._until = recall(path, rest)

    @property
    def until(self) -> int:
        """Until when nothing may be asked, ms since 1970; 0 if nothing is known."""
        return self._until

    def extend(self, until: int) -> None:
        """Nothing may be asked before `until`, ms since 1970."""
        self._until = max(self._until, until)

    def note(self, now: int) -> None:
        """Write down what is not written yet. Raises OSError; then it is to be tried again."""
        if self._until > max(self._noted, now):
            remember(self._path, self._rest, self._until)
            self._noted = self._until


def remember(path: Path, rest: str, until: int) -> None:
    """Note that `rest`, an address, may not be asked before `until`, ms since 1970. Raises OSError."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"rest": rest, "until": until}), encoding="utf-8")
    fresh.replace(path)


def recall(path: Path, rest: str) -> int:
    """Return until when `rest` may not be asked, ms since 1970; 0 if nothing is known."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return int(content["until"]) if content["rest"] == rest else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
