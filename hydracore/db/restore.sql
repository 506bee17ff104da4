-- name: look
-- What a restore finds: whether there is any table, whether there is one of keys, and the role that dumps give rights to.
SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')),
       to_regclass('public.customer_key') IS NOT NULL,
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'hydracore_app')

-- name: any_key
SELECT EXISTS (SELECT FROM public.customer_key)
