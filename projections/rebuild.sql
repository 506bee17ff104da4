-- name: take_turn
SELECT pg_try_advisory_lock(hashtextextended('hydracore projection ' || %s::text, 0))
