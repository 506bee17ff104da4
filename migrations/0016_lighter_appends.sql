-- Two things took an eighth of what an append costs the server: a constraint that was read anew in every statement, and a check
-- that was planned anew each time. The first is made where rows are written, the second is cheaper.
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

CREATE OR REPLACE FUNCTION check_projections(names text[], versions integer[]) RETURNS void LANGUAGE plpgsql STABLE AS $$
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

-- Last, as it keeps everybody from the table until the commit.
ALTER TABLE stream DROP CONSTRAINT stream_check;
