-- Version 2: klines say whether they are proven.

ALTER TABLE klines ADD COLUMN final boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN klines.final IS 'Every trade before close_time was applied: it changes no more';

-- What an older klagg saved: a closed kline is final once a later one has ids, and none below those is missing.
UPDATE klines SET final = true
FROM (SELECT symbol, max(open_time) AS newest FROM klines WHERE interval = '1m' AND id_count > 0 GROUP BY symbol) AS of_symbol
JOIN symbols USING (symbol)
WHERE klines.symbol = of_symbol.symbol AND isempty(symbols.gaps) AND closed
    AND (close_time < newest OR source = 'exchange');
