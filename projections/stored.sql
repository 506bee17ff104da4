-- name: payload
-- The payload as bulk decoding takes it: as it is, or, where it is not what today's code writes, in an envelope that says which version
-- of which type it is. Most events are of version 1 and of a type that never had another; they are told by what comes first.
CASE WHEN e.schema_version = 1 AND e.type = ANY ({first}::text[])
       OR e.schema_version > 1 AND e.type || ' ' || e.schema_version = ANY ({later}::text[])
     THEN e.payload
     ELSE json_build_object('type', 'outdated', 'name', e.type, 'schema_version', e.schema_version, 'payload', e.payload)
END
