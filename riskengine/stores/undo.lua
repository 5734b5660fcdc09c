-- Take back what an event appended to a partition's entities before it was known that it was not to: another
-- partition has its claim, and had known it longer.
--
-- KEYS  claim in the entities' partition, entities
-- ARGV  the claim's value, and of each entity the event's record, what releases the event's reservations
--
-- A record that has not been folded in yet is made void where it stands, so that no byte changes its place.
-- Answers how many were, or -1 where all of it has been taken back before.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('DEL', KEYS[1])
local count = 0
for k = 2, #KEYS do
  local value = redis.call('GET', KEYS[k])
  local record, releases = ARGV[2 * k - 2], ARGV[2 * k - 1]
  if value and record ~= '' then
    local from = string.find(value, record, 1, true)
    if from then
      redis.call('SETRANGE', KEYS[k], from - 1, '\4')
      count = count + 1
    end
  end
  if value and releases ~= '' then
    redis.call('APPEND', KEYS[k], releases)
  end
end
return count
