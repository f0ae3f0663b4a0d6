-- Version 2: klines say whether they are proven, symbols which klines they lack.

ALTER TABLE klines ADD COLUMN final boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN klines.final IS 'Every trade before close_time was applied: it changes no more';

ALTER TABLE symbols ADD COLUMN lacking jsonb NOT NULL DEFAULT '[]';

COMMENT ON COLUMN symbols.lacking IS 'Klines still to come from the exchange: interval, first and last open time (ms)';

-- What an older klagg saved: a closed kline is final once a later one has ids, and none below those is missing.
UPDATE klines SET final = true
FROM (SELECT symbol, max(open_time) AS newest FROM klines WHERE interval = '1m' AND id_count > 0 GROUP BY symbol) AS of_symbol
JOIN symbols USING (symbol)
WHERE klines.symbol = of_symbol.symbol AND isempty(symbols.gaps) AND closed
    AND (close_time < newest OR source = 'exchange');
