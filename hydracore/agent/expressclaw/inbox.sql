-- name: next_update
SELECT next_update FROM telegram_bot WHERE bot_id = :bot_id;

-- name: set_next_update
INSERT INTO telegram_bot (bot_id, next_update) VALUES (:bot_id, :next_update)
ON CONFLICT (bot_id) DO UPDATE SET next_update = excluded.next_update;

-- name: add
INSERT INTO telegram_update (bot_id, update_id, content) VALUES (:bot_id, :update_id, :content)
ON CONFLICT (bot_id, update_id) DO NOTHING;

-- name: stored_updates
SELECT update_id, content FROM telegram_update WHERE bot_id = :bot_id ORDER BY update_id;

-- name: delete
DELETE FROM telegram_update WHERE bot_id = :bot_id AND update_id = :update_id;
