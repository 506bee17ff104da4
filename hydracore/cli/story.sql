-- What `hydracore demo` reads besides the API, as an auditor would: the log itself, and what is still reserved.

-- name: events
SELECT event.lane, event.seq, event.version, event.type, event.payload, event.recorded_at, command.actor
  FROM event
  JOIN command USING (lane, command_id)
 WHERE event.lane = %(lane)s AND event.stream_id = %(stream_id)s AND event.version > %(version)s
 ORDER BY event.version
 LIMIT 100

-- name: reservations
SELECT kind, value
  FROM reservation
 WHERE instance_id = %(instance_id)s AND released_at IS NULL AND kind <> 'idempotency_key'
 ORDER BY kind, value
