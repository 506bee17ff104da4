-- name: add
INSERT INTO notice (integration, content) VALUES (:integration, :content);

-- name: trim
DELETE FROM notice
WHERE integration = :integration
  AND id <= (SELECT id FROM notice WHERE integration = :integration ORDER BY id DESC LIMIT 1 OFFSET :keep);

-- name: oldest
SELECT id, content FROM notice WHERE integration = :integration ORDER BY id LIMIT 1;

-- name: delete
DELETE FROM notice WHERE id = :id;

-- name: delete_others
DELETE FROM notice WHERE integration NOT IN (SELECT value FROM json_each(:integrations));
