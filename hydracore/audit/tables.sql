-- name: histories
-- Each stream's events, in order, a row per chunk; as bulk decoding takes them (`projections/stored.sql`).
COPY (
    SELECT '["' || s.stream_id || '",[' || string_agg(({payload})::text, ',' ORDER BY e.version) || ']]'
      FROM unnest({lanes}::smallint[], {streams}::uuid[]) AS s (lane, stream_id)
      JOIN event e ON e.lane = s.lane AND e.stream_id = s.stream_id
     GROUP BY s.stream_id, (e.version - 1) / {chunk}
     ORDER BY s.stream_id, (e.version - 1) / {chunk}
) TO STDOUT (FORMAT binary)

-- name: live_versions
SELECT name, version FROM projection ORDER BY name

-- name: rows
SELECT {columns}
  FROM unnest(%(lanes)s::smallint[], %(streams)s::uuid[]) AS s (lane, stream_id)
  JOIN {table} t ON t.{stream} = s.stream_id{and_lane}

-- name: rows_of_strangers
-- Rows of a lane (or, of a table without lanes, of all) whose stream is in no history.
SELECT DISTINCT t.{stream}
  FROM {table} t
 WHERE NOT EXISTS (SELECT
                     FROM event e
                    WHERE e.lane = get_byte(uuid_send(t.{stream}), 15) & 63 AND e.stream_id = t.{stream})
 ORDER BY t.{stream}
 LIMIT %(limit)s
