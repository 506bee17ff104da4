-- name: record_reception
INSERT INTO hearing (since, until) VALUES (now(), now())
ON CONFLICT (singleton) DO UPDATE
   SET since = CASE WHEN hearing.until < now() - interval '15 s' THEN now() ELSE least(hearing.since, now()) END,
       until = now()

-- name: store_heartbeat
INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report)
VALUES (%s, %s, now(), %s, %s)
ON CONFLICT (lane, instance_id) DO UPDATE
   SET received_at = excluded.received_at, boot_id = excluded.boot_id, report = excluded.report
