-- The agent's callback spool (SQLite): a row per boot, and a row per callback of it.

-- name: schema
CREATE TABLE IF NOT EXISTS boot (
    boot_id  TEXT PRIMARY KEY,
    enrolled INTEGER NOT NULL DEFAULT 0, -- 1 once the control plane is known to know this boot
    next_seq INTEGER NOT NULL DEFAULT 1  -- the callback to send next; all before it were accepted
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS callback (
    boot_id TEXT NOT NULL REFERENCES boot (boot_id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL CHECK (seq >= 1),
    stage   TEXT NOT NULL,
    level   TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (boot_id, seq)
) STRICT, WITHOUT ROWID;

-- name: add_boot
INSERT INTO boot (boot_id) VALUES (:boot_id) ON CONFLICT (boot_id) DO NOTHING;

-- name: mark_enrolled
UPDATE boot SET enrolled = 1 WHERE boot_id = :boot_id;

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM callback WHERE boot_id = :boot_id;

-- name: first_kept_and_next
SELECT coalesce(min(callback.seq), 1), boot.next_seq
FROM boot LEFT JOIN callback USING (boot_id)
WHERE boot.boot_id = :boot_id
GROUP BY boot.boot_id;

-- name: add_callback
INSERT INTO callback (boot_id, seq, stage, level, message) VALUES (:boot_id, :seq, :stage, :level, :message);

-- name: trim
-- Delivered callbacks stay for a while, because a control plane restored from a backup may ask for them again.
DELETE FROM callback
WHERE boot_id = :boot_id AND seq <= :seq - :keep AND seq < (SELECT next_seq FROM boot WHERE boot_id = :boot_id);

-- name: next_callbacks
SELECT callback.seq, callback.stage, callback.level, callback.message
FROM callback JOIN boot USING (boot_id)
WHERE callback.boot_id = :boot_id AND callback.seq >= boot.next_seq
ORDER BY callback.seq
LIMIT :limit;

-- name: set_next_seq
UPDATE boot SET next_seq = :seq WHERE boot_id = :boot_id;

-- name: boots_with_pending
SELECT boot.boot_id
FROM boot
WHERE boot.enrolled = 1
  AND EXISTS (SELECT 1 FROM callback WHERE callback.boot_id = boot.boot_id AND callback.seq >= boot.next_seq)
ORDER BY boot.boot_id;

-- name: delete_other_boots
DELETE FROM boot WHERE boot_id <> :boot_id;
