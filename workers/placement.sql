-- name: taken_addresses
SELECT value
  FROM reservation
 WHERE kind = 'vpn_ip' AND value = ANY (%(addresses)s)
   AND (released_at IS NULL OR released_at > now() - %(quarantine_s)s * interval '1 s')
 ORDER BY value
