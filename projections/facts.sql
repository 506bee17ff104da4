-- What followed projections are folded from: an event with its place, time, and who did what it came from.

-- name: fact
-- Of the event `e` and its command `k`.
json_build_object('lane', e.lane, 'seq', e.seq, 'stream_id', e.stream_id, 'tenant_id', e.tenant_id, 'recorded_at', e.recorded_at,
                  'actor', k.actor, 'command', k.name, 'first', k.first_seq = e.seq, 'event', {payload})::text

-- name: of_lanes
-- Up to %(limit)s events from each place on; those of no wanted type without what they say.
SELECT p.place, e.seq, e.type, e.fact
  FROM unnest(%(lanes)s::smallint[], %(after)s::bigint[], %(upto)s::bigint[]) WITH ORDINALITY AS p (lane, after, upto, place)
 CROSS JOIN LATERAL (
       SELECT e.seq, e.type,
              CASE WHEN %(types)s::text[] IS NULL OR e.type = ANY (%(types)s::text[])
                   THEN {fact} END AS fact
         FROM event e
         JOIN command k ON k.lane = e.lane AND k.command_id = e.command_id
        WHERE e.lane = p.lane AND e.seq > p.after AND (p.upto IS NULL OR e.seq <= p.upto)
        ORDER BY e.seq
        LIMIT %(limit)s) e
 ORDER BY p.place, e.seq

-- name: skipped
-- What was passed over by hand: few, ever.
SELECT i.name, i.lane, i.seq
  FROM projection_intervention i
  JOIN unnest(%(names)s::text[], %(versions)s::integer[]) AS r (name, version)
    ON r.name = i.name AND r.version = i.version
 WHERE i.action = 'skip'

-- name: without_command
SELECT e.lane, e.seq
  FROM unnest(%(lanes)s::smallint[], %(targets)s::bigint[]) AS l (lane, target)
  JOIN event e ON e.lane = l.lane AND e.seq <= l.target
 WHERE NOT EXISTS (SELECT FROM command k WHERE k.lane = e.lane AND k.command_id = e.command_id)
 ORDER BY e.lane, e.seq
 LIMIT 1

-- name: of_lanes_by_stream
-- A row per chunk of a lane, lane after lane. An event whose command is missing comes without what it says of that, and is not read.
COPY (
    SELECT lane, '[' || string_agg(fact, ',' ORDER BY place) || ']'
      FROM (SELECT e.lane, row_number() OVER (PARTITION BY e.lane ORDER BY e.stream_id, e.version) - 1 AS place,
                   {fact} AS fact
              FROM event e
              LEFT JOIN command k ON k.lane = e.lane AND k.command_id = e.command_id
             WHERE e.lane = ANY ({lanes}::smallint[]) AND e.seq <= ({targets}::bigint[])[e.lane + 1]
               AND ({types}::text[] IS NULL OR e.type = ANY ({types}::text[]))
               AND NOT EXISTS (SELECT
                                 FROM projection_intervention i
                                WHERE i.name = {name} AND i.version = {version} AND i.lane = e.lane AND i.seq = e.seq
                                  AND i.action = 'skip')) facts
     GROUP BY lane, place / {chunk}
     ORDER BY lane, place / {chunk}
) TO STDOUT (FORMAT binary)
