"""What subscribers see: whole rows, numbered a topic, the current ones at once."""

from typing import Any

import msgpack

from services.engine.encoding import ROWS_MAX
from services.engine.health import waiting
from services.engine.snapshots import OWED_ROWS_MAX, OWED_TOPICS, Message, Snapshots
from shared.interval import INTERVAL_NAMES
from shared.snapshot import decode_snapshot, decode_tickers, kline_topic
from shared.wire import Listed, Prefer, RemoveSymbol
from tests.engine.played import MINUTE, MS, START, PlayedEngine, Trade, batch, history, market

SECOND = 1_000 * MS


class Subscriber:
    def __init__(self, played: PlayedEngine, publish_interval_ms: int = 0) -> None:
        self.played = played
        self.snapshots = Snapshots(played.engine, 77, publish_interval_ms)
        list(self.snapshots.due(0))

    def subscribe(self, topic: str) -> list[Any]:
        self.snapshots.subscription(b"\x01" + topic.encode())
        return [decode_snapshot(body) for _, body in self.owed()]

    def unsubscribe(self, topic: str) -> None:
        self.snapshots.subscription(b"\x00" + topic.encode())
        assert self.owed() == []

    def owed(self) -> list[Message]:
        messages = list(self.snapshots.owed(self.played.now_ns))
        while self.snapshots.owes:
            messages += self.snapshots.owed(self.played.now_ns)
        return messages

    def due(self) -> dict[str, bytes]:
        return {topic.decode(): body for topic, body in self.snapshots.due(self.played.now_ns)}


def test_a_subscription_brings_the_current_row_and_those_that_are_not_saved() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 12_345, 7_001, 2, 1), Trade(1, START + 1, 12_300, 500)]))
    played.save()
    subscriber = Subscriber(played)
    (row,) = subscriber.subscribe("kline.BTCUSDT.1m")
    assert (row.open, row.high, row.low, row.close) == ("123.45", "123.45", "123.00", "123.00")
    assert (row.volume, row.quote_volume, row.trade_count) == ("7.501", "925.77345", 3)
    assert (row.taker_buy_volume, row.taker_buy_quote_volume) == ("0.500", "61.50000")
    assert (row.first_id, row.last_id, row.id_count, row.closed, row.source) == (0, 1, 2, False, "trades")
    assert (row.open_time, row.close_time, row.sequence, row.session) == (START, START + MINUTE - 1, 1, 77)
    played.until(START + 2 * MINUTE)
    times = [row.open_time for row in subscriber.subscribe("kline.BTCUSDT.1m")]
    assert times == [START, START + MINUTE, START + 2 * MINUTE]


def test_rows_come_topic_by_topic_and_ascending_however_they_lie_in_memory() -> None:
    played = PlayedEngine()
    for symbol in ("ETHUSDT", "BTCUSDT"):
        played.add(symbol)
        played.apply(batch([Trade(0, START, 100, 7)], symbol=symbol))
    subscriber = Subscriber(played)
    subscriber.subscribe("kline.BTC")
    minutes = played.engine.book.rows.shape[2] + 10
    played.until(START + minutes * MINUTE)
    topics = [(row.symbol, row.interval) for row in subscriber.subscribe("kline.")]
    order = [(symbol, interval) for symbol in ("ETHUSDT", "BTCUSDT") for interval in INTERVAL_NAMES]
    assert topics == sorted(topics, key=order.index)
    assert set(topics) == set(order)
    for published in (
        subscriber.subscribe("kline.BTCUSDT.1m"),
        [decode_snapshot(body) for topic, body in subscriber.snapshots.due(0) if topic == b"kline.BTCUSDT.1m"],
    ):
        first = START + (minutes - len(published) + 1) * MINUTE
        assert [row.open_time for row in published] == list(range(first, START + (minutes + 1) * MINUTE, MINUTE))
        assert len(published) == minutes - 10
        assert [row.sequence for row in published] == list(range(published[0].sequence, published[-1].sequence + 1))


def test_only_topics_with_a_subscriber_are_encoded_and_each_is_numbered() -> None:
    played = PlayedEngine()
    played.add()
    played.add("ETHUSDT")
    subscriber = Subscriber(played)
    assert subscriber.subscribe("kline.BTCUSDT.5m") == []
    for trade_id in range(3):
        played.apply(batch([Trade(trade_id, START, 100, 7)]), batch([Trade(trade_id, START, 100, 7)], symbol="ETHUSDT"))
        messages = subscriber.due()
        assert list(messages) == ["kline.BTCUSDT.5m"]
        assert decode_snapshot(messages["kline.BTCUSDT.5m"]).sequence == trade_id + 1
    assert subscriber.due() == {}
    subscriber.unsubscribe("kline.BTCUSDT.5m")
    played.apply(batch([Trade(3, START, 100, 7)]))
    assert subscriber.due() == {}
    assert subscriber.snapshots.published == 3


