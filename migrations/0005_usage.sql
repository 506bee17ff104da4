-- The followed projection of usage: read tables that come a moment after the log, each row's sums in the same transaction
-- as the follower's checkpoint.

-- What an instance used on a day (UTC).
CREATE TABLE usage_daily (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    day date NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24, 12) NOT NULL,
    PRIMARY KEY (lane, instance_id, day)
);

-- Which end users (keyed digests) an instance served on a day.
CREATE TABLE usage_end_user (
    lane smallint NOT NULL,
    instance_id uuid NOT NULL,
    day date NOT NULL,
    end_user text NOT NULL,
    PRIMARY KEY (lane, instance_id, day, end_user)
);

-- A follower that cannot take an event parks that lane: the others go on, the error shows, and it is tried again later.
ALTER TABLE checkpoint ADD COLUMN parked_until timestamptz, ADD COLUMN error text;

GRANT SELECT, INSERT, UPDATE ON usage_daily TO hydracore_app;
GRANT SELECT, INSERT ON usage_end_user TO hydracore_app;
