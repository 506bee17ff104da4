-- name: end_if_too_long
-- And where an answer is under way that nobody takes, the server does not look at its clock until the network gives up.
SELECT set_config('transaction_timeout', %(limit_ms)s::text, true), set_config('tcp_user_timeout', %(limit_ms)s::text, true)

-- name: end_if_idle
SELECT set_config('idle_in_transaction_session_timeout', %(limit_ms)s::text, true),
       set_config('tcp_user_timeout', %(limit_ms)s::text, true)
