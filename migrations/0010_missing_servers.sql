-- Servers that the log has and their provider does not show, with the time of the first look that missed each.
CREATE TABLE missing_server (
    provider text NOT NULL,
    server_id text NOT NULL,
    first_missed_at timestamptz NOT NULL,
    misses integer NOT NULL,
    PRIMARY KEY (provider, server_id)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON missing_server TO hydracore_app;