def test_a_prefix_subscribes_all_that_begin_with_it_and_symbols_that_come_later() -> None:
    played = PlayedEngine()
    played.add()
    subscriber = Subscriber(played)
    subscriber.subscribe("kline.")
    subscriber.subscribe("kline.BTC")
    subscriber.unsubscribe("kline.BTC")
    played.add("ETHUSDT")
    played.apply(batch([Trade(0, START, 100, 7)]), batch([Trade(0, START, 100, 7)], symbol="ETHUSDT"))
    assert len(subscriber.due()) == 30
    subscriber.subscribe("kline.NEWUSDT.1m")
    trades = market(1, 50, START - 3 * MINUTE, 3 * MINUTE)
    played.add("NEWUSDT", klines=history(trades, START), until=START)
    messages = [message for message in subscriber.owed() if message[0] == b"kline.NEWUSDT.1m"]
    times = [decode_snapshot(body).open_time for _, body in messages]
    assert times == [START - 3 * MINUTE, START - 2 * MINUTE, START - MINUTE, START]


def test_more_topics_than_are_written_at_once_change_together() -> None:
    symbols = [f"S{index}USDT" for index in range(2 * ROWS_MAX // len(INTERVAL_NAMES) + 1)]
    played = PlayedEngine(symbols_max=len(symbols))
    for symbol in symbols:
        played.add(symbol)
    subscriber = Subscriber(played)
    subscriber.subscribe("kline.")
    for sequence in (1, 2):
        for symbol in symbols:
            played.apply(batch([Trade(sequence, START, 100, 7)], symbol=symbol))
        messages = list(subscriber.snapshots.due(0))
        rows = [decode_snapshot(body) for _, body in messages]
        assert [topic.decode() for topic, _ in messages] == [kline_topic(row.symbol, row.interval) for row in rows]
        assert sorted((row.symbol, row.interval) for row in rows) == sorted(
            (symbol, name) for symbol in symbols for name in INTERVAL_NAMES
        )
        assert {(row.sequence, row.last_id) for row in rows} == {(sequence, sequence)}
        assert subscriber.snapshots.published == sequence * len(rows)


def test_rows_are_held_back_as_long_as_they_must_be() -> None:
    played = PlayedEngine()
    played.add()
    subscriber = Subscriber(played, publish_interval_ms=100)
    subscriber.subscribe("kline.BTCUSDT.1m")
    played.apply(batch([Trade(0, START, 100, 7)]))
    assert len(subscriber.due()) == 1
    played.apply(batch([Trade(1, START, 100, 7)]))
    assert subscriber.due() == {}
    assert 0 < subscriber.snapshots.wait_ms(played.now_ns) <= 100
    played.until(START + 100)
    assert len(subscriber.due()) == 1


def test_tickers_carry_the_last_day_of_every_symbol() -> None:
    trades = [trade for trade in market(2, 3_000, START - 30 * 60 * MINUTE, 30 * 60 * MINUTE) if trade.trade_count]
    played = PlayedEngine()
    played.add(klines=history(trades, START), until=START)
    played.add("SILENTUSDT")
    played.apply(RemoveSymbol("SILENTUSDT", START))
    subscriber = Subscriber(played)
    subscriber.subscribe("tickers")
    played.until(START + 600)
    tickers = decode_tickers(subscriber.due()["tickers"])
    day = [trade for trade in trades if trade.time >= (START + 600 - 24 * 60 * MINUTE) // 900_000 * 900_000 + 900_000]
    assert tickers.symbols == ["BTCUSDT"]
    assert tickers.last == [f"{day[-1].price / 100:.2f}"]
    assert tickers.open_24h == [f"{day[0].price / 100:.2f}"]
    assert tickers.high_24h == [f"{max(trade.price for trade in day) / 100:.2f}"]
    assert tickers.low_24h == [f"{min(trade.price for trade in day) / 100:.2f}"]
    assert tickers.volume_24h == [f"{sum(trade.quantity for trade in day) / 1000:.3f}"]
    assert tickers.active == [True]
    assert "tickers" not in subscriber.due()


def test_health_is_a_map_that_any_msgpack_reads() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(5, START, 100, 7)]))
    subscriber = Subscriber(played)
    subscriber.subscribe("engine.health")
    subscriber.subscribe("kline.BTCUSDT.")
    played.until(START + 1_000)
    health = msgpack.unpackb(subscriber.due()["engine.health"])
    assert health["connected"] is True
    assert health["missing_ids"] == 5
    assert health["applied"] == 1
    assert health["rows_unsaved"] == 15
    assert health["lag_ms"] == 0
    assert (health["subscriptions"], health["odd_subscriptions"]) == (2, 0)


def test_the_source_of_a_row_is_sent() -> None:
    trades = market(1, 100, START - 60 * MINUTE, 60 * MINUTE)
    played = PlayedEngine()
    played.add(klines=history(trades, START), until=START)
    subscriber = Subscriber(played)
    assert {row.source for row in subscriber.subscribe("kline.BTCUSDT.1m")} == {"exchange", "trades"}
    played.apply(batch([Trade(900, START + 10, 100, 7)]))
    assert subscriber.subscribe("kline.BTCUSDT.1h")[-1].source == "both"


