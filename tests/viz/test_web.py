"""The room as a process: what browsers get over HTTP and the websocket, whichever of its neighbours are there."""

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psycopg
from websockets.sync.client import ClientConnection, connect

from harness.processes import Room, wait_for
from services.engine.publisher import ASKED_BYTES_MAX
from services.viz.pace import Pace
from services.viz.rows import row_of
from services.viz.web import ASKED_A_SECOND, ASKED_AT_ONCE, MESSAGES_A_SECOND, MESSAGES_AT_ONCE, QUESTIONS_MAX
from shared.snapshot import Snapshot, kline_topic
from tests.viz.conftest import System, save
from tests.viz.played import made_up

TOPIC = kline_topic("BTCUSDT", "1m")


def get(system: System, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
    """Return status, headers and body, which is read as JSON where it says so."""
    request = urllib.request.Request(f"http://{system.address}{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, fields, body = response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        status, fields, body = error.code, error.headers, error.read()
    return status, fields, json.loads(body) if "json" in fields["Content-Type"] else body


class Page:
    """A websocket as the page opens it, and all it has received."""

    def __init__(self, system: System) -> None:
        self._connection = connect(f"ws://{system.address}/ws", max_size=None, compression=None)
        self.socket: ClientConnection = self._connection.__enter__()
        self.rows: dict[int, dict[str, Any]] = {}
        """What it shows: the last history, and what came live since."""

    def watch(self, symbol: str, interval: str) -> None:
        self.say({"watch": {"symbol": symbol, "interval": interval}})

    def say(self, message: object) -> None:
        self.socket.send(json.dumps(message))

    def next(self, kind: str, holds: Callable[[dict[str, Any]], object] = bool, timeout: float = 20) -> dict[str, Any]:
        """Return the next message of a kind of which something holds; others are taken and passed over."""
        deadline = time.monotonic() + timeout
        while True:
            message = self._receive(deadline)
            if message["kind"] == kind and holds(message):
                return message

    def _receive(self, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.recv(max(0.01, deadline - time.monotonic())))
        if message["kind"] == "history":
            self.rows = {row["open_time"]: row for row in message["rows"]}
        elif message["kind"] == "kline":
            self.rows[message["row"]["open_time"]] = message["row"]
        return message

    def wait_until_it_shows(self, rows: list[Snapshot], timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while [self.rows[open_time] for open_time in sorted(self.rows)] != plain(rows):
            self._receive(deadline)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.__exit__(None, None, None)


def plain(rows: list[Snapshot]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(row_of(row)) for row in rows]


def test_the_page_is_there_before_the_engine_and_the_database_are(system: System) -> None:
    system.start_viz()
    status, headers, body = get(system, "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert b"klagg" in body
    for path in ("/app.js", "/style.css", "/icon.svg"):
        assert get(system, path)[0] == 200
    assert b"TradingView" in get(system, "/lightweight-charts.js")[2]
    health = get(system, "/health")[2]
    assert not health["ok"]
    assert health["engine"]["state"] == "absent"
    assert health["database"]["error"]
    assert get(system, "/api/history?symbol=BTCUSDT&interval=1m")[0] == 503
    with Page(system) as page:
        state = page.next("status")
        assert state["engine"] == "absent"
        assert state["database"]
        page.watch("BTCUSDT", "1m")
        history = page.next("history")
        assert history["rows"] == []
        assert not history["saved"]


def test_history_is_ascending_in_decimal_strings_and_pages_back(system: System) -> None:
    rows = made_up("BTCUSDT", "1m", 50)
    save(system.start_database(), rows)
    system.start_viz()
    wait_for("the database", lambda: get(system, "/health")[2]["database"]["ok"])
    assert get(system, "/api/history?symbol=BTCUSDT&interval=1m")[2] == plain(rows)
    end = rows[20].open_time - 1
    assert get(system, f"/api/history?symbol=BTCUSDT&interval=1m&end={end}&limit=7")[2] == plain(rows[13:20])


def test_a_bad_question_gets_400_and_the_reason(system: System) -> None:
    system.start_viz()
    for query in ("", "?symbol=BTCUSDT", "?symbol=BTCUSDT&interval=1m&limit=x", "?interval=1m&symbol=%00"):
        status, _, body = get(system, f"/api/history{query}")
        assert status == 400
        assert body["error"]


def test_saved_and_unsaved_klines_join_without_hole_or_duplicate(system: System) -> None:
    rows = made_up("BTCUSDT", "1m", 40)
    # The newest saved row is an older version of what the engine has.
    stale = msgspec.structs.replace(rows[35], trade_count=1, id_count=1, closed=False)
    save(system.start_database(), [*rows[:35], stale])
    engine = system.start_engine()
    engine.unsaved[TOPIC] = rows[33:]
    system.start_viz()
    wait_for("everything", lambda: get(system, "/health")[2]["ok"])
    with Page(system) as page:
        page.watch("BTCUSDT", "1m")
        page.wait_until_it_shows(rows)
        newest = msgspec.structs.replace(rows[-1], close="1.23", trade_count=rows[-1].trade_count + 1)
        engine.publish(newest)
        assert page.next("kline", lambda message: message["row"]["close"] == "1.23")["row"] == plain([newest])[0]


def test_the_engine_is_asked_only_for_what_is_watched_and_only_once(system: System) -> None:
    engine = system.start_engine()
    engine.unsaved[TOPIC] = made_up("BTCUSDT", "1m", 2)
    system.start_viz()
    wait_for("the engine", lambda: get(system, "/health")[2]["engine"]["state"] == "live")
    assert engine.held == {"tickers", "engine.health"}
    with Page(system) as first:
        first.watch("BTCUSDT", "1m")
        first.next("history", lambda message: message["rows"])
        with Page(system) as second:
            second.watch("BTCUSDT", "1m")
            assert second.next("history")["rows"] == plain(engine.unsaved[TOPIC])
            assert engine.subscriptions.count(TOPIC) == 1
        first.watch("BTCUSDT", "1h")
        wait_for("the change", lambda: engine.held == {"tickers", "engine.health", "kline.BTCUSDT.1h"})
    wait_for("the end", lambda: engine.held == {"tickers", "engine.health"})


def test_tickers_come_whole_first_and_then_by_change(system: System) -> None:
    engine = system.start_engine()
    engine.figures = {"BTCUSDT": ("100.0", "90.0"), "ETHUSDT": ("10.0", "11.0")}
    system.start_viz()
    with Page(system) as page:
        whole = page.next("tickers", lambda message: message["live"])
        assert whole["whole"]
        assert {symbol: entry[:2] for symbol, entry in whole["symbols"].items()} == {
            "BTCUSDT": ["100.0", "90.0"],
            "ETHUSDT": ["10.0", "11.0"],
        }
        engine.figures = engine.figures | {"ETHUSDT": ("12.0", "11.0")}
        changed = page.next("tickers", lambda message: message["symbols"])
        assert not changed["whole"]
        assert list(changed["symbols"]) == ["ETHUSDT"]
    symbols = get(system, "/api/symbols")[2]
    assert [(row["symbol"], row["last"]) for row in symbols] == [("BTCUSDT", "100.0"), ("ETHUSDT", "12.0")]


BAD_MESSAGES: list[str | bytes] = [
    *("", "{", "[]", "null", "[" * 4000, b"\xff", '{"watch": 1}', '{"watch": {}}'),
    '{"watch": {"symbol": 5, "interval": "1m"}}',
    '{"watch": {"symbol": "A", "interval": "2m"}}',
    '{"watch": {"symbol": "A", "interval": []}}',
]


def test_a_bad_message_gets_an_error_and_the_viewer_stays(system: System) -> None:
    system.start_viz()
    with Page(system) as page:
        for message in BAD_MESSAGES:
            page.socket.send(message)
            assert page.next("error")["error"]
        page.watch("BTCUSDT", "1m")
        assert page.next("history")
    assert get(system, "/health")[2]["bad_messages"] == len(BAD_MESSAGES)


def test_an_engine_that_restarts_is_followed_without_a_word_from_the_viewer(system: System) -> None:
    rows = made_up("BTCUSDT", "1m", 10)
    save(system.start_database(), rows[:-1])
    first = system.start_engine(session=1)
    first.unsaved[TOPIC] = rows[-1:]
    system.start_viz()
    with Page(system) as page:
        page.watch("BTCUSDT", "1m")
        page.next("history", lambda message: message["rows"] == plain(rows))
        first.stop()
        page.next("status", lambda message: message["engine"] == "silent")
        later = msgspec.structs.replace(rows[-1], close="5.55", trade_count=rows[-1].trade_count + 1)
        system.start_engine(session=2, unsaved={TOPIC: [later]})
        page.next("history", lambda message: message["rows"] == plain([*rows[:-1], later]))


def test_a_lost_message_makes_viz_ask_for_the_rows_again(system: System) -> None:
    rows = made_up("BTCUSDT", "1m", 3)
    engine = system.start_engine()
    engine.unsaved[TOPIC] = rows[:2]
    system.start_viz()
    with Page(system) as page:
        page.watch("BTCUSDT", "1m")
        page.wait_until_it_shows(rows[:2])
        engine.unsaved[TOPIC] = rows
        engine.publish(rows[1], lose=2)
        page.wait_until_it_shows(rows)
        assert engine.subscriptions.count(TOPIC) == 2
        wait_for("the count", lambda: get(system, "/health")[2]["lost"] == 2)


def test_a_database_that_comes_later_brings_the_history_by_itself(system: System) -> None:
    rows = made_up("BTCUSDT", "1m", 10)
    url = system.start_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("alter table klines rename to elsewhere")
    engine = system.start_engine()
    engine.unsaved[TOPIC] = rows[-1:]
    system.start_viz()
    with Page(system) as page:
        page.watch("BTCUSDT", "1m")
        early = page.next("history", lambda message: message["rows"])
        assert early["rows"] == plain(rows[-1:])
        assert not early["saved"]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("alter table elsewhere rename to klines")
        save(url, rows[:-1])
        page.next("history", lambda message: message["saved"] and message["rows"] == plain(rows))


def test_a_slow_viewer_costs_the_others_nothing(system: System) -> None:
    save(system.start_database(), made_up("BTCUSDT", "1m", 600))
    row = made_up("BTCUSDT", "1m", 1)[0]
    engine = system.start_engine()
    engine.unsaved[TOPIC] = [row]
    system.start_viz()
    raw = socket.create_connection(("127.0.0.1", system.port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    with connect(f"ws://{system.address}/ws", sock=raw, max_queue=1, max_size=None, close_timeout=0.1) as slow:
        with Page(system) as fast:
            fast.watch("BTCUSDT", "1m")
            fast.next("history", lambda message: message["live"])
            for index in range(60):
                # Megabytes that nobody reads: more than the buffers between the two hold.
                slow.send(json.dumps({"watch": {"symbol": "BTCUSDT", "interval": "1m"}}))
                close = f"1.{index:06}"
                engine.publish(msgspec.structs.replace(row, close=close, trade_count=row.trade_count + 1 + index))
                fast.next("kline", lambda message: message["row"]["close"] == close, timeout=30)  # noqa: B023
        last = ""
        deadline = time.monotonic() + 20
        while close not in last:
            last = str(slow.recv(max(0.01, deadline - time.monotonic())))


def test_a_viewer_who_watches_one_thing_after_the_other_costs_the_engine_a_bounded_number_of_subscriptions(
    system: System,
) -> None:
    engine = system.start_engine()
    system.start_viz()
    row = made_up("BTCUSDT", "1m", 1)[0]
    engine.unsaved[TOPIC] = [row]
    with Page(system) as flood, Page(system) as other:
        other.watch("BTCUSDT", "1m")
        other.next("history", lambda message: message["live"])
        before = len(engine.subscriptions)
        for index in range(5_000):
            flood.watch(f"S{index % 500}USDT", "1m")
        began = time.monotonic()
        while time.monotonic() < began + 2:
            engine.publish(row)
            other.next("kline")
        at_most = MESSAGES_AT_ONCE + MESSAGES_A_SECOND * (time.monotonic() - began)
        assert MESSAGES_AT_ONCE <= len(engine.subscriptions) - before <= at_most + 1


def test_viewers_together_ask_the_engine_for_less_than_it_disconnects_for(system: System) -> None:
    now, spent = 0.0, 0
    pace = Pace(ASKED_AT_ONCE, ASKED_A_SECOND)
    for _ in range(100_000):
        wait = pace.take(600, now)
        now += wait
        spent += 600 * (now < 60)
    assert ASKED_AT_ONCE < spent < ASKED_BYTES_MAX * 0.6


def test_a_flood_of_questions_keeps_no_viewer_waiting(system: System) -> None:
    save(system.start_database(), made_up("BTCUSDT", "1m", 1_500))
    system.start_viz()
    with ThreadPoolExecutor(2 * QUESTIONS_MAX) as pool, Page(system) as page:
        asked = [
            pool.submit(get, system, "/api/history?symbol=BTCUSDT&interval=1m&limit=1500")
            for _ in range(4 * QUESTIONS_MAX)
        ]

        def answered() -> int:
            return sum(one.done() and one.result()[0] == 200 for one in asked)

        before = wait_for("the flood", answered)
        page.watch("BTCUSDT", "1m")
        page.next("history", lambda message: message["saved"])
        # The one that is being answered, and those whose answers are on their way.
        assert answered() - before < QUESTIONS_MAX / 2
        statuses = Counter(one.result()[0] for one in asked)
    assert statuses.keys() == {200, 503}, statuses
    assert statuses[200] >= QUESTIONS_MAX


def test_health_and_its_shorter_forms_say_what_is_not_well(system: System) -> None:
    url = system.start_database()
    system.start_viz()
    assert get(system, "/healthz")[::2] == (200, {"ok": True, "reasons": []})
    assert get(system, "/readyz")[0] == 503
    engine = system.start_engine()
    wait_for("everything", lambda: get(system, "/readyz")[0] == 200)
    health = get(system, "/health")[2]
    assert (health["ok"], health["reasons"], health["restarts"]) == (True, [], {"engine": 0})
    engine.progress = {"waiting": ["ETHUSDT"], "listed": True}
    wait_for("somebody who waits", lambda: "1 symbols wait" in str(get(system, "/readyz")[2]["reasons"]))
    assert get(system, "/health")[2]["ok"]
    engine.progress = {"saved_age_s": 60.0, "rows_unsaved": 7}
    wait_for(
        "the reason", lambda: get(system, "/health")[2]["reasons"] == ["nothing was saved for 60 s: 7 klines wait"]
    )
    assert not get(system, "/health")[2]["ok"]
    assert get(system, "/readyz")[0] == 503
    engine.progress = {}
    wait_for("everything", lambda: get(system, "/readyz")[0] == 200)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("alter table klines rename to elsewhere")
    wait_for("the reason", lambda: "the database does not answer" in str(get(system, "/health")[2]["reasons"]))


def test_a_saved_kline_beside_missing_ids_says_so(system: System) -> None:
    rows = [msgspec.structs.replace(row, final=False) for row in made_up("BTCUSDT", "1m", 6)]
    url = system.start_database()
    save(url, rows)
    first, last = rows[3].first_id, rows[3].last_id
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "insert into symbols (symbol, price_decimals, quantity_decimals, stream, active, grid_3d, seam_time,"
            " proven_time, last_id, gaps) values ('BTCUSDT', 2, 3, 'btcusdt@aggTrade', true, now(), now(), now(), %s,"
            " int8multirange(int8range(%s, %s, '[]')))",
            [rows[-1].last_id, first, last],
        )
    system.start_viz()
    wait_for("the database", lambda: get(system, "/health")[2]["database"]["ok"])
    answer = get(system, "/api/history?symbol=BTCUSDT&interval=1m")[2]
    assert [row["gap"] for row in answer] == [False, False, True, True, True, False]


def test_pages_of_other_sites_and_other_names_of_this_machine_are_refused(system: System) -> None:
    system.start_viz()
    assert get(system, "/health", {"Origin": f"http://{system.address}"})[0] == 200
    assert get(system, "/health", {"Origin": "https://evil.example"})[0] == 403
    assert get(system, "/health", {"Host": f"evil.example:{system.port}"})[0] == 403
    assert get(system, "/health", {"Host": f"localhost:{system.port}"})[0] == 200
    assert get(system, "/../loop.py")[0] == 404
    assert get(system, "/nothing")[0] == 404


def test_it_ends_quickly_and_cleanly_with_viewers_attached(system: System) -> None:
    room = system.start_viz()
    pages = [Page(system) for _ in range(3)]
    for page in pages:
        page.watch("BTCUSDT", "1m")
        page.next("history")
    assert room.stop(signal.SIGTERM) == 0
    assert "Traceback" not in room.log
    for page in pages:
        page.__exit__()


def test_a_taken_port_is_said_in_words(system: System) -> None:
    system.start_viz()
    second = Room("viz", system.config)
    assert second.process.wait(20) == 3
    assert f"cannot listen on 127.0.0.1:{system.port}" in second.log
    assert "Traceback" not in second.log
