-- name: status
SELECT c.lane, h.head - c.seq,
       coalesce(extract(epoch FROM now() - (SELECT e.recorded_at
                                              FROM event e
                                             WHERE e.lane = c.lane AND e.seq = c.seq + 1)), 0)::float8,
       c.seq, c.error
  FROM checkpoint c
  JOIN lane_head h ON h.lane = c.lane
 WHERE c.follower = %s
 ORDER BY c.lane

-- name: known
SELECT name, version, generation, swapped_at FROM projection ORDER BY name

-- name: taken
SELECT c.follower, sum(c.seq)::bigint FROM checkpoint c GROUP BY c.follower
UNION ALL
SELECT '', sum(h.head)::bigint FROM lane_head h
 ORDER BY 1

-- name: parked
SELECT seq + 1, error
  FROM checkpoint
 WHERE follower = %(name)s AND lane = %(lane)s AND error IS NOT NULL
   FOR UPDATE

-- name: record
INSERT INTO projection_intervention (name, version, lane, seq, action, error, actor, reason)
VALUES (%(name)s, %(version)s, %(lane)s, %(seq)s, %(action)s, %(error)s, %(actor)s, %(reason)s)

-- name: skip
UPDATE checkpoint
   SET seq = %(seq)s, parked_until = NULL, error = NULL
 WHERE follower = %(name)s AND lane = %(lane)s AND seq = %(seq)s - 1

-- name: retry
UPDATE checkpoint SET parked_until = now() WHERE follower = %(name)s AND lane = %(lane)s

-- name: interventions
SELECT name, version, lane, seq, action, error, actor, reason, made_at
  FROM projection_intervention
 WHERE name = %s
 ORDER BY id
