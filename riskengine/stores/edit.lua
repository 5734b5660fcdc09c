-- Make edits of lists and live tables, and tell everyone: engines keep them all, and look how many edits there
-- were with every call.
--
-- KEYS  epoch, edits, entries, log
-- ARGV  epoch expected, and of each edit its field, value (empty: remove it), what the log says of it
--
-- Answers of each edit 1 where there was an entry before, 0 where there was none; -1 where the epoch is not the
-- one expected.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local there = {}
for at = 2, #ARGV, 3 do
  there[#there + 1] = redis.call('HEXISTS', KEYS[3], ARGV[at])
  if ARGV[at + 1] == '' then
    redis.call('HDEL', KEYS[3], ARGV[at])
  else
    redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
  end
  redis.call('INCR', KEYS[2])
  redis.call('RPUSH', KEYS[4], ARGV[at + 2])
end
redis.call('LTRIM', KEYS[4], -1000, -1)
return table.concat(there)
