-- name: postpone
-- Written only if the instance is still at this version and has work that is due, as in `record_failure`. Otherwise a worker that
-- comes too late, for instance because it was frozen, would leave a row that nobody removes.
INSERT INTO attention (lane, instance_id, not_before, version)
SELECT i.lane, i.id, now() + %(delay_s)s * interval '1 s', i.version
  FROM instance i
 WHERE i.lane = %(lane)s AND i.id = %(instance_id)s AND i.version = %(version)s AND i.wake_at IS NOT NULL
ON CONFLICT (lane, instance_id) DO UPDATE SET
       not_before = excluded.not_before, version = excluded.version,
       failures = CASE WHEN attention.version = excluded.version THEN attention.failures ELSE 0 END

-- name: record_failure
-- The pause doubles with each failure of the same code in a row, and starts again at another code: if a server that takes long to
-- be deleted was looked at many times, the provider's first error must not lead to the longest pause.
INSERT INTO attention (lane, instance_id, not_before, version, failures, failing_since, code)
SELECT i.lane, i.id, now() + %(delay_s)s * interval '1 s', i.version, 1, now(), %(code)s
  FROM instance i
 WHERE i.lane = %(lane)s AND i.id = %(instance_id)s AND i.version = coalesce(%(version)s::bigint, i.version) AND i.wake_at IS NOT NULL
ON CONFLICT (lane, instance_id) DO UPDATE SET
       (not_before, version, failures, failing_since, code) = (
           SELECT now() + greatest(%(delay_s)s, least(%(backoff_s_max)s, %(delay_s)s * power(2, least(n.failures - 1, 10))))
                        * (1 + random() / 4) * interval '1 s',
                  excluded.version, n.failures, n.failing_since, excluded.code
             FROM (SELECT CASE WHEN same AND attention.code = excluded.code THEN attention.failures + 1 ELSE 1 END AS failures,
                          CASE WHEN same THEN attention.failing_since ELSE now() END AS failing_since
                     FROM (SELECT attention.version = excluded.version AND attention.failures > 0 AS same) s) n)
RETURNING failures

-- name: keep_at_next_version
UPDATE attention SET version = version + 1
 WHERE lane = %(lane)s AND instance_id = %(instance_id)s AND version = %(version)s

-- name: clear
DELETE FROM attention WHERE lane = %s AND instance_id = %s

-- name: delete_working_data
WITH beats AS (DELETE FROM heartbeat WHERE lane = %(lane)s AND instance_id = %(instance_id)s)
DELETE FROM attention WHERE lane = %(lane)s AND instance_id = %(instance_id)s

-- name: delete_stale
-- The rows of instances without work that is due. They remain if a worker dies before it removes one, or writes one at the same moment.
DELETE FROM attention a
 USING instance i
 WHERE i.lane = a.lane AND i.id = a.instance_id AND i.wake_at IS NULL

-- name: claim_due
-- A pause holds only at the version that it was written at: a worker that appended an event since may have died before the next step.
-- A pause that is longer than any allowed one was written before the database's clock went back, and is ignored. Work that was due at
-- once when it was recorded is due now, even if its time is in the future because the clock of the process that recorded it is ahead.
INSERT INTO attention (lane, instance_id, not_before, version)
SELECT i.lane, i.id, now() + %(lease_s)s * interval '1 s', i.version
  FROM instance i
  LEFT JOIN attention a ON a.lane = i.lane AND a.instance_id = i.id AND a.version >= i.version
 WHERE (i.wake_at <= now() - CASE WHEN a.instance_id IS NULL THEN %(grace_s)s ELSE 0 END * interval '1 s'
        OR (i.wake_at <= i.updated_at AND i.updated_at > now()))
   AND (coalesce(a.not_before, '-infinity') <= now()
        OR a.not_before > now() + %(pause_s_max)s * interval '1 s')
 ORDER BY i.wake_at, i.id
 LIMIT %(limit)s
ON CONFLICT (lane, instance_id) DO UPDATE SET
       not_before = excluded.not_before, version = excluded.version,
       failures = CASE WHEN attention.version = excluded.version THEN attention.failures ELSE 0 END
 WHERE attention.not_before <= now() OR attention.not_before > now() + %(pause_s_max)s * interval '1 s'
    OR attention.version < excluded.version
RETURNING instance_id
