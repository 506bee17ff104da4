-- name: written
-- How many events the log has: numbers of lanes have no holes. What a forger made of the heads is no reason to fail.
SELECT coalesce(sum(head), 0) FROM lane_head
