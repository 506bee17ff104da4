-- name: move
UPDATE checkpoint c
   SET seq = n.seq, parked_until = NULL, error = NULL
  FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::bigint[]) AS n (follower, lane, before, seq)
 WHERE c.follower = n.follower AND c.lane = n.lane AND c.seq = n.before
RETURNING c.lane

-- name: park
UPDATE checkpoint
   SET parked_until = now() + $3::float8 * interval '1 s', error = $4
 WHERE follower = $1 AND lane = $2::smallint
