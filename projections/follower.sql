-- name: enter_lanes
INSERT INTO checkpoint (follower, lane)
SELECT %s, h.lane FROM lane_head h
ON CONFLICT (follower, lane) DO NOTHING

-- name: lease_lane
SELECT c.lane, c.seq
  FROM checkpoint c
  JOIN lane_head h ON h.lane = c.lane
 WHERE c.follower = %(follower)s AND h.head > c.seq
   AND (c.parked_until IS NULL OR c.parked_until <= now())
   AND c.lane <> ALL (%(done)s)
 ORDER BY c.lane
 LIMIT 1
   FOR UPDATE OF c SKIP LOCKED

-- name: move_checkpoint
UPDATE checkpoint
   SET seq = %(seq)s, parked_until = NULL, error = NULL
 WHERE follower = %(follower)s AND lane = %(lane)s AND seq = %(before)s

-- name: park
UPDATE checkpoint
   SET parked_until = now() + %(pause_s)s * interval '1 s', error = %(error)s
 WHERE follower = %(follower)s AND lane = %(lane)s AND seq = %(before)s

-- name: lag
SELECT c.lane, h.head - c.seq, c.error
  FROM checkpoint c
  JOIN lane_head h ON h.lane = c.lane
 WHERE c.follower = %s
 ORDER BY c.lane
