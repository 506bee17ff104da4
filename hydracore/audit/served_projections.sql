-- name: projection_rows
-- The projections that are served: whether the live build has that version, and whether a rebuild made
-- it. Those that an installation began with were not made by a rebuild.
SELECT p.name, p.version, (p.version = g.version) IS TRUE,
       EXISTS (SELECT FROM projection_lane l WHERE l.name = p.name AND l.generation = p.generation)
  FROM projection p
  LEFT JOIN projection_generation g ON g.name = p.name AND g.generation = p.generation AND g.state = 'live'
 ORDER BY p.name

-- name: columns
-- The columns of the tables. A lane or an instance's id of another type counts as missing: it cannot be queried.
SELECT c.relname, array_agg(a.attname ORDER BY a.attnum)
  FROM pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
   AND CASE WHEN a.attname = 'lane' THEN a.atttypid = 'smallint'::regtype
            WHEN a.attname IN ('id', 'instance_id') THEN a.atttypid = 'uuid'::regtype
            ELSE true END
 WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s)
 GROUP BY c.relname
 ORDER BY c.relname
