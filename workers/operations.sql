-- name: take_duty
-- A clock that went back must not keep a duty from being done until it is where it was.
INSERT INTO duty (name, ran_at) VALUES (%(name)s, now())
ON CONFLICT (name) DO UPDATE SET ran_at = excluded.ran_at
 WHERE duty.ran_at <= now() - %(interval_s)s * interval '1 s'
    OR duty.ran_at > now() + %(interval_s)s * interval '1 s'
RETURNING name

-- name: try_lock
SELECT pg_try_advisory_lock($1)

-- name: unlock
SELECT pg_advisory_unlock($1)

-- name: version
-- In the message of `unlock`, behind it: it sees all that was committed before the lock was let go.
SELECT version FROM stream WHERE lane = $1 AND stream_id = $2

-- name: enter_lanes
INSERT INTO checkpoint (follower, lane)
SELECT %s, h.lane FROM lane_head h
ON CONFLICT (follower, lane) DO NOTHING

-- name: all_heads
-- Together they rise with every event.
SELECT sum(head) FROM lane_head

-- name: lanes_ahead
-- Lanes whose time is ahead of the clock by more than that many seconds, the farthest first. Not by a difference of times, which an
-- older PostgreSQL refuses for one that never comes.
SELECT lane, ahead_s::double precision
  FROM (SELECT lane, extract(epoch FROM recorded_at) - extract(epoch FROM clock_timestamp()) AS ahead_s FROM lane_head) times
 WHERE ahead_s > %s
 ORDER BY ahead_s DESC, lane

-- name: new_lanes
-- What is new in each lane that nobody else has leased, with its head of the same moment; a lane whose next event is missing comes
-- without any. Whether something is owed is not asked of now(), which is when the transaction began: what was asked for since would
-- seem to be of the future. What is owed at once is so from its last change on, and is owed whatever the clock that wrote it has to
-- do with ours.
  WITH leased AS MATERIALIZED (
       SELECT c.lane, c.seq, h.head
         FROM checkpoint c
         JOIN lane_head h ON h.lane = c.lane
        WHERE c.follower = $1 AND h.head > c.seq AND (c.parked_until IS NULL OR c.parked_until <= now())
        ORDER BY c.lane
          FOR UPDATE OF c SKIP LOCKED)
SELECT l.lane, l.seq, l.head, e.seq, e.stream_id,
       -- By itself, and not joined: for as many events as there may be, the planner would read the whole table.
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
-- Nearly all are healthy and were heard lately. They are passed over before their silence is asked for, which costs a look of its
-- own for each and is never longer than the time since they were heard. What counts as silence: see `silence`.
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
-- Only a heartbeat ends a silence. Where the count begins anew because nobody listened, it is not taken to be shorter than what was
-- found already, unless something was heard less long ago than that. (A heartbeat of the future was heard before a clock went back:
-- it tells nothing, and `least` passes over what is null.)
SELECT greatest(silent_s(h.received_at),
                least(CASE i.health_status WHEN 'unreachable' THEN %(lost_s)s WHEN 'late' THEN %(late_s)s ELSE 0 END,
                      CASE WHEN h.received_at <= now() THEN extract(epoch FROM now() - h.received_at) END)),
       i.health_status
  FROM heartbeat h
  JOIN instance i ON i.lane = h.lane AND i.id = h.instance_id
 WHERE h.lane = %(lane)s AND h.instance_id = %(id)s

-- name: heard
-- For how many of the last so many seconds an agent could have reported.
SELECT silent_s(now() - %(passed_s)s * interval '1 s')

-- name: first_sign_of_life
-- What is there may be of the agent of an earlier attempt, whose silence is not this one's. Whoever comes when its instance is being
-- deleted, or long gone, would leave a row that nobody removes.
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
SELECT provider, pending_action_id, id, attempt, server_id
  FROM instance
 WHERE pending_action_id IS NOT NULL AND status = 'provisioning'
 ORDER BY updated_at, id
 LIMIT %s
