-- name: histories
-- Each stream's events, in order, a row per chunk; as bulk decoding takes them (`projections/stored.sql`).
COPY (
    SELECT '["' || s.stream_id || '",[' || string_agg(coalesce(({payload})::text, 'null'), ',' ORDER BY e.version) || ']]'
      FROM unnest({lanes}::smallint[], {streams}::uuid[]) AS s (lane, stream_id)
      JOIN event e ON e.lane = s.lane AND e.stream_id = s.stream_id
     GROUP BY s.stream_id, (e.version::bigint - 1) / {chunk}
     ORDER BY s.stream_id, (e.version::bigint - 1) / {chunk}
) TO STDOUT (FORMAT binary)

-- name: live_versions
SELECT name, version FROM projection ORDER BY name

-- name: rows
SELECT {columns}
  FROM unnest(%(lanes)s::smallint[], %(streams)s::uuid[]) AS s (lane, stream_id)
  JOIN {table} t ON t.{stream} = s.stream_id{and_lane}

-- name: rows_of_strangers
-- Rows whose stream is in no history, or in another lane than theirs: nobody who looks for a stream where it is would see them.
SELECT DISTINCT t.{stream}
  FROM {table} t
 WHERE NOT EXISTS (SELECT
                     FROM event e
                    WHERE e.lane = get_byte(uuid_send(t.{stream}), 15) & 63 AND e.stream_id = t.{stream}{and_lane})
 ORDER BY t.{stream}
 LIMIT %(limit)s
