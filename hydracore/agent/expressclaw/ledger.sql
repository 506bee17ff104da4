-- name: add_entry
INSERT INTO entry (at_ms, day, model, prompt_tokens, completion_tokens, cost_usd, end_user, channel, conversation_id)
VALUES (:at_ms, :day, :model, :prompt_tokens, :completion_tokens, :cost_usd, :end_user, :channel, :conversation_id);

-- name: spend_of_day
SELECT cost_usd FROM spend WHERE day = :day;

-- name: set_spend
INSERT INTO spend (day, cost_usd) VALUES (:day, :cost_usd)
ON CONFLICT (day) DO UPDATE SET cost_usd = excluded.cost_usd;

-- name: spend_of_month
SELECT day, cost_usd FROM spend WHERE substr(day, 1, 7) = :month ORDER BY day;

-- name: spend_base
SELECT config, day, daily_usd, monthly_usd FROM spend_base WHERE only = 1;

-- name: set_spend_base
INSERT INTO spend_base (only, config, day, daily_usd, monthly_usd)
VALUES (1, :config, :day, :daily_usd, :monthly_usd)
ON CONFLICT (only) DO UPDATE
SET config = excluded.config, day = excluded.day, daily_usd = excluded.daily_usd, monthly_usd = excluded.monthly_usd;

-- name: sent_of_month
SELECT entry.day, entry.cost_usd
FROM entry, ledger
WHERE entry.day >= :first_day AND entry.day <= :day AND entry.batch < ledger.next_batch
ORDER BY entry.id;

-- name: next_batch
SELECT ledger_id, next_batch FROM ledger WHERE only = 1;

-- name: has_unsent
-- Two queries, so that each uses the index.
SELECT EXISTS (SELECT 1 FROM entry WHERE batch IS NULL)
    OR EXISTS (SELECT 1 FROM entry WHERE batch >= (SELECT next_batch FROM ledger WHERE only = 1));

-- name: entries_of
SELECT at_ms, model, prompt_tokens, completion_tokens, cost_usd, end_user, channel, conversation_id
FROM entry
WHERE batch = :batch
ORDER BY id;

-- name: fill_batch
UPDATE entry SET batch = :batch
WHERE id IN (SELECT id FROM entry WHERE batch IS NULL ORDER BY id LIMIT :size);

-- name: set_next_batch
UPDATE ledger SET next_batch = :batch WHERE only = 1;

-- name: resend_last
UPDATE ledger SET next_batch = min(next_batch, (SELECT max(batch) FROM entry))
WHERE only = 1 AND EXISTS (SELECT 1 FROM entry WHERE batch IS NOT NULL);

-- name: last_batch
SELECT coalesce(max(batch), 0) FROM entry;

-- name: prune
-- Deletes whole batches only, as a batch that is sent again must not have changed. Days in the
-- future, of a clock that was ahead, do not count as recent.
DELETE FROM entry
WHERE batch < (SELECT next_batch FROM ledger WHERE only = 1)
  AND batch < (SELECT min(recent.batch) FROM entry AS recent WHERE recent.day BETWEEN :first_day AND :today);
