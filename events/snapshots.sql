-- Snapshots of long streams.

-- name: snapshot
SELECT version, digest, state::text FROM snapshot WHERE lane = %s AND stream_id = %s AND fold = %s

-- name: keep
-- Whichever comes last stays: an earlier one is as good, and read on from for longer.
INSERT INTO snapshot (lane, stream_id, version, fold, digest, state)
VALUES (%s, %s, %s, %s, %s, %s::json)
    ON CONFLICT (lane, stream_id) DO UPDATE
   SET version = excluded.version, fold = excluded.fold, digest = excluded.digest, state = excluded.state
