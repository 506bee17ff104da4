-- The state of one cloudsim (SQLite). Times are ISO 8601 in UTC, labels are JSON.

-- Values of this home: the offset of its addresses.
CREATE TABLE IF NOT EXISTS meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;

-- Every server that ever existed; those without deleted_at still exist. Ids are never used again.
CREATE TABLE IF NOT EXISTS server (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at TEXT NOT NULL,
    deleted_at TEXT,
    server_type TEXT NOT NULL,
    location TEXT NOT NULL,
    image TEXT NOT NULL,
    ipv4 TEXT,
    ipv6 TEXT,
    labels TEXT NOT NULL,
    user_data TEXT NOT NULL,
    disk_written INTEGER NOT NULL DEFAULT 0,
    boot_delay_s REAL NOT NULL,
    boot_dead INTEGER NOT NULL,
    agent_pid INTEGER,
    agent_started REAL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS server_name ON server (name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS server_ipv4 ON server (ipv4) WHERE deleted_at IS NULL;

CREATE TABLE IF NOT EXISTS action (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    server_id INTEGER NOT NULL,
    command TEXT NOT NULL,
    status TEXT NOT NULL,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    fail_with TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS action_server ON action (server_id);
CREATE INDEX IF NOT EXISTS action_running ON action (server_id) WHERE status = 'running';

CREATE TABLE IF NOT EXISTS ssh_key (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL UNIQUE,
    public_key TEXT NOT NULL,
    labels TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
