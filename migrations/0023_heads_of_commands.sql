-- A lane ends where its last command does. Until now each append also wrote that into its lane's row. While a transaction is open
-- anywhere, such as a backup's, none of a row's earlier versions can be cleaned up, and every append had to pass by all of them: with one
-- that was open for half a minute, half as many appends a second. Rows that are only locked have no versions.

-- What a lane's row says and its commands do not would be lost.
LOCK TABLE lane_head IN ACCESS EXCLUSIVE MODE;
DO $$
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT h.lane, h.head, coalesce(k.first_seq + k.event_count - 1, 0) AS ends
          FROM lane_head h
          LEFT JOIN LATERAL (SELECT k.first_seq, k.event_count
                               FROM command k
                              WHERE k.lane = h.lane
                              ORDER BY k.first_seq DESC
                              LIMIT 1) k ON true
    LOOP
        IF r.head IS DISTINCT FROM r.ends THEN
            RAISE EXCEPTION 'lane_head says that lane % ends with %, and its commands with %: the log was changed', r.lane, r.head, r.ends
                  USING HINT = 'see what "hydracore audit verify" of the version before says, and restore a backup';
        END IF;
    END LOOP;
END
$$;

DROP TABLE lane_head;
CREATE TABLE lane (
    lane smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63)
);
INSERT INTO lane (lane) SELECT generate_series(0, 63);
GRANT SELECT, UPDATE ON lane TO hydracore_app;

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
GRANT SELECT ON lane_head TO hydracore_app;

DROP FUNCTION append_commands_before(smallint[], json, json);
CREATE OR REPLACE FUNCTION append_commands(lanes smallint[], commands json, events json)
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
