-- Take back what an event appended to an entity before it was known that it was not to: another partition has
-- its claim, and had known it longer.
--
-- KEYS  claim in the entity's partition, entity
-- ARGV  the claim's value, the event's record, what releases the event's reservations
--
-- A record that has not been folded in yet is made void where it stands, so that no byte changes its place.
-- Answers 1 where that could be done, 2 where it had been folded in or there was none, 0 where all of it has
-- been taken back before.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
local value = redis.call('GET', KEYS[2])
if not value then
  return 2
end
local done = 2
if ARGV[2] ~= '' then
  local from = string.find(value, ARGV[2], 1, true)
  if from then
    redis.call('SETRANGE', KEYS[2], from - 1, '\4')
    done = 1
  end
end
if ARGV[3] ~= '' then
  redis.call('APPEND', KEYS[2], ARGV[3])
end
return done
