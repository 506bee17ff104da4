-- Projections as things with a version and generations: which code's rows a table holds, and which build of it is served.

-- What is served now. Who writes with another version's code is refused (`check_projections`) or waits (followers).
CREATE TABLE projection (
    name text PRIMARY KEY,
    version integer NOT NULL,
    generation integer NOT NULL,
    swapped_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO projection (name, version, generation)
VALUES ('instance', 1, 1), ('provision_log', 1, 1), ('reservation', 1, 1), ('usage_daily', 1, 1), ('fleet', 1, 1),
       ('activity', 1, 1);

-- Every build of a projection that there still is. The live one's tables are in the schema of all others; any other's are
-- in a schema of its own, `NAME_gN`, under the same names. States: folding (lanes are being folded into bare tables),
-- indexed (keys and indexes are there; it follows the log), live, previous (was live; kept for a rollback).
CREATE TABLE projection_generation (
    name text NOT NULL,
    generation integer NOT NULL,
    version integer NOT NULL,
    tables text[] NOT NULL,
    state text NOT NULL CHECK (state IN ('folding', 'indexed', 'live', 'previous')),
    began_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, generation)
);

INSERT INTO projection_generation (name, generation, version, tables, state)
SELECT name, generation, version,
       CASE name WHEN 'usage_daily' THEN ARRAY['usage_daily', 'usage_end_user']
                 WHEN 'fleet' THEN ARRAY['fleet', 'fleet_member']
                 ELSE ARRAY[name] END,
       'live'
  FROM projection;

-- The progress of a build: each lane is folded up to `target` in one transaction, by whoever locks its row.
CREATE TABLE projection_lane (
    name text NOT NULL,
    generation integer NOT NULL,
    lane smallint NOT NULL,
    target bigint NOT NULL,
    folded_at timestamptz,
    PRIMARY KEY (name, generation, lane),
    FOREIGN KEY (name, generation) REFERENCES projection_generation (name, generation) ON DELETE CASCADE
);

-- What operators did about events that a projection could not take. A skipped event stays skipped for this version.
CREATE TABLE projection_intervention (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    version integer NOT NULL,
    lane smallint NOT NULL,
    seq bigint NOT NULL,
    action text NOT NULL CHECK (action IN ('skip', 'retry')),
    error text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX projection_intervention_skipped ON projection_intervention (name, version, lane, seq) WHERE action = 'skip';

-- Refuses an append whose inline rows were made by another version's code than the tables are of. It runs after the lanes
-- are locked, so it sees what a swap that held them has committed.
CREATE FUNCTION check_projections(names text[], versions integer[]) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    live record;
BEGIN
    FOR live IN
        SELECT p.name, p.version
          FROM projection p
          JOIN unnest(names, versions) AS w (name, version) ON w.name = p.name
         WHERE p.version <> w.version
    LOOP
        RAISE EXCEPTION 'projection % is at version %', live.name, live.version
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END LOOP;
END
$$;

-- How many instances entered and left each state, by the hour in which the log learned of it. The count at a moment is the
-- sum of entries less exits until then.
CREATE TABLE fleet (
    lane smallint NOT NULL,
    hour timestamptz NOT NULL,
    status text NOT NULL,
    provider text NOT NULL, -- empty until a placement was chosen
    region_id text NOT NULL,
    tier_id text NOT NULL,
    entries bigint NOT NULL,
    exits bigint NOT NULL,
    PRIMARY KEY (lane, hour, status, provider, region_id, tier_id)
);

-- Where each instance is counted in `fleet` now.
CREATE TABLE fleet_member (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    status text NOT NULL,
    provider text NOT NULL,
    region_id text NOT NULL,
    tier_id text NOT NULL,
    PRIMARY KEY (lane, instance_id)
);

-- Who did what: commands and the events they caused, per tenant, actor and day (UTC).
CREATE TABLE activity (
    lane smallint NOT NULL,
    tenant_id text NOT NULL,
    day date NOT NULL,
    actor text NOT NULL,
    command text NOT NULL,
    commands bigint NOT NULL,
    events bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (lane, tenant_id, day, actor, command)
);

CREATE INDEX activity_by_tenant ON activity (tenant_id, day);

GRANT SELECT ON projection, projection_generation, projection_intervention TO hydracore_app;
GRANT SELECT, UPDATE ON projection_lane TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON fleet, fleet_member, activity TO hydracore_app;
