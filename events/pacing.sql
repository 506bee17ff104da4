-- name: events_total
-- How many events the log has: the numbers in a lane have no gaps. Forged heads must not fail the statement.
SELECT coalesce(sum(head), 0) FROM lane_head
