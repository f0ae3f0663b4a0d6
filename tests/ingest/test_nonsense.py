"""Commands that can be decoded and make no sense: ingest stays, and does what is asked of it as ever."""

from pathlib import Path

from shared.wire import Command, FetchTrades, Subscribe, Trades, instruments_of
from tests.ingest.played import START, Exchange, Fill, playing
from tests.nonsense import Nonsense

MESSAGES = 500
KINDS = Command.__args__


def test_nonsense_ends_nothing(exchange: Exchange, tmp_path: Path) -> None:
    exchange.add("ETHUSDT")
    exchange.weight_limit = 10**6
    exchange.trades["ETHUSDT"] = [Fill(trade_id, START - 30_000 + trade_id) for trade_id in range(10, 20)]
    nonsense = Nonsense(1, lambda: START, ["BTCUSDT", "btcusdt@aggTrade"], [1])
    with playing(tmp_path, exchange) as played:
        played.subscribe("btcusdt@aggTrade", "ethusdt@aggTrade")
        for _ in range(MESSAGES):
            played.engine.send(nonsense.message(nonsense.random.choice(KINDS)))
        played.engine.ask(Subscribe(["ethusdt@aggTrade"], complete=True, engine=5))
        played.engine.ask(FetchTrades("ETHUSDT", 11, 18))
        played.engine.wait(Trades, lambda part: ids_of(part) == ("ETHUSDT", 11, 18), timeout=30)
        assert played.room.process.poll() is None
        assert len(played.room.log) < 50_000


def ids_of(batch: Trades) -> tuple[str, int, int] | None:
    """Return what an answer is about; None if it is about no ids, or is none."""
    if not batch.covered:
        return None
    return instruments_of(batch)[0].symbol, batch.covered[0].first_id, batch.covered[0].last_id
