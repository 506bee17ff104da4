-- name: payload
-- The payload for bulk decoding: unchanged if it is of the version that today's code writes, otherwise in an envelope
-- with its type and version. Most events are of version 1 of a type that has no other version; the first condition is
-- for those.
CASE WHEN e.schema_version = 1 AND e.type = ANY ({first}::text[])
       OR e.schema_version > 1 AND e.type || ' ' || e.schema_version = ANY ({later}::text[])
     THEN e.payload
     ELSE json_build_object('type', 'outdated', 'name', e.type, 'schema_version', e.schema_version, 'payload', e.payload)
END
