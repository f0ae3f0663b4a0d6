"""A ban by the exchange, remembered across restarts: who goes on asking while banned is banned for longer.

The file says whom it is about and when it ends by this machine's clock. A crash in the middle leaves the former file.
"""

import json
from pathlib import Path


def remember(path: Path, rest: str, until: int) -> None:
    """Note that `rest`, an address, may not be asked before `until`, ms since 1970."""
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
