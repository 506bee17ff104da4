-- name: seal
SELECT number, CASE WHEN sealed_at BETWEEN '0002-01-01' AND '9998-01-01' THEN sealed_at END AS sealed_at,
       heads, links, root, previous, public_key, signature
  FROM seal
 WHERE number = %s

-- name: sealed_head
SELECT heads[%s] FROM seal WHERE number = %s

-- name: first_seal
SELECT number FROM seal ORDER BY number LIMIT 1

-- name: range_of_instance
-- Where the first and the last event of an instance are, up to the head of the export.
SELECT %(lane)s::integer, min(seq), max(seq), min(tenant_id)
  FROM event
 WHERE lane = %(lane)s AND stream_id = %(stream)s AND seq <= %(upto)s
HAVING count(*) > 0

-- name: ranges_of_tenant
SELECT lane, min(first_seq), max(first_seq + event_count) - 1, tenant_id
  FROM command
 WHERE tenant_id = %(tenant)s AND first_seq <= (%(heads)s::bigint[])[lane + 1]
 GROUP BY lane, tenant_id
 ORDER BY lane

-- name: commands
-- Here and below, a time that no calendar has comes as null, which the reader reports.
SELECT lane, first_seq, event_count, command_id, stream_id, tenant_id, name, actor, correlation_id, causation_id,
       request_hash, result::text AS result, digest, link,
       CASE WHEN recorded_at BETWEEN '0002-01-01' AND '9998-01-01' THEN recorded_at END AS recorded_at
  FROM command
 WHERE lane = %(lane)s AND first_seq > %(after)s AND first_seq <= %(upto)s
   AND tenant_id = %(tenant)s AND (%(stream)s::uuid IS NULL OR stream_id = %(stream)s)
 ORDER BY first_seq

-- name: last_command
-- The last number of the last command that begins up to a number.
SELECT first_seq + event_count - 1 FROM command WHERE lane = %(lane)s AND first_seq <= %(upto)s ORDER BY first_seq DESC LIMIT 1

-- name: events
-- A page (`events/pages.py`) of the events with these numbers.
SELECT e.lane, e.seq, e.stream_id, e.version, e.tenant_id, e.type, e.schema_version, e.payload::text AS payload, e.digest,
       e.command_id, CASE WHEN e.recorded_at BETWEEN '0002-01-01' AND '9998-01-01' THEN e.recorded_at END AS recorded_at
  FROM (SELECT e.lane, e.seq, e.stream_id, e.version, e.tenant_id, e.type, e.schema_version, e.payload, e.digest, e.command_id,
               e.recorded_at, {weight} AS bytes, sum({weight}) OVER (ORDER BY e.seq ROWS UNBOUNDED PRECEDING) AS upto_bytes
          FROM event e
         WHERE e.lane = %(lane)s AND e.seq = ANY (%(seqs)s)) e
 WHERE e.upto_bytes - e.bytes < %(bytes)s
 ORDER BY e.seq

-- name: steps
-- The steps of commands that are not exported, packed: a row for each run between two exported commands,
-- or several where a run has more than %(steps_max)s. `preceding_seq` is the number of the exported command before
-- the run, or the start of the window. With the link of the last step, and the number of the first without a
-- digest or a time.
SELECT preceding_seq, count(*), string_agg(step, ''::bytea ORDER BY first_seq), (array_agg(link ORDER BY first_seq DESC))[1],
       min(first_seq) FILTER (WHERE step IS NULL)
  FROM (SELECT first_seq, preceding_seq, link,
               (row_number() OVER (PARTITION BY preceding_seq ORDER BY first_seq) - 1) / %(steps_max)s AS part,
               int8send(first_seq) || int8send((extract(epoch FROM time) * 1000000)::bigint) || digest AS step
          FROM (SELECT first_seq, time, digest, link, in_scope,
                       coalesce(max(first_seq) FILTER (WHERE in_scope) OVER (ORDER BY first_seq), %(after)s) AS preceding_seq
                  FROM (SELECT first_seq, digest, link,
                               CASE WHEN recorded_at BETWEEN '0002-01-01' AND '9998-01-01' THEN recorded_at END AS time,
                               tenant_id = %(tenant)s AND (%(stream)s::uuid IS NULL OR stream_id = %(stream)s) AS in_scope
                          FROM command
                         WHERE lane = %(lane)s AND first_seq > %(after)s AND first_seq <= %(upto)s) looked_at) placed
         WHERE NOT in_scope) others
 GROUP BY preceding_seq, part
 ORDER BY preceding_seq, part
