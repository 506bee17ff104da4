-- Snapshots of long streams.

-- name: snapshot
SELECT version, digest, state::text FROM snapshot WHERE lane = %s AND stream_id = %s AND fold = %s

-- name: save
-- The last write wins, even if it is of an earlier version: that one is correct, too, only more events have to be read after it.
INSERT INTO snapshot (lane, stream_id, version, fold, digest, state)
VALUES (%s, %s, %s, %s, %s, %s::json)
    ON CONFLICT (lane, stream_id) DO UPDATE
   SET version = excluded.version, fold = excluded.fold, digest = excluded.digest, state = excluded.state
