-- name: tenants_with_customer
-- The tenants that have a customer of this id.
SELECT tenant_id FROM customer_key WHERE customer_id = %(customer)s
 UNION
SELECT tenant_id FROM instance WHERE customer_id = %(customer)s
 ORDER BY tenant_id

-- name: customer
SELECT (SELECT destroyed_at FROM customer_key WHERE tenant_id = %(tenant)s AND customer_id = %(customer)s),
       (SELECT count(*) FROM instance WHERE tenant_id = %(tenant)s AND customer_id = %(customer)s),
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

-- name: any_erased
-- Whether any key was destroyed or any stream records an erasure: after a restore there may be only one of the two.
SELECT EXISTS (SELECT FROM customer_key WHERE destroyed_at IS NOT NULL)
    OR EXISTS (SELECT FROM event WHERE type = 'customer_erased')
