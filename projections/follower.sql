-- name: enter_lanes
INSERT INTO checkpoint (follower, lane)
SELECT p.name, h.lane
  FROM lane_head h
  JOIN projection p ON p.name = ANY (%s)
ON CONFLICT (follower, lane) DO NOTHING

-- name: unsynced
-- What is taken from the log can be taken again, rows and checkpoints together: a commit need not wait for the disk.
SET LOCAL synchronous_commit TO off

-- name: lease_lanes
-- For several followers at once, as pairs of name and version.
SELECT c.follower, c.lane, c.seq, h.head
  FROM unnest(%(names)s::text[], %(versions)s::integer[]) AS f (name, version)
  JOIN projection p ON p.name = f.name AND p.version = f.version
  JOIN checkpoint c ON c.follower = f.name
  JOIN lane_head h ON h.lane = c.lane
 WHERE h.head > c.seq AND (c.parked_until IS NULL OR c.parked_until <= now())
 ORDER BY c.follower, c.lane
   FOR UPDATE OF c SKIP LOCKED

-- name: move_checkpoints
UPDATE checkpoint c
   SET seq = n.seq, parked_until = NULL, error = NULL
  FROM unnest(%(names)s::text[], %(lanes)s::smallint[], %(before)s::bigint[], %(after)s::bigint[])
       AS n (follower, lane, before, seq)
 WHERE c.follower = n.follower AND c.lane = n.lane AND c.seq = n.before
RETURNING c.lane

-- name: park
UPDATE checkpoint
   SET parked_until = now() + %(pause_s)s * interval '1 s', error = %(error)s
 WHERE follower = %(follower)s AND lane = %(lane)s
