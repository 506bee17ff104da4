-- Snapshots, to compare them with the log.

-- name: streams
SELECT stream_id FROM snapshot WHERE lane = %s AND fold = %s ORDER BY stream_id

-- name: newer_snapshots
SELECT count(*) FROM snapshot WHERE lane = %s AND fold > %s

-- name: events_to_fold
-- Per lane, the number of events that its snapshots cover: those of streams with events behind these
-- numbers, or with 0, all.
SELECT s.lane, sum(s.version)
  FROM unnest(%(lanes)s::smallint[], %(after)s::bigint[]) AS l (lane, after)
  JOIN snapshot s ON s.lane = l.lane AND s.fold = %(fold)s AND s.version > 0
 WHERE l.after = 0
    OR EXISTS (SELECT
                 FROM stream t
                 JOIN event e ON e.lane = t.lane AND e.stream_id = t.stream_id AND e.version = t.version
                WHERE t.lane = s.lane AND t.stream_id = s.stream_id AND e.seq > l.after)
 GROUP BY s.lane
 ORDER BY s.lane
