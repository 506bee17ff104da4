-- name: unsynced
-- What is taken from the log can be taken again, rows or hints and checkpoints together: a commit need not wait for the disk.
SET LOCAL synchronous_commit TO off

-- name: move
UPDATE checkpoint c
   SET seq = n.seq, parked_until = NULL, error = NULL
  FROM unnest(%(followers)s::text[], %(lanes)s::smallint[], %(before)s::bigint[], %(after)s::bigint[])
       AS n (follower, lane, before, seq)
 WHERE c.follower = n.follower AND c.lane = n.lane AND c.seq = n.before
RETURNING c.lane

-- name: park
UPDATE checkpoint
   SET parked_until = now() + %(pause_s)s * interval '1 s', error = %(error)s
 WHERE follower = %(follower)s AND lane = %(lane)s
