-- Version 8: the tables say whose klines they hold.

ALTER TABLE engine_state ADD COLUMN market text;

COMMENT ON COLUMN engine_state.market IS 'exchange.name of the klagg that saves here; another one does not';
