-- name: live_generation
SELECT g.name, g.generation, g.version, g.tables, g.state
  FROM projection p
  JOIN projection_generation g ON g.name = p.name AND g.generation = p.generation
 WHERE p.name = %s

-- name: newest_in_states
SELECT name, generation, version, tables, state
  FROM projection_generation
 WHERE name = %(name)s AND state = ANY (%(states)s)
 ORDER BY generation DESC
 LIMIT 1

-- name: last_replaced
-- Generations without `replaced_at` were replaced before any that has one: older releases did not record it.
SELECT name, generation, version, tables, state
  FROM projection_generation
 WHERE name = %s AND state = 'previous'
 ORDER BY replaced_at DESC NULLS LAST, generation DESC
 LIMIT 1

-- name: tables_missing
SELECT t.name
  FROM unnest(%(tables)s::text[]) AS t (name)
 WHERE to_regclass(format('%%I.%%I', %(schema)s::text, t.name)) IS NULL
 ORDER BY t.name

-- name: names_taken
-- Live relations with the name of a table or index in this schema, except those that belong to these tables.
SELECT c.relname, o.relname
  FROM pg_class b
  JOIN pg_class c ON c.relname = b.relname AND c.relnamespace = to_regnamespace(%(live)s)
  LEFT JOIN pg_index i ON i.indexrelid = c.oid
  LEFT JOIN pg_class o ON o.oid = i.indrelid
 WHERE b.relnamespace = to_regnamespace(%(schema)s)
   AND coalesce(o.relname, c.relname) <> ALL (%(tables)s::text[])
 ORDER BY c.relname

-- name: all_in_states
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
-- The lanes' heads, or the checkpoints of the live tables' follower: beyond those there is nothing to compare with.
INSERT INTO projection_lane (name, generation, lane, target, folded_at)
SELECT %(name)s, %(generation)s, t.lane, t.target, CASE t.target WHEN 0 THEN now() END
  FROM (SELECT h.lane, CASE WHEN p.name IS NULL THEN h.head ELSE coalesce(c.seq, 0) END AS target
          FROM lane_head h
          LEFT JOIN projection p ON p.name = %(name)s AND %(followed)s
          LEFT JOIN checkpoint c ON c.follower = p.name AND c.lane = h.lane) t

-- name: ahead
-- The lanes in which a build is ahead of the live tables' follower.
SELECT l.lane
  FROM projection_lane l
  LEFT JOIN checkpoint b ON b.follower = %(follower)s AND b.lane = l.lane
  LEFT JOIN checkpoint c ON c.follower = l.name AND c.lane = l.lane
 WHERE l.name = %(name)s AND l.generation = %(generation)s AND coalesce(b.seq, l.target) > coalesce(c.seq, 0)
 ORDER BY l.lane

-- name: set_state
UPDATE projection_generation
   SET state = %(state)s, replaced_at = CASE %(state)s::text WHEN 'previous' THEN now() END
 WHERE name = %(name)s AND generation = %(generation)s

-- name: create_checkpoints_at_targets
INSERT INTO checkpoint (follower, lane, seq)
SELECT %(follower)s, l.lane, l.target
  FROM projection_lane l
 WHERE l.name = %(name)s AND l.generation = %(generation)s

-- name: create_checkpoints_at_beginning
-- For lanes that no follower had entered when the generation was replaced.
INSERT INTO checkpoint (follower, lane)
SELECT %s, h.lane FROM lane_head h
ON CONFLICT (follower, lane) DO NOTHING

-- name: create_checkpoints_at_heads
INSERT INTO checkpoint (follower, lane, seq)
SELECT %s, h.lane, h.head FROM lane_head h

-- name: rename_follower
UPDATE checkpoint SET follower = %(after)s, parked_until = NULL, error = NULL WHERE follower = %(before)s

-- name: delete_checkpoints
DELETE FROM checkpoint WHERE follower = %s

-- name: set_live
INSERT INTO projection (name, version, generation)
VALUES (%(name)s, %(version)s, %(generation)s)
ON CONFLICT (name) DO UPDATE SET
       version = excluded.version, generation = excluded.generation, swapped_at = now()

-- name: delete_generation
DELETE FROM projection_generation WHERE name = %(name)s AND generation = %(generation)s

-- name: limit_lock_wait
SELECT set_config('lock_timeout', %s::text, true)

-- name: indexed_columns
-- The columns of indexes, and the columns that indexes' conditions depend on.
SELECT c.relname, array_agg(DISTINCT a.attname)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_index i ON i.indrelid = c.oid
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
 WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
   AND (a.attnum = ANY (i.indkey)
        OR EXISTS (SELECT
                     FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = a.attnum))
 GROUP BY c.relname
 ORDER BY c.relname

-- name: owners
SELECT c.relname, pg_get_userbyid(c.relowner)
  FROM pg_class c
 WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s)
 ORDER BY c.relname

