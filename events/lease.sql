-- name: begin
BEGIN

-- name: end_if_too_long
-- And where an answer is under way that nobody takes, the server does not look at its clock until the network gives up.
SELECT set_config('transaction_timeout', $1, true), set_config('tcp_user_timeout', $1, true), set_config('synchronous_commit', 'off', true)

-- name: end_if_idle
SELECT set_config('idle_in_transaction_session_timeout', $1, true), set_config('tcp_user_timeout', $1, true),
       set_config('synchronous_commit', 'off', true)
