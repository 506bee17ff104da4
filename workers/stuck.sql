-- name: instances
-- Failures count only at the version that they occurred at, as in `claim_due` (work_schedule.sql). A step that fails counts from its first
-- failure: `wake_at` is by the clock of the process that recorded it, which may be ahead of this one.
SELECT i.id, i.tenant_id, i.status, i.provider, least(i.wake_at, a.failing_since) AS due_since, coalesce(a.failures, 0), a.code
  FROM instance i
  LEFT JOIN attention a ON a.lane = i.lane AND a.instance_id = i.id AND a.version >= i.version AND a.failures > 0
 WHERE i.wake_at IS NOT NULL
   AND least(i.wake_at, a.failing_since) <= now() - %(after_s)s * interval '1 s'
 ORDER BY due_since, i.id
 LIMIT %(limit)s

-- name: lanes
SELECT follower, lane, seq + 1, error
  FROM checkpoint
 WHERE error IS NOT NULL
 ORDER BY follower, lane

-- name: sweep
SELECT ended_at, result::text, ended_at <= now() - greatest(%(after_s)s, %(sweep_s)s) * interval '1 s'
  FROM last_sweep

-- name: relay
-- When a relay last performed its most frequent duty, which is due every second, and whether that is too long ago. After a clock
-- went back, that may be in the future: the duty is then due at once (`take_duty`), so that this lasts a moment.
SELECT last.ran_at, coalesce(last.ran_at <= now() - greatest(%(after_s)s, %(relay_s)s) * interval '1 s', true)
  FROM (SELECT max(ran_at) AS ran_at FROM duty WHERE name = 'health') last
