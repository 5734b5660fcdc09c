-- Enter the claims of a batch whose records this very transaction has appended: see transaction.py. Where one is
-- known already, or the epoch is another one, what was appended is taken back.
--
-- KEYS  epoch, n claims
-- ARGV  epoch expected, ms that claims live, what the names of entities begin with, of each entity that something
--       was appended to the rest of its name (14 characters) and how many bytes that was (32 bits), n values of
--       claims
--
-- Answers 1, or 0 where nothing was entered.

if redis.call('GET', KEYS[1]) == ARGV[1] then
  local i = 2
  while i <= #KEYS and redis.call('SET', KEYS[i], ARGV[3 + i], 'PX', ARGV[2], 'NX') do
    i = i + 1
  end
  if i > #KEYS then
    return 1
  end
  for entered = 2, i - 1 do
    redis.call('DEL', KEYS[entered])
  end
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
