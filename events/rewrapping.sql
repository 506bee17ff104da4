-- name: wrapped_keys
SELECT tenant_id, customer_id, wrapped_key
  FROM customer_key
 WHERE wrapped_key IS NOT NULL AND (tenant_id, customer_id) > (%(tenant)s, %(customer)s)
 ORDER BY tenant_id, customer_id
 LIMIT %(limit)s

-- name: hold_wrapped_keys
-- As `wrapped_keys`, and nobody changes or destroys one until this transaction ends. It passes over whatever somebody else
-- holds, who may be destroying it, and so never waits with rows in hand: nobody can be in a deadlock with it.
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
