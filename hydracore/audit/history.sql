-- name: to_fold
-- A page (`events/pages.py`) of a stream, to be folded. Here and below, `upto_bytes` is the weight of
-- the page up to the row.
SELECT e.seq, e.version, e.type, e.schema_version, e.payload::text, e.upto_bytes
  FROM (SELECT e.seq, e.version, e.type, e.schema_version, e.payload, {weight} AS bytes,
               sum({weight}) OVER (ORDER BY e.version ROWS UNBOUNDED PRECEDING) AS upto_bytes
          FROM event e
         WHERE e.lane = %(lane)s AND e.stream_id = %(stream_id)s AND e.version > %(after)s
           AND (%(upto)s::integer IS NULL OR e.version <= %(upto)s::integer)
           AND (%(at)s::timestamptz IS NULL OR e.recorded_at <= %(at)s::timestamptz)
         ORDER BY e.version
         LIMIT %(limit)s) e
 WHERE e.upto_bytes - e.bytes < %(bytes)s
 ORDER BY e.version

-- name: recorded_at
-- Here and below, a time that no calendar has comes as null, which the reader reports.
SELECT seq, CASE WHEN recorded_at BETWEEN '0002-01-01' AND '9998-01-01' THEN recorded_at END
  FROM event
 WHERE lane = %(lane)s AND stream_id = %(stream_id)s AND version = %(version)s

-- name: instance_events
-- A page of a stream, each event with its command. The reader reports an event without a command.
SELECT e.lane, e.seq, e.stream_id, e.version, e.type, e.schema_version, e.payload::text,
       CASE WHEN e.recorded_at BETWEEN '0002-01-01' AND '9998-01-01' THEN e.recorded_at END,
       c.command_id, c.name, c.actor, c.correlation_id, c.causation_id, e.upto_bytes
  FROM (SELECT e.lane, e.seq, e.stream_id, e.version, e.type, e.schema_version, e.payload, e.recorded_at, e.command_id,
               {weight} AS bytes, sum({weight}) OVER (ORDER BY e.version ROWS UNBOUNDED PRECEDING) AS upto_bytes
          FROM event e
         WHERE e.lane = %(lane)s AND e.stream_id = %(stream_id)s AND e.version > %(after)s
         ORDER BY e.version
         LIMIT %(limit)s) e
  LEFT JOIN command c ON c.lane = e.lane AND c.command_id = e.command_id
 WHERE e.upto_bytes - e.bytes < %(bytes)s
 ORDER BY e.version

-- name: is_tenant
SELECT EXISTS (SELECT FROM command WHERE tenant_id = %(tenant_id)s)

-- name: tenant_events
-- The events of a tenant's next commands, in the order of all lanes: a page (`events/pages.py`) of whole commands.
-- A command without events of the wanted types has one row without an event, so that the reader gets on. `heads`:
-- the last number to read of each lane. Lanes have no gaps, so that whatever is committed later has higher numbers.
SELECT k.lane, e.seq, e.stream_id, e.version, e.type, e.schema_version, e.payload::text,
       CASE WHEN k.recorded_at BETWEEN '0002-01-01' AND '9998-01-01' THEN k.recorded_at END,
       k.command_id, k.name, k.actor, k.correlation_id, k.causation_id, k.first_seq, k.event_count
  FROM (SELECT k.lane, k.command_id, k.name, k.actor, k.correlation_id, k.causation_id, k.first_seq, k.event_count, k.recorded_at,
               e.bytes, sum(e.bytes) OVER (ORDER BY k.recorded_at, k.lane, k.first_seq ROWS UNBOUNDED PRECEDING) AS upto_bytes
          FROM (SELECT lane, command_id, name, actor, correlation_id, causation_id, first_seq, event_count, recorded_at
                  FROM command
                 WHERE tenant_id = %(tenant_id)s
                   AND (recorded_at, lane, first_seq) > (%(after_time)s, %(after_lane)s, %(after_seq)s)
                   AND first_seq <= (%(heads)s::bigint[])[lane + 1]
                   AND (%(until)s::timestamptz IS NULL OR recorded_at <= %(until)s::timestamptz)
                   AND (%(actor)s::text IS NULL OR actor = %(actor)s::text OR starts_with(actor, %(actor_prefix)s::text))
                 ORDER BY recorded_at, lane, first_seq
                 LIMIT %(limit)s) k
         CROSS JOIN LATERAL (SELECT coalesce(least(sum({weight}), 1000000000), 0)::integer AS bytes
                               FROM event e
                              WHERE e.lane = k.lane AND e.seq >= k.first_seq AND e.seq < k.first_seq + k.event_count
                                AND (%(types)s::text[] IS NULL OR e.type = ANY (%(types)s::text[]))) e) k
  LEFT JOIN LATERAL (SELECT seq, stream_id, version, type, schema_version, payload
                       FROM event
                      WHERE lane = k.lane AND seq >= k.first_seq AND seq < k.first_seq + k.event_count
                        AND (%(types)s::text[] IS NULL OR type = ANY (%(types)s::text[]))
                     OFFSET 0) e ON true
 WHERE k.upto_bytes - k.bytes < %(bytes)s
 ORDER BY k.recorded_at, k.lane, k.first_seq, e.seq

-- name: locate
-- The event at a position, with the time and the first number of its command.
SELECT e.stream_id, e.version, e.tenant_id,
       CASE WHEN c.recorded_at BETWEEN '0002-01-01' AND '9998-01-01' THEN c.recorded_at END, c.first_seq
  FROM event e
  JOIN command c ON c.lane = e.lane AND c.command_id = e.command_id
 WHERE e.lane = %(lane)s AND e.seq = %(seq)s
