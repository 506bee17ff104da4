-- Each row lands if and only if the event it was folded from is in the log: the same stream, version and command. A
-- command of the batch that was a duplicate or lost its race therefore leaves no trace here.
--
-- Each event is looked up separately (LATERAL; OFFSET 0 prevents a join): otherwise a plan made while the log is small
-- would read the whole log for every append until the table is analysed.

-- name: instance
INSERT INTO instance (lane, id, version, tenant_id, customer_id, idempotency_key, status, provisioning_stage, region_id, tier_id, tier_name,
                      preset_id, runtime_type, workload_type, capabilities, agent_name, customer_email, hostname,
                      vpn_ip, ip_address, provider, server_type, location, server_id, attempt, pending_action_id,
                      bootstrap_stage, bootstrap_seq, agent_key_hash, health_status, error_code, created_at,
                      updated_at, wake_at, deleted_at)
SELECT r.lane, r.id, r.version, r.tenant_id, r.customer_id, r.idempotency_key, r.status, r.provisioning_stage, r.region_id,
       r.tier_id, r.tier_name, r.preset_id, r.runtime_type, r.workload_type, r.capabilities, r.agent_name,
       r.customer_email, r.hostname, r.vpn_ip, r.ip_address, r.provider, r.server_type, r.location, r.server_id,
       r.attempt, r.pending_action_id, r.bootstrap_stage, r.bootstrap_seq, r.agent_key_hash, r.health_status,
       r.error_code, r.created_at, r.updated_at, r.wake_at, r.deleted_at
  FROM json_to_recordset($1::json) AS r (
       lane smallint, id uuid, version integer, tenant_id text, customer_id text, idempotency_key text, status text,
       provisioning_stage text, region_id text, tier_id text, tier_name text, preset_id text, runtime_type text,
       workload_type text, capabilities json, agent_name text, customer_email text, hostname text, vpn_ip text,
       ip_address text, provider text, server_type text, location text, server_id text, attempt integer,
       pending_action_id text, bootstrap_stage text, bootstrap_seq integer, agent_key_hash text, health_status text,
       error_code text, created_at timestamptz, updated_at timestamptz, wake_at timestamptz, deleted_at timestamptz,
       command_id uuid)
 CROSS JOIN LATERAL (SELECT
                       FROM event e
                      WHERE e.lane = r.lane AND e.stream_id = r.id AND e.version = r.version
                        AND e.command_id = r.command_id
                     OFFSET 0) landed
ON CONFLICT (lane, id) DO UPDATE SET
       version = excluded.version,
       status = excluded.status,
       provisioning_stage = excluded.provisioning_stage,
       capabilities = excluded.capabilities,
       agent_name = excluded.agent_name,
       customer_email = excluded.customer_email,
       hostname = excluded.hostname,
       vpn_ip = excluded.vpn_ip,
       ip_address = excluded.ip_address,
       provider = excluded.provider,
       server_type = excluded.server_type,
       location = excluded.location,
       server_id = excluded.server_id,
       attempt = excluded.attempt,
       pending_action_id = excluded.pending_action_id,
       bootstrap_stage = excluded.bootstrap_stage,
       bootstrap_seq = excluded.bootstrap_seq,
       agent_key_hash = excluded.agent_key_hash,
       health_status = excluded.health_status,
       error_code = excluded.error_code,
       updated_at = excluded.updated_at,
       wake_at = excluded.wake_at,
       deleted_at = excluded.deleted_at
 WHERE instance.version < excluded.version

-- name: provision_log
INSERT INTO provision_log (lane, instance_id, seq, level, stage, message, created_at)
SELECT r.lane, r.id, r.version, r.level, r.stage, r.message, r.created_at
  FROM json_to_recordset($1::json) AS r (
       lane smallint, id uuid, version integer, level text, stage text, message text, created_at timestamptz,
       command_id uuid)
 CROSS JOIN LATERAL (SELECT
                       FROM event e
                      WHERE e.lane = r.lane AND e.stream_id = r.id AND e.version = r.version
                        AND e.command_id = r.command_id
                     OFFSET 0) landed
ON CONFLICT (lane, instance_id, seq) DO NOTHING

-- name: reservation
INSERT INTO reservation (kind, value, instance_id, version, reserved_at, released_at)
SELECT r.kind, r.value, r.id, r.version, coalesce(r.reserved_at, r.released_at), r.released_at
  FROM json_to_recordset($1::json) AS r (
       lane smallint, id uuid, version integer, kind text, value text, reserved_at timestamptz,
       released_at timestamptz, command_id uuid)
 CROSS JOIN LATERAL (SELECT
                       FROM event e
                      WHERE e.lane = r.lane AND e.stream_id = r.id AND e.version = r.version
                        AND e.command_id = r.command_id
                     OFFSET 0) landed
 ORDER BY r.kind, r.value -- in one order, so that two batches with the same values cannot deadlock
ON CONFLICT (kind, value, instance_id) DO UPDATE SET
       version = excluded.version, released_at = excluded.released_at
 WHERE reservation.version < excluded.version
