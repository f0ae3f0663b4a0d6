-- Version 4: symbols say what comparing them with the exchange's own klines has shown.

ALTER TABLE symbols ADD COLUMN audit jsonb NOT NULL DEFAULT '{}';

COMMENT ON COLUMN symbols.audit IS 'Minutes compared with the exchange''s own klines: until when (ms), how many of each outcome, and the newest that do not match, with ours and theirs';
