"""Who may ask a server of ours by HTTP: nobody whom another site's page has sent.

Decides by what a browser says of where it comes from. Knows neither addresses nor status codes.
"""

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from shared.addresses import is_loopback


def why_refused(headers: Mapping[str, str], only_loopback: bool, opens: str) -> str:
    """Return why a request is refused, or nothing. `opens`: the setting that lets other machines in.

    A server that listens on this machine only is called by this machine's names: another name is somebody's who has
    it lead here, so that the browser takes our answers for that site's own.
    """
    host = headers.get("Host", "")
    origin = headers.get("Origin")
    if only_loopback and not is_loopback(_split(f"//{host}").hostname or ""):
        return f"this server listens on this machine only; {opens} in klagg.toml opens it to others"
    if origin is not None and _split(origin).netloc != host:
        return "pages of other sites are not served"
    return ""


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
