-- The whole database of HydraCore, commented. The numbered steps in migrations/ lead to exactly this; a test compares both.

-- Which migrations have been applied (`hydracore db migrate` keeps it).
CREATE TABLE migration (
    name text PRIMARY KEY,
    digest bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- The migrations that lead to this file, each with the SHA-256 of its text, so that a database that was made from this file can be
-- migrated further.
INSERT INTO migration (name, digest) VALUES
    ('0001_log', '\x993261912c01b508f887d89616bbd7aad4c171ed11644b1d665bf41bbfd80b7e'),
    ('0002_read_tables', '\x3fe723efb7b06dad5ce80113c698ce3db8c6901c34c3b8aa84c147bcc71f7255'),
    ('0003_operations', '\x51488a2ccc4d7be7fd65ecdfd84b8a128961d2334f925d555e4ce6f03490580b'),
    ('0004_roles', '\x424e9f77106646db5afb6fc1264df91f92da259a5a591c933242fddf55ff30d9'),
    ('0005_usage', '\xdee91e116ef87087dab68524a89b08613a83743d78b4e02379c3f1ff0e0f62ca'),
    ('0006_seals', '\x7317d896b5692eeb901946134c74fc9891b0e8b108e1d76a542b0fbd55acca2a'),
    ('0007_projections', '\xbb39520d3afc1de3fda3e904b1736eac50efd26a77797220d14ca6ade16552df'),
    ('0008_hearing', '\xd45d6a11d16ec237b9aa4497794bff3fe9838a86f3db68317141aafa7d214b9e'),
    ('0009_history_of_a_tenant', '\x9c73c33d503badb2c80dc464df9fd7f970945ce56e94c7bd1504179137ebca00'),
    ('0010_missing_servers', '\xe7768cda6522e1368ed2e523d45e907f871f982ec13e7a038257c4e076078070'),
    ('0011_erasures', '\x501ad49341a45cd941d828ca2f3a18f7471c7828ceb1b4a6d12360b644e4f327'),
    ('0012_projections_without_a_row', '\x67645ac9dde42beeed39ad0582963ec6f44e82244014e9c01e495ce8b288c664'),
    ('0013_undoing', '\x3ed5fb8867d72c8a89002287e9002f1bdcad3ef183ca12dd9f49a9be649280be'),
    ('0014_ledger_read', '\xadb9bc2e9b0bbc62ab88edf94c44009cf2e7ef8c69efa331b3d19b0d2498bbbb'),
    ('0015_command_lookup', '\x3b5f9ca17b2e985889a7acf4ad3314ea2397d54d0ce1d35d23dbc882e97c900a'),
    ('0016_lighter_appends', '\x8f88517ae67b00ffb6ae9ca9bf0803e6f1cb2fc7d8f050e889572ce32026c369'),
    ('0017_looks_uncounted', '\xe4466d3f5ddaca8a43f242dc954db42b473639e86af046b59b045b4bbdc39fb4'),
    ('0018_lists_without_deleted', '\x79f7017e35caff82b1c401a4e234dd147990d6c81c7db81010562317bec27f5b'),
    ('0019_indexes_in_place', '\x6767e76218e5ae032cf0355785e2d68aabd77a79b32920ad8fb0b9ddfd897e0b'),
    ('0020_acting_owner', '\x69e68f2f5376bd63d4762fb7c50c3c9dd9ba819c7216b80814e6492f0adaf952'),
    ('0021_snapshots', '\x79b3ac1eafa0ef5a8d746cd4caecef53a0ea220b8e3c16597b5b51393f6de2de'),
    ('0022_making_way_for_heads', '\xb46a819f9b6515230caebc6774b0bffd3e6b212bb0dd09be48f930271d052446'),
    ('0023_heads_of_commands', '\xd602863efbfc69a747f9dfe6b87765375482ab39d9422f1da741eea41311a5a6'),
    ('0024_keys_in_no_statistics', '\xf72eaebf88a1730daf9987f60bd1afe879a63f17dd94dc200ce0390a7f657568'),
    ('0025_second_provision_log', '\x3a163b652e412a1ef05f365780e07706e8a986932f64145825c9ca871f5ee12a'),
    ('0026_last_sweep', '\x35adcc3647837c490d8cea0e6080acfda9194f9208fd10cdb065a24a1368cb6e');

-- The event log: 64 ordered lanes, dense numbers that are taken under a lock, a hash chain per lane.

-- One row per lane. An append locks its lane's row until commit and takes the numbers behind the lane's last command. The lock is
-- released by the commit, so the order of numbers is the order of commits and a lane has no gaps, ever. The row itself is never
-- updated: as long as any transaction is open, its old versions could not be removed, and every append would have to read past them.
CREATE TABLE lane (
    lane smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63)
);

