-- name: accounted
SELECT id, lane, status, attempt, server_id, provider, updated_at < now() - %(settled_s)s * interval '1 s' AS settled
  FROM instance
 WHERE (provider = %(provider)s AND server_id IS NOT NULL AND status IN ('provisioning', 'running', 'error'))
    OR id = ANY (%(ids)s)
 ORDER BY lane, id

-- name: elsewhere
SELECT DISTINCT provider FROM instance
 WHERE provider <> ALL (%(looked_at)s) AND status <> ALL ('{failed,deleted}')
 ORDER BY provider

-- name: sight
INSERT INTO orphan (provider, server_id, first_seen_at, last_seen_at, sightings)
VALUES (%(provider)s, %(server_id)s, now(), now(), 1)
ON CONFLICT (provider, server_id) DO UPDATE SET
       last_seen_at = excluded.last_seen_at, sightings = orphan.sightings + 1
RETURNING sightings, extract(epoch FROM now() - first_seen_at)::float8

-- name: forget_others
DELETE FROM orphan WHERE provider = %(provider)s AND server_id <> ALL (%(server_ids)s)

-- name: miss
INSERT INTO missing_server (provider, server_id, first_missed_at, misses)
VALUES (%(provider)s, %(server_id)s, now(), 1)
ON CONFLICT (provider, server_id) DO UPDATE SET misses = missing_server.misses + 1
RETURNING misses, extract(epoch FROM now() - first_missed_at)::float8

-- name: forget_found
DELETE FROM missing_server WHERE provider = %(provider)s AND server_id <> ALL (%(missing)s)
