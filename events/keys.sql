-- name: find_key
SELECT wrapped_key FROM customer_key WHERE tenant_id = %s AND customer_id = %s

-- name: create_key
INSERT INTO customer_key (tenant_id, customer_id, wrapped_key)
VALUES (%s, %s, %s)
ON CONFLICT (tenant_id, customer_id) DO NOTHING
