-- name: positions
SELECT lane, seq FROM checkpoint WHERE follower = %s ORDER BY lane

-- name: move
UPDATE checkpoint c
   SET seq = n.seq
  FROM unnest(%(lanes)s::smallint[], %(upto)s::bigint[]) AS n (lane, seq)
 WHERE c.follower = %(follower)s AND c.lane = n.lane
