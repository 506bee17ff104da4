-- name: append
SELECT outcome, version_after, seq_before, encode(known_request_hash, 'hex'), known_result
  FROM append_commands($1::smallint[], $2::json, $3::json)
 ORDER BY ordinal

-- name: stream_from
SELECT version, type, schema_version, payload::text, digest
  FROM event
 WHERE lane = %s AND stream_id = %s AND version >= %s
 ORDER BY version
 LIMIT %s

-- name: heads
SELECT lane, head FROM lane_head ORDER BY lane

-- name: lane_after
SELECT lane, seq, stream_id, version, tenant_id, type, schema_version, payload::text, digest, command_id, recorded_at
  FROM event
 WHERE lane = %s AND seq > %s
 ORDER BY seq
 LIMIT %s

-- name: check_projections
SELECT check_projections($1::text[], $2::integer[])

-- name: live_versions
SELECT name, version FROM projection ORDER BY name
