-- name: tables
CREATE TABLE fleet (
    lane smallint NOT NULL,
    hour timestamptz NOT NULL,
    status text NOT NULL,
    provider text NOT NULL,
    region_id text NOT NULL,
    tier_id text NOT NULL,
    entries bigint NOT NULL,
    exits bigint NOT NULL
);
CREATE TABLE fleet_member (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    status text NOT NULL,
    provider text NOT NULL,
    region_id text NOT NULL,
    tier_id text NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON fleet, fleet_member TO hydracore_app

-- name: indexes
ALTER TABLE fleet ADD PRIMARY KEY (lane, hour, status, provider, region_id, tier_id);
ALTER TABLE fleet_member ADD PRIMARY KEY (lane, instance_id)

-- name: members
SELECT m.instance_id, m.status, m.provider, m.region_id, m.tier_id
  FROM unnest($1::smallint[], $2::uuid[]) AS w (lane, instance_id)
  JOIN fleet_member m ON m.lane = w.lane AND m.instance_id = w.instance_id
 ORDER BY m.lane, m.instance_id

-- name: add_moves
INSERT INTO fleet (lane, hour, status, provider, region_id, tier_id, entries, exits)
SELECT r.lane, r.hour, r.status, r.provider, r.region_id, r.tier_id, r.entries, r.exits
  FROM json_to_recordset($1::json) AS r (
       lane smallint, hour timestamptz, status text, provider text, region_id text, tier_id text, entries bigint,
       exits bigint)
ON CONFLICT (lane, hour, status, provider, region_id, tier_id) DO UPDATE SET
       entries = fleet.entries + excluded.entries,
       exits = fleet.exits + excluded.exits

-- name: set_members
INSERT INTO fleet_member (lane, instance_id, status, provider, region_id, tier_id)
SELECT r.lane, r.instance_id, r.status, r.provider, r.region_id, r.tier_id
  FROM json_to_recordset($1::json) AS r (
       lane smallint, instance_id uuid, status text, provider text, region_id text, tier_id text)
ON CONFLICT (lane, instance_id) DO UPDATE SET status = excluded.status, provider = excluded.provider

-- name: counts
-- The table is read once: moves are summed up between each time and the next, and the sums accumulated.
WITH moved AS (
    SELECT width_bucket(f.hour, %(times)s::timestamptz[]) AS after, f.status, f.provider, f.region_id, f.tier_id,
           sum(f.entries - f.exits) AS instances
      FROM fleet f
     GROUP BY 1, f.status, f.provider, f.region_id, f.tier_id)
SELECT t.at, m.status, m.provider, m.region_id, m.tier_id, sum(m.instances)::bigint
  FROM unnest(%(times)s::timestamptz[]) WITH ORDINALITY AS t (at, number)
  JOIN moved m ON m.after < t.number
 GROUP BY t.at, m.status, m.provider, m.region_id, m.tier_id
HAVING sum(m.instances) <> 0
 ORDER BY t.at, m.status, m.provider, m.region_id, m.tier_id
