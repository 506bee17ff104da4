-- name: grown
SELECT e.lane, e.stream_id, min(e.version), max(e.version), count(*)
  FROM unnest(%(lanes)s::smallint[], %(after)s::bigint[], %(upto)s::bigint[]) AS l (lane, after, upto)
  JOIN event e ON e.lane = l.lane AND e.seq > l.after AND e.seq <= l.upto
 GROUP BY e.lane, e.stream_id
 ORDER BY e.lane, e.stream_id

-- name: pieces
SELECT p.place, count(*), '[' || string_agg(({payload})::text, ',' ORDER BY e.version) || ']'
  FROM unnest(%(lanes)s::smallint[], %(streams)s::uuid[], %(after)s::integer[], %(upto)s::integer[])
       WITH ORDINALITY AS p (lane, stream_id, after, upto, place)
  JOIN event e ON e.lane = p.lane AND e.stream_id = p.stream_id AND e.version > p.after AND e.version <= p.upto
 GROUP BY p.place
 ORDER BY p.place

-- name: stage
CREATE TEMP TABLE {staged} ON COMMIT DROP AS SELECT {columns} FROM {table} LIMIT 0

-- name: replace
DELETE FROM {table} t USING {staged} s WHERE {same_key}

-- name: add
INSERT INTO {table} ({columns}) SELECT {columns} FROM {staged}
