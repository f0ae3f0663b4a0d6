"""The whole pipeline on virtual time, without a socket: the real engine, and an exchange, a feed and a store that fail.

    python -m tests.seeds --seeds 10000
    python -m tests.seeds --seed 7

A seed decides the market and every fault: trades that are lost, late, doubled and out of order, questions that are not
answered, an exchange that does not go back far enough, a feed, a store and an engine that end at any moment, a database
that is away for longer than memory lasts. In the end everything is left alone, and what the store has must be what was
traded: every kline of every interval, and the ids must prove it. What is expected is computed one trade at a time from
the list of trades (tests/engine/played.py: expected) and shares no code with the engine.

Each seed also has a first start of its own across the end of an hour, a day, a week or a month, with a number of klines
that `exchange.backfill_rows` allows (starts.py).

The feed keeps its list of symbols and its recent trades with ingest's own `Symbols` and `Recent`; the rest of ingest
and persist is I/O, which `make chaos` is for.
"""
