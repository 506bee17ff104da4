-- What was skipped can be taken back.
ALTER TABLE projection_intervention DROP CONSTRAINT projection_intervention_action_check;
ALTER TABLE projection_intervention
    ADD CONSTRAINT projection_intervention_action_check CHECK (action IN ('skip', 'unskip', 'retry'));

-- The events that a version of a projection passes over: those that were skipped, unless that was taken back since.
CREATE VIEW projection_skipped AS
SELECT i.name, i.version, i.lane, i.seq
  FROM projection_intervention i
 WHERE i.action = 'skip'
   AND NOT EXISTS (SELECT
                     FROM projection_intervention u
                    WHERE u.name = i.name AND u.version = i.version AND u.lane = i.lane AND u.seq = i.seq
                      AND u.action = 'unskip' AND u.id > i.id);

GRANT SELECT ON projection_skipped TO hydracore_app;

-- A rollback goes back to the generation that was live before, which need not be the one with the highest number.
ALTER TABLE projection_generation ADD COLUMN replaced_at timestamptz;
