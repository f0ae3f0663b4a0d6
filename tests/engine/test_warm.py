"""Compiled code: all of it is there before the first trade."""

import subprocess
import sys

from harness.processes import ROOT
from services.engine.snapshots import Snapshots
from services.engine.warm import warm_up
from tests.engine.played import MINUTE, START, PlayedEngine, batch, history, market


def compiled() -> set[tuple[str, str]]:
    """Return the functions that were called from Python, and the types that they were compiled for."""
    modules = [module for name, module in sys.modules.items() if name.startswith(("services.engine.", "shared."))]
    functions = {function for module in modules for function in vars(module).values() if hasattr(function, "py_func")}
    return {(function.__name__, str(types)) for function in functions for types in function.signatures}


def play() -> None:
    """Let minutes pass, trades come late, and another engine go on; somebody listens from before the first symbol."""
    trades = market(1, 300, START - 30 * MINUTE, 36 * MINUTE)
    live = [trade for trade in trades if trade.time >= START]
    played = PlayedEngine()
    snapshots = Snapshots(played.engine, 0, 0)
    snapshots.subscription(b"\x01")
    published = list(snapshots.due(played.now_ns))
    played.add(klines=history(trades, START), until=START)
    published += snapshots.owed(played.now_ns)
    for trade in [*live[:20], *live[25:]]:
        played.until(trade.time)
        played.apply(batch([trade]))
        published += snapshots.due(played.now_ns)
    assert {topic for topic, _ in published} > {b"kline.BTCUSDT.1m", b"tickers"}
    snapshots.subscription(b"\x01kline.")
    assert list(snapshots.owed(played.now_ns))
    snapshots.subscription(b"\x00kline.")
    assert not list(snapshots.owed(played.now_ns))
    played.save()
    later = PlayedEngine(START + 6 * MINUTE, restored=played.restored())
    later.apply(batch(live[20:25], covered=[(0, live[-1].id)]))
    assert later.engine.gaps(0) == []
    later.save()


def say_what_is_compiled_late() -> None:
    warm_up()
    before = compiled()
    assert len(before) > 10
    play()
    print(compiled() - before or "nothing")


def test_no_trade_waits_for_a_compiler() -> None:
    # In a process of its own: here, other tests have compiled already.
    program = "from tests.engine.test_warm import say_what_is_compiled_late as say; say()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "nothing\n", done.stderr
