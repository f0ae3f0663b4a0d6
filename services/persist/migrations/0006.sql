-- Version 6: the store knows itself, so that an engine notices when it was set back, emptied, or is another's.

ALTER TABLE engine_state
    ADD COLUMN identity uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD COLUMN session bigint NOT NULL DEFAULT 0,
    ADD COLUMN batch bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN engine_state.identity IS 'Made once with the row: other tables have another';
COMMENT ON COLUMN engine_state.session IS 'The engine whose batch was saved last';
COMMENT ON COLUMN engine_state.batch IS 'The number of that batch, saved in one transaction with it';
