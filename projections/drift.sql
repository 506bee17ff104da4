-- name: one_snapshot
-- First in its transaction: the build is brought to the positions that the live tables have in the same snapshot.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ

-- name: whole_tables
-- A hash join holds one side in memory while it reads the other. What does not fit goes to disk.
SELECT set_config('work_mem', '64MB', true)

-- name: columns
SELECT l.attname, format_type(l.atttypid, NULL)
  FROM pg_attribute l
  JOIN pg_attribute f ON f.attname = l.attname AND f.attnum > 0 AND NOT f.attisdropped
 WHERE l.attrelid = to_regclass(format('%%I.%%I', %(live)s::text, %(table)s::text))
   AND f.attrelid = to_regclass(format('%%I.%%I', %(fresh)s::text, %(table)s::text))
   AND l.attnum > 0 AND NOT l.attisdropped
 ORDER BY l.attnum

-- name: pairs
SELECT {what}
  FROM (SELECT true AS is_there, {columns} FROM {live} t{within}) l
  FULL JOIN (SELECT true AS is_there, {columns} FROM {fresh} t{within}) f ON {same_key}
{only}

-- name: differs
(l.is_there IS NULL OR f.is_there IS NULL OR ({of_live}) IS DISTINCT FROM ({of_fresh}))

-- name: count
count(*), count(*) FILTER (WHERE {differs})

-- name: rows
-- The columns one by one, each as JSON text: a document may hold what nothing but PostgreSQL can read.
CASE WHEN l.is_there THEN ARRAY[{texts_of_live}] END, CASE WHEN f.is_there THEN ARRAY[{texts_of_fresh}] END
