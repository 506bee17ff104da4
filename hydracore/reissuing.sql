-- name: living
-- The instances whose agents may come back to us, or be asked by us. None of the statuses is 'deleted', but an index is used
-- only where that is said in its words.
SELECT lane, id
  FROM instance
 WHERE status <> 'deleted' AND status IN ('provisioning', 'running', 'deleting') AND (lane, id) > (%(lane)s, %(id)s)
 ORDER BY lane, id
 LIMIT %(limit)s

-- name: count_living
SELECT count(*) FROM instance WHERE status <> 'deleted' AND status IN ('provisioning', 'running', 'deleting')

-- name: of_agent
-- A page of a stream without the events of some types, and which event of the stream each is: its version, where none before it is missing.
SELECT e.seq, e.version, e.type, e.schema_version, e.payload::text, e.place
  FROM (SELECT seq, version, type, schema_version, payload,
               %(after)s::integer + row_number() OVER (ORDER BY version ROWS UNBOUNDED PRECEDING) AS place
          FROM event
         WHERE lane = %(lane)s AND stream_id = %(stream_id)s AND version > %(after)s) e
 WHERE e.type <> ALL (%(without)s)
 ORDER BY e.version
 LIMIT %(limit)s
