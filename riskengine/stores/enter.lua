-- Enter the claims of a batch whose records this very transaction has appended: see transaction.py. Where one is
-- known already, or the epoch is another one, what was appended is taken back.
--
-- KEYS  epoch, n claims
-- ARGV  epoch expected, ms that claims live, what the names of entities begin with, of each entity that something
--       was appended to the rest of its name (14 characters) and how many bytes that was (32 bits), n values of
--       claims
--
-- Answers 1, or 0 where nothing was entered.

local found = redis.call('MGET', unpack(KEYS))
local all_new = found[1] == ARGV[1]
for i = 2, #KEYS do
  all_new = all_new and not found[i]
end
if all_new then
  for i = 2, #KEYS do
    redis.call('SET', KEYS[i], ARGV[3 + i], 'PX', ARGV[2])
  end
  return 1
end

-- Nobody came in between: it is what each value ends with.
local appended = ARGV[4]
for at = 1, #appended, 18 do
  local name = ARGV[3] .. string.sub(appended, at, at + 13)
  local a, b, c, d = string.byte(appended, at + 14, at + 17)
  local value = redis.pcall('GET', name)
  if type(value) == 'string' then
    local before = string.sub(value, 1, -1 - (a + 256 * (b + 256 * (c + 256 * d))))
    if before == '' then
      redis.call('DEL', name)
    else
      redis.call('SET', name, before, 'KEEPTTL')
    end
  end
end
return 0
