-- name: last_seal
-- A time that no calendar has comes as null, which is a flaw of the seal, rather than failing.
SELECT number, CASE WHEN sealed_at BETWEEN '0002-01-01' AND '9998-01-01' THEN sealed_at END AS sealed_at,
       heads, links, root, previous, public_key, signature
  FROM seal
 ORDER BY number DESC
 LIMIT 1

-- name: wal_position
-- The database, the cluster and the timeline of the log, and the bytes of WAL that are flushed, which
-- only a restore makes fewer. The owner of the tables can change none of these.
SELECT d.oid, s.system_identifier, substr(pg_walfile_name(w.lsn), 1, 8), (w.lsn - '0/0'::pg_lsn)::bigint
  FROM pg_database d
 CROSS JOIN pg_control_system() s
 CROSS JOIN (SELECT pg_current_wal_flush_lsn() AS lsn) w
 WHERE d.datname = current_database()

-- name: seals_after
SELECT number, sealed_at, heads, links, root, previous, public_key, signature
  FROM seal
 WHERE number > %s
 ORDER BY number
 LIMIT %s

-- name: any_seal
SELECT EXISTS (SELECT FROM seal)

-- name: add_seal
INSERT INTO seal (number, sealed_at, heads, links, root, previous, public_key, signature)
VALUES (%(number)s, %(sealed_at)s, %(heads)s, %(links)s, %(root)s, %(previous)s, %(public_key)s, %(signature)s)
ON CONFLICT (number) DO NOTHING
RETURNING number

-- name: heads
SELECT head, link FROM lane_head ORDER BY lane

-- name: links_at_heads
-- For each lane, the last number and the link of the command that is now at its sealed head.
SELECT s.lane, s.head, c.first_seq + c.event_count - 1, c.link
  FROM unnest(%(heads)s::bigint[]) WITH ORDINALITY AS n (head, ordinal)
 CROSS JOIN LATERAL (SELECT (n.ordinal - 1)::smallint AS lane, n.head) s
  LEFT JOIN LATERAL (SELECT first_seq, event_count, link
                       FROM command
                      WHERE command.lane = s.lane AND first_seq <= s.head
                      ORDER BY first_seq DESC
                      LIMIT 1) c ON true
 WHERE s.head > 0
 ORDER BY s.lane

-- name: seals_from
-- A page of seals. Without the primary key, which somebody may have dropped, a number may occur twice:
-- no page ends between the two.
SELECT number, CASE WHEN sealed_at BETWEEN '0002-01-01' AND '9998-01-01' THEN sealed_at END AS sealed_at,
       heads, links, root, previous, public_key, signature
  FROM seal
 WHERE number >= %s
 ORDER BY number
 FETCH FIRST %s ROWS WITH TIES
