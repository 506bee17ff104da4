-- Lists of live instances, and looks for a key in all tenants, took the longer the more instances had ever been deleted.
-- While the new indexes are made nobody writes, and everybody reads.
SET LOCAL maintenance_work_mem = '256MB';
CREATE INDEX instance_by_customer_anew ON instance (tenant_id, customer_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_tenant_anew ON instance (tenant_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_age_anew ON instance ((status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_key_anew ON instance (idempotency_key, tenant_id, created_at DESC);

-- Last, as it keeps everybody from the table until the commit.
DROP INDEX instance_by_customer, instance_by_tenant, instance_by_age, instance_by_key;
ALTER INDEX instance_by_customer_anew RENAME TO instance_by_customer;
ALTER INDEX instance_by_tenant_anew RENAME TO instance_by_tenant;
ALTER INDEX instance_by_age_anew RENAME TO instance_by_age;
ALTER INDEX instance_by_key_anew RENAME TO instance_by_key;
