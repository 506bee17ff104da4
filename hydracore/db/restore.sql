-- name: tables
-- Whether the database has any table, and whether it has the table of keys.
SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')),
       to_regclass('public.customer_key') IS NOT NULL

-- name: roles
SELECT rolname FROM pg_roles ORDER BY rolname

-- name: any_key
SELECT EXISTS (SELECT FROM public.customer_key)
