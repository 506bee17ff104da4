-- name: weight
-- How many bytes a payload has, at most. It is not looked into, which would take as long as sending it: of one that is compressed
-- it is only known how small that made it, and each method has its limit. An integer, because sums of larger numbers are slow.
CASE pg_column_compression(e.payload)
    WHEN 'pglz' THEN least(pg_column_size(e.payload), 10000000) * 90
    WHEN 'lz4' THEN least(pg_column_size(e.payload), 4000000) * 256
    ELSE coalesce(pg_column_size(e.payload), 0)
END
