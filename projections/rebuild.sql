-- name: take_turn
SELECT pg_try_advisory_lock(hashtextextended('hydracore projection ' || %s::text, 0))

-- name: give_turn
SELECT pg_advisory_unlock(hashtextextended('hydracore projection ' || %s::text, 0))
