-- Version 5: klines and symbols say which ids nobody has explained.

ALTER TABLE klines
    ADD COLUMN unexplained boolean NOT NULL DEFAULT false,
    ADD COLUMN audited boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN klines.final IS 'Every trade before close_time was applied, or the exchange itself says what the kline is. It is taken back if a trade turns up that belongs here all the same';
COMMENT ON COLUMN klines.unexplained IS 'Ids that belong here, or may, were left out by whoever was asked for them: not final while that is so';
COMMENT ON COLUMN klines.audited IS 'Such ids, and the exchange''s own kline has the same prices, volumes and trades: final by that';

ALTER TABLE symbols ADD COLUMN unexplained jsonb NOT NULL DEFAULT '[]';

COMMENT ON COLUMN symbols.gaps IS 'Ids below last_id that are missing and being asked for';
COMMENT ON COLUMN symbols.unexplained IS 'Ids that were left out of every answer: first and last id, between which times (ms), and what came of it: open; audited, the exchange''s own klines show that they carry no trade; adopted, those klines took the place of ours';
