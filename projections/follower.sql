-- name: enter_lanes
INSERT INTO checkpoint (follower, lane)
SELECT p.name, h.lane
  FROM lane_head h
  JOIN projection p ON p.name = %s
ON CONFLICT (follower, lane) DO NOTHING

-- name: lease_lanes
SELECT c.lane, c.seq
  FROM checkpoint c
  JOIN lane_head h ON h.lane = c.lane
  JOIN projection p ON p.name = c.follower AND p.version = %(version)s
 WHERE c.follower = %(follower)s AND h.head > c.seq
   AND (c.parked_until IS NULL OR c.parked_until <= now())
 ORDER BY c.lane
   FOR UPDATE OF c SKIP LOCKED

-- name: move_checkpoints
UPDATE checkpoint c
   SET seq = n.seq, parked_until = NULL, error = NULL
  FROM unnest(%(lanes)s::smallint[], %(before)s::bigint[], %(after)s::bigint[]) AS n (lane, before, seq)
 WHERE c.follower = %(follower)s AND c.lane = n.lane AND c.seq = n.before

-- name: park
UPDATE checkpoint
   SET parked_until = now() + %(pause_s)s * interval '1 s', error = %(error)s
 WHERE follower = %(follower)s AND lane = %(lane)s

-- name: lag
SELECT c.lane, h.head - c.seq, c.error
  FROM checkpoint c
  JOIN lane_head h ON h.lane = c.lane
 WHERE c.follower = %s
 ORDER BY c.lane
