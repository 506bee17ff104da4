-- name: unlimited
-- For work that takes as long as it takes: limits that a role or a database has are for the statements of others, and so are what
-- transactions see there and how values are written.
SELECT set_config(name, '0', false)
  FROM pg_settings
 WHERE name IN ('statement_timeout', 'transaction_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout')
UNION ALL
SELECT set_config(name, value, false)
  FROM (VALUES ('default_transaction_isolation', 'read committed'), ('array_nulls', 'on'),
               ('standard_conforming_strings', 'on')) ours (name, value)
