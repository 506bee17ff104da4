-- name: histories
-- Each stream's events, whole and in order.
SELECT stream_id, array_agg(type), array_agg(schema_version), array_agg(payload)
  FROM (SELECT stream_id, type, schema_version, json_send(payload) AS payload
          FROM event
         WHERE lane = %(lane)s AND stream_id = ANY (%(streams)s)
         ORDER BY stream_id, version) history
 GROUP BY stream_id

-- name: live_versions
SELECT name, version FROM projection ORDER BY name

-- name: rows
SELECT {columns} FROM {table} WHERE {stream} = ANY (%(streams)s){and_lane}

-- name: rows_of_strangers
-- Rows of a lane (or, of a table without lanes, of all) whose stream is in no history.
SELECT DISTINCT t.{stream}
  FROM {table} t
 WHERE NOT EXISTS (SELECT
                     FROM event e
                    WHERE e.lane = get_byte(uuid_send(t.{stream}), 15) & 63 AND e.stream_id = t.{stream})
 ORDER BY t.{stream}
 LIMIT %(limit)s
