-- name: wrapped_keys
SELECT tenant_id, customer_id, wrapped_key
  FROM customer_key
 WHERE wrapped_key IS NOT NULL AND (tenant_id, customer_id) > (%(tenant)s, %(customer)s)
 ORDER BY tenant_id, customer_id
 LIMIT %(limit)s

-- name: lock_wrapped_keys
-- As `wrapped_keys`, and locks the rows until the transaction ends. Skips rows that another session has locked, perhaps to destroy the
-- key. So it never waits while it holds locks, and cannot be part of a deadlock.
SELECT tenant_id, customer_id, wrapped_key
  FROM customer_key
 WHERE wrapped_key IS NOT NULL AND (tenant_id, customer_id) > (%(tenant)s, %(customer)s)
 ORDER BY tenant_id, customer_id
 LIMIT %(limit)s
   FOR NO KEY UPDATE SKIP LOCKED

-- name: count_wrapped_keys
SELECT count(*) FROM customer_key WHERE wrapped_key IS NOT NULL

-- name: replace_keys
UPDATE customer_key k
   SET wrapped_key = n.wrapped_key
  FROM unnest(%(tenants)s::text[], %(customers)s::text[], %(keys)s::bytea[]) AS n (tenant_id, customer_id, wrapped_key)
 WHERE k.tenant_id = n.tenant_id AND k.customer_id = n.customer_id
