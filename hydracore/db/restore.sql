-- name: tables
-- Whether the database has any table, and whether it has the table of keys.
SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')),
       to_regclass('public.customer_key') IS NOT NULL

-- name: roles
SELECT rolname FROM pg_roles ORDER BY rolname

-- name: any_key
-- A destroyed one is none. `db migrate` leaves such rows also before the keys are restored.
SELECT EXISTS (SELECT FROM public.customer_key WHERE wrapped_key IS NOT NULL)

-- name: set_destroyed_aside
-- The rows of destroyed keys make room for the backup's, which may have the same customers. They are kept in a setting of the
-- transaction, because not every owner of the table may make a temporary one. All names are with their schema: the backup's own
-- script empties the search path.
LOCK TABLE public.customer_key IN EXCLUSIVE MODE;
WITH destroyed AS (
DELETE FROM public.customer_key WHERE wrapped_key IS NULL RETURNING tenant_id, customer_id, created_at, destroyed_at)
SELECT set_config('hydracore.destroyed_keys', coalesce(json_agg(destroyed), '[]')::text, true) FROM destroyed

-- name: destroy_again
INSERT INTO public.customer_key (tenant_id, customer_id, wrapped_key, created_at, destroyed_at)
SELECT tenant_id, customer_id, NULL, created_at, destroyed_at
  FROM json_to_recordset(current_setting('hydracore.destroyed_keys')::json)
       AS destroyed (tenant_id text, customer_id text, created_at timestamptz, destroyed_at timestamptz)
    ON CONFLICT (tenant_id, customer_id)
    DO UPDATE SET wrapped_key = NULL, destroyed_at = excluded.destroyed_at
