-- name: histories
-- Each stream's events, in order, as bulk decoding takes them (`projections/sql_fragments.sql`). A row per
-- chunk, which has at most {chunk} events, and at most one that goes beyond {bytes}.
COPY (
    SELECT '["' || e.stream_id || '",[' || string_agg(coalesce(({payload})::text, 'null'), ',' ORDER BY e.version) || ']]'
      FROM (SELECT s.stream_id, e.version, e.type, e.schema_version, e.payload,
                   sum({weight}) OVER (PARTITION BY s.stream_id ORDER BY e.version ROWS UNBOUNDED PRECEDING) / {bytes} AS part
              FROM unnest({lanes}::smallint[], {streams}::uuid[]) AS s (lane, stream_id)
              JOIN event e ON e.lane = s.lane AND e.stream_id = s.stream_id) e
     GROUP BY e.stream_id, (e.version::bigint - 1) / {chunk}, e.part
     ORDER BY e.stream_id, (e.version::bigint - 1) / {chunk}, e.part
) TO STDOUT (FORMAT binary)

-- name: rows
SELECT {columns}
  FROM unnest(%(lanes)s::smallint[], %(streams)s::uuid[]) AS s (lane, stream_id)
  JOIN {table} t ON t.{stream} = s.stream_id{and_lane}

-- name: orphan_rows
-- Streams of rows that have no events, or none in the lane of the row: the comparison by streams does
-- not see them. Each stream is looked for once, however many rows it has.
SELECT DISTINCT t.{stream}
  FROM (SELECT DISTINCT {place} FROM {table}) t
 WHERE NOT EXISTS (SELECT
                     FROM event e
                    WHERE e.lane = get_byte(uuid_send(t.{stream}), 15) & 63 AND e.stream_id = t.{stream}{and_lane})
 ORDER BY t.{stream}
 LIMIT %(limit)s
