"""Take the pictures of docs/screenshots again: klagg against its simulator, in a headless Chromium.

    make screenshots

Decides what is on them, and waits until it is there. Nothing is retouched: the market is the simulator's, of one seed.
"""

import argparse
import json
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path
from urllib.error import HTTPError, URLError

from playwright.sync_api import Page, sync_playwright

from harness.processes import ROOT, free_port, running, wait_for, write_config

ROOMS = ("postgres", "persist", "engine", "simulator", "ingest", "viz")
FOLDER = ROOT / "docs" / "screenshots"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WIDTH, HEIGHT = 1200, 680
SIZE_MAX = 150_000
READY_MAX_S = 300.0
"""What is compiled once for a machine may have to be compiled before."""
MISSING_S = 20


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--folder", type=Path, default=FOLDER)
    folder: Path = options.parse_args().folder
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        print("make screenshots needs Chromium: apt-get install chromium", file=sys.stderr)
        return 3
    folder.mkdir(parents=True, exist_ok=True)
    viz, simulator = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="ks") as system_folder:
        config = write_config(
            Path(system_folder),
            viz={"port": viz},
            simulator={"port": simulator, "symbols": 40, "trades_per_second": 400.0, "history_days": 40},
        )
        with running(*ROOMS, config=config), sync_playwright() as playwright:
            wait_for("every symbol", lambda: answers(f"http://127.0.0.1:{viz}/readyz"), timeout=READY_MAX_S, every=1.0)
            browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(f"http://127.0.0.1:{viz}/#BTCUSDT/1h")
            take(page, folder / "page.png")
            # Some trades never come by the stream, and REST fails to bring them: what they may be missing from is
            # amber.
            page.goto(f"http://127.0.0.1:{viz}/#BTCUSDT/1m")
            for fault in (f"kind=error&seconds={MISSING_S}&share=1", f"kind=skip&seconds={MISSING_S}&share=0.3"):
                do(f"http://127.0.0.1:{simulator}/simulator/fault?{fault}")
            page.wait_for_function("() => document.querySelector('#state-proof').dataset.state !== 'ok'")
            take(page, folder / "missing.png")
            browser.close()
    for name in ("page.png", "missing.png"):
        size = (folder / name).stat().st_size
        print(f"{folder / name}: {size:,} bytes")
        if size > SIZE_MAX:
            print(f"{name} is larger than {SIZE_MAX:,} bytes", file=sys.stderr)
            return 1
    return 0


def take(page: Page, path: Path) -> None:
    page.wait_for_function("() => klagg.chart.rows.length > 60")
    page.wait_for_timeout(2_500)  # For the chart to be drawn and trades to come; a picture is no test.
    page.screenshot(path=path)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(json.load(answer)["ok"])
    except (HTTPError, URLError, ConnectionError):
        return False


def do(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5) as answer:
        answer.read()


if __name__ == "__main__":
    sys.exit(main())
