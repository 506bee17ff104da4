-- name: unlimited
-- For work without a time limit. Limits of a role or a database are meant for other statements, and so are their settings for the
-- isolation level and for the format of values.
SELECT set_config(name, '0', false)
  FROM pg_settings
 WHERE name IN ('statement_timeout', 'transaction_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout')
UNION ALL
SELECT set_config(name, value, false)
  FROM (VALUES ('default_transaction_isolation', 'read committed'), ('array_nulls', 'on'),
               ('standard_conforming_strings', 'on')) ours (name, value)
