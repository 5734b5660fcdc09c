-- Make one edit of a list or a live table, and tell everyone: engines keep them all, and look how many edits
-- there were with every call.
--
-- KEYS  epoch, edits, entries, log
-- ARGV  epoch expected, field, value (empty: remove it), what the log says of it
--
-- Answers 1 where there was an entry before, 0 where there was none, -1 where the epoch is not the one expected.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local there = redis.call('HEXISTS', KEYS[3], ARGV[2])
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[3], ARGV[2])
else
  redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
end
redis.call('INCR', KEYS[2])
redis.call('RPUSH', KEYS[4], ARGV[4])
redis.call('LTRIM', KEYS[4], -1000, -1)
return there
