"""Who watches what: subscriptions, one encoding for all, and what a slow viewer loses."""

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.viz.hub import LIVE_ROWS_MAX, OUTBOX_MAX, RESYNC_MIN_S, Hub, Viewer
from services.viz.rows import row_of
from shared.snapshot import Snapshot, Tickers
from tests.viz.played import kline, made_up

ROWS = made_up("BTCUSDT", "1m", 20)
MINUTE = 60_000


class Watcher:
    """A viewer, and what it would show: the newest row of each open time, the figures of each symbol."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.histories_wanted = 0
        self.wakes = 0
        self.rows: dict[int, dict[str, Any]] = {}
        self.symbols: dict[str, list[Any]] = {}
        self.texts: list[bytes] = []
        self.viewer = Viewer(self._wake, self._want)
        assert hub.join(self.viewer)

    def _wake(self) -> None:
        self.wakes += 1

    def _want(self) -> None:
        self.histories_wanted += 1

    def read_history(self, saved: list[Snapshot] | None = None) -> None:
        self.hub.put_history(self.viewer, self.viewer.watch, [row_of(row) for row in saved or []])

    def take(self) -> list[dict[str, Any]]:
        texts = self.viewer.take()
        self.texts += texts
        messages = [json.loads(text) for text in texts]
        for message in messages:
            match message["kind"]:
                case "history":
                    self.rows |= {row["open_time"]: row for row in message["rows"]}
                case "kline":
                    self.rows[message["row"]["open_time"]] = message["row"]
                case "tickers":
                    self.symbols = message["symbols"] if message["whole"] else self.symbols | message["symbols"]
        return messages


def new_hub(log: list[str] | None = None) -> Hub:
    notes = [] if log is None else log
    return Hub(lambda topic: notes.append(f"+{topic}"), lambda topic: notes.append(f"-{topic}"))


def tickers(figures: dict[str, str], session: int = 1) -> Tickers:
    column = list(figures.values())
    return Tickers(
        sequence=1,
        session=session,
        exchange_time=1,
        symbols=list(figures),
        last=column,
        open_24h=column,
        high_24h=column,
        low_24h=column,
        volume_24h=column,
        quote_volume_24h=column,
        active=[True] * len(column),
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=80))
def test_a_slow_viewer_skips_versions_and_still_ends_with_every_newest_row(rounds: list[tuple[int, bool]]) -> None:
    hub = new_hub()
    fast, slow = Watcher(hub), Watcher(hub)
    for watcher in (fast, slow):
        hub.watch(watcher.viewer, "BTCUSDT", "1m")
        watcher.read_history()
    newest: dict[int, int] = {}
    for version, (index, slow_reads) in enumerate(rounds):
        row = msgspec.structs.replace(ROWS[index], trade_count=version)
        hub.snapshot(row, 0.0)
        newest[row.open_time] = version
        fast.take()
        assert fast.rows[row.open_time]["trade_count"] == version
        if slow_reads:
            slow.take()
    slow.take()
    for watcher in (fast, slow):
        assert {open_time: row["trade_count"] for open_time, row in watcher.rows.items()} == newest
    assert fast.viewer.skipped == 0
    assert fast.viewer.dropped == slow.viewer.dropped == 0


def test_a_message_is_encoded_once_for_all_who_watch_its_topic() -> None:
    hub = new_hub()
    watchers = [Watcher(hub) for _ in range(3)]
    for watcher in watchers:
        hub.watch(watcher.viewer, "BTCUSDT", "1m")
        watcher.read_history()
        watcher.take()
    hub.snapshot(ROWS[0], 0.0)
    for watcher in watchers:
        watcher.take()
    assert watchers[0].texts[-1] is watchers[1].texts[-1] is watchers[2].texts[-1]


def test_a_viewer_who_never_reads_holds_a_bounded_outbox_and_asks_for_its_history() -> None:
    hub = new_hub()
    stuck = Watcher(hub)
    hub.watch(stuck.viewer, "BTCUSDT", "1m")
    stuck.read_history()
    stuck.take()
    surplus = 10
    for index in range(OUTBOX_MAX + surplus):
        hub.snapshot(kline("BTCUSDT", "1m", index * MINUTE, "1111"), 0.0)
    assert stuck.viewer.dropped == surplus
    assert stuck.histories_wanted == 1 + surplus
    assert len(stuck.viewer.take()) == OUTBOX_MAX
    stuck.read_history()
    stuck.take()
    assert len(stuck.rows) == OUTBOX_MAX + surplus


STEP = st.one_of(
    st.tuples(st.just("join"), st.just(""), st.just(0)),
    st.tuples(st.just("leave"), st.just(""), st.integers(0, 5)),
    st.tuples(st.just("watch"), st.sampled_from(["A", "B", "C"]), st.integers(0, 5)),
)


@given(st.lists(STEP, max_size=60))
def test_exactly_the_topics_that_someone_watches_are_subscribed(steps: list[tuple[str, str, int]]) -> None:
    log: list[str] = []
    hub = new_hub(log)
    present: list[Watcher] = []
    for step, symbol, index in steps:
        if step == "join":
            present.append(Watcher(hub))
        elif present:
            watcher = present[index % len(present)]
            if step == "leave":
                hub.leave(watcher.viewer)
                present.remove(watcher)
            else:
                hub.watch(watcher.viewer, symbol, "1m")
        subscribed = {entry[1:] for entry in log if log.count(f"+{entry[1:]}") > log.count(f"-{entry[1:]}")}
        assert subscribed == {watcher.viewer.topic for watcher in present if watcher.viewer.topic}
        assert subscribed == set(hub.topics)
        assert all(log.count(f"+{topic}") - log.count(f"-{topic}") <= 1 for topic in subscribed)


def test_whoever_comes_later_gets_the_live_rows_that_came_before() -> None:
    hub = new_hub()
    first, second = Watcher(hub), Watcher(hub)
    hub.watch(first.viewer, "BTCUSDT", "1m")
    for row in ROWS[-3:]:
        hub.snapshot(row, 0.0)
    hub.watch(second.viewer, "BTCUSDT", "1m")
    assert second.histories_wanted == 1
    second.read_history(ROWS[:-3])
    second.take()
    assert sorted(second.rows) == [row.open_time for row in ROWS]


def test_live_rows_wait_for_the_history_and_the_history_for_the_first_live_row() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.watch(watcher.viewer, "BTCUSDT", "1m")
    assert watcher.histories_wanted == 0
    hub.snapshot(ROWS[-1], 0.0)
    assert watcher.histories_wanted == 1
    assert watcher.take() == []
    watcher.read_history(ROWS[:-1])
    assert [message["kind"] for message in watcher.take()] == ["history"]
    hub.snapshot(ROWS[-1], 0.0)
    assert [message["kind"] for message in watcher.take()] == ["kline"]


def test_a_history_that_was_asked_for_before_the_viewer_moved_on_is_not_sent() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.watch(watcher.viewer, "BTCUSDT", "1m")
    asked = watcher.viewer.watch
    hub.watch(watcher.viewer, "ETHUSDT", "1m")
    assert not hub.put_history(watcher.viewer, asked, [row_of(ROWS[0])])
    assert watcher.take() == []


def test_rows_of_a_topic_that_was_left_are_not_sent_any_more() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.watch(watcher.viewer, "BTCUSDT", "1m")
    watcher.read_history()
    hub.snapshot(ROWS[-1], 0.0)
    hub.watch(watcher.viewer, "ETHUSDT", "1m")
    hub.snapshot(ROWS[-1], 0.0)
    assert watcher.take() == []


def test_another_session_of_the_engine_makes_histories_be_read_again() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.watch(watcher.viewer, "BTCUSDT", "1m")
    hub.snapshot(msgspec.structs.replace(ROWS[-2], session=1), 0.0)
    watcher.read_history()
    watcher.take()
    wanted = watcher.histories_wanted
    hub.snapshot(msgspec.structs.replace(ROWS[-1], session=2), 1.0)
    assert watcher.histories_wanted == wanted + 1
    watcher.read_history()
    assert [row["open_time"] for row in watcher.take()[0]["rows"]] == [ROWS[-1].open_time]


def test_a_topic_with_lost_messages_is_asked_for_again_but_not_all_the_time() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.watch(watcher.viewer, "BTCUSDT", "1m")
    hub.snapshot(ROWS[-1], 0.0)
    assert hub.note_lost("kline.BTCUSDT.1m", 10.0)
    hub.snapshot(ROWS[-1], 10.0)
    assert watcher.histories_wanted == 2
    assert not hub.note_lost("kline.BTCUSDT.1m", 10.0 + RESYNC_MIN_S / 2)
    assert hub.note_lost("kline.BTCUSDT.1m", 10.0 + RESYNC_MIN_S)
    assert not hub.note_lost("kline.ETHUSDT.1m", 100.0)


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("ABCDE"), st.sampled_from(["1", "2", "3"]), max_size=5), st.booleans()
        ),
        min_size=1,
        max_size=30,
    )
)
def test_changes_of_tickers_add_up_for_whoever_skips_some(rounds: list[tuple[dict[str, str], bool]]) -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    for figures, reads in rounds:
        hub.tickers(tickers(figures), 0.0)
        if reads:
            watcher.take()
            assert {symbol: entry[0] for symbol, entry in watcher.symbols.items()} == figures
    late = Watcher(hub)
    for each in (watcher, late):
        each.take()
        assert {symbol: entry[0] for symbol, entry in each.symbols.items()} == rounds[-1][0]


def test_only_the_symbols_that_changed_are_sent() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.tickers(tickers({"A": "1", "B": "1"}), 0.0)
    assert watcher.take()[0]["whole"]
    hub.tickers(tickers({"A": "1", "B": "2"}), 0.0)
    message = watcher.take()[0]
    assert not message["whole"]
    assert list(message["symbols"]) == ["B"]


def test_tickers_with_columns_of_different_length_are_refused_and_counted() -> None:
    hub = new_hub()
    hub.tickers(msgspec.structs.replace(tickers({"A": "1", "B": "1"}), last=["1"]), 0.0)
    assert hub.refused == 1
    assert hub.symbols() == {}


def test_symbols_of_the_database_stand_in_until_the_engine_speaks() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.saved_symbols({"A": "5"})
    watcher.take()
    assert watcher.symbols["A"][0] == "5"
    hub.tickers(tickers({"B": "1"}), 0.0)
    hub.saved_symbols({"A": "5"})
    watcher.take()
    assert list(watcher.symbols) == ["B"]


WELL = {
    "started": True,
    "connected": True,
    "exchange_time": 5_000,
    "trade_time": 4_900,
    **dict.fromkeys(("trade_age_s", "feed_age_s", "saved_age_s", "gap_age_s"), 0.0),
}


def status_of(watcher: Watcher) -> dict[str, Any]:
    (status,) = (message for message in watcher.take() if message["kind"] == "status")
    return status


def test_every_beat_says_how_old_each_report_is_and_who_comes_receives_the_last_one() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.set_database("not there")
    hub.send_status(0.0)
    status = status_of(watcher)
    assert (status["engine"], status["engine_age"], status["database"]) == ("absent", None, "not there")
    hub.set_database("")
    hub.engine_health(WELL, 1.0)
    hub.send_status(1.25)
    status = status_of(watcher)
    assert (status["engine"], status["engine_age"], status["trade_age"], status["feed_age"]) == ("live", 250, 250, 250)
    assert (status["feed"], status["time"], status["trade_time"]) == ("connected", 5_250, 4_900)
    # Figures of symbols are a message of the engine, and none of the market.
    hub.tickers(tickers({"A": "1"}), 1.5)
    hub.send_status(1.75)
    status = status_of(watcher)
    assert (status["engine_age"], status["trade_age"]) == (250, 750)
    hub.send_status(10.0)
    assert status_of(watcher)["engine"] == "silent"
    assert next(m for m in Watcher(hub).take() if m["kind"] == "status")["engine_age"] == 8_500


def test_what_changes_the_state_of_things_is_sent_at_once() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.set_database("")
    hub.engine_health(WELL, 1.0)
    assert status_of(watcher)["engine"] == "live"
    hub.engine_health(WELL | {"trade_age_s": 0.3}, 1.5)
    assert watcher.take() == []
    hub.engine_health(WELL | {"trade_age_s": 5.0}, 2.0)
    assert status_of(watcher)["trade_age"] == 5_000
    hub.engine_health(WELL, 2.2)
    assert status_of(watcher)["trade_age"] == 0


def test_history_proof_and_lag_are_sent() -> None:
    hub = new_hub()
    watcher = Watcher(hub)

    def sent(name: str, **figures: object) -> Any:
        hub.health = WELL | figures
        hub.send_status(1.0)
        return status_of(watcher)[name]

    hub.engine_health(WELL, 1.0)
    assert sent("history", announced=46, to_announce=204, announce_ms=61_000) == [46, 204, 2]
    assert sent("history", announced=204, to_announce=204, announce_ms=0) is None
    audit = {"matched": 7, "burnt": 2, "straddled": 1, "mismatched": 4}
    assert sent("proof", missing_ids=3, unexplained_ids=12, audit=audit) == [3, 12, 7, 3, 4]
    assert sent("proof") is None
    assert [sent("lag", lag_ms=lag_ms) for lag_ms in (1_999, 3_200, 0)] == [0, 3, 0]
    assert sent("silences", silences=[[1, 2]]) == [[1, 2]]


def test_symbols_that_wait_for_their_history_are_listed_without_figures() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.engine_health(WELL | {"listed": True, "waiting": ["A", "B"]}, 1.0)
    (message,) = (message for message in watcher.take() if message["kind"] == "tickers")
    assert message["listed"]
    assert message["symbols"] == {name: ["", "", "", "", "", "", True, True] for name in "AB"}
    hub.tickers(tickers({"A": "1"}), 1.1)
    watcher.take()
    assert [watcher.symbols[name][-1] for name in "AB"] == [False, True]
    hub.engine_health(WELL | {"listed": True, "waiting": []}, 1.2)
    watcher.take()
    assert list(watcher.symbols) == ["A"]


def test_another_session_of_the_engine_is_counted_as_a_restart() -> None:
    hub = new_hub()
    for session in (5, 5, 6):
        hub.engine_health(WELL | {"session": session, "restarts": {"ingest": 3}}, 1.0)
    assert hub.figures(1.0)["restarts"] == {"engine": 1, "ingest": 3}


def test_a_database_that_comes_back_makes_histories_be_read_again() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.watch(watcher.viewer, "BTCUSDT", "1m")
    hub.set_database("gone")
    assert watcher.histories_wanted == 0
    hub.set_database("")
    assert watcher.histories_wanted == 1


def test_the_live_rows_kept_of_a_topic_are_the_newest_and_bounded() -> None:
    hub = new_hub()
    watcher = Watcher(hub)
    hub.watch(watcher.viewer, "BTCUSDT", "1m")
    for index in range(LIVE_ROWS_MAX + 5):
        hub.snapshot(kline("BTCUSDT", "1m", index * MINUTE, "1111"), 0.0)
    watcher.read_history()
    watcher.take()
    assert sorted(watcher.rows) == [index * MINUTE for index in range(5, LIVE_ROWS_MAX + 5)]
