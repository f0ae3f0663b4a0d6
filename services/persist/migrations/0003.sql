-- Version 3: symbols say up to when they are proven, so that klines become final in the table after they left memory.

ALTER TABLE symbols ADD COLUMN proven_time timestamptz;

CREATE INDEX klines_unproven ON klines (symbol, close_time) WHERE NOT final;

-- What an older klagg saved is proven up to its first kline that is not.
UPDATE symbols SET proven_time = coalesce(
    (SELECT min(open_time) FROM klines WHERE klines.symbol = symbols.symbol AND interval = '1m' AND NOT final),
    seam_time);

ALTER TABLE symbols ALTER COLUMN proven_time SET NOT NULL;

COMMENT ON COLUMN symbols.proven_time IS 'Every trade before it was applied';
