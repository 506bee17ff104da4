-- Since when, and until when, heartbeats could be heard: the API writes here every few seconds, and whoever finds that nobody
-- has for a while begins anew. The silence of an agent counts only while somebody would have heard it.
CREATE TABLE hearing (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    since timestamptz NOT NULL,
    until timestamptz NOT NULL
) WITH (fillfactor = 10);

GRANT SELECT, INSERT, UPDATE ON hearing TO hydracore_app;

-- For how many seconds an agent has been silent whose last heartbeat came then.
CREATE FUNCTION silent_s(received_at timestamptz) RETURNS double precision LANGUAGE sql STABLE STRICT AS $$
    SELECT extract(epoch FROM coalesce(CASE WHEN h.until < now() - interval '15 s' THEN h.until END, now())
                              - greatest(received_at, h.since))::double precision
      FROM (SELECT) one
      LEFT JOIN hearing h ON true
$$;
