-- What the runtime stores on the VPS (SQLite): conversations, what they cost, and updates of Telegram.

-- name: schema
-- The ledger of this file. Its id is drawn with the file, so a new VPS has a new one.
CREATE TABLE IF NOT EXISTS ledger (
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    ledger_id  TEXT NOT NULL,
    next_batch INTEGER NOT NULL DEFAULT 1 -- the batch to send next; the control plane has all before it
) STRICT;

CREATE TABLE IF NOT EXISTS conversation (
    id         TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS conversation_newest ON conversation (updated_ms DESC, id);

-- One question and its outcome.
CREATE TABLE IF NOT EXISTS turn (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id TEXT NOT NULL REFERENCES conversation (id) ON DELETE CASCADE,
    state           TEXT NOT NULL CHECK (state IN ('open', 'done', 'cut', 'failed')),
    channel         TEXT NOT NULL,
    end_user        TEXT,
    key             TEXT UNIQUE, -- asking again with it gives the same answer
    request_digest  TEXT NOT NULL,
    -- While a model is being asked: what the cost of the call is estimated from if the process dies.
    model           TEXT,
    prompt_tokens   INTEGER,
    partial         TEXT NOT NULL DEFAULT ''
) STRICT;

-- Earlier releases stored callers' keys without the end user. If such a release ran again for a
-- while, a key may be there in both forms.
UPDATE OR REPLACE turn
SET key = 'caller:' || coalesce(length(end_user) || ':' || end_user, '') || ':' || substr(key, 5)
WHERE key >= 'api:' AND key < 'api;';

CREATE INDEX IF NOT EXISTS turn_conversation ON turn (conversation_id, id);
CREATE INDEX IF NOT EXISTS turn_open ON turn (id) WHERE state = 'open';

CREATE TABLE IF NOT EXISTS message (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    turn_id           INTEGER NOT NULL REFERENCES turn (id) ON DELETE CASCADE,
    conversation_id   TEXT NOT NULL REFERENCES conversation (id) ON DELETE CASCADE,
    role              TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content           TEXT NOT NULL,
    created_ms        INTEGER NOT NULL,
    model             TEXT,
    prompt_tokens     INTEGER,
    completion_tokens INTEGER,
    cost_usd          TEXT -- decimal
) STRICT;

CREATE INDEX IF NOT EXISTS message_conversation ON message (conversation_id, id);
CREATE INDEX IF NOT EXISTS message_turn ON message (turn_id);

-- One call of a model. Entries get a batch number when they are about to be sent, and keep it.
CREATE TABLE IF NOT EXISTS entry (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    batch             INTEGER,
    at_ms             INTEGER NOT NULL,
    day               TEXT NOT NULL, -- YYYY-MM-DD, UTC
    model             TEXT NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost_usd          TEXT NOT NULL,
    end_user          TEXT,
    channel           TEXT NOT NULL,
    conversation_id   TEXT NOT NULL
) STRICT;

CREATE INDEX IF NOT EXISTS entry_batch ON entry (batch, id);
CREATE INDEX IF NOT EXISTS entry_day ON entry (day);

-- The sums of the entries by day, as budgets are checked before every chat.
CREATE TABLE IF NOT EXISTS spend (
    day      TEXT PRIMARY KEY,
    cost_usd TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The sums of those entries that were in the control plane's figures when the present configuration came.
CREATE TABLE IF NOT EXISTS spend_base (
    only        INTEGER PRIMARY KEY CHECK (only = 1),
    config      TEXT NOT NULL, -- the configuration's digest
    day         TEXT NOT NULL,
    daily_usd   TEXT NOT NULL,
    monthly_usd TEXT NOT NULL
) STRICT;

-- Telegram's updates are numbered by bot. All below next_update are in telegram_update or answered, and Telegram has yet to
-- be told to forget them; null when it was told.
CREATE TABLE IF NOT EXISTS telegram_bot (
    bot_id      TEXT PRIMARY KEY,
    next_update INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS telegram_update (
    bot_id    TEXT NOT NULL REFERENCES telegram_bot (bot_id) ON DELETE CASCADE,
    update_id INTEGER NOT NULL,
    content   TEXT NOT NULL,
    PRIMARY KEY (bot_id, update_id)
) STRICT, WITHOUT ROWID;

-- Notices that integrations have not accepted yet. A notice is written in the transaction of the
-- answer that it tells of.
CREATE TABLE IF NOT EXISTS notice (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    integration TEXT NOT NULL,
    content     TEXT NOT NULL
) STRICT;

CREATE INDEX IF NOT EXISTS notice_integration ON notice (integration, id);

-- Embeddings of messages: a vector of length one as 32-bit floats, in this machine's byte order.
CREATE TABLE IF NOT EXISTS memory (
    message_id INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
    model      TEXT NOT NULL,
    vector     BLOB NOT NULL
) STRICT;
