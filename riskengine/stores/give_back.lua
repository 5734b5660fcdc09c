-- Give back, once, what an event holds in one partition: one that is denied, or that nobody decided.
--
-- KEYS  epoch, mark of what was given back before the decision (b), and after it (p), entities
-- ARGV  epoch expected, what both marks begin with, ms that they live, a record for each entity
--
-- Whoever decides the event later finds the first mark, and conclude.lua the second one.
-- Answers 1, 0 where it was given back before, or -1 where the epoch is not the one expected.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local before = redis.call('GET', KEYS[2])
if before and string.sub(before, 1, #ARGV[2]) == ARGV[2] or redis.call('EXISTS', KEYS[3]) == 1 then
  return 0
end
for i = 4, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('APPEND', KEYS[i], ARGV[i])
  end
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
return 1
