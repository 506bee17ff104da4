-- name: instance_records
-- The instances that have a server at the provider, and the instances that servers there refer to. A UNION, so that each part can use
-- an index: an OR of both would read all instances, most of which are deleted in the long run. `status <> 'deleted'` is redundant, but
-- the planner uses the partial index only if its condition is repeated literally.
SELECT i.id, i.lane, i.status, i.attempt, i.server_id, i.provider, i.updated_at < now() - %(settled_s)s * interval '1 s' AS settled
  FROM instance i
 WHERE i.status <> 'deleted' AND i.status IN ('provisioning', 'running', 'error')
   AND i.provider = %(provider)s AND i.server_id IS NOT NULL
 UNION
SELECT i.id, i.lane, i.status, i.attempt, i.server_id, i.provider, i.updated_at < now() - %(settled_s)s * interval '1 s' AS settled
  FROM unnest(%(lanes)s::smallint[], %(ids)s::uuid[]) AS claimed (lane, id)
  JOIN instance i ON i.lane = claimed.lane AND i.id = claimed.id
 ORDER BY lane, id

-- name: intents
-- The intents of the servers' current attempts, which no read table has. An intent is among the first events of its stream. The range
-- condition, in the order of the index, reads only up to that event. With an equation, PostgreSQL would read and sort the whole stream.
SELECT i.id, left(n.token_hash, %(length)s)
  FROM instance i
  JOIN unnest(%(server_ids)s::text[]) AS listed (server_id) ON listed.server_id = i.server_id
 CROSS JOIN LATERAL (SELECT f.payload->>'enrol_token_hash' AS token_hash
                       FROM (SELECT e.stream_id, e.type, e.payload
                               FROM event e
                              WHERE (e.lane, e.stream_id, e.version) >= (i.lane, i.id, 1)
                              ORDER BY e.lane, e.stream_id, e.version
                              LIMIT 1000) f
                      WHERE f.stream_id = i.id AND f.type = 'server_intended' AND f.payload->>'attempt' = i.attempt::text
                      LIMIT 1) n
 WHERE i.provider = %(provider)s AND i.status <> 'failed' AND i.status <> 'deleted'
 ORDER BY i.id

-- name: other_providers
SELECT DISTINCT provider FROM instance
 WHERE provider <> ALL (%(looked_at)s) AND status <> 'failed' AND status <> 'deleted'
 ORDER BY provider

-- name: record_sighting
-- For how many seconds the server has been known as an orphan: exactly 0 at the first sighting. RETURNING needs a row to be written, so
-- an existing row is updated with its own time, or with now() if the clock has gone back since.
INSERT INTO orphan (provider, server_id, first_seen_at)
VALUES (%(provider)s, %(server_id)s, now())
ON CONFLICT (provider, server_id) DO UPDATE SET first_seen_at = least(orphan.first_seen_at, excluded.first_seen_at)
RETURNING extract(epoch FROM now() - first_seen_at)::float8

-- name: delete_others
DELETE FROM orphan WHERE provider = %(provider)s AND server_id <> ALL (%(server_ids)s)

-- name: record_missing
-- For how many seconds the server has been missing, in the same way as `record_sighting`.
INSERT INTO missing_server (provider, server_id, first_missed_at)
VALUES (%(provider)s, %(server_id)s, now())
ON CONFLICT (provider, server_id) DO UPDATE SET first_missed_at = least(missing_server.first_missed_at, excluded.first_missed_at)
RETURNING extract(epoch FROM now() - first_missed_at)::float8

-- name: delete_found
DELETE FROM missing_server WHERE provider = %(provider)s AND server_id <> ALL (%(missing)s)

-- name: record_result
INSERT INTO last_sweep (ended_at, result)
VALUES (now(), %(result)s::json)
ON CONFLICT (singleton) DO UPDATE SET ended_at = excluded.ended_at, result = excluded.result