def test_health_is_sent_more_often_while_trades_are_missing() -> None:
    played = PlayedEngine()
    played.add()
    subscriber = Subscriber(played)
    subscriber.subscribe("engine.health")

    def reports(begin: int, end: int, traded: bool = True) -> int:
        count = 0
        for time in range(begin, end, 50):
            played.until(START + 10 * MINUTE + time)
            if traded:
                # One that was there already: the market goes on, and nothing changes.
                played.apply(batch([Trade(5, START, 100, 7)], event_time=START + 10 * MINUTE + time))
            count += "engine.health" in subscriber.due()
        return count

    played.apply(batch([], covered=[(0, 4)]), batch([Trade(5, START, 100, 7)]))
    assert reports(0, 3_000) == 6
    played.apply(batch([Trade(7, START, 100, 7)]))
    assert reports(3_000, 6_000) == 15
    played.apply(batch([Trade(6, START, 100, 7)]))
    assert reports(6_000, 9_000) in (6, 7)
    # And while the market is silent: a subscriber that waits for the next trade gets it at once.
    assert reports(9_000, 10_000, traded=False) < 4
    assert reports(10_000, 13_000, traded=False) == 15


def test_who_subscribes_a_symbol_that_waits_lets_it_begin_next() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(Listed(["BTCUSDT", "ETHUSDT", "XRPUSDT"]))
    assert waiting(played.engine) == ["ETHUSDT", "XRPUSDT"]
    subscriber = Subscriber(played)

    def preferred(time: int) -> list[str]:
        played.until(START + time)
        subscriber.due()
        return [
            name for command in played.engine.take_commands() if isinstance(command, Prefer) for name in command.symbols
        ]

    played.engine.take_commands()
    for topic in ("kline.BTCUSDT.1m", "kline.", "tickers", "engine.health"):
        subscriber.subscribe(topic)
    assert preferred(1_000) == []
    subscriber.subscribe("kline.XRPUSDT.1h")
    assert preferred(2_000) == ["XRPUSDT"]
    assert preferred(3_000) == ["XRPUSDT"]
    played.add("XRPUSDT")
    assert preferred(4_000) == []
    assert played.health()["waiting"] == ["ETHUSDT"]


def test_what_many_subscribe_at_once_is_sent_once_in_parts_and_completely() -> None:
    symbols = [f"S{index}USDT" for index in range(100)]
    played = PlayedEngine(symbols_max=len(symbols))
    for symbol in symbols:
        played.add(symbol)
        played.apply(batch([Trade(1, START, 100, 7)], symbol=symbol))
    subscriber = Subscriber(played)
    for _ in range(10_000):
        subscriber.snapshots.subscription(b"\x01kline.")
    parts = [list(subscriber.snapshots.owed(0))]
    # A subscriber that comes meanwhile gets all as well, and nobody starts again from the first topic.
    subscriber.snapshots.subscription(b"\x01kline.")
    parts.append(list(subscriber.snapshots.owed(0)))
    assert parts[1][0][0] != parts[0][0][0]
    while subscriber.snapshots.owes:
        parts.append(list(subscriber.snapshots.owed(0)))
    assert max(map(len, parts)) < OWED_ROWS_MAX + OWED_TOPICS
    topics = [topic for part in parts for topic, _ in part]
    everything = [kline_topic(symbol, name).encode() for symbol in symbols for name in INTERVAL_NAMES]
    assert topics[: len(everything)] == everything
    assert topics[len(everything) :] == everything[: len(parts[0])]


def test_subscribing_and_giving_up_by_turns_is_as_if_it_was_done_once() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    subscriber = Subscriber(played)
    for _ in range(1_000):
        subscriber.snapshots.subscription(b"\x01kline.")
        subscriber.snapshots.subscription(b"\x00kline.")
    assert subscriber.owed() == []
    played.apply(batch([Trade(1, START, 100, 7)]))
    assert subscriber.due() == {}
    subscriber.snapshots.subscription(b"\x00kline.BTC")
    for _ in range(3):
        subscriber.unsubscribe("kline.")
    assert subscriber.snapshots.odd == 4
    assert len(subscriber.subscribe("kline.")) == len(INTERVAL_NAMES)


def test_odd_subscriptions_break_nothing_and_are_counted() -> None:
    played = PlayedEngine()
    played.add()
    played.apply(batch([Trade(0, START, 100, 7)]))
    subscriber = Subscriber(played)
    for message in (b"", b"\x02kline.", b"kline.", b"\xff" * 1_000, b"\x00", b"\x00kline.\xff"):
        subscriber.snapshots.subscription(message)
        assert subscriber.owed() == []
    assert subscriber.snapshots.odd == 6
    for prefix in (b"\x00", b"\xff\xff", b"kline.\x00", b"kline.BTCUSDT.1m\x00", b"\xf0\x9f", b"x" * 1_000):
        subscriber.snapshots.subscription(b"\x01" + prefix)
        assert subscriber.owed() == []
    played.apply(batch([Trade(1, START, 100, 7)]))
    assert subscriber.due() == {}
    assert len(subscriber.subscribe("")) == len(INTERVAL_NAMES)
    assert subscriber.snapshots.odd == 6
