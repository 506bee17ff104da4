-- name: weight
-- The most bytes that a payload can have. It is not decompressed, which would take as long as sending it: for a compressed one, its
-- size is multiplied by the highest ratio of the method. An integer, because sums of larger types are slow.
CASE pg_column_compression(e.payload)
    WHEN 'pglz' THEN least(pg_column_size(e.payload), 10000000) * 90
    WHEN 'lz4' THEN least(pg_column_size(e.payload), 4000000) * 256
    ELSE coalesce(pg_column_size(e.payload), 0)
END
