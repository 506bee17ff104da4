-- Snapshots, for whoever compares them with the log.

-- name: streams
SELECT stream_id FROM snapshot WHERE lane = %s AND fold = %s ORDER BY stream_id

-- name: newer
SELECT count(*) FROM snapshot WHERE lane = %s AND fold > %s
