-- name: beat
INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report)
VALUES (%s, %s, now(), %s, %s)
ON CONFLICT (lane, instance_id) DO UPDATE
   SET received_at = excluded.received_at, boot_id = excluded.boot_id, report = excluded.report
