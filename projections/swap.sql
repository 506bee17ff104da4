-- name: begin
-- The commit does not wait for the disk, because writers are stopped meanwhile. Their later commits flush it too.
BEGIN;
SELECT set_config('lock_timeout', {wait_ms}, true), set_config('statement_timeout', {stopped_ms}, true),
       set_config('idle_in_transaction_session_timeout', {stopped_ms}, true),
       set_config('tcp_user_timeout', {stopped_ms}, true),
       -- PostgreSQL 15 and 16 lack it.
       CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
            THEN set_config('transaction_timeout', {stopped_ms}, true) END,
       set_config('synchronous_commit', 'off', true)

-- name: lock_lanes
SELECT FROM lane ORDER BY lane FOR UPDATE

-- name: lock_checkpoints
SELECT lane, seq FROM checkpoint WHERE follower = %s ORDER BY lane FOR UPDATE

-- name: commit_in_time
DO $$
BEGIN
    IF clock_timestamp() - now() > {limit} THEN
        RAISE query_canceled USING MESSAGE = 'writers have stood still for too long';
    END IF;
END
$$;
SELECT now();
COMMIT;
SELECT clock_timestamp()

-- name: on_disk
-- This commit waits for the disk, and makes the swap durable too.
UPDATE projection SET swapped_at = clock_timestamp() WHERE name = %(name)s AND generation = %(generation)s

-- name: session
-- This session. After a restart of the server, another one may have its pid.
SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()

-- name: end_session
-- Waits until the session has ended, for at most the given milliseconds.
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s
