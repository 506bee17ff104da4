-- An inline projection of which the table `projection` says nothing is refused too: whoever deletes its row would otherwise have
-- it written on and compared by nobody.
CREATE OR REPLACE FUNCTION check_projections(names text[], versions integer[]) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    live record;
BEGIN
    FOR live IN
        SELECT w.name, p.version
          FROM unnest(names, versions) AS w (name, version)
          LEFT JOIN projection p ON p.name = w.name
         WHERE p.version IS DISTINCT FROM w.version
    LOOP
        IF live.version IS NULL THEN
            RAISE EXCEPTION 'projection % has no row in the table projection', live.name USING ERRCODE = 'undefined_object';
        END IF;
        RAISE EXCEPTION 'projection % is at version %', live.name, live.version
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END LOOP;
END
$$;
