-- Nothing is decided by how often the sweep has seen or missed a server: how long since the first time tells that it was not the last.
-- Workers of the version before write and read these columns while they are replaced, so they stay until a later version drops them.
ALTER TABLE orphan ALTER COLUMN last_seen_at SET DEFAULT now(), ALTER COLUMN sightings SET DEFAULT 1;
ALTER TABLE missing_server ALTER COLUMN misses SET DEFAULT 1;
