-- name: create_checkpoints
INSERT INTO checkpoint (follower, lane)
SELECT p.name, h.lane
  FROM lane_head h
  JOIN projection p ON p.name = ANY (%s)
ON CONFLICT (follower, lane) DO NOTHING

-- name: lease_lanes
-- For several followers at once, as pairs of name and version. The heads are read once for all of them.
  WITH heads AS MATERIALIZED (SELECT lane, head FROM lane_head)
SELECT c.follower, c.lane, c.seq, h.head
  FROM unnest($1::text[], $2::integer[]) AS f (name, version)
  JOIN projection p ON p.name = f.name AND p.version = f.version
  JOIN checkpoint c ON c.follower = f.name
  JOIN heads h ON h.lane = c.lane
 WHERE h.head > c.seq AND (c.parked_until IS NULL OR c.parked_until <= now())
 ORDER BY c.follower, c.lane
   FOR UPDATE OF c SKIP LOCKED
