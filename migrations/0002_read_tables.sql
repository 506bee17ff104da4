-- The inline projections: written in the same transaction as the events they are folded from, and reproducible from them.

-- One row per instance, deleted ones included.
CREATE TABLE instance (
    lane smallint NOT NULL,
    id uuid NOT NULL,
    version integer NOT NULL, -- of the stream: the row is the fold of this many events
    tenant_id text NOT NULL,
    customer_id text NOT NULL,
    idempotency_key text NOT NULL,
    status text NOT NULL,
    provisioning_stage text NOT NULL,
    region_id text NOT NULL,
    tier_id text NOT NULL,
    tier_name text,
    preset_id text NOT NULL,
    runtime_type text NOT NULL,
    workload_type text NOT NULL,
    capabilities json NOT NULL,
    agent_name text,
    customer_email text, -- ciphertext
    hostname text,
    vpn_ip text,
    ip_address text,
    provider text,
    server_type text,
    location text,
    server_id text,
    attempt integer NOT NULL,
    pending_action_id text, -- a provider action whose end nobody has seen yet
    bootstrap_stage text,
    bootstrap_seq integer,
    agent_key_hash text, -- SHA-256 of the agent's API key, hex
    health_status text,
    error_code text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    wake_at timestamptz, -- when the control plane next has something to do here
    deleted_at timestamptz,
    PRIMARY KEY (lane, id)
) WITH (fillfactor = 70);

CREATE INDEX instance_by_customer ON instance (tenant_id, customer_id, created_at DESC, id DESC);
CREATE INDEX instance_by_tenant ON instance (tenant_id, created_at DESC, id DESC);
CREATE INDEX instance_by_age ON instance (created_at DESC, id DESC);
CREATE INDEX instance_by_key ON instance (tenant_id, idempotency_key, created_at DESC);
CREATE INDEX instance_due ON instance (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX instance_pending_action ON instance (provider) WHERE pending_action_id IS NOT NULL;
CREATE INDEX instance_running ON instance (lane, id) WHERE status = 'running';

-- What a customer is told about the making and unmaking of an instance; one row per event that says something.
CREATE TABLE provision_log (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    seq integer NOT NULL, -- the event's version in its stream
    level text NOT NULL,
    stage text,
    message text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (lane, instance_id, seq)
);

-- What is unique across lanes. A value that was released stays as a row, so that it is not taken again at once.
CREATE TABLE reservation (
    kind text NOT NULL CHECK (kind IN ('hostname', 'vpn_ip', 'provider_id', 'idempotency_key')),
    value text NOT NULL,
    instance_id uuid NOT NULL,
    version integer NOT NULL,
    reserved_at timestamptz NOT NULL,
    released_at timestamptz,
    PRIMARY KEY (kind, value, instance_id)
);

CREATE UNIQUE INDEX reservation_held ON reservation (kind, value) WHERE released_at IS NULL;
CREATE INDEX reservation_by_instance ON reservation (instance_id);
