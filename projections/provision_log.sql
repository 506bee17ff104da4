-- name: tables
CREATE TABLE provision_log (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    seq integer NOT NULL,
    level text NOT NULL,
    stage text,
    message text NOT NULL,
    created_at timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON provision_log TO hydracore_app

-- name: indexes
ALTER TABLE provision_log ADD PRIMARY KEY (lane, instance_id, seq)
