-- name: living
-- The instances whose agents may come back to us, or be asked by us.
SELECT lane, id
  FROM instance
 WHERE status IN ('provisioning', 'running', 'deleting') AND (lane, id) > (%(lane)s, %(id)s)
 ORDER BY lane, id
 LIMIT %(limit)s

-- name: count_living
SELECT count(*) FROM instance WHERE status IN ('provisioning', 'running', 'deleting')
