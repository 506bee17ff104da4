-- What operating needs and history does not: nothing here is derived from events, and losing all of it loses no fact.

-- The last heartbeat of each agent. Only a change of health is an event.
CREATE TABLE heartbeat (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    received_at timestamptz NOT NULL,
    boot_id uuid NOT NULL,
    report json NOT NULL,
    PRIMARY KEY (lane, instance_id)
) WITH (fillfactor = 50);

-- Pace of the work on one instance: when it may be looked at again, and how often it has failed at this version of it.
CREATE TABLE attention (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    version integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    code text,
    PRIMARY KEY (lane, instance_id)
) WITH (fillfactor = 50);

-- Periodic duties: whoever moves `ran_at` does the duty, so that two relays do it once.
CREATE TABLE duty (
    name text PRIMARY KEY,
    ran_at timestamptz NOT NULL
);

-- Servers with our label that no instance accounts for, with the time of each first sighting.
CREATE TABLE orphan (
    provider text NOT NULL,
    server_id text NOT NULL,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    sightings integer NOT NULL,
    PRIMARY KEY (provider, server_id)
);

-- Keys of tenants' backends; only the SHA-256 is kept.
CREATE TABLE api_key (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    name text NOT NULL,
    key_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
