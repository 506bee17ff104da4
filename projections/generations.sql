-- name: served
SELECT g.name, g.generation, g.version, g.tables, g.state
  FROM projection p
  JOIN projection_generation g ON g.name = p.name AND g.generation = p.generation
 WHERE p.name = %s

-- name: newest_in
SELECT name, generation, version, tables, state
  FROM projection_generation
 WHERE name = %(name)s AND state = ANY (%(states)s)
 ORDER BY generation DESC
 LIMIT 1

-- name: all_in
SELECT name, generation, version, tables, state
  FROM projection_generation
 WHERE state = ANY (%s)
 ORDER BY name, generation

-- name: insert_generation
INSERT INTO projection_generation (name, generation, version, tables, state)
SELECT %(name)s, coalesce(max(g.generation), 0) + 1, %(version)s, %(tables)s, 'folding'
  FROM projection_generation g
 WHERE g.name = %(name)s
RETURNING name, generation, version, tables, state

-- name: set_targets
INSERT INTO projection_lane (name, generation, lane, target, folded_at)
SELECT %(name)s, %(generation)s, h.lane, h.head, CASE h.head WHEN 0 THEN now() END FROM lane_head h

-- name: set_state
UPDATE projection_generation SET state = %(state)s WHERE name = %(name)s AND generation = %(generation)s

-- name: enter_at_targets
INSERT INTO checkpoint (follower, lane, seq)
SELECT %(follower)s, l.lane, l.target
  FROM projection_lane l
 WHERE l.name = %(name)s AND l.generation = %(generation)s

-- name: enter_at_heads
INSERT INTO checkpoint (follower, lane, seq)
SELECT %s, h.lane, h.head FROM lane_head h

-- name: rename_follower
UPDATE checkpoint SET follower = %(after)s, parked_until = NULL, error = NULL WHERE follower = %(before)s

-- name: forget_follower
DELETE FROM checkpoint WHERE follower = %s

-- name: serve
INSERT INTO projection (name, version, generation)
VALUES (%(name)s, %(version)s, %(generation)s)
ON CONFLICT (name) DO UPDATE SET
       version = excluded.version, generation = excluded.generation, swapped_at = now()

-- name: forget_generation
DELETE FROM projection_generation WHERE name = %(name)s AND generation = %(generation)s

-- name: privileges
SELECT c.relname, pg_get_userbyid(c.relowner), CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END,
       array_agg(a.privilege_type ORDER BY a.privilege_type)
  FROM pg_class c
 CROSS JOIN LATERAL aclexplode(c.relacl) a
 WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s) AND a.grantee <> c.relowner
 GROUP BY c.relname, c.relowner, a.grantee
 ORDER BY c.relname, a.grantee

-- name: progress
SELECT count(*), count(folded_at), coalesce(sum(target), 0)::bigint,
       coalesce(sum(target) FILTER (WHERE folded_at IS NOT NULL), 0)::bigint
  FROM projection_lane
 WHERE name = %(name)s AND generation = %(generation)s

-- name: claim_lane
SELECT l.lane, l.target
  FROM projection_lane l
  JOIN projection_generation g ON g.name = l.name AND g.generation = l.generation AND g.version = %(version)s
 WHERE l.name = %(name)s AND l.generation = %(generation)s AND l.folded_at IS NULL
 ORDER BY l.lane
 LIMIT 1
   FOR UPDATE OF l SKIP LOCKED

-- name: lanes_left
SELECT count(*)
  FROM projection_lane l
  JOIN projection_generation g ON g.name = l.name AND g.generation = l.generation AND g.version = %(version)s
 WHERE l.name = %(name)s AND l.generation = %(generation)s AND l.folded_at IS NULL

-- name: lane_folded
UPDATE projection_lane SET folded_at = clock_timestamp()
 WHERE name = %(name)s AND generation = %(generation)s AND lane = %(lane)s

-- name: events_in_lane
SELECT count(*) FROM event WHERE lane = %s AND seq <= %s

-- name: streams_of_lane
COPY (
    SELECT '[' || string_agg(batch, ',' ORDER BY place) || ']'
      FROM (SELECT row_number() OVER (ORDER BY stream_id, (version - 1) / {chunk}) - 1 AS place,
                   '["' || stream_id || '",[' || string_agg(payload::text, ',' ORDER BY version) || ']]' AS batch
              FROM event
             WHERE lane = {lane} AND seq <= {target}
             GROUP BY stream_id, (version - 1) / {chunk}) streams
     GROUP BY place / {streams}
     ORDER BY place / {streams}
) TO STDOUT (FORMAT binary)
