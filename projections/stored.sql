-- name: payload
-- The payload as bulk decoding takes it: as it is, or, in another version than today's, in an envelope that says which. Most
-- events are of version 1 and of a type that never had another; they are told by the two comparisons that come first.
CASE WHEN e.schema_version = 1 AND e.type <> ALL ({changed}::text[])
       OR e.schema_version > 1 AND e.type || ' ' || e.schema_version = ANY ({today}::text[])
     THEN e.payload
     ELSE json_build_object('type', 'outdated', 'name', e.type, 'schema_version', e.schema_version, 'payload', e.payload)
END
