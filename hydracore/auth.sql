-- name: find_api_key
SELECT tenant_id, key_hash
  FROM api_key
 WHERE id = %s AND revoked_at IS NULL

-- name: insert_api_key
INSERT INTO api_key (id, tenant_id, name, key_hash)
VALUES (%s, %s, %s, %s)

-- name: revoke_api_key
UPDATE api_key
   SET revoked_at = coalesce(revoked_at, now())
 WHERE id = %s
RETURNING id, tenant_id, name, created_at, revoked_at

-- name: list_api_keys
SELECT id, tenant_id, name, created_at, revoked_at
  FROM api_key
 WHERE tenant_id = %s
 ORDER BY created_at, id
