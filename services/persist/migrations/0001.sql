-- Version 1 of klagg's tables. Each later version is a file of its own (tables.py: MIGRATIONS).

CREATE TABLE klines (
    symbol                  text        NOT NULL,
    interval                text        NOT NULL,
    open_time               timestamptz NOT NULL,
    close_time              timestamptz NOT NULL,
    open                    numeric     NOT NULL,
    high                    numeric     NOT NULL,
    low                     numeric     NOT NULL,
    close                   numeric     NOT NULL,
    volume                  numeric     NOT NULL,
    quote_volume            numeric     NOT NULL,
    trade_count             bigint      NOT NULL,
    taker_buy_volume        numeric     NOT NULL,
    taker_buy_quote_volume  numeric     NOT NULL,
    first_id                bigint      NOT NULL DEFAULT 0,
    last_id                 bigint      NOT NULL DEFAULT 0,
    id_count                bigint      NOT NULL DEFAULT 0,
    open_id                 bigint      NOT NULL DEFAULT 0,
    close_id                bigint      NOT NULL DEFAULT 0,
    closed                  boolean     NOT NULL,
    source                  text        NOT NULL,
    revision                integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (symbol, interval, open_time)
) WITH (
    -- The newest klines are written again and again: with room in their pages, PostgreSQL updates in place.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);

COMMENT ON TABLE klines IS 'One row a kline. Prices and volumes are exact; times are UTC.';
COMMENT ON COLUMN klines.interval IS '1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M, as Binance writes them';
COMMENT ON COLUMN klines.close_time IS 'The last millisecond of the kline';
COMMENT ON COLUMN klines.trade_count IS 'Individual trades';
COMMENT ON COLUMN klines.taker_buy_volume IS 'The part of volume in which the taker bought';
COMMENT ON COLUMN klines.first_id IS 'The range of trade ids in this kline; 0 while there is none. Complete when id_count = last_id - first_id + 1';
COMMENT ON COLUMN klines.open_id IS 'The id of the trade that decided open; void ids never do';
COMMENT ON COLUMN klines.closed IS 'The exchange''s clock has passed close_time';
COMMENT ON COLUMN klines.source IS 'trades: made of trades by id; exchange: the exchange''s own kline; both: begun by the one, gone on with the other';
COMMENT ON COLUMN klines.revision IS 'How often the kline was corrected after it closed';

CREATE TABLE symbols (
    symbol             text           PRIMARY KEY,
    price_decimals     smallint       NOT NULL,
    quantity_decimals  smallint       NOT NULL,
    stream             text           NOT NULL,
    active             boolean        NOT NULL,
    grid_3d            timestamptz    NOT NULL,
    seam_time          timestamptz    NOT NULL,
    last_id            bigint         NOT NULL,
    gaps               int8multirange NOT NULL,
    saved_at           timestamptz    NOT NULL DEFAULT now()
);

COMMENT ON TABLE symbols IS 'What is known of each symbol, saved in one transaction with its klines';
COMMENT ON COLUMN symbols.active IS 'False once the exchange trades it no more';
COMMENT ON COLUMN symbols.grid_3d IS 'An open time of its 3d klines: their grid differs by symbol';
COMMENT ON COLUMN symbols.seam_time IS 'Trades before it are in the klines by way of the exchange''s own; from it on, by id';
COMMENT ON COLUMN symbols.last_id IS 'The highest trade id applied; -1 before the first';
COMMENT ON COLUMN symbols.gaps IS 'Ids below last_id that are missing and being asked for';

CREATE TABLE engine_state (
    only_row       boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    exchange_time  timestamptz NOT NULL
);

COMMENT ON TABLE engine_state IS 'The exchange''s time at the last save';
