-- States of long streams, so that a process that begins does not read them from their beginnings (`events/snapshots.py`). They are
-- no part of the log: without them all is the same, and slower.

-- `digest`: of the event at `version`. `fold`: by which rules the state was made.
CREATE TABLE snapshot (
    lane smallint NOT NULL CHECK (lane BETWEEN 0 AND 63),
    stream_id uuid NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    fold smallint NOT NULL,
    digest bytea NOT NULL,
    state json NOT NULL,
    PRIMARY KEY (lane, stream_id)
);

GRANT SELECT, INSERT, UPDATE ON snapshot TO hydracore_app;
