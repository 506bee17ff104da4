-- What a verification reads.

-- name: planner_settings
-- Windows are read in order, each once: sorting pages, or caching results, would only cost time.
SELECT set_config('enable_bitmapscan', 'off', true), set_config('enable_memoize', 'off', true)

-- name: windows
-- A row for each lane that has a command after `after` and up to `upto`: the columns of its next commands, and of their events, each as
-- one value. Several lanes are read together because their events are stored side by side: read one after the other, every page of the
-- table would be read again for each lane. A payload that is larger than the lane's `bytes` comes as null; the window then has to be
-- read again with fewer events. Compressed payloads are decompressed to measure them: the compressed size says little, and they are
-- sent in a moment anyway. Forged numbers and nulls must not fail the statement.
COPY (
SELECT l.lane, e.bytes_max, c.first_seqs, c.event_counts, c.command_ids, c.stream_ids, c.tenants, c.names, c.actors, c.correlation_ids,
       c.causation_ids, c.request_hashes, c.results, c.links, c.digests, c.recorded, c.are_whole AND e.are_whole,
       e.seqs, e.stream_ids, e.versions, e.types, e.schema_versions, e.payloads, e.digests, e.command_ids, e.tenants, e.recorded
  FROM unnest(%(lanes)s::smallint[], %(after)s::bigint[], %(upto)s::bigint[], %(windows)s::integer[], %(bytes)s::integer[])
       AS l (lane, after, upto, window_size, bytes)
 CROSS JOIN LATERAL (SELECT first_seq
                       FROM command
                      WHERE lane = l.lane AND first_seq > l.after AND first_seq <= l.upto
                      ORDER BY first_seq
                      LIMIT 1) w
 CROSS JOIN LATERAL (
       SELECT array_agg(first_seq) AS first_seqs, array_agg(coalesce(event_count, 0)) AS event_counts,
              string_agg(uuid_send(command_id), int8send(16)) AS command_ids,
              string_agg(uuid_send(stream_id), int8send(16)) AS stream_ids,
              string_agg(textsend(tenant_id), E'\\x00') AS tenants,
              string_agg(textsend(name), E'\\x00') AS names,
              string_agg(textsend(actor), E'\\x00') AS actors,
              string_agg(uuid_send(correlation_id), int8send(16)) AS correlation_ids,
              array_agg(uuid_send(causation_id)) AS causation_ids, array_agg(request_hash) AS request_hashes,
              array_agg(json_send(result)) AS results, array_agg(link) AS links,
              string_agg(digest, int8send(32)) AS digests,
              string_agg(timestamptz_send(recorded_at), '') AS recorded,
              -- In concatenated texts, a null would look like an empty text.
              bool_and((command_id, stream_id, tenant_id, name, actor, correlation_id, digest, link, recorded_at) IS NOT NULL)
              AS are_whole,
              min(first_seq) AS seq_min,
              -- A forged count must not make the whole lane one window.
              least(max(least(first_seq, 9223372036854775807 - greatest(event_count, 0)) - 1 + event_count),
                    least(min(first_seq), 9223372036854775807 - %(events)s) + %(events)s) AS seq_max
         FROM (SELECT first_seq, event_count, command_id, stream_id, tenant_id, name, actor, correlation_id, causation_id,
                      request_hash, result, digest, link, recorded_at
                 FROM command
                WHERE lane = l.lane AND first_seq >= w.first_seq AND first_seq <= l.upto
                  AND first_seq <= greatest(w.first_seq, least(w.first_seq, 9223372036854775807 - l.window_size) + l.window_size - 1)
                ORDER BY first_seq) rows) c
 CROSS JOIN LATERAL (
       SELECT array_agg(seq) AS seqs, string_agg(uuid_send(stream_id), int8send(16)) AS stream_ids,
              array_agg(coalesce(version, 0)) AS versions, string_agg(textsend(type), E'\\x00') AS types,
              array_agg(coalesce(schema_version, -1)) AS schema_versions,
              array_agg(CASE WHEN bytes <= l.bytes THEN payload END) AS payloads, max(bytes) AS bytes_max,
              string_agg(digest, int8send(32)) AS digests,
              string_agg(uuid_send(command_id), int8send(16)) AS command_ids,
              string_agg(textsend(tenant_id), E'\\x00') AS tenants,
              string_agg(timestamptz_send(recorded_at), '') AS recorded,
              bool_and((stream_id, version, type, schema_version, payload, digest, command_id, tenant_id, recorded_at) IS NOT NULL)
              AS are_whole
         FROM (SELECT seq, stream_id, version, type, schema_version, payload, digest, command_id, tenant_id, recorded_at,
                      CASE WHEN pg_column_compression(payload) IS NULL THEN pg_column_size(payload)
                           ELSE octet_length(json_send(payload)) END AS bytes
                 FROM event
                WHERE lane = l.lane AND seq >= c.seq_min AND seq <= c.seq_max
                ORDER BY seq) rows) e
) TO STDOUT (FORMAT binary)

-- name: lanes
SELECT lane FROM lane WHERE lane = ANY (%s::smallint[])

-- name: bounds
SELECT l.lane, least((SELECT min(first_seq) FROM command WHERE lane = l.lane), (SELECT min(seq) FROM event WHERE lane = l.lane)),
       (SELECT max(seq) FROM event WHERE lane = l.lane)
  FROM unnest(%s::smallint[]) AS l (lane)

-- name: streams
SELECT uuid_send(stream_id), version FROM stream WHERE lane = %s AND stream_id IS NOT NULL ORDER BY stream_id

-- name: versions_at
-- For each stream with events after a number: the version that it had reached at that number.
SELECT uuid_send(moved.stream_id), coalesce(before.version, 0)
  FROM (SELECT DISTINCT stream_id FROM event WHERE lane = %(lane)s AND seq > %(after)s AND stream_id IS NOT NULL) moved
  LEFT JOIN LATERAL (SELECT e.version
                       FROM event e
                      WHERE e.lane = %(lane)s AND e.stream_id = moved.stream_id AND e.seq <= %(after)s
                      ORDER BY e.version DESC
                      LIMIT 1) before ON true

-- name: rows_outside_lanes
-- Rows with a lane that does not exist, or without a position in their lane.
SELECT 'event', lane, min(seq) FROM event WHERE lane < 0 OR lane > 63 OR lane IS NULL OR seq IS NULL GROUP BY lane
UNION ALL
SELECT 'command', lane, min(first_seq) FROM command
 WHERE lane < 0 OR lane > 63 OR lane IS NULL OR first_seq IS NULL GROUP BY lane
UNION ALL
SELECT 'stream', lane, NULL FROM stream WHERE lane < 0 OR lane > 63 OR lane IS NULL OR stream_id IS NULL GROUP BY lane
UNION ALL
SELECT 'lane', lane, NULL FROM lane WHERE lane < 0 OR lane > 63 OR lane IS NULL GROUP BY lane
UNION ALL
SELECT 'checkpoint', lane, NULL FROM checkpoint WHERE lane < 0 OR lane > 63 OR lane IS NULL GROUP BY lane

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
