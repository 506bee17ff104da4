-- name: tables
CREATE TABLE reservation (
    kind text NOT NULL CHECK (kind IN ('hostname', 'vpn_ip', 'provider_id', 'idempotency_key')),
    value text NOT NULL,
    instance_id uuid NOT NULL,
    version integer NOT NULL,
    reserved_at timestamptz NOT NULL,
    released_at timestamptz
);
GRANT SELECT, INSERT, UPDATE ON reservation TO hydracore_app

-- name: indexes
ALTER TABLE reservation ADD PRIMARY KEY (kind, value, instance_id);
CREATE UNIQUE INDEX reservation_held ON reservation (kind, value) WHERE released_at IS NULL;
CREATE INDEX reservation_by_instance ON reservation (instance_id)
