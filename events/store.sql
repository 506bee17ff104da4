-- name: append
-- The limits apply to this transaction only, and are set before a lane is locked. They are set within this statement, because a separate
-- one would cost more, and not for the session, because a pooler hands sessions on. PostgreSQL before 17 cannot limit a transaction.
SELECT outcome, version_after, seq_before, encode(known_request_hash, 'hex'), known_result
  FROM append_commands(
       CASE WHEN concat(set_config('lock_timeout', $4, true),
                        CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
                             THEN set_config('transaction_timeout', $5, true) END) <> ''
            THEN $1::smallint[] END,
       $2::json, $3::json)
 ORDER BY ordinal

-- name: command_result
SELECT request_hash, result::text FROM command WHERE lane = %s AND command_id = %s

-- name: stream_end
-- The version of a stream according to its row, and that of its last event.
SELECT s.version, (SELECT coalesce(max(e.version), 0) FROM event e WHERE e.lane = s.lane AND e.stream_id = s.stream_id)
  FROM stream s
 WHERE s.lane = %s AND s.stream_id = %s

-- name: stream_from
-- A page of a stream (`events/pages.py`). `upto_bytes`: the size of all payloads of the page up to and including the event's.
SELECT e.seq, e.version, e.type, e.schema_version, e.payload::text, e.digest, e.upto_bytes
  FROM (SELECT e.seq, e.version, e.type, e.schema_version, e.payload, e.digest, {weight} AS bytes,
               sum({weight}) OVER (ORDER BY e.version ROWS UNBOUNDED PRECEDING) AS upto_bytes
          FROM event e
         WHERE e.lane = %s AND e.stream_id = %s AND e.version >= %s
         ORDER BY e.version
         LIMIT %s) e
 WHERE e.upto_bytes - e.bytes < %s
 ORDER BY e.version

-- name: heads
SELECT lane, head FROM lane_head ORDER BY lane

-- name: check_projections
SELECT check_projections($1::text[], $2::integer[])

-- name: live_versions
SELECT name, version FROM projection ORDER BY name

-- name: head_out_of_range
-- The head of a lane, if the time at which it was recorded is out of range. Before its first event, a lane's time is long ago.
SELECT head FROM lane_head WHERE lane = %s AND recorded_at > '9998-01-01'

-- name: event_without_command
-- The first event of a lane after its last command.
SELECT seq
  FROM event
 WHERE lane = %s AND seq > (SELECT head FROM lane_head WHERE lane = %s)
 ORDER BY seq
 LIMIT 1

-- name: event_out_of_range
-- The first event of a stream with a time that is out of range, in milliseconds since 1970.
SELECT seq
  FROM event
 WHERE lane = %s AND stream_id = %s
   AND NOT (coalesce((payload->>'at_ms')::numeric, 0) BETWEEN -62135596800000 AND 253402300799999
            AND coalesce((payload->>'deadline_ms')::numeric, 0) BETWEEN -62135596800000 AND 253402300799999)
 ORDER BY version
 LIMIT 1
