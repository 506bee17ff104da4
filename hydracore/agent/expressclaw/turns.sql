-- name: by_key
SELECT turn.id, turn.state, turn.request_digest, turn.conversation_id,
       message.content, message.model, message.prompt_tokens, message.completion_tokens, message.cost_usd
FROM turn LEFT JOIN message ON message.turn_id = turn.id AND message.role = 'assistant'
WHERE turn.key = :key;

-- name: delete
DELETE FROM turn WHERE id = :turn_id;

-- name: touch_conversation
INSERT INTO conversation (id, created_ms, updated_ms) VALUES (:conversation_id, :at_ms, :at_ms)
ON CONFLICT (id) DO UPDATE SET updated_ms = excluded.updated_ms;

-- name: latest_messages
SELECT role, content
FROM (
    SELECT id, role, content FROM message WHERE conversation_id = :conversation_id ORDER BY id DESC LIMIT :limit
)
ORDER BY id;

-- name: open
INSERT INTO turn (conversation_id, state, channel, end_user, key, request_digest)
VALUES (:conversation_id, 'open', :channel, :end_user, :key, :request_digest)
RETURNING id;

-- name: add_message
INSERT INTO message (
    turn_id, conversation_id, role, content, created_ms, model, prompt_tokens, completion_tokens, cost_usd
)
VALUES (
    :turn_id, :conversation_id, :role, :content, :created_ms, :model, :prompt_tokens, :completion_tokens, :cost_usd
);

-- name: record_call
UPDATE turn SET model = :model, prompt_tokens = :prompt_tokens, partial = '' WHERE id = :turn_id;

-- name: save_partial
UPDATE turn SET partial = :partial WHERE id = :turn_id AND state = 'open';

-- name: close
UPDATE turn SET state = :state, model = NULL, prompt_tokens = NULL, partial = '' WHERE id = :turn_id AND state = 'open';

-- name: trim
DELETE FROM turn
WHERE conversation_id = :conversation_id
  AND id <= (
      SELECT id FROM turn WHERE conversation_id = :conversation_id ORDER BY id DESC LIMIT 1 OFFSET :keep
  );

-- name: delete_oldest_conversations
-- If there are too many, deletes those whose latest turn has the lowest id (a clock may go back), but
-- none with an open turn.
DELETE FROM conversation
WHERE id IN (
    SELECT id
    FROM conversation
    WHERE id NOT IN (SELECT conversation_id FROM turn WHERE state = 'open')
    ORDER BY (SELECT max(turn.id) FROM turn WHERE turn.conversation_id = conversation.id)
    LIMIT CASE WHEN (SELECT count(*) FROM conversation) > :keep THEN :at_once ELSE 0 END
);

-- name: unfinished
-- All open turns, or only :turn_id if that is open.
SELECT id, conversation_id, channel, end_user, model, prompt_tokens, partial
FROM turn
WHERE state = 'open' AND (:turn_id IS NULL OR id = :turn_id)
ORDER BY id;

-- name: latest_conversations
SELECT conversation.id, conversation.created_ms, conversation.updated_ms,
       (SELECT count(*) FROM message WHERE message.conversation_id = conversation.id),
       (SELECT substr(message.content, 1, :preview) FROM message
        WHERE message.conversation_id = conversation.id ORDER BY message.id DESC LIMIT 1)
FROM conversation
ORDER BY conversation.updated_ms DESC, conversation.id
LIMIT :limit;

-- name: conversation
SELECT id, created_ms, updated_ms FROM conversation WHERE id = :conversation_id;

-- name: messages
SELECT role, content, created_ms, model, prompt_tokens, completion_tokens, cost_usd
FROM (
    -- Counted as JSON, which takes six bytes for some characters. A message may consist of nothing else.
    SELECT *, sum(length(CAST(json_quote(content) AS BLOB))) OVER (ORDER BY id DESC) AS bytes
    FROM message
    WHERE conversation_id = :conversation_id
)
WHERE bytes <= :bytes_max
ORDER BY id;
