-- name: written
-- How many events the log has: numbers of lanes have no holes.
SELECT sum(head)::bigint FROM lane_head
