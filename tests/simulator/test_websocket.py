"""The websocket side over real sockets: what is delivered where, what is answered, and what costs the connection."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from tests.simulator.served import Served, collect, served, subscribe


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


def replies(simulator: Served, *messages: str, path: str = "/market/stream") -> list[Any]:
    """Send messages one by one on a connection without streams and return what each was answered."""
    with simulator.socket(path) as socket:
        answers = []
        for message in messages:
            socket.send(message)
            answers.append(json.loads(socket.recv(10)))
        return answers


def test_control_messages_are_answered_as_the_exchange_does(simulator: Served) -> None:
    answers = replies(
        simulator,
        '{"method":"SUBSCRIBE","params":["nosuch@aggTrade"],"id":1}',
        '{"method":"LIST_SUBSCRIPTIONS","id":2}',
        '{"method":"UNSUBSCRIBE","params":["nosuch@aggTrade"],"id":3}',
        '{"method":"LIST_SUBSCRIPTIONS","id":4}',
        '{"method":"GET_PROPERTY","params":["combined"],"id":5}',
    )
    assert answers == [
        {"result": None, "id": 1},
        {"result": ["nosuch@aggTrade"], "id": 2},
        {"result": None, "id": 3},
        {"result": [], "id": 4},
        {"result": True, "id": 5},
    ]


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ('{"method":"SHOUT","params":[],"id":1}', 2, "unknown variant `SHOUT`"),
        ('{"params":[],"id":1}', 2, "missing field `method`"),
        ('{"method":"SUBSCRIBE","params":["a@aggTrade"],"id":-1}', 2, "unsigned integer"),
        ('{"method":"SUBSCRIBE","params":"a@aggTrade","id":1}', 2, "params must be a sequence"),
        ('{"method":"SUBSCRIBE","params":[7],"id":1}', 2, "stream name must be a string"),
        ('{"method":"SET_PROPERTY","params":["combined","yes"],"id":1}', 1, "expected Boolean"),
        ('{"method":"GET_PROPERTY","params":["mood"],"id":1}', 0, "Unknown property"),
    ],
)
def test_a_wrong_control_message_gets_its_error(simulator: Served, message: str, code: int, text: str) -> None:
    (answer,) = replies(simulator, message)
    assert answer["error"]["code"] == code
    assert text in answer["error"]["msg"]


def test_broken_json_costs_the_connection(simulator: Served) -> None:
    with simulator.socket("/market/stream") as socket:
        socket.send("{nonsense")
        assert json.loads(socket.recv(10))["error"]["code"] == 3
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_the_1025th_stream_costs_the_connection(simulator: Served) -> None:
    with simulator.socket("/market/stream") as socket:
        subscribe(socket, *(f"x{index}usdt@aggTrade" for index in range(1_024)))
        socket.send('{"method":"SUBSCRIBE","params":["one@aggTrade"],"id":2}')
        assert json.loads(socket.recv(10)) == {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": 2}
        with pytest.raises(ConnectionClosed):
            socket.recv(10)


def test_too_many_messages_a_second_cost_the_connection(simulator: Served) -> None:
    def flood(socket: ClientConnection) -> None:
        for request_id in range(100):
            socket.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": request_id}))
        for _ in range(100):
            socket.recv(10)

    with simulator.socket("/market/stream") as socket, pytest.raises(ConnectionClosed) as closed:
        flood(socket)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.reason == "Too many requests"


def test_a_stream_is_delivered_on_its_own_route_alone(simulator: Served) -> None:
    for path, kinds in {"/market/stream": {"aggTrade"}, "/public/stream": {"trade"}, "/private/stream": set()}.items():
        with simulator.socket(path) as socket:
            subscribe(socket, "btcusdt@aggTrade", "btcusdt@trade")
            messages = (collect(socket, 60, 1) if kinds else []) + collect(socket, 1.5)
            assert {message["data"]["e"] for message in messages} == kinds, path


def test_trades_arrive_with_the_fields_of_their_stream(simulator: Served) -> None:
    with simulator.socket("/market/stream?streams=btcusdt@aggTrade") as socket:
        messages = collect(socket, 60, 20)
    assert {message["stream"] for message in messages} == {"btcusdt@aggTrade"}
    ids = [message["data"]["a"] for message in messages]
    assert ids == list(range(ids[0], ids[0] + 20))
    assert {"e", "E", "s", "a", "p", "q", "f", "l", "T", "m"} <= set(messages[0]["data"])
    with simulator.socket("/public/ws/btcusdt@trade") as socket:
        trades = collect(socket, 60, 20)
    ids = [trade["t"] for trade in trades]
    assert ids == list(range(ids[0], ids[0] + 20))
    assert {"e", "E", "T", "s", "t", "p", "q", "X", "m"} <= set(trades[0])


def test_the_ticker_of_all_symbols_comes_every_second(simulator: Served) -> None:
    with simulator.socket("/market/ws/!miniTicker@arr") as socket:
        first, second = collect(socket, 20, 2)
    assert {row["s"] for row in first} <= {row["symbol"] for row in simulator.get("/fapi/v1/exchangeInfo")["symbols"]}
    assert {"e", "E", "s", "c", "o", "h", "l", "v", "q"} <= set(second[0])
    assert second[0]["E"] > first[0]["E"]


def test_kline_events_are_the_klines_of_rest(simulator: Served) -> None:
    with simulator.socket("/market/ws/btcusdt@kline_1m") as socket:
        event = collect(socket, 60, 1)[0]["k"]
    rows = simulator.get("/fapi/v1/klines", symbol="BTCUSDT", interval="1m", startTime=event["t"], limit=1)
    assert rows[0][0] == event["t"]
    assert rows[0][1] == event["o"]
    assert rows[0][6] == event["T"]


def test_who_is_not_subscribed_any_more_gets_nothing(simulator: Served) -> None:
    with simulator.socket("/market/stream") as socket:
        subscribe(socket, "btcusdt@aggTrade")
        assert collect(socket, 60, 1)
        socket.send('{"method":"UNSUBSCRIBE","params":["btcusdt@aggTrade"],"id":9}')
        while json.loads(socket.recv(10)).get("id") != 9:
            pass
        assert collect(socket, 0.5) == []


def test_an_address_that_is_none_is_404(simulator: Served) -> None:
    with pytest.raises(InvalidStatus) as refused:
        simulator.socket("/elsewhere/stream")
    assert refused.value.response.status_code == 404
