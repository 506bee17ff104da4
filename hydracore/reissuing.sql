-- name: with_agents
-- The instances whose agents may call the control plane, or be called by it. None of these statuses is 'deleted', but the query
-- has to repeat the condition of a partial index for the index to be used.
SELECT lane, id
  FROM instance
 WHERE status <> 'deleted' AND status IN ('provisioning', 'running', 'deleting') AND (lane, id) > (%(lane)s, %(id)s)
 ORDER BY lane, id
 LIMIT %(limit)s

-- name: count_with_agents
SELECT count(*) FROM instance WHERE status <> 'deleted' AND status IN ('provisioning', 'running', 'deleting')

-- name: events_without
-- A page of a stream without the events of some types. `place` is the position of an event in the stream. It equals the event's
-- version unless an event before it is missing.
SELECT e.seq, e.version, e.type, e.schema_version, e.payload::text, e.place
  FROM (SELECT seq, version, type, schema_version, payload,
               %(after)s::integer + row_number() OVER (ORDER BY version ROWS UNBOUNDED PRECEDING) AS place
          FROM event
         WHERE lane = %(lane)s AND stream_id = %(stream_id)s AND version > %(after)s) e
 WHERE e.type <> ALL (%(without)s)
 ORDER BY e.version
 LIMIT %(limit)s
