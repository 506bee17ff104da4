-- name: tenants_with_customer
-- The tenants that have a customer of this id.
SELECT tenant_id FROM customer_key WHERE customer_id = %(customer)s
 UNION
SELECT tenant_id FROM instance WHERE customer_id = %(customer)s
 ORDER BY tenant_id

-- name: customer
SELECT (SELECT count(*) FROM instance WHERE tenant_id = %(tenant)s AND customer_id = %(customer)s),
       ARRAY(SELECT id FROM instance
              WHERE tenant_id = %(tenant)s AND customer_id = %(customer)s AND status <> 'deleted'
              ORDER BY id)

-- name: unrecorded_instances
-- The customers' instances whose streams do not say yet that their customer was erased.
SELECT i.id
  FROM unnest(%(tenants)s::text[], %(customers)s::text[]) AS e (tenant_id, customer_id)
  JOIN instance i ON i.tenant_id = e.tenant_id AND i.customer_id = e.customer_id
 WHERE NOT EXISTS (SELECT
                     FROM event v
                    WHERE v.lane = i.lane AND v.stream_id = i.id AND v.type = 'customer_erased')
 ORDER BY i.id

-- name: erased_customers
-- Whose key was destroyed, or whose streams record an erasure: after a restore there may be only one of the two. A stream's first
-- event says whose it is: the rows of a read table may be gone until it is rebuilt.
SELECT tenant_id, customer_id FROM customer_key WHERE destroyed_at IS NOT NULL
 UNION
SELECT f.tenant_id, f.payload->>'customer_id'
  FROM event e
  JOIN event f ON f.lane = e.lane AND f.stream_id = e.stream_id AND f.version = 1
 WHERE e.type = 'customer_erased' AND f.payload->>'customer_id' IS NOT NULL
 ORDER BY tenant_id, customer_id
