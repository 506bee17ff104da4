-- name: take_duty
-- A duty that was last performed more than an interval in the future was recorded before the clock went back, and is due.
INSERT INTO duty (name, ran_at) VALUES (%(name)s, now())
ON CONFLICT (name) DO UPDATE SET ran_at = excluded.ran_at
 WHERE duty.ran_at <= now() - %(interval_s)s * interval '1 s'
    OR duty.ran_at > now() + %(interval_s)s * interval '1 s'
RETURNING name

-- name: return_duty
-- The duty that was just taken could not be performed, and is due.
DELETE FROM duty WHERE name = %s

-- name: try_lock
SELECT pg_try_advisory_lock($1)

-- name: unlock
SELECT pg_advisory_unlock($1)

-- name: version
-- Sent together with `unlock` and executed after it, so that it sees everything that was committed before the lock was released.
SELECT version FROM stream WHERE lane = $1 AND stream_id = $2

-- name: create_checkpoints
INSERT INTO checkpoint (follower, lane)
SELECT %s, h.lane FROM lane_head h
ON CONFLICT (follower, lane) DO NOTHING

-- name: all_heads
-- The sum grows with each event of any lane.
SELECT sum(head) FROM lane_head

-- name: lanes_ahead
-- The lanes whose time is ahead of the clock by more than the given number of seconds, farthest first. The times are not subtracted
-- as timestamps, because older versions of PostgreSQL refuse that for `infinity`.
SELECT lane, ahead_s::double precision
  FROM (SELECT lane, extract(epoch FROM recorded_at) - extract(epoch FROM clock_timestamp()) AS ahead_s FROM lane_head) times
 WHERE ahead_s > %s
 ORDER BY ahead_s DESC, lane

-- name: lease_new_events
-- Leases the lanes with new events that no other relay has leased. Returns their new events, and the head of each lane at the same
-- moment. A lane whose next event is missing has one row without an event. The last column says whether the event's instance has work
-- that is due. `wake_at` is not compared with now(), the start of the transaction: newer work would seem to be in the future. Work that
-- was due at once when it was recorded has the `wake_at` of its `updated_at`, and is due even if the clock that set both is ahead.
  WITH leased AS MATERIALIZED (
       SELECT c.lane, c.seq, h.head
         FROM checkpoint c
         JOIN lane_head h ON h.lane = c.lane
        WHERE c.follower = $1 AND h.head > c.seq AND (c.parked_until IS NULL OR c.parked_until <= now())
        ORDER BY c.lane
          FOR UPDATE OF c SKIP LOCKED)
SELECT l.lane, l.seq, l.head, e.seq, e.stream_id,
       -- A subquery and not a join: for a large batch of events, the planner would choose to read the whole table.
       e.type <> ALL ($2::text[]) AND coalesce((SELECT i.wake_at <= greatest(clock_timestamp(), i.updated_at)
                                                  FROM instance i
                                                 WHERE i.lane = l.lane AND i.id = e.stream_id), false)
  FROM leased l
  LEFT JOIN LATERAL (SELECT v.seq, v.stream_id, v.type
                       FROM event v
                      WHERE v.lane = l.lane AND v.seq > l.seq
                      ORDER BY v.seq
                      LIMIT $3::bigint) e ON true
 ORDER BY l.lane, e.seq

-- name: changed_health
-- The instances whose health has changed. Nearly all are healthy and have a recent heartbeat. These are skipped before silent_s() is
-- called, which costs a query per row: a silence is never longer than the time since the last heartbeat. See `silence`, too.
SELECT id
  FROM (SELECT i.id, i.lane, i.health_status,
               CASE WHEN s.silent_s < %(late_s)s THEN 'healthy'
                    WHEN s.silent_s < %(lost_s)s THEN 'late'
                    ELSE 'unreachable' END AS health
          FROM instance i
          JOIN heartbeat h ON h.lane = i.lane AND h.instance_id = i.id
         CROSS JOIN LATERAL (
               SELECT greatest(silent_s(h.received_at),
                               least(CASE i.health_status WHEN 'unreachable' THEN %(lost_s)s WHEN 'late' THEN %(late_s)s ELSE 0 END,
                                     CASE WHEN h.received_at <= now() THEN extract(epoch FROM now() - h.received_at) END))) s (silent_s)
         WHERE i.status = 'running'
           AND (i.health_status IS DISTINCT FROM 'healthy'
                OR h.received_at <= now() - %(late_s)s * interval '1 s')) judged
 WHERE health IS DISTINCT FROM health_status
 ORDER BY lane, id
 LIMIT %(limit)s

-- name: silence
-- For how many seconds the agent has been silent. Only a heartbeat improves its health. When silent_s() starts counting again, because
-- the API was down, the silence is at least as long as the recorded health says, or as the time since the last heartbeat if that is
-- shorter. (A heartbeat in the future came in before a clock went back. It tells nothing, and `least` ignores nulls.)
SELECT greatest(silent_s(h.received_at),
                least(CASE i.health_status WHEN 'unreachable' THEN %(lost_s)s WHEN 'late' THEN %(late_s)s ELSE 0 END,
                      CASE WHEN h.received_at <= now() THEN extract(epoch FROM now() - h.received_at) END)),
       i.health_status
  FROM heartbeat h
  JOIN instance i ON i.lane = h.lane AND i.id = h.instance_id
 WHERE h.lane = %(lane)s AND h.instance_id = %(id)s

-- name: reportable_s
-- For how many of the last `passed_s` seconds an agent could report: the count starts again when the API is back.
SELECT silent_s(now() - %(passed_s)s * interval '1 s')

-- name: first_heartbeat
-- An existing row may be of the agent of an earlier attempt, whose silence does not count for this one. Written only while the instance
-- is provisioned: if it is being deleted, or is gone, nobody would remove the row.
INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report)
SELECT i.lane, i.id, now(), %(boot_id)s, %(report)s::json
  FROM instance i
 WHERE i.lane = %(lane)s AND i.id = %(id)s AND i.status = 'provisioning'
ON CONFLICT (lane, instance_id) DO UPDATE SET
       received_at = excluded.received_at, boot_id = excluded.boot_id, report = excluded.report
 WHERE heartbeat.boot_id <> excluded.boot_id

-- name: any_pending_action
SELECT true FROM instance WHERE pending_action_id IS NOT NULL LIMIT 1

-- name: pending_actions
-- The oldest of each provider: those of one that does not answer must not take the places of the others.
SELECT provider, pending_action_id, id, attempt, server_id
  FROM (SELECT provider, pending_action_id, id, attempt, server_id,
               row_number() OVER (PARTITION BY provider ORDER BY updated_at, id) AS place
          FROM instance
         WHERE pending_action_id IS NOT NULL AND status = 'provisioning') pending
 WHERE place <= %s
 ORDER BY provider, place
