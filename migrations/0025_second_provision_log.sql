-- Where the log is empty, version 2 of the projection `provision_log` is live from the start: there are no rows to word anew. Where it has
-- events, the version stays until a rebuild makes the new one live.

-- Wait for appends, and have the next ones wait: none may write rows of version 1 meanwhile.
SELECT FROM lane ORDER BY lane FOR UPDATE;

UPDATE projection_generation
   SET version = 2
 WHERE name = 'provision_log' AND version = 1 AND state = 'live' AND NOT EXISTS (SELECT FROM command);
UPDATE projection
   SET version = 2
 WHERE name = 'provision_log' AND version = 1 AND NOT EXISTS (SELECT FROM command);
