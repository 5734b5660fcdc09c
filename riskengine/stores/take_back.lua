-- Take back what a transaction (transaction.py) did, as one of its commands failed after all.
--
-- KEYS  n claims, entities
-- ARGV  n, the batch's name in its claims, of each entity where what was appended to it begins, and what it was
--
-- Records are made void where they stand, so that no byte changes its place; but for what another engine has
-- folded meanwhile.

local n = tonumber(ARGV[1])
for i = 1, n do
  local claim = redis.call('GET', KEYS[i])
  if claim and #claim == 41 and string.sub(claim, 31) == ARGV[2] then
    redis.call('DEL', KEYS[i])
  end
end
for k = 1, #KEYS - n do
  local name, from, records = KEYS[n + k], tonumber(ARGV[1 + 2 * k]), ARGV[2 + 2 * k]
  if redis.call('GETRANGE', name, from, from + #records - 1) == records then
    local at = 0
    while at < #records do
      redis.call('SETRANGE', name, from + at, '\4')
      at = at + 8 + 8 * string.byte(records, at + 2)
    end
  end
end
return 1
