-- Lists of live instances, and looks for a key in all tenants, took the longer the more instances had ever been deleted.
-- While the new indexes are made nobody writes, and everybody reads. The old ones stay until the next step.
SET LOCAL maintenance_work_mem = '256MB';
CREATE INDEX instance_by_customer_anew ON instance (tenant_id, customer_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_tenant_anew ON instance (tenant_id, (status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_age_anew ON instance ((status <> 'deleted'), created_at DESC, id DESC);
CREATE INDEX instance_by_key_anew ON instance (idempotency_key, tenant_id, created_at DESC);
