"""IPv6 runs: sockets in brackets, and a simulator that ingest reaches."""

import logging

import pytest
import zmq

from harness.processes import free_port
from services.ingest.binance.endpoints import venue_of
from shared.addresses import at
from shared.client import attach, connectable
from shared.config import Config, SimulatorConfig
from shared.process import Formatter
from shared.sockets import bind


def test_snapshots_are_received_at_an_ipv6_address() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    endpoint = f"tcp://[::1]:{free_port()}"
    publisher = bind(context, zmq.XPUB, endpoint)
    subscriber = attach(context, endpoint)
    try:
        subscriber.subscribe(b"")
        assert publisher.poll(10_000)
        assert publisher.recv() == b"\x01"
        publisher.send(b"a kline")
        assert subscriber.poll(10_000)
        assert subscriber.recv() == b"a kline"
    finally:
        publisher.close(linger=0)
        subscriber.close(linger=0)
        context.term()
    assert connectable("tcp://[::]:5556") == "tcp://[::1]:5556"


def test_urls_have_an_ipv6_address_in_brackets() -> None:
    assert (at("::1", 80), at("127.0.0.1", 80)) == ("[::1]:80", "127.0.0.1:80")
    venue = venue_of(Config(simulator=SimulatorConfig(host="::1", port=9080)))
    assert venue.rest == "http://[::1]:9080/fapi/v1"
    assert venue.sockets["market"] == "ws://[::1]:9080/market/stream"


def test_a_line_of_the_log_begins_with_the_time_in_utc() -> None:
    record = logging.makeLogRecord({"msg": "live", "levelname": "INFO", "created": 1_774_000_000.25, "msecs": 250})
    assert Formatter("%(asctime)s %(message)s").format(record) == "2026-03-20T09:46:40.250Z live"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[2J\r", "\\x1b[2J\\r"),
        ("\u2028\udcff", "\\u2028\\udcff"),
        ("币安人生USDT ²", "币安人生USDT ²"),
        ("x" * 2_000, "x" * 2_000),
        ("x" * 10**6, "x" * 2_000 + "... (1000000 characters)"),
    ],
)
def test_whatever_is_shown_is_one_line_that_can_be_seen(text: str, shown: str) -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (text,)})
    assert Formatter("%(message)s").format(record) == shown
