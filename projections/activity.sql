-- name: tables
CREATE TABLE activity (
    lane smallint NOT NULL,
    tenant_id text NOT NULL,
    day date NOT NULL,
    actor text NOT NULL,
    command text NOT NULL,
    commands bigint NOT NULL,
    events bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON activity TO hydracore_app

-- name: indexes
ALTER TABLE activity ADD PRIMARY KEY (lane, tenant_id, day, actor, command);
CREATE INDEX activity_by_tenant ON activity (tenant_id, day)

-- name: add
INSERT INTO activity (lane, tenant_id, day, actor, command, commands, events, first_at, last_at)
SELECT r.lane, r.tenant_id, r.day, r.actor, r.command, r.commands, r.events, r.first_at, r.last_at
  FROM json_to_recordset($1::json) AS r (
       lane smallint, tenant_id text, day date, actor text, command text, commands bigint, events bigint,
       first_at timestamptz, last_at timestamptz)
ON CONFLICT (lane, tenant_id, day, actor, command) DO UPDATE SET
       commands = activity.commands + excluded.commands,
       events = activity.events + excluded.events,
       first_at = least(activity.first_at, excluded.first_at),
       last_at = greatest(activity.last_at, excluded.last_at)

-- name: of_tenant
SELECT day, actor, command, sum(commands)::bigint, sum(events)::bigint, min(first_at), max(last_at)
  FROM activity
 WHERE tenant_id = %(tenant_id)s AND day BETWEEN %(first)s AND %(last)s
   AND (%(actor)s::text IS NULL OR actor = %(actor)s::text OR starts_with(actor, %(actor)s::text || ':'))
 GROUP BY day, actor, command
 ORDER BY day DESC, max(last_at) DESC, actor, command
 LIMIT %(limit)s
