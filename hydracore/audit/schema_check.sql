-- name: missing
-- Of the tables and views that a verification reads those that are not as they were made: whether each is there, which of its
-- columns are missing or have another type, and whether only a replay needs it. Those for a replay are the snapshots, and what says
-- which read tables are served and how far they have come.
SELECT r.name, r.is_there, r.lacking, r.for_replay
  FROM (SELECT w.name, w.for_replay, c.oid IS NOT NULL AS is_there,
               ARRAY(SELECT s.name
                       FROM unnest(w.columns, w.types) WITH ORDINALITY AS s (name, type, ordinal)
                      WHERE NOT EXISTS (SELECT
                                          FROM pg_attribute a
                                         WHERE a.attrelid = c.oid AND a.attname = s.name AND a.atttypid = s.type)
                      ORDER BY s.ordinal) AS lacking
          FROM (VALUES
                ('lane', '{lane}'::text[], '{int2}'::regtype[], false),
                ('stream', '{lane,stream_id,version}', '{int2,uuid,int4}', false),
                ('command',
                 '{lane,command_id,stream_id,tenant_id,name,actor,correlation_id,causation_id,request_hash,result,first_seq,event_count,digest,link,recorded_at}',
                 '{int2,uuid,uuid,text,text,text,uuid,uuid,bytea,json,int8,int4,bytea,bytea,timestamptz}', false),
                ('event',
                 '{lane,seq,stream_id,version,tenant_id,type,schema_version,payload,digest,command_id,recorded_at}',
                 '{int2,int8,uuid,int4,text,text,int2,json,bytea,uuid,timestamptz}', false),
                ('lane_head', '{lane,head,link,recorded_at}', '{int2,int8,bytea,timestamptz}', false),
                ('seal', '{number,sealed_at,heads,links,root,previous,public_key,signature}',
                 '{int8,timestamptz,int8[],bytea,bytea,bytea,bytea,bytea}', false),
                ('snapshot', '{lane,stream_id,version,fold,digest,state}', '{int2,uuid,int4,int2,bytea,json}', true),
                ('checkpoint', '{follower,lane,seq,parked_until,error}', '{text,int2,int8,timestamptz,text}', false),
                ('projection', '{name,version,generation}', '{text,int4,int4}', true),
                ('projection_generation', '{name,generation,version,state}', '{text,int4,int4,text}', true),
                ('projection_lane', '{name,generation}', '{text,int4}', true),
                ('projection_skipped', '{name,version,lane,seq}', '{text,int4,int2,int8}', true)
               ) AS w (name, columns, types, for_replay)
          LEFT JOIN pg_class c ON c.relname = w.name AND c.relnamespace = %(schema)s::regnamespace
         WHERE NOT w.for_replay OR %(replay)s) r
 WHERE NOT r.is_there OR cardinality(r.lacking) > 0
 ORDER BY r.name