INSERT INTO lane (lane) SELECT generate_series(0, 63);

-- One row per instance: how many events its stream has.
CREATE TABLE stream (
    lane smallint NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (lane, stream_id)
) WITH (fillfactor = 70);

-- One row per command that caused events: idempotency, who and why, and the lane's chain.
CREATE TABLE command (
    lane smallint NOT NULL,
    command_id uuid NOT NULL,
    stream_id uuid NOT NULL,
    tenant_id text NOT NULL,
    name text NOT NULL,
    actor text NOT NULL,
    correlation_id uuid NOT NULL,
    causation_id uuid,
    request_hash bytea,
    result json,
    first_seq bigint NOT NULL,
    event_count integer NOT NULL CHECK (event_count > 0),
    digest bytea NOT NULL,
    link bytea NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (lane, command_id)
);

CREATE UNIQUE INDEX command_lane_first_seq ON command (lane, first_seq);

-- Where each lane ends. Forged numbers must not make it fail, hence `least`. Lanes cannot be locked through this view, because the
-- heads would be those from before the lock: PostgreSQL refuses FOR UPDATE on an outer join.
CREATE VIEW lane_head AS
SELECT l.lane,
       coalesce(least(k.first_seq, 9223372036854775807 - k.event_count) + k.event_count - 1, 0) AS head,
       coalesce(k.link, decode(repeat('00', 32), 'hex')) AS link,
       coalesce(k.recorded_at, '-infinity') AS recorded_at
  FROM lane l
  LEFT JOIN LATERAL (SELECT k.first_seq, k.event_count, k.link, k.recorded_at
                       FROM command k
                      WHERE k.lane = l.lane
                      ORDER BY k.first_seq DESC
                      LIMIT 1) k ON true;

-- Everything of a tenant in one order (`hydracore audit show --tenant`). The events of a command share its time and follow each
-- other, so an order of the commands is one of the events, and an index of the commands is the smaller one.
CREATE INDEX command_by_tenant ON command (tenant_id, recorded_at, lane, first_seq);

-- The events. `payload` is json and not jsonb so that the exact bytes survive: the digest is taken over them.
CREATE TABLE event (
    lane smallint NOT NULL,
    seq bigint NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    tenant_id text NOT NULL,
    type text NOT NULL,
    schema_version smallint NOT NULL,
    payload json NOT NULL,
    digest bytea NOT NULL,
    command_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (lane, seq)
);

CREATE UNIQUE INDEX event_lane_stream_version ON event (lane, stream_id, version);
-- Each process asks at its start whether any customer was erased. Without this index, a log without erasures would be read completely.
CREATE INDEX event_erasure ON event (lane, seq) WHERE type = 'customer_erased';

-- How far each follower has read each lane. Moved forward by compare-and-set in the follower's own transaction.
CREATE TABLE checkpoint (
    follower text NOT NULL,
    lane smallint NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (follower, lane)
) WITH (fillfactor = 50);

-- The keys that personal fields are encrypted with, one per customer, wrapped by a key that is not in the database.
-- Destroying one (wrapped_key goes, destroyed_at comes) erases the customer's personal data from all of history.
CREATE TABLE customer_key (
    tenant_id text NOT NULL,
    customer_id text NOT NULL,
    wrapped_key bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    destroyed_at timestamptz,
    PRIMARY KEY (tenant_id, customer_id),
    CHECK ((wrapped_key IS NULL) = (destroyed_at IS NOT NULL))
);

-- ANALYZE keeps samples of a column in the catalogue until it runs again, which may be never. A destroyed key must not remain there.
ALTER TABLE customer_key ALTER COLUMN wrapped_key SET STATISTICS 0;

