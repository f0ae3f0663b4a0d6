-- Version 7: klines say whether their volumes are too large for klagg's numbers.

ALTER TABLE klines ADD COLUMN saturated boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN klines.saturated IS 'More was traded than klagg''s numbers hold: each volume is the true one, or the most that fits. Never final';
COMMENT ON COLUMN klines.revision IS 'How often the kline was corrected after it closed, up to 32767';
