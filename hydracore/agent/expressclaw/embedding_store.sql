-- name: older_messages
-- The messages of a conversation before the present turn, except the :kept latest ones.
SELECT message.id, message.role, message.content, memory.vector
FROM (
    SELECT id, role, content
    FROM message
    WHERE conversation_id = :conversation_id AND turn_id <> :turn_id
    ORDER BY id DESC
    LIMIT :limit OFFSET :kept
) AS message
LEFT JOIN memory ON memory.message_id = message.id AND memory.model = :model
ORDER BY message.id;

-- name: store
-- Nothing for a message that was deleted meanwhile.
INSERT INTO memory (message_id, model, vector)
SELECT message.id, :model, :vector FROM message WHERE message.id = :message_id
ON CONFLICT (message_id) DO UPDATE SET model = excluded.model, vector = excluded.vector;