-- Appends a batch of commands, each whole or not at all, in one round trip.
--
-- `lanes`: the lane of each command; `commands`: a JSON array with an object per command, at most one per stream; `events`:
-- an array with an object per event, each naming its command by `ordinal`, from 1. Every lane of the batch is locked
-- first, in order, so that two batches cannot deadlock. Everything is looked up after the lock: in READ COMMITTED, each
-- statement of a volatile function sees what was committed before it, so a retry finds its first attempt. Per command, in
-- order, the answer is `appended`, `landed` (this very append is there: the answer to an earlier try was lost), `duplicate`
-- (another one has its id; with what was stored) or `conflict` (with the version that is there). A command may name the
-- digest of the event that it was decided on: after a restore, a process may remember another event under the same version.
--
-- The JSON is read once and everything is written by one statement, because most of a small statement's cost is its start.
-- One plan serves every batch. A scan of a whole table is never right in it, but a plan that was made while the log was
-- small would contain one for minutes; hence the two settings.
CREATE FUNCTION append_commands(lanes smallint[], commands json, events json)
RETURNS TABLE (
    ordinal integer,
    outcome text,
    version_after integer,
    seq_before bigint,
    known_request_hash bytea,
    known_result json
) LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    r record;
    heads bigint[] := array_fill(NULL::bigint, ARRAY[64]);
    links bytea[] := array_fill(NULL::bytea, ARRAY[64]);
    times timestamptz[] := array_fill(NULL::timestamptz, ARRAY[64]);
    at integer;
    -- What is appended, by ordinal; NULL for what is not.
    new_commands command[] := array_fill(NULL::command, ARRAY[cardinality(lanes)]);
    new_streams stream[] := array_fill(NULL::stream, ARRAY[cardinality(lanes)]);
BEGIN
    PERFORM FROM lane l WHERE l.lane = ANY (lanes) ORDER BY l.lane FOR UPDATE;
    -- A statement of its own: this one sees what was committed before the locks were had.
    FOR r IN
        SELECT h.lane, h.head, h.link, h.recorded_at
          FROM lane_head h
         WHERE h.lane = ANY (lanes)
    LOOP
        at := r.lane + 1;
        heads[at] := r.head;
        links[at] := r.link;
        times[at] := greatest(r.recorded_at, clock_timestamp()); -- a lane's time never goes back
    END LOOP;

    ordinal := 0;
    FOR r IN
        SELECT c.lane, c.command_id, c.stream_id, c.tenant_id, c.name, c.actor, c.correlation_id, c.causation_id,
               decode(c.request_hash, 'hex') AS request_hash, c.result, c.event_count,
               decode(c.digest, 'hex') AS digest, c.expected_version,
               (SELECT s.version FROM stream s WHERE s.lane = c.lane AND s.stream_id = c.stream_id) AS version,
               decode(c.expected_digest, 'hex') AS expected_digest,
               CASE WHEN c.expected_digest IS NOT NULL THEN
                   (SELECT e.digest
                      FROM event e
                     WHERE e.lane = c.lane AND e.stream_id = c.stream_id AND e.version = c.expected_version)
               END AS found_digest,
               k.first_seq AS known_seq, k.request_hash AS known_hash, k.result AS known_result,
               k.digest AS known_digest
          FROM json_to_recordset(commands) AS c (
               lane smallint, command_id uuid, stream_id uuid, tenant_id text, name text, actor text,
               correlation_id uuid, causation_id uuid, request_hash text, result json, event_count integer, digest text,
               expected_version integer, expected_digest text)
          -- By a range of one id and in its order: where the log was small when this was planned, an equation would do as well by
          -- the other index of commands, and read all of the lane.
          LEFT JOIN LATERAL (SELECT k.first_seq, k.request_hash, k.result, k.digest
                               FROM command k
                              WHERE k.lane = c.lane AND k.command_id >= c.command_id AND k.command_id <= c.command_id
                              ORDER BY k.command_id
                              LIMIT 1) k ON true
    LOOP
        -- Here and not by a constraint of the table: the server reads a constraint anew in every statement.
        IF r.lane <> get_byte(uuid_send(r.stream_id), 15) & 63 THEN
            RAISE EXCEPTION 'stream % does not belong to lane %', r.stream_id, r.lane USING ERRCODE = 'check_violation';
        END IF;
        ordinal := ordinal + 1;
        version_after := coalesce(r.version, 0);
        seq_before := NULL;
        known_request_hash := r.known_hash;
        known_result := r.known_result;
        IF r.known_seq IS NOT NULL THEN
            outcome := CASE WHEN r.known_digest = r.digest THEN 'landed' ELSE 'duplicate' END;
            seq_before := r.known_seq - 1;
        ELSIF version_after <> r.expected_version OR r.found_digest IS DISTINCT FROM r.expected_digest THEN
            outcome := 'conflict';
        ELSE
            outcome := 'appended';
            at := r.lane + 1;
            seq_before := heads[at];
            links[at] := sha256(links[at] || r.digest || int8send(seq_before + 1)
                         || int8send((extract(epoch FROM times[at]) * 1000000)::bigint));
            heads[at] := seq_before + r.event_count;
            version_after := version_after + r.event_count;
            new_streams[ordinal] := ROW(r.lane, r.stream_id, version_after)::stream;
            new_commands[ordinal] := ROW(r.lane, r.command_id, r.stream_id, r.tenant_id, r.name, r.actor, r.correlation_id,
                r.causation_id, r.request_hash, r.result, seq_before + 1, r.event_count, r.digest, links[at],
                times[at])::command;
        END IF;
        RETURN NEXT;
    END LOOP;

    WITH new_command AS (
        INSERT INTO command (lane, command_id, stream_id, tenant_id, name, actor, correlation_id, causation_id,
                             request_hash, result, first_seq, event_count, digest, link, recorded_at)
        SELECT c.lane, c.command_id, c.stream_id, c.tenant_id, c.name, c.actor, c.correlation_id, c.causation_id,
               c.request_hash, c.result, c.first_seq, c.event_count, c.digest, c.link, c.recorded_at
          FROM unnest(new_commands) AS c
         WHERE c.lane IS NOT NULL
    ), new_event AS (
        INSERT INTO event (lane, seq, stream_id, version, tenant_id, type, schema_version, payload, digest, command_id,
                           recorded_at)
        SELECT c.lane, c.first_seq + e.n, c.stream_id, e.version, c.tenant_id, e.type, e.schema_version, e.payload,
               decode(e.digest, 'hex'), c.command_id, c.recorded_at
          FROM json_to_recordset(events) AS e (ordinal integer, n integer, version integer, type text,
                                               schema_version smallint, payload json, digest text)
          JOIN unnest(new_commands) WITH ORDINALITY AS c ON c.ordinality = e.ordinal
         WHERE c.lane IS NOT NULL
    )
    INSERT INTO stream (lane, stream_id, version)
    SELECT s.lane, s.stream_id, s.version
      FROM unnest(new_streams) AS s
     WHERE s.lane IS NOT NULL
    ON CONFLICT (lane, stream_id) DO UPDATE SET version = excluded.version;
