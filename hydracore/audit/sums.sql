-- name: followed
-- Each projection that is served: its version, where the lane ends, how far it has followed, and what it passed over by hand.
SELECT p.name, p.version, coalesce(h.head, 0), coalesce(c.seq, 0),
       ARRAY(SELECT i.seq
               FROM projection_intervention i
              WHERE i.name = p.name AND i.version = p.version AND i.lane = h.lane AND i.action = 'skip')
  FROM projection p
  JOIN lane_head h ON h.lane = %(lane)s
  LEFT JOIN checkpoint c ON c.follower = p.name AND c.lane = h.lane
 WHERE p.name = ANY (%(names)s::text[])
 ORDER BY p.name

-- name: rows
SELECT {columns} FROM {table} t WHERE t.lane = %(lane)s

-- name: rows_of_no_lane
SELECT DISTINCT t.lane FROM {table} t WHERE (t.lane BETWEEN 0 AND 63) IS NOT TRUE ORDER BY t.lane LIMIT %(limit)s

-- name: facts
-- Some of a lane's events as facts, in order, as one array.
SELECT '[' || string_agg(fact, ',' ORDER BY seq) || ']'
  FROM (SELECT e.seq, {fact} AS fact
          FROM event e
          JOIN command k ON k.lane = e.lane AND k.command_id = e.command_id
         WHERE e.lane = %(lane)s AND e.seq > %(after)s AND e.seq <= %(upto)s) facts
