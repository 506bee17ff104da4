-- Adds to counters and returns their totals, atomically.
--   KEYS     the counters
--   ARGV[1]  how long a window lasts, in milliseconds; it begins with the first request that is counted in it
--   ARGV[n]  how many requests to add to the counter KEYS[n - 1]; 0 only reads it
-- Returns, for each counter, its total and the milliseconds until its window ends.
local totals = {}
for index, key in ipairs(KEYS) do
  local total = redis.call('INCRBY', key, ARGV[index + 1])
  local left_ms = redis.call('PTTL', key)
  if left_ms < 0 then
    left_ms = tonumber(ARGV[1])
    redis.call('PEXPIRE', key, left_ms)
  end
  totals[2 * index - 1] = total
  totals[2 * index] = left_ms
end
return totals
