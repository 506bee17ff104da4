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
-- `commands`: a JSON array with an object per command, at most one per stream; `events`: an array with an object per
-- event, in order, each naming its command by `ordinal`. Every lane of the batch is locked first, in order, so that two
-- batches cannot deadlock. Only after the lock is anything looked up: each statement of a volatile function sees what
-- was committed before it, so a retry finds its first self. Per command the answer is `appended`, `duplicate` (with what
-- was stored) or `conflict` (with the version that is there). A command may name the digest of the event that it was
-- decided on: after a restore, a process may remember another event under the same version.
CREATE FUNCTION append_commands(commands json, events json)
RETURNS TABLE (
    ordinal integer,
    outcome text,
    version_after integer,
    seq_before bigint,
    known_request_hash bytea,
    known_result json
) LANGUAGE plpgsql AS $$
DECLARE
    r record;
    heads bigint[] := array_fill(NULL::bigint, ARRAY[64]);
    links bytea[] := array_fill(NULL::bytea, ARRAY[64]);
    times timestamptz[] := array_fill(NULL::timestamptz, ARRAY[64]);
    at integer;
    -- What is appended, one entry a command.
    a_ordinal integer[] := '{}';
    a_seq bigint[] := '{}';
    a_link bytea[] := '{}';
    a_time timestamptz[] := '{}';
BEGIN
    FOR r IN
        SELECT h.lane, h.head, h.link, h.recorded_at
          FROM lane_head h
         WHERE h.lane IN (SELECT c.lane FROM json_to_recordset(commands) AS c (lane smallint))
         ORDER BY h.lane
           FOR UPDATE
    LOOP
        at := r.lane + 1;
        heads[at] := r.head;
        links[at] := r.link;
        times[at] := greatest(r.recorded_at, clock_timestamp()); -- a lane's time never goes back
    END LOOP;

    FOR r IN
        SELECT c.ordinal, c.lane, c.expected_version, c.event_count, decode(c.digest, 'hex') AS digest,
               (SELECT s.version FROM stream s WHERE s.lane = c.lane AND s.stream_id = c.stream_id) AS version,
               decode(c.expected_digest, 'hex') AS expected_digest,
               CASE WHEN c.expected_digest IS NOT NULL THEN
                   (SELECT e.digest
                      FROM event e
                     WHERE e.lane = c.lane AND e.stream_id = c.stream_id AND e.version = c.expected_version)
               END AS found_digest,
               k.first_seq, k.request_hash, k.result
          FROM json_to_recordset(commands) AS c (ordinal integer, lane smallint, command_id uuid, stream_id uuid,
                                                 expected_version integer, expected_digest text, event_count integer,
                                                 digest text)
          LEFT JOIN LATERAL (SELECT k.first_seq, k.request_hash, k.result
                               FROM command k
                              WHERE k.lane = c.lane AND k.command_id = c.command_id
                             OFFSET 0) k ON true
         ORDER BY c.ordinal
    LOOP
        ordinal := r.ordinal;
        version_after := coalesce(r.version, 0);
        seq_before := NULL;
        known_request_hash := r.request_hash;
        known_result := r.result;
        IF r.first_seq IS NOT NULL THEN
            outcome := 'duplicate';
            seq_before := r.first_seq - 1;
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
            a_ordinal := a_ordinal || r.ordinal;
            a_seq := a_seq || seq_before + 1;
            a_link := a_link || links[at];
            a_time := a_time || times[at];
        END IF;
        RETURN NEXT;
    END LOOP;

    IF a_ordinal = '{}' THEN
        RETURN;
    END IF;
    INSERT INTO command (lane, command_id, stream_id, tenant_id, name, actor, correlation_id, causation_id, request_hash,
                         result, first_seq, event_count, digest, link, recorded_at)
    SELECT c.lane, c.command_id, c.stream_id, c.tenant_id, c.name, c.actor, c.correlation_id, c.causation_id,
           decode(c.request_hash, 'hex'), c.result::json, a.first_seq, c.event_count, decode(c.digest, 'hex'), a.link,
           a.recorded_at
      FROM json_to_recordset(commands) AS c (ordinal integer, lane smallint, command_id uuid, stream_id uuid,
                                             tenant_id text, name text, actor text, correlation_id uuid,
                                             causation_id uuid, request_hash text, result text, event_count integer,
                                             digest text)
      JOIN unnest(a_ordinal, a_seq, a_link, a_time) AS a (ordinal, first_seq, link, recorded_at)
        ON a.ordinal = c.ordinal;
    INSERT INTO event (lane, seq, stream_id, version, tenant_id, type, schema_version, payload, digest, command_id,
                       recorded_at)
    SELECT e.lane, a.first_seq + e.n, e.stream_id, e.version, e.tenant_id, e.type, e.schema_version, e.payload::json,
           decode(e.digest, 'hex'), e.command_id, a.recorded_at
      FROM json_to_recordset(events) AS e (ordinal integer, n integer, lane smallint, stream_id uuid, version integer,
                                           tenant_id text, type text, schema_version smallint, payload text,
                                           digest text, command_id uuid)
      JOIN unnest(a_ordinal, a_seq, a_time) AS a (ordinal, first_seq, recorded_at) ON a.ordinal = e.ordinal;
    INSERT INTO stream (lane, stream_id, version)
    SELECT c.lane, c.stream_id, c.expected_version + c.event_count
      FROM json_to_recordset(commands) AS c (ordinal integer, lane smallint, stream_id uuid, expected_version integer,
                                             event_count integer)
     WHERE c.ordinal = ANY (a_ordinal)
    ON CONFLICT (lane, stream_id) DO UPDATE SET version = excluded.version;
    UPDATE lane_head h
       SET head = n.head, link = n.link, recorded_at = n.recorded_at
      FROM unnest(heads, links, times) WITH ORDINALITY AS n (head, link, recorded_at, ordinal)
     WHERE h.lane = n.ordinal - 1 AND n.head > h.head;
END
$$;
