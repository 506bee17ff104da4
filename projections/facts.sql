-- Facts, the input of followed projections: an event with its position, its time, and the command that caused it.

-- name: with_payload
-- Whether a reader wants the payload of the event `e`, and not only who caused it and when.
({payload_types}::text[] IS NULL OR e.type = ANY ({payload_types}::text[]))

-- name: fact
-- The fact of the event `e` and its command `k`. Where the payload is not wanted, the event's type replaces it.
json_build_object('lane', e.lane, 'seq', e.seq, 'stream_id', e.stream_id, 'tenant_id', e.tenant_id, 'recorded_at', e.recorded_at,
                  'actor', k.actor, 'command', k.name, 'first', k.first_seq = e.seq,
                  'event', CASE WHEN {with_payload} THEN {payload}
                                ELSE json_build_object('type', 'without_payload', 'name', e.type) END)::text

-- name: weight
CASE WHEN {with_payload} THEN {weight} ELSE 0 END

-- name: fact_page
-- A page (`events/pages.py`) after each place. Events of types that no reader wants come without a fact. `$2`: as
-- `payload_types` in `with_payload`.
SELECT p.place, e.seq, e.type, e.upto_bytes,
       CASE WHEN $1::text[] IS NULL OR e.type = ANY ($1::text[]) THEN {fact} END
  FROM unnest($3::smallint[], $4::bigint[], $5::bigint[]) WITH ORDINALITY AS p (lane, after, upto, place)
 CROSS JOIN LATERAL (
       SELECT e.lane, e.seq, e.stream_id, e.tenant_id, e.type, e.schema_version, e.payload, e.command_id, e.recorded_at,
              {weight} AS bytes, sum({weight}) OVER (ORDER BY e.seq ROWS UNBOUNDED PRECEDING) AS upto_bytes
         FROM event e
        WHERE e.lane = p.lane AND e.seq > p.after AND (p.upto IS NULL OR e.seq <= p.upto)
        ORDER BY e.seq
        LIMIT $6::bigint) e
  JOIN command k ON k.lane = e.lane AND k.command_id = e.command_id
 WHERE e.upto_bytes - e.bytes < $7::bigint
 ORDER BY p.place, e.seq

-- name: skipped
-- Events that were skipped by hand. There are never many.
SELECT DISTINCT s.name, s.lane, s.seq
  FROM projection_skipped s
  JOIN unnest($1::text[], $2::integer[]) AS r (name, version)
    ON r.name = s.name AND r.version = s.version
 ORDER BY s.name, s.lane, s.seq

-- name: type_and_stream
SELECT e.type, e.stream_id FROM event e WHERE e.lane = %s AND e.seq = %s

-- name: without_command
SELECT e.lane, e.seq
  FROM unnest(%(lanes)s::smallint[], %(targets)s::bigint[]) AS l (lane, target)
  JOIN event e ON e.lane = l.lane AND e.seq <= l.target
 WHERE NOT EXISTS (SELECT FROM command k WHERE k.lane = e.lane AND k.command_id = e.command_id)
 ORDER BY e.lane, e.seq
 LIMIT 1

-- name: facts_by_stream
-- A row per chunk of a lane, lane after lane. A chunk has at most {chunk} events, and at most {bytes} bytes and one
-- more event. The fact of an event whose command is missing lacks the command's fields, so that it cannot be decoded.
COPY (
    SELECT lane, '[' || string_agg(fact, ',' ORDER BY place) || ']'
      FROM (SELECT e.lane, row_number() OVER by_stream - 1 AS place, sum({weight}) OVER by_stream / {bytes} AS part,
                   {fact} AS fact
              FROM event e
              LEFT JOIN command k ON k.lane = e.lane AND k.command_id = e.command_id
             WHERE e.lane = ANY ({lanes}::smallint[]) AND e.seq <= ({targets}::bigint[])[e.lane + 1]
               AND ({types}::text[] IS NULL OR e.type = ANY ({types}::text[]))
               AND NOT EXISTS (SELECT
                                 FROM projection_skipped s
                                WHERE s.name = {name} AND s.version = {version} AND s.lane = e.lane AND s.seq = e.seq)
            WINDOW by_stream AS (PARTITION BY e.lane ORDER BY e.stream_id, e.version ROWS UNBOUNDED PRECEDING)) facts
     GROUP BY lane, place / {chunk}, part
     ORDER BY lane, place / {chunk}, part
) TO STDOUT (FORMAT binary)
