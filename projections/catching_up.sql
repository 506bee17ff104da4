-- name: positions
SELECT lane, seq FROM checkpoint WHERE follower = %s ORDER BY lane

-- name: lock_positions
-- Those of a build, until the step is committed.
SELECT lane, seq FROM checkpoint WHERE follower = %s ORDER BY lane FOR UPDATE

-- name: move
UPDATE checkpoint c
   SET seq = n.seq
  FROM unnest(%(lanes)s::smallint[], %(upto)s::bigint[]) AS n (lane, seq)
 WHERE c.follower = %(follower)s AND c.lane = n.lane
