-- A step towards the next one, which takes away the column that appends wait for: whoever waits for it in that moment is told to try
-- again, which they do, and not that there is no such thing.
ALTER FUNCTION append_commands(smallint[], json, json) RENAME TO append_commands_before;

CREATE FUNCTION append_commands(lanes smallint[], commands json, events json)
RETURNS TABLE (
    ordinal integer,
    outcome text,
    version_after integer,
    seq_before bigint,
    known_request_hash bytea,
    known_result json
) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM append_commands_before(lanes, commands, events);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR object_not_in_prerequisite_state OR undefined_table
               OR undefined_column OR undefined_function OR internal_error THEN
    RAISE serialization_failure USING MESSAGE = 'the log is being migrated';
END
$$;
