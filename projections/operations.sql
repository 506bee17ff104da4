-- name: status
-- A `followed` projection without a checkpoint in a lane has applied nothing of it. A name that no longer is followed
-- shows only the checkpoints that it has.
SELECT h.lane, h.head - s.seq,
       coalesce(extract(epoch FROM now() - (SELECT e.recorded_at
                                              FROM event e
                                             WHERE e.lane = h.lane AND e.seq = s.seq + 1)), 0)::float8,
       s.seq, c.error, CASE WHEN c.error IS NOT NULL THEN s.seq + 1 END
  FROM lane_head h
  LEFT JOIN checkpoint c ON c.lane = h.lane AND c.follower = %(name)s
 CROSS JOIN LATERAL (SELECT coalesce(c.seq, 0)) s (seq)
 WHERE c.lane IS NOT NULL OR %(followed)s
 ORDER BY h.lane

-- name: known
SELECT name, version, generation, swapped_at FROM projection ORDER BY name

-- name: applied_events
SELECT c.follower, sum(c.seq)::bigint FROM checkpoint c GROUP BY c.follower
UNION ALL
SELECT '', sum(h.head)::bigint FROM lane_head h
 ORDER BY 1

-- name: parked
SELECT seq + 1, error
  FROM checkpoint
 WHERE follower = %(name)s AND lane = %(lane)s AND error IS NOT NULL
   FOR UPDATE

-- name: applied_by_build
-- How far a build is in a lane, and the lane's head. No row while a process folds the lane.
SELECT CASE WHEN l.folded_at IS NULL THEN 0
            ELSE coalesce((SELECT c.seq FROM checkpoint c WHERE c.follower = %(follower)s AND c.lane = l.lane), l.target) END,
       h.head
  FROM projection_lane l
  JOIN lane_head h ON h.lane = l.lane
 WHERE l.name = %(name)s AND l.generation = %(generation)s AND l.lane = %(lane)s
   FOR UPDATE OF l SKIP LOCKED

-- name: record
INSERT INTO projection_intervention (name, version, lane, seq, action, error, actor, reason)
VALUES (%(name)s, %(version)s, %(lane)s, %(seq)s, %(action)s, %(error)s, %(actor)s, %(reason)s)
RETURNING name, version, lane, seq, action, error, actor, reason, made_at

-- name: skipped
SELECT i.error
  FROM projection_skipped s
  JOIN projection_intervention i ON i.name = s.name AND i.version = s.version AND i.lane = s.lane AND i.seq = s.seq
 WHERE s.name = %(name)s AND s.version = %(version)s AND s.lane = %(lane)s AND s.seq = %(seq)s AND i.action = 'skip'
 ORDER BY i.id DESC
 LIMIT 1

-- name: skip
UPDATE checkpoint
   SET seq = %(seq)s, parked_until = NULL, error = NULL
 WHERE follower = %(name)s AND lane = %(lane)s AND seq = %(seq)s - 1

-- name: retry
UPDATE checkpoint SET parked_until = now() WHERE follower = %(name)s AND lane = %(lane)s