END
$$;

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

-- Lists leave out deleted instances, of which there are ever more. With that as a column, one index serves lists without them and with
-- them, which would take two that have it as a condition.
CREATE INDEX instance_by_customer ON instance (tenant_id, customer_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_tenant ON instance (tenant_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_age ON instance ((status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_key ON instance (idempotency_key, tenant_id, created_at DESC);
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

-- State of operation: nothing here is derived from events, and if all of it is lost, no fact is lost.

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

-- Periodic duties. The relay whose update moves `ran_at` does the duty, so that of two relays only one does it.
CREATE TABLE duty (
    name text PRIMARY KEY,
    ran_at timestamptz NOT NULL
);

-- Servers with our label that no instance accounts for, with the time of each first sighting.
CREATE TABLE orphan (
    provider text NOT NULL,
    server_id text NOT NULL,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL DEFAULT now(), -- as `sightings`, only for workers of the previous release
    sightings integer NOT NULL DEFAULT 1,
    PRIMARY KEY (provider, server_id)
);

-- Servers that the log has and their provider does not show, with the time of the first sweep that missed each.
CREATE TABLE missing_server (
    provider text NOT NULL,
    server_id text NOT NULL,
    first_missed_at timestamptz NOT NULL,
    misses integer NOT NULL DEFAULT 1, -- only for workers of the previous release
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

-- The role that runs the app. It can add to the log and cannot change or remove what is there.
-- Roles belong to the cluster, so this one may exist already: made for another database, or by an administrator. An owner who
-- may not create roles only has to be a member of it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hydracore_app') THEN
        CREATE ROLE hydracore_app NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database made it at the same moment
END
$$;

DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'hydracore_app', 'MEMBER') THEN
        EXECUTE format('GRANT hydracore_app TO %I', current_user);
    END IF;
END
$$;

-- Since PostgreSQL 16, the creator of a role is a member who may grant it but not act as it, and `MEMBER` above is true for that. The
-- owner has to act as the app when it repeats erasures after a restore.
DO $$
BEGIN
    -- Nested, because older servers do not know the privilege `SET`.
    IF current_setting('server_version_num')::integer >= 160000 THEN
        IF NOT pg_has_role(current_user, 'hydracore_app', 'SET') THEN
            EXECUTE format('GRANT hydracore_app TO %I WITH SET TRUE', current_user);
        END IF;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    NULL; -- Only somebody else can grant it. Everything except repeated erasures works without.
END
$$;

GRANT USAGE ON SCHEMA public TO hydracore_app;
GRANT SELECT ON migration TO hydracore_app;
GRANT SELECT, INSERT ON event, command TO hydracore_app;
GRANT SELECT, UPDATE ON lane TO hydracore_app; -- whoever locks a row must be allowed to write to it
GRANT SELECT ON lane_head TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON stream, checkpoint TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON customer_key TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON instance, provision_log, reservation TO hydracore_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON heartbeat, attention, duty, orphan, missing_server TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON api_key TO hydracore_app;

-- The followed projection of usage: read tables that are updated shortly after the log, in the same transaction as the follower's
-- checkpoint.

-- What an instance used on a day (UTC).
CREATE TABLE usage_daily (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    day date NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24, 12) NOT NULL,
    PRIMARY KEY (lane, instance_id, day)
);

-- Which end users (keyed digests) an instance served on a day.
CREATE TABLE usage_end_user (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    day date NOT NULL,
    end_user text NOT NULL,
    PRIMARY KEY (lane, instance_id, day, end_user)
);

-- A follower that cannot process an event parks its lane: the other lanes go on, the error is shown, and the event is tried again later.
ALTER TABLE checkpoint ADD COLUMN parked_until timestamptz, ADD COLUMN error text;

GRANT SELECT, INSERT, UPDATE ON usage_daily TO hydracore_app;
GRANT SELECT, INSERT ON usage_end_user TO hydracore_app;

-- Seals: signed statements of each lane's last number and link. A lane that was cut off, or rewritten with links that fit each
-- other, does not fit its seals. The signing key is not in the database, and copies of all seals are kept outside it.

-- Lane n's head and link are element n + 1 of `heads` and bytes 32 n to 32 n + 31 of `links`. `root`: the Merkle root (RFC 6962)
-- over them; `previous`: SHA-256 of what the seal before signs, zeros for the first; `signature`: Ed25519.
CREATE TABLE seal (
    number bigint PRIMARY KEY CHECK (number > 0), -- dense from 1
    sealed_at timestamptz NOT NULL,
    heads bigint[] NOT NULL CHECK (cardinality(heads) = 64),
    links bytea NOT NULL CHECK (octet_length(links) = 2048),
    root bytea NOT NULL,
    previous bytea NOT NULL,
    public_key bytea NOT NULL,
    signature bytea NOT NULL
);

GRANT SELECT, INSERT ON seal TO hydracore_app;

-- Projections as things with a version and generations: which code's rows a table holds, and which build of it is served.

-- The versions that are served now. Writers whose code has another version are refused (`check_projections`) or wait (followers).
CREATE TABLE projection (
    name text PRIMARY KEY,
    version integer NOT NULL,
    generation integer NOT NULL,
    swapped_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO projection (name, version, generation)
VALUES ('instance', 1, 1), ('reservation', 1, 1), ('usage_daily', 1, 1), ('fleet', 1, 1), ('activity', 1, 1),
       ('provision_log', 2, 1);

-- Every build of a projection that still exists. The tables of the live one are in the schema of all other tables; those of any
-- other build are in a schema of its own, `NAME_gN`, under the same names. States: folding (lanes are being folded into bare tables),
-- indexed (keys and indexes are there; it follows the log), live, previous (was live; kept for a rollback).
CREATE TABLE projection_generation (
    name text NOT NULL,
    generation integer NOT NULL,
    version integer NOT NULL,
    tables text[] NOT NULL,
    state text NOT NULL CHECK (state IN ('folding', 'indexed', 'live', 'previous')),
    began_at timestamptz NOT NULL DEFAULT now(),
    replaced_at timestamptz, -- when a previous one was last live: a rollback takes the latest
    PRIMARY KEY (name, generation)
);

INSERT INTO projection_generation (name, generation, version, tables, state)
SELECT name, generation, version,
       CASE name WHEN 'usage_daily' THEN ARRAY['usage_daily', 'usage_end_user']
                 WHEN 'fleet' THEN ARRAY['fleet', 'fleet_member']
                 ELSE ARRAY[name] END,
       'live'
  FROM projection;

-- The progress of a build: each lane is folded up to `target` in one transaction, by whoever locks its row.
CREATE TABLE projection_lane (
    name text NOT NULL,
    generation integer NOT NULL,
    lane smallint NOT NULL,
    target bigint NOT NULL,
    folded_at timestamptz,
    PRIMARY KEY (name, generation, lane),
    FOREIGN KEY (name, generation) REFERENCES projection_generation (name, generation) ON DELETE CASCADE
);

-- What operators did about events that a projection could not process. A skipped event stays skipped for this version until it is
-- unskipped.
CREATE TABLE projection_intervention (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    version integer NOT NULL,
    lane smallint NOT NULL,
    seq bigint NOT NULL,
    action text NOT NULL CHECK (action IN ('skip', 'unskip', 'retry')),
    error text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX projection_intervention_skipped ON projection_intervention (name, version, lane, seq) WHERE action = 'skip';

-- The events that a version of a projection skips: those that were skipped and not unskipped afterwards.
CREATE VIEW projection_skipped AS
SELECT i.name, i.version, i.lane, i.seq
  FROM projection_intervention i
 WHERE i.action = 'skip'
   AND NOT EXISTS (SELECT
                     FROM projection_intervention u
                    WHERE u.name = i.name AND u.version = i.version AND u.lane = i.lane AND u.seq = i.seq
                      AND u.action = 'unskip' AND u.id > i.id);

-- Refuses an append whose inline rows were made for another version of the tables than the live one, or for tables without a row in
-- `projection`. It runs after the lanes are locked, so it sees what a swap that held them has committed.
CREATE FUNCTION check_projections(names text[], versions integer[]) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    live record;
BEGIN
    -- The usual case, in a statement that is as cheap for any number of names: it is not planned anew each time.
    IF (SELECT count(*) FROM projection p WHERE p.version = versions[array_position(names, p.name)]) = cardinality(names) THEN
        RETURN;
    END IF;
    FOR live IN
        SELECT w.name, p.version
          FROM unnest(names, versions) AS w (name, version)
          LEFT JOIN projection p ON p.name = w.name
         WHERE p.version IS DISTINCT FROM w.version
    LOOP
        IF live.version IS NULL THEN
            RAISE EXCEPTION 'projection % has no row in the table projection', live.name USING ERRCODE = 'undefined_object';
        END IF;
        RAISE EXCEPTION 'projection % is at version %', live.name, live.version
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END LOOP;
END
$$;

-- How many instances entered and left each state, by the hour in which that was recorded. The count at a moment is the sum of the
-- entries minus the sum of the exits until then.
CREATE TABLE fleet (
    lane smallint NOT NULL,
    hour timestamptz NOT NULL,
    status text NOT NULL,
    provider text NOT NULL, -- empty until a placement was chosen
    region_id text NOT NULL,
    tier_id text NOT NULL,
    entries bigint NOT NULL,
    exits bigint NOT NULL,
    PRIMARY KEY (lane, hour, status, provider, region_id, tier_id)
);

-- Where each instance is counted in `fleet` now.
CREATE TABLE fleet_member (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    status text NOT NULL,
    provider text NOT NULL,
    region_id text NOT NULL,
    tier_id text NOT NULL,
    PRIMARY KEY (lane, instance_id)
);

-- Who did what: commands and the events they caused, per tenant, actor and day (UTC).
CREATE TABLE activity (
    lane smallint NOT NULL,
    tenant_id text NOT NULL,
    day date NOT NULL,
    actor text NOT NULL,
    command text NOT NULL,
    commands bigint NOT NULL,
    events bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (lane, tenant_id, day, actor, command)
);

CREATE INDEX activity_by_tenant ON activity (tenant_id, day);

GRANT SELECT ON projection, projection_generation, projection_intervention, projection_skipped TO hydracore_app;
GRANT SELECT, UPDATE ON projection_lane TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON fleet, fleet_member, activity TO hydracore_app;

-- The period in which heartbeats could be received: the API extends it every few seconds, and begins a new one if it was not extended
-- for a while. The silence of an agent counts only while a heartbeat would have been received.
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

-- States of long streams, so that a process that starts need not read them from their beginnings (`events/snapshots.py`). They are not
-- part of the log: without them everything works, only slower.

-- `digest`: of the event at `version`. `fold`: the version of the code that made the state.
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

-- What the last sweep left for an operator to do, so that `hydracore stuck` can show it without asking the providers.
CREATE TABLE last_sweep (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    ended_at timestamptz NOT NULL,
    result json NOT NULL -- `SweepResult` of workers/sweep_findings.py
);

GRANT SELECT, INSERT, UPDATE ON last_sweep TO hydracore_app;
