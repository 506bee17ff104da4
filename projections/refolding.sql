-- name: grown
-- Lane by lane: the planner cannot know how few events are new, and would read the whole log in a join with all lanes.
SELECT l.lane, e.stream_id, e.first, e.last, e.count
  FROM unnest(%(lanes)s::smallint[], %(after)s::bigint[], %(upto)s::bigint[]) AS l (lane, after, upto)
 CROSS JOIN LATERAL (
       SELECT stream_id, min(version) AS first, max(version) AS last, count(*) AS count
         FROM event
        WHERE lane = l.lane AND seq > l.after AND seq <= l.upto
        GROUP BY stream_id) e
 ORDER BY l.lane, e.stream_id

-- name: pieces
-- One page (`events/pages.py`) of these pieces together, in their order.
SELECT e.place, count(*), max(e.version), max(e.upto_bytes), '[' || string_agg(({payload})::text, ',' ORDER BY e.version) || ']'
  FROM (SELECT p.place, e.version, e.type, e.schema_version, e.payload, {weight} AS bytes,
               sum({weight}) OVER (ORDER BY p.place, e.version ROWS UNBOUNDED PRECEDING) AS upto_bytes
          FROM unnest(%(lanes)s::smallint[], %(streams)s::uuid[], %(after)s::integer[], %(upto)s::integer[])
               WITH ORDINALITY AS p (lane, stream_id, after, upto, place)
          JOIN event e ON e.lane = p.lane AND e.stream_id = p.stream_id AND e.version > p.after AND e.version <= p.upto) e
 WHERE e.upto_bytes - e.bytes < %(bytes)s
 GROUP BY e.place
 ORDER BY e.place

-- name: stage
CREATE TEMP TABLE {staged} ON COMMIT DROP AS SELECT {columns} FROM {table} LIMIT 0

-- name: replace
-- Both in one message, because writers may be stopped meanwhile.
DELETE FROM {table} t USING {staged} s WHERE {same_key};
INSERT INTO {table} ({columns}) SELECT {columns} FROM {staged}
