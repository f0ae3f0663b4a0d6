"""What may be asked for, and history out of a real database."""

import asyncio

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.viz.database import (
    END_MAX,
    LIMIT_MAX,
    BadRequest,
    DatabaseUnavailable,
    HistoryRequest,
    Reader,
    checked_symbol,
    history_request,
)
from services.viz.rows import Row, row_of
from tests.viz.conftest import System, save
from tests.viz.played import made_up


def test_a_question_needs_a_symbol_and_an_interval_only() -> None:
    question = history_request({"symbol": "BTCUSDT", "interval": "1M"})
    assert question == HistoryRequest("BTCUSDT", "1M", 500, END_MAX)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"symbol": ""}, "symbol is missing"),
        ({"symbol": "A/B"}, "cannot be the name"),
        ({"symbol": "A\x00B"}, "cannot be the name"),
        ({"symbol": "A" * 65}, "cannot be the name"),
        ({"interval": ""}, "none of 1m 3m"),
        ({"interval": "2m"}, "none of 1m 3m"),
        ({"limit": "0"}, "from 1 to"),
        ({"limit": str(LIMIT_MAX + 1)}, "from 1 to"),
        ({"limit": "ten"}, "from 1 to"),
        ({"limit": "٣"}, "from 1 to"),
        ({"limit": "9" * 5000}, "from 1 to"),
        ({"end": "-1"}, "from 0 to"),
        ({"end": str(END_MAX + 1)}, "from 0 to"),
        ({"start": "1"}, "no parameter 'start'"),
    ],
)
def test_a_bad_question_is_refused_in_words(change: dict[str, str], complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        history_request({"symbol": "BTCUSDT", "interval": "1m"} | change)


@given(st.dictionaries(st.sampled_from(["symbol", "interval", "limit", "end", "x"]), st.text(max_size=30)))
def test_any_question_is_either_answerable_or_refused(query: dict[str, str]) -> None:
    try:
        question = history_request(query)
    except BadRequest:
        return
    assert checked_symbol(question.symbol)
    assert 1 <= question.limit <= LIMIT_MAX
    assert 0 <= question.end <= END_MAX


def ask(url: str, *questions: HistoryRequest) -> list[list[Row]]:
    async def run() -> list[list[Row]]:
        reader = Reader(lambda: url)
        try:
            return [await reader.history(question) for question in questions]
        finally:
            await reader.close()

    return asyncio.run(run())


def test_history_is_what_was_saved_to_the_last_digit(system: System) -> None:
    url = system.start_database()
    rows = made_up("BTCUSDT", "1m", 30, decimals=5)
    save(url, rows)
    save(url, made_up("BTCUSDT", "3m", 5))
    save(url, made_up("BTCUSDC", "1m", 5))
    expected = [row_of(row) for row in rows]
    everything, newest, older, nothing = ask(
        url,
        HistoryRequest("BTCUSDT", "1m"),
        HistoryRequest("BTCUSDT", "1m", 10),
        HistoryRequest("BTCUSDT", "1m", 10, rows[19].open_time),
        HistoryRequest("BTCUSDT", "1m", 10, rows[0].open_time - 1),
    )
    assert everything == expected
    assert newest == expected[-10:]
    assert older == expected[10:20]
    assert nothing == []


def test_months_and_a_symbol_that_is_not_ascii_come_back_too(system: System) -> None:
    url = system.start_database()
    rows = made_up("币安人生USDT", "1M", 14)
    save(url, rows)
    assert ask(url, HistoryRequest("币安人生USDT", "1M")) == [[row_of(row) for row in rows]]


def test_every_symbol_is_named_with_its_last_price(system: System) -> None:
    url = system.start_database()
    rows = {symbol: made_up(symbol, "1m", 3) for symbol in ("AUSDT", "BUSDT", "CUSDT")}
    for symbol_rows in rows.values():
        save(url, symbol_rows)
    save(url, made_up("DUSDT", "1d", 2))

    async def symbols() -> dict[str, str]:
        reader = Reader(lambda: url)
        try:
            return await reader.symbols()
        finally:
            await reader.close()

    expected = {symbol: symbol_rows[-1].close for symbol, symbol_rows in rows.items()} | {"DUSDT": ""}
    assert asyncio.run(symbols()) == expected


def test_an_absent_database_is_said_in_words_and_not_asked_all_the_time() -> None:
    attempts = 0

    def url() -> str:
        nonlocal attempts
        attempts += 1
        return "host=/nowhere user=klagg dbname=klagg"

    async def run() -> str:
        reader = Reader(url)
        for _ in range(20):
            with pytest.raises(DatabaseUnavailable):
                await reader.probe()
        return reader.error

    assert "/nowhere" in asyncio.run(run())
    assert attempts == 1


def test_a_connection_that_was_cut_is_opened_again(system: System) -> None:
    url = system.start_database()
    rows = made_up("BTCUSDT", "1m", 3)
    save(url, rows)
    question = HistoryRequest("BTCUSDT", "1m")

    async def run() -> list[Row]:
        reader = Reader(lambda: url)
        try:
            await reader.history(question)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
                )
            for _ in range(100):
                try:
                    return await reader.history(question)
                except DatabaseUnavailable:
                    await asyncio.sleep(0.1)
            return []
        finally:
            await reader.close()

    assert asyncio.run(run()) == [row_of(row) for row in rows]
