-- name: heads
SELECT lane, head FROM lane_head ORDER BY lane

-- name: positions
SELECT lane, seq FROM checkpoint WHERE follower = %s ORDER BY lane

-- name: touched
SELECT DISTINCT e.lane, e.stream_id
  FROM unnest(%(lanes)s::smallint[], %(after)s::bigint[], %(upto)s::bigint[]) AS l (lane, after, upto)
  JOIN event e ON e.lane = l.lane AND e.seq > l.after AND e.seq <= l.upto
 ORDER BY e.lane, e.stream_id

-- name: streams
SELECT e.lane, e.stream_id, '[' || string_agg(({payload})::text, ',' ORDER BY e.version) || ']'
  FROM unnest(%(lanes)s::smallint[], %(streams)s::uuid[], %(upto)s::bigint[]) AS s (lane, stream_id, upto)
  JOIN event e ON e.lane = s.lane AND e.stream_id = s.stream_id AND e.seq <= s.upto
 GROUP BY e.lane, e.stream_id, (e.version - 1) / %(chunk)s
 ORDER BY e.lane, e.stream_id, (e.version - 1) / %(chunk)s

-- name: move
UPDATE checkpoint c
   SET seq = n.seq
  FROM unnest(%(lanes)s::smallint[], %(upto)s::bigint[]) AS n (lane, seq)
 WHERE c.follower = %(follower)s AND c.lane = n.lane
