-- name: read_address_offset
SELECT value FROM meta WHERE name = 'address_offset';

-- name: write_address_offset
INSERT INTO meta (name, value) VALUES ('address_offset', :value) ON CONFLICT (name) DO NOTHING;

-- name: insert_server
INSERT INTO server (name, status, created_at, server_type, location, image, labels, user_data, boot_delay_s, boot_dead)
VALUES (:name, :status, :created_at, :server_type, :location, :image, :labels, :user_data, :boot_delay_s, :boot_dead);

-- name: set_addresses
UPDATE server SET ipv4 = :ipv4, ipv6 = :ipv6 WHERE id = :id;

-- name: read_server
SELECT id, name, status, created_at, server_type, location, image, ipv4, ipv6, labels, disk_written, boot_delay_s, boot_dead,
       agent_pid, agent_started,
       EXISTS (SELECT 1 FROM action WHERE action.server_id = server.id AND action.status = 'running') AS locked
FROM server WHERE id = :id AND deleted_at IS NULL;

-- name: read_servers
SELECT id, name, status, created_at, server_type, location, image, ipv4, ipv6, labels, disk_written, boot_delay_s, boot_dead,
       agent_pid, agent_started,
       EXISTS (SELECT 1 FROM action WHERE action.server_id = server.id AND action.status = 'running') AS locked
FROM server WHERE deleted_at IS NULL ORDER BY id;

-- name: read_history
SELECT id, name, labels, created_at, deleted_at FROM server ORDER BY id;

-- name: read_user_data
SELECT user_data FROM server WHERE id = :id;

-- name: set_status
UPDATE server SET status = :status WHERE id = :id AND deleted_at IS NULL;

-- name: set_name
UPDATE server SET name = :name WHERE id = :id AND deleted_at IS NULL;

-- name: set_labels
UPDATE server SET labels = :labels WHERE id = :id AND deleted_at IS NULL;

-- name: set_disk_written
UPDATE server SET disk_written = 1 WHERE id = :id;

-- name: set_agent
UPDATE server SET agent_pid = :pid, agent_started = :started WHERE id = :id;

-- name: mark_deleted
UPDATE server SET deleted_at = :now, user_data = '' WHERE id = :id AND deleted_at IS NULL;

-- name: insert_action
INSERT INTO action (server_id, command, status, started_at, fail_with)
VALUES (:server_id, :command, 'running', :now, :fail_with);

-- name: read_action
SELECT id, server_id, command, status, started_at, finished_at, fail_with FROM action WHERE id = :id;

-- name: read_server_actions
SELECT id, server_id, command, status, started_at, finished_at, fail_with FROM action WHERE server_id = :id ORDER BY id;

-- name: finish_actions
UPDATE action SET status = CASE WHEN fail_with IS NULL THEN 'success' ELSE 'error' END, finished_at = :now
WHERE server_id = :id AND status = 'running';

-- name: insert_key
INSERT INTO ssh_key (name, fingerprint, public_key, labels, created_at)
VALUES (:name, :fingerprint, :public_key, :labels, :now);

-- name: read_key
SELECT id, name, fingerprint, public_key, labels, created_at FROM ssh_key WHERE id = :id;

-- name: read_keys
SELECT id, name, fingerprint, public_key, labels, created_at FROM ssh_key ORDER BY id;

-- name: set_key_name
UPDATE ssh_key SET name = :name WHERE id = :id;

-- name: set_key_labels
UPDATE ssh_key SET labels = :labels WHERE id = :id;

-- name: delete_key
DELETE FROM ssh_key WHERE id = :id;
