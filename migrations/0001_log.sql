-- The event log: 64 ordered lanes, dense numbers from a locked head, a hash chain per lane.

-- One row per lane. An append locks its lane's row until commit and takes the next numbers from it. The lock is released
-- by the commit, so the order of numbers is the order of commits and a lane has no holes, ever.
CREATE TABLE lane_head (
    lane smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    head bigint NOT NULL DEFAULT 0,
    link bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    recorded_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10); -- 64 hot rows: room for HOT updates on the page

INSERT INTO lane_head (lane) SELECT generate_series(0, 63);

-- One row per instance: how many events its stream has.
CREATE TABLE stream (
    lane smallint NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (lane, stream_id),
    CHECK (lane = get_byte(uuid_send(stream_id), 15) & 63)
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

-- Appends a batch of commands, each whole or not at all, in one round trip.
--
-- `lanes`: the lane of each command; `commands`: a JSON array with an object per command, at most one per stream; `events`:
-- an array with an object per event, each naming its command by `ordinal`, from 1. Every lane of the batch is locked
-- first, in order, so that two batches cannot deadlock. Only after the lock is anything looked up: each statement
-- of a volatile function sees what was committed before it, so a retry finds its first self. Per command, in order, the
-- answer is `appended`, `landed` (this very append is there: the answer to an earlier try was lost), `duplicate` (another
-- one has its id; with what was stored) or `conflict` (with the version that is there). A command may name the digest of
-- the event that it was decided on: after a restore, a process may remember another event under the same version.
--
-- The JSON is read once and everything is written by one statement, because what a statement costs here is starting it.
-- One plan serves every batch, and no scan of a whole table is ever right in it: a plan that was made while the log was
-- small would keep one for minutes.
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
    FOR r IN
        SELECT h.lane, h.head, h.link, h.recorded_at
          FROM lane_head h
         WHERE h.lane = ANY (lanes)
         ORDER BY h.lane
           FOR UPDATE
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
          LEFT JOIN LATERAL (SELECT k.first_seq, k.request_hash, k.result, k.digest
                               FROM command k
                              WHERE k.lane = c.lane AND k.command_id = c.command_id
                             OFFSET 0) k ON true
    LOOP
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
    ), new_version AS (
        INSERT INTO stream (lane, stream_id, version)
        SELECT s.lane, s.stream_id, s.version
          FROM unnest(new_streams) AS s
         WHERE s.lane IS NOT NULL
        ON CONFLICT (lane, stream_id) DO UPDATE SET version = excluded.version
    )
    UPDATE lane_head h
       SET head = heads[h.lane + 1], link = links[h.lane + 1], recorded_at = times[h.lane + 1]
     WHERE h.lane = ANY (lanes) AND h.head < heads[h.lane + 1];
END
$$;
