-- name: tables
CREATE TABLE usage_daily (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    day date NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24, 12) NOT NULL
);
CREATE TABLE usage_end_user (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    day date NOT NULL,
    end_user text NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON usage_daily TO hydracore_app;
GRANT SELECT, INSERT ON usage_end_user TO hydracore_app

-- name: indexes
ALTER TABLE usage_daily ADD PRIMARY KEY (lane, instance_id, day);
ALTER TABLE usage_end_user ADD PRIMARY KEY (lane, instance_id, day, end_user)

-- name: add_usage
-- Both addends are within the limits, so that their sum fits its type until it is capped.
INSERT INTO usage_daily (lane, instance_id, day, requests, prompt_tokens, completion_tokens, cost_usd)
SELECT r.lane, r.instance_id, r.day, r.requests, r.prompt_tokens, r.completion_tokens, r.cost_usd
  FROM json_to_recordset($1::json) AS r (
       lane smallint, instance_id uuid, day date, requests bigint, prompt_tokens bigint, completion_tokens bigint,
       cost_usd numeric)
ON CONFLICT (lane, instance_id, day) DO UPDATE SET
       requests = usage_daily.requests + excluded.requests,
       prompt_tokens = least(usage_daily.prompt_tokens + excluded.prompt_tokens, $2::bigint),
       completion_tokens = least(usage_daily.completion_tokens + excluded.completion_tokens, $2::bigint),
       cost_usd = least(usage_daily.cost_usd + excluded.cost_usd, $3::numeric)

-- name: add_end_users
INSERT INTO usage_end_user (lane, instance_id, day, end_user)
SELECT r.lane, r.instance_id, r.day, r.end_user
  FROM json_to_recordset($1::json) AS r (lane smallint, instance_id uuid, day date, end_user text)
ON CONFLICT (lane, instance_id, day, end_user) DO NOTHING

-- name: daily
-- The series is of dates and not of times, so that the session's time zone, with its gaps, does not matter.
SELECT d.day, coalesce(u.requests, 0), coalesce(u.prompt_tokens, 0), coalesce(u.completion_tokens, 0),
       coalesce(u.cost_usd, 0)
  FROM generate_series(0, %(last)s::date - %(first)s::date) AS n (days)
 CROSS JOIN LATERAL (SELECT %(first)s::date + n.days) AS d (day)
  LEFT JOIN usage_daily u ON u.lane = %(lane)s AND u.instance_id = %(instance_id)s AND u.day = d.day
 ORDER BY d.day

-- name: unique_end_users
SELECT count(DISTINCT end_user)
  FROM usage_end_user
 WHERE lane = %(lane)s AND instance_id = %(instance_id)s AND day BETWEEN %(first)s AND %(last)s

-- name: spent
SELECT coalesce(sum(cost_usd) FILTER (WHERE day = %(today)s), 0),
       coalesce(sum(cost_usd) FILTER (WHERE day >= date_trunc('month', %(today)s::timestamp)::date), 0)
  FROM usage_daily
 WHERE lane = %(lane)s AND instance_id = %(instance_id)s AND day <= %(today)s
   AND day >= date_trunc('month', %(today)s::timestamp)::date
