-- name: followed
-- Each served projection: its version, the lane's head, the number it has followed to, whether it is
-- parked there, and the events that it skipped by order.
SELECT p.name, p.version, coalesce(h.head, 0), coalesce(c.seq, 0),
       coalesce(c.error IS NOT NULL OR c.parked_until > now(), false),
       ARRAY(SELECT s.seq FROM projection_skipped s WHERE s.name = p.name AND s.version = p.version AND s.lane = h.lane)
  FROM projection p
  JOIN lane_head h ON h.lane = %(lane)s
  LEFT JOIN checkpoint c ON c.follower = p.name AND c.lane = h.lane
 WHERE p.name = ANY (%(names)s::text[])
 ORDER BY p.name

-- name: rows
SELECT {columns} FROM {table} t WHERE t.lane = %(lane)s

-- name: rows_of_no_lane
SELECT DISTINCT t.lane FROM {table} t WHERE (t.lane BETWEEN 0 AND 63) IS NOT TRUE ORDER BY t.lane LIMIT %(limit)s

-- name: facts
-- A page (`events/pages.py`) of a lane: its last number, its weight, and its events as facts, in order, as one array.
SELECT max(seq), max(upto_bytes), '[' || string_agg(fact, ',' ORDER BY seq) FILTER (WHERE has_command) || ']'
  FROM (SELECT e.seq, e.upto_bytes, k.lane IS NOT NULL AS has_command, {fact} AS fact
          FROM (SELECT e.lane, e.seq, e.stream_id, e.tenant_id, e.type, e.schema_version, e.payload, e.command_id, e.recorded_at,
                       {weight} AS bytes, sum({weight}) OVER (ORDER BY e.seq ROWS UNBOUNDED PRECEDING) AS upto_bytes
                  FROM event e
                 WHERE e.lane = %(lane)s AND e.seq > %(after)s AND e.seq <= %(upto)s) e
          LEFT JOIN command k ON k.lane = e.lane AND k.command_id = e.command_id
         WHERE e.upto_bytes - e.bytes < %(bytes)s) facts
