"""What becomes of events that the engine does not take."""

import zmq

from harness.processes import free_port, wait_for
from services.ingest.outbox import Outbox
from shared.kline import TRADE
from shared.wire import AppEvent, FeedState, Instrument, RemoveSymbol, Trades, decode_event, pack_instruments

BATCH = Trades(pack_instruments([Instrument("BTCUSDT", 2, 3)]), bytes(3 * TRADE.itemsize), 1)


def test_trades_are_dropped_and_counted_and_everything_else_is_kept_in_order() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        push.setsockopt(zmq.SNDHWM, 4)
        push.connect(endpoint)
        outbox = Outbox(push)
        # Nobody listens: the queue takes four, and the fifth is dropped.
        for _ in range(5):
            outbox.send(BATCH)
        assert outbox.counts == {"messages": 4, "trades dropped": 3}
        removed = [RemoveSymbol(f"S{index}", index) for index in range(5)]
        for event in removed:
            outbox.send(event)
        outbox.send(FeedState(1, True, 1, 1, 1))
        outbox.send(BATCH)
        assert outbox.counts["trades dropped"] == 6
        assert not outbox.retry()
        pull.bind(endpoint)
        got: list[AppEvent] = []

        def arrived() -> bool:
            done = outbox.retry()
            while pull.poll(20):
                got.append(decode_event(pull.recv()))
            return done and len(got) == 9

        wait_for("all that was kept", arrived)
        assert got == [BATCH] * 4 + removed
        outbox.send(BATCH)
        assert decode_event(pull.recv()) == BATCH
        assert outbox.counts["trades dropped"] == 6
    finally:
        context.destroy(linger=0)
