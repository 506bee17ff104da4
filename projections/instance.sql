-- name: tables
CREATE TABLE instance (
    lane smallint NOT NULL,
    id uuid NOT NULL,
    version integer NOT NULL,
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
    customer_email text,
    hostname text,
    vpn_ip text,
    ip_address text,
    provider text,
    server_type text,
    location text,
    server_id text,
    attempt integer NOT NULL,
    pending_action_id text,
    bootstrap_stage text,
    bootstrap_seq integer,
    agent_key_hash text,
    health_status text,
    error_code text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    wake_at timestamptz,
    deleted_at timestamptz
) WITH (fillfactor = 70);
GRANT SELECT, INSERT, UPDATE ON instance TO hydracore_app

-- name: indexes
ALTER TABLE instance ADD PRIMARY KEY (lane, id);
CREATE INDEX instance_by_customer ON instance (tenant_id, customer_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_tenant ON instance (tenant_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_age ON instance ((status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_key ON instance (idempotency_key, tenant_id, created_at DESC);
CREATE INDEX instance_due ON instance (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX instance_pending_action ON instance (provider) WHERE pending_action_id IS NOT NULL;
CREATE INDEX instance_running ON instance (lane, id) WHERE status = 'running'
