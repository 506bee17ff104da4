-- name: take
SELECT pg_try_advisory_lock(hashtextextended('hydracore projection ' || %s::text, 0))

-- name: take_for_transaction
SELECT pg_try_advisory_xact_lock(hashtextextended('hydracore projection ' || %s::text, 0))

-- name: release
SELECT pg_advisory_unlock(hashtextextended('hydracore projection ' || %s::text, 0))
