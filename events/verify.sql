-- What a verification reads. Frames are the exact bytes that the digests of events/digest.py are taken over, put together here
-- because the database is faster at it; if they differed from those by a bit, nothing would verify.

-- name: lane
-- A row per window of %(window)s numbers, in order: arrays of the commands that begin in it, and of those commands' events.
COPY (
SELECT c.first_seqs, c.event_counts, c.frames, c.digests, c.links, c.places, c.envelopes,
       e.seqs, e.frames, e.digests, e.envelopes
  FROM generate_series(%(after)s::bigint,
                       (SELECT coalesce(max(first_seq), 0) - 1 FROM command WHERE lane = %(lane)s),
                       %(window)s) AS w (after)
 CROSS JOIN LATERAL (
       SELECT array_agg(first_seq) AS first_seqs, array_agg(event_count) AS event_counts, array_agg(frame) AS frames,
              array_agg(digest) AS digests, array_agg(link) AS links, array_agg(place) AS places,
              array_agg(envelope) AS envelopes, min(first_seq) AS seq_min, max(first_seq + event_count) - 1 AS seq_max
         FROM (SELECT first_seq, event_count, digest, link,
                      int8send(first_seq) || timestamptz_send(recorded_at) AS place,
                      int8send(16) || uuid_send(command_id)
                      || int8send(16) || uuid_send(stream_id)
                      || int8send(octet_length(tenant_id)) || textsend(tenant_id)
                      || int8send(octet_length(name)) || textsend(name)
                      || int8send(octet_length(actor)) || textsend(actor)
                      || int8send(16) || uuid_send(correlation_id)
                      || coalesce(int8send(17) || '\x01'::bytea || uuid_send(causation_id), '\x000000000000000100')
                      || coalesce(int8send(octet_length(request_hash) + 1) || '\x01'::bytea || request_hash,
                                  '\x000000000000000100')
                      || coalesce(int8send(octet_length(json_send(result)) + 1) || '\x01'::bytea || json_send(result),
                                  '\x000000000000000100') AS frame,
                      uuid_send(command_id) || timestamptz_send(recorded_at) || uuid_send(stream_id)
                      || textsend(tenant_id) AS envelope
                 FROM command
                WHERE lane = %(lane)s AND first_seq > w.after AND first_seq <= w.after + %(window)s
                ORDER BY first_seq) rows) c
 CROSS JOIN LATERAL (
       SELECT array_agg(seq) AS seqs, array_agg(frame) AS frames, array_agg(digest) AS digests,
              array_agg(envelope) AS envelopes
         FROM (SELECT seq, digest,
                      int8send(16) || uuid_send(stream_id)
                      || int8send(8) || int8send(version)
                      || int8send(octet_length(type)) || textsend(type)
                      || int8send(2) || int2send(schema_version)
                      || int8send(octet_length(payload)) || payload AS frame,
                      uuid_send(command_id) || timestamptz_send(recorded_at) || uuid_send(stream_id)
                      || textsend(tenant_id) AS envelope
                 FROM (SELECT seq, digest, stream_id, version, type, schema_version, json_send(payload) AS payload,
                              command_id, recorded_at, tenant_id
                         FROM event
                        WHERE lane = %(lane)s AND seq >= c.seq_min AND seq <= c.seq_max
                        ORDER BY seq
                       OFFSET 0) sent) rows) e
) TO STDOUT (FORMAT binary)

-- name: head
SELECT head, link FROM lane_head WHERE lane = %s

-- name: bounds
SELECT min(seq), max(seq) FROM event WHERE lane = %s

-- name: streams
SELECT uuid_send(stream_id), version FROM stream WHERE lane = %s ORDER BY stream_id

-- name: versions_at
-- The version that each stream which moved after a number had reached by then.
SELECT uuid_send(moved.stream_id), coalesce(before.version, 0)
  FROM (SELECT DISTINCT stream_id FROM event WHERE lane = %(lane)s AND seq > %(after)s) moved
  LEFT JOIN LATERAL (SELECT e.version
                       FROM event e
                      WHERE e.lane = %(lane)s AND e.stream_id = moved.stream_id AND e.seq <= %(after)s
                      ORDER BY e.version DESC
                      LIMIT 1) before ON true

-- name: points
-- What the seals say of a lane, each thing once, with the first seal that said it.
SELECT heads[%(lane)s + 1] AS head, substr(links, %(lane)s * 32 + 1, 32) AS link, min(number)
  FROM seal
 WHERE number <= %(upto)s AND heads[%(lane)s + 1] > 0
 GROUP BY 1, 2
 ORDER BY 1, 3

-- name: strangers
-- Rows that are in no lane at all.
SELECT 'event', lane, min(seq) FROM event WHERE lane < 0 OR lane > 63 GROUP BY lane
UNION ALL
SELECT 'command', lane, min(first_seq) FROM command WHERE lane < 0 OR lane > 63 GROUP BY lane

-- name: commands_between
SELECT command_id, stream_id, tenant_id, name, actor, correlation_id, causation_id, request_hash, result::text, first_seq,
       event_count, digest, link, timestamptz_send(recorded_at) AS recorded_at
  FROM command
 WHERE lane = %(lane)s AND first_seq > %(after)s AND first_seq <= %(upto)s
 ORDER BY first_seq

-- name: events_between
SELECT seq, stream_id, version, tenant_id, type, schema_version, payload::text, digest, command_id,
       timestamptz_send(recorded_at) AS recorded_at
  FROM event
 WHERE lane = %(lane)s AND seq > %(after)s AND seq <= %(upto)s
 ORDER BY seq

-- name: link_at
SELECT link FROM command WHERE lane = %s AND first_seq <= %s ORDER BY first_seq DESC LIMIT 1
