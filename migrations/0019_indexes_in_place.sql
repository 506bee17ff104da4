-- The new indexes take the place and the names of the old ones: a step of its own, as a reader may have it tried many times, and
-- making indexes keeps writers waiting each time.
LOCK TABLE instance IN ACCESS EXCLUSIVE MODE;
DO $$
BEGIN
    -- A table that a rebuild has put here since the last step came with indexes of its own.
    IF to_regclass('instance_by_key_anew') IS NOT NULL THEN
        DROP INDEX instance_by_customer, instance_by_tenant, instance_by_age, instance_by_key;
        ALTER INDEX instance_by_customer_anew RENAME TO instance_by_customer;
        ALTER INDEX instance_by_tenant_anew RENAME TO instance_by_tenant;
        ALTER INDEX instance_by_age_anew RENAME TO instance_by_age;
        ALTER INDEX instance_by_key_anew RENAME TO instance_by_key;
    END IF;
END
$$;
