-- name: begin
BEGIN

-- name: end_if_too_long
-- `tcp_user_timeout`: while the client does not read an answer, the server does not check its time limits until the network gives up.
SELECT set_config('transaction_timeout', $1, true), set_config('tcp_user_timeout', $1, true), set_config('synchronous_commit', 'off', true)

-- name: end_if_idle
SELECT set_config('idle_in_transaction_session_timeout', $1, true), set_config('tcp_user_timeout', $1, true),
       set_config('synchronous_commit', 'off', true)
