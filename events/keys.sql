-- name: find_key
SELECT wrapped_key FROM customer_key WHERE tenant_id = %s AND customer_id = %s

-- name: oldest_keys
SELECT tenant_id, customer_id, wrapped_key
  FROM customer_key
 WHERE wrapped_key IS NOT NULL
 ORDER BY created_at, tenant_id, customer_id
 LIMIT %s

-- name: last_keys
-- The keys that a change of the master key rewraps last (`rewrapping.sql`), so that an interrupted change is noticed.
SELECT tenant_id, customer_id, wrapped_key
  FROM customer_key
 WHERE wrapped_key IS NOT NULL
 ORDER BY tenant_id DESC, customer_id DESC
 LIMIT %s

-- name: create_key
INSERT INTO customer_key (tenant_id, customer_id, wrapped_key)
VALUES (%s, %s, %s)
ON CONFLICT (tenant_id, customer_id) DO NOTHING

-- name: destroy_keys
-- A customer without a key gets a destroyed one, so that none is ever created for them.
INSERT INTO customer_key (tenant_id, customer_id, wrapped_key, destroyed_at)
SELECT tenant_id, customer_id, NULL, now()
  FROM unnest(%(tenants)s::text[], %(customers)s::text[]) AS erased (tenant_id, customer_id)
    ON CONFLICT (tenant_id, customer_id)
    DO UPDATE SET wrapped_key = NULL, destroyed_at = now()
 WHERE customer_key.wrapped_key IS NOT NULL
RETURNING tenant_id, customer_id
