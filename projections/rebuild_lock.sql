-- name: take
SELECT pg_try_advisory_lock(hashtextextended('hydracore projection ' || %s::text, 0))

-- name: take_for_transaction
SELECT pg_try_advisory_xact_lock(hashtextextended('hydracore projection ' || %s::text, 0))

-- name: check
-- The lock ends with its session: any answer says that it is held.
SELECT 1

-- name: release
SELECT pg_advisory_unlock(hashtextextended('hydracore projection ' || %s::text, 0))
