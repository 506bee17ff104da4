-- name: append
SELECT ordinal, outcome, version_after, seq_before, known_request_hash, known_result::text
  FROM append_commands(%s::json, %s::json)
 ORDER BY ordinal

-- name: stream_from
SELECT version, type, schema_version, payload::text, digest
  FROM event
 WHERE lane = %s AND stream_id = %s AND version >= %s
 ORDER BY version

-- name: heads
SELECT lane, head FROM lane_head ORDER BY lane

-- name: lane_after
SELECT lane, seq, stream_id, version, tenant_id, type, schema_version, payload::text, digest, command_id, recorded_at
  FROM event
 WHERE lane = %s AND seq > %s
 ORDER BY seq
 LIMIT %s

-- name: check_projections
SELECT check_projections(%s::text[], %s::integer[])

-- name: live_versions
SELECT name, version FROM projection ORDER BY name