-- name: privileges
-- Privileges on tables, and on those columns that the `build` has too.
SELECT p.relname, p.attname, CASE p.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(p.grantee) END, p.privilege_type, p.is_grantable
  FROM (SELECT c.relname, NULL::name AS attname, c.relowner, a.grantee, a.privilege_type, a.is_grantable
          FROM pg_class c
         CROSS JOIN LATERAL aclexplode(c.relacl) a
         WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s)
         UNION ALL
        SELECT c.relname, f.attname, c.relowner, a.grantee, a.privilege_type, a.is_grantable
          FROM pg_class c
          JOIN pg_attribute f ON f.attrelid = c.oid AND NOT f.attisdropped
         CROSS JOIN LATERAL aclexplode(f.attacl) a
          JOIN pg_attribute n ON n.attname = f.attname AND NOT n.attisdropped
               AND n.attrelid = to_regclass(format('%%I.%%I', %(build)s::text, c.relname))
         WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s)) p
 WHERE p.grantee <> p.relowner
 ORDER BY p.relname, p.attname, p.grantee, p.privilege_type

-- name: progress
SELECT count(*), count(folded_at), coalesce(sum(target), 0)::bigint,
       coalesce(sum(target) FILTER (WHERE folded_at IS NOT NULL), 0)::bigint
  FROM projection_lane
 WHERE name = %(name)s AND generation = %(generation)s

-- name: claim_lanes
SELECT l.lane, l.target
  FROM projection_lane l
  JOIN projection_generation g ON g.name = l.name AND g.generation = l.generation AND g.version = %(version)s
 WHERE l.name = %(name)s AND l.generation = %(generation)s AND l.folded_at IS NULL
 ORDER BY l.lane
 LIMIT %(limit)s
   FOR UPDATE OF l SKIP LOCKED

-- name: lanes_left
SELECT count(*)
  FROM projection_lane l
  JOIN projection_generation g ON g.name = l.name AND g.generation = l.generation AND g.version = %(version)s
 WHERE l.name = %(name)s AND l.generation = %(generation)s AND l.folded_at IS NULL

-- name: lanes_free
-- Those that nobody has claimed.
SELECT l.lane
  FROM projection_lane l
 WHERE l.name = %(name)s AND l.generation = %(generation)s AND l.folded_at IS NULL
 ORDER BY l.lane
   FOR KEY SHARE SKIP LOCKED

-- name: lanes_folded
UPDATE projection_lane SET folded_at = clock_timestamp()
 WHERE name = %(name)s AND generation = %(generation)s AND lane = ANY (%(lanes)s)

-- name: fold_session
-- Memory for sorting. No parallel workers: every processor has a fold process already.
SELECT set_config('work_mem', '64MB', false), set_config('max_parallel_workers_per_gather', '0', false)

-- name: claim_session
-- A machine that loses its power or network does not close its connections. Keepalives end its session, and with that
-- its claim, within half a minute.
SELECT set_config('tcp_keepalives_idle', '15', false), set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false)

-- name: index_session
SELECT set_config('maintenance_work_mem', '256MB', true)

-- name: events_in_lanes
SELECT l.lane, l.target, (SELECT count(*) FROM event e WHERE e.lane = l.lane AND e.seq <= l.target)
  FROM unnest(%(lanes)s::smallint[], %(targets)s::bigint[]) AS l (lane, target)
 ORDER BY l.lane

-- name: lengths_of_streams
-- Any of the streams, where there are more than the limit. Rows that are possible only after somebody has dropped
-- constraints or changed a column's type are left out, so that they do not fail the statement.
SELECT coalesce(string_agg(uuid_send(s.stream_id), ''), ''), coalesce(string_agg(int4send(s.version::integer), ''), '')
  FROM (SELECT s.stream_id, s.version
          FROM stream s
         WHERE s.lane = ANY (%(lanes)s::smallint[]) AND s.stream_id IS NOT NULL AND s.version BETWEEN 1 AND 2147483647
         LIMIT %(limit)s) s

-- name: parts_of_lanes
-- A row per piece of the table with its events in the order on disk: sorting them by stream costs several times as much
-- as reading them. Large events follow in a row each, for which the piece is read again. The events of a lane are
-- scattered over the whole table, so several lanes are read at once: a scan per lane would read every page of the table
-- many times. Payloads are sent as bytes, because text is copied twice as often.
COPY (
    SELECT p.ids, p.versions, p.payloads
      FROM generate_series(0, pg_relation_size('event'::regclass) / current_setting('block_size')::bigint, {pages}) AS s (page)
     CROSS JOIN LATERAL (
           SELECT string_agg(uuid_send(e.stream_id), '') FILTER (WHERE {weight} <= {alone}) AS ids,
                  string_agg(int4send(e.version), '') FILTER (WHERE {weight} <= {alone}) AS versions,
                  string_agg(json_send({payload}), '\x00') FILTER (WHERE {weight} <= {alone}) AS payloads,
                  max({weight}) > {alone} AS has_large
             FROM event e
            WHERE e.ctid >= format('(%s,0)', s.page)::tid AND e.ctid < format('(%s,0)', s.page + {pages})::tid
              AND e.lane = ANY ({lanes}::smallint[]) AND e.seq <= ({targets}::bigint[])[e.lane + 1]) piece
     CROSS JOIN LATERAL (
           SELECT piece.ids, piece.versions, piece.payloads
            UNION ALL
           SELECT uuid_send(e.stream_id), int4send(e.version), json_send({payload})
             FROM event e
            WHERE piece.has_large
              AND e.ctid >= format('(%s,0)', s.page)::tid AND e.ctid < format('(%s,0)', s.page + {pages})::tid
              AND e.lane = ANY ({lanes}::smallint[]) AND e.seq <= ({targets}::bigint[])[e.lane + 1] AND {weight} > {alone}) p
     WHERE p.ids IS NOT NULL
) TO STDOUT (FORMAT binary)
