-- Ids and times that are only shown come as text: creating Python objects of them costs more than the query.

-- name: instances
SELECT i.tenant_id, i.customer_id, i.agent_name,
       to_char(i.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), i.hostname, i.id::text, i.ip_address,
       i.preset_id, i.provider, i.region_id, i.runtime_type, i.status, i.workload_type, i.id, i.bootstrap_seq,
       i.bootstrap_stage, i.capabilities, i.error_code, i.health_status, i.provisioning_stage, i.server_type,
       to_char(i.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), i.vpn_ip
  FROM unnest(%s::smallint[], %s::uuid[]) AS wanted (lane, id)
  JOIN instance i ON i.lane = wanted.lane AND i.id = wanted.id

-- name: agent_keys
SELECT i.id, i.status, i.agent_key_hash
  FROM unnest(%s::smallint[], %s::uuid[]) AS wanted (lane, id)
  JOIN instance i ON i.lane = wanted.lane AND i.id = wanted.id

-- name: report
SELECT i.tenant_id, i.customer_id, i.id, i.status, i.provisioning_stage, i.bootstrap_stage, i.bootstrap_seq,
       i.hostname, i.health_status, i.error_code, l.total, l.lines,
       to_char(h.received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
       silent_s(h.received_at), h.report::text
  FROM instance i
  LEFT JOIN heartbeat h ON h.lane = i.lane AND h.instance_id = i.id
 CROSS JOIN LATERAL (
       SELECT coalesce(max(line.total), 0) AS total,
              coalesce(json_agg(json_build_object(
                  'created_at', to_char(line.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                  'level', line.level, 'message', line.message, 'seq', line.seq, 'stage', line.stage
              ) ORDER BY line.seq), '[]')::text AS lines
         FROM (SELECT seq, level, stage, message, created_at, count(*) OVER () AS total
                 FROM provision_log
                WHERE lane = i.lane AND instance_id = i.id
                ORDER BY seq DESC
                LIMIT %(lines_max)s) AS line) AS l
 WHERE i.lane = %(lane)s AND i.id = %(id)s

-- name: newest_of_tenant
SELECT id
  FROM instance
 WHERE tenant_id = %(tenant_id)s AND idempotency_key = %(idempotency_key)s
 ORDER BY created_at DESC, id DESC
 LIMIT 1

-- name: newest_of_all
SELECT id
  FROM instance
 WHERE idempotency_key = %(idempotency_key)s
 ORDER BY created_at DESC, id DESC
 LIMIT 1

-- name: list
-- A list is one text, aggregated from sorted rows: fetching a hundred rows would cost more than their query.
SELECT coalesce(string_agg(key, ','), '')
  FROM (SELECT rows.id::text || ' ' || rows.version AS key
          FROM ({rows}) AS rows
         ORDER BY rows.created_at DESC, rows.id DESC
         LIMIT %(limit)s) AS listed

-- name: live
-- Deleted instances stay, so their number grows for ever. A column of the indexes excludes them; with an OR, all would
-- be read.
SELECT id, version, created_at
  FROM instance
 WHERE {of} AND status <> 'deleted'
   AND (%(status)s::text IS NULL OR status = %(status)s)
   AND (created_at, id) < (coalesce(%(before)s, 'infinity'::timestamptz),
                           coalesce(%(before_id)s, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s

-- name: live_or_deleted
-- The index has the deleted ones first, in order, and then the others, in order.
SELECT i.id, i.version, i.created_at
  FROM unnest(%(alive)s::boolean[]) AS wanted (alive)
 CROSS JOIN LATERAL (
       SELECT id, version, created_at
         FROM instance
        WHERE {of} AND (status <> 'deleted') = wanted.alive
          AND (created_at, id) < (coalesce(%(before)s, 'infinity'::timestamptz),
                                  coalesce(%(before_id)s, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
        ORDER BY created_at DESC, id DESC
        LIMIT %(limit)s) AS i

-- name: of_customer
tenant_id = %(tenant_id)s AND customer_id = %(customer_id)s

-- name: of_tenant
tenant_id = %(tenant_id)s

-- name: of_all
true

-- name: listed
SELECT i.tenant_id, i.customer_id, i.agent_name,
       to_char(i.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), i.hostname, i.id::text, i.ip_address,
       i.preset_id, i.provider, i.region_id, i.runtime_type, i.status, i.workload_type, i.version,
       i.customer_email, i.tier_name
  FROM unnest(%s::smallint[], %s::uuid[]) AS wanted (lane, id)
  JOIN instance i ON i.lane = wanted.lane AND i.id = wanted.id
