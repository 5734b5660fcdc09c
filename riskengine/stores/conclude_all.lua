-- Keep the decisions of a batch together, and what its events moved: a key for each, whatever their number.
--
-- KEYS  epoch, traces, decisions, entities that something is given back to
-- ARGV  epoch expected, ms that traces live, ms that decisions live, whether the claims are to live as long as
--       traces from now on (1), the batch's name in its claims, traces, decisions, what the names of the n claims
--       end with (22 characters each), and r times (which of the n, number of the entity, records)
--
-- Traces and decisions begin with where each event's own begins, and where the last ends: 32 bits each, by its
-- number in the batch, which its claim has. They are of those events whose claims name the batch still. Of any
-- other they are looked for by nobody, and nothing is given back: it was decided by itself, by another engine, or
-- given up, or the server has lost it.
-- What is given back needs no mark (see conclude.lua): the traces are one.
-- Answers 1 where they are kept, 0 where they were before, or -1 where the epoch is not the one expected.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
if not redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[2], 'NX') then
  return 0
end
redis.call('SET', KEYS[3], ARGV[7], 'PX', ARGV[3])

local batch = ARGV[5]
local start = string.sub(KEYS[2], 1, -2 - #batch)
local function name(letter, i)
  return start .. letter .. string.sub(ARGV[8], 22 * i - 21, 22 * i)
end

if ARGV[4] == '1' then
  for i = 1, #ARGV[8] / 22 do
    redis.call('PEXPIRE', name('c', i), ARGV[2])
  end
end

local settled = {}
for at = 9, #ARGV, 3 do
  local i, entity = tonumber(ARGV[at]), KEYS[3 + tonumber(ARGV[at + 1])]
  if settled[i] == nil then
    local claim, before = redis.call('GET', name('c', i)), redis.call('GET', name('b', i))
    local is_ours = claim and #claim == 41 and string.sub(claim, 31) == batch
    settled[i] = is_ours and not (before and string.sub(before, 1, 6) == 'denied')
  end
  if settled[i] and redis.call('EXISTS', entity) == 1 then
    redis.call('APPEND', entity, ARGV[at + 2])
  end
end
return 1
