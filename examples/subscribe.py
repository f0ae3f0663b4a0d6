"""Watch klines live, with nothing but pyzmq and msgpack: copy this file anywhere and change it.

    pip install pyzmq msgpack
    python subscribe.py                                          # BTCUSDT 1m from this machine
    python subscribe.py tcp://10.0.0.5:5556 ETHUSDT 1h

Attaching is one step: on subscribing, the engine sends at once every kline of the topic that is not yet in the
database, and the current one; what is in the database and what comes here are together the complete picture. From then
on each change sends the whole row again, so a lost message is healed by the next.
"""

import os
import sys
from datetime import UTC, datetime

import msgpack
import zmq


def main(endpoint: str, symbol: str, interval: str) -> None:
    topic = f"kline.{symbol}.{interval}"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 10_000)  # whoever reads slower than this loses messages, and sees it below
    socket.setsockopt(zmq.IPV6, "[" in endpoint)  # tcp://[::1]:5556
    socket.connect(endpoint)
    socket.subscribe(topic)
    print(f"{endpoint} {topic}: waiting for the first kline; Ctrl-C ends", flush=True)

    session = sequence = lost = 0
    while True:
        name, body = socket.recv_multipart()
        if name.decode() != topic:  # ZeroMQ matches prefixes
            continue
        row = msgpack.unpackb(body)
        if row["session"] == session:
            missing = max(0, row["sequence"] - sequence - 1)
            lost += missing
            if missing:
                print(f"-- {missing} messages lost ({lost} so far); this row is whole again")
        elif session:
            print("-- the engine was restarted")
        session, sequence = row["session"], row["sequence"]
        opened = datetime.fromtimestamp(row["open_time"] / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        state = "final" if row["final"] else "closed" if row["closed"] else "open"
        print(
            f"{opened}  O {row['open']}  H {row['high']}  L {row['low']}  C {row['close']}"
            f"  volume {row['volume']}  trades {row['trade_count']}"
            f"  {state}  from {row['source']}  revision {row['revision']}",
            flush=True,
        )


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["tcp://127.0.0.1:5556", "BTCUSDT", "1m"][len(sys.argv) - 1 :]
    try:
        main(*arguments)
    except BrokenPipeError:  # whoever read this has ended, as `| head` does; at exit Python would flush to it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        pass
