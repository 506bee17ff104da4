-- name: be_quick
SET LOCAL lock_timeout = '100ms'

-- name: lock_heads
SELECT lane, head FROM lane_head ORDER BY lane FOR UPDATE

-- name: lock_checkpoints
SELECT lane, seq FROM checkpoint WHERE follower = %s ORDER BY lane FOR UPDATE
