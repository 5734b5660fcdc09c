-- Keep the decisions of a batch together, and what its events moved: a key for each, whatever their number.
--
-- KEYS  epoch, traces, decisions, n claims, entities that something is given back to
-- ARGV  epoch expected, n, r, ms that traces live, ms that decisions live, whether the claims are to live as
--       long as traces from now on (1), the batch's name in its claims, traces, decisions, the number of each
--       event in the batch (16 bits), r times (which of the n, number of the entity, records)
--
-- Traces and decisions begin with where each event's own begins, and where the last ends: 32 bits each, by its
-- number in the batch, which its claim has.
-- Where a claim is not as this batch entered it, another engine may have decided that event: then each is kept
-- by itself, as conclude.lua does it. What is given back needs no mark where all is kept together: the traces
-- are one.
-- Answers a digit for each event, 1 where its decision stood; or -1 where the epoch is not the one expected.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end

local n = tonumber(ARGV[2])
local batch = ARGV[7]
local claims = redis.call('MGET', unpack(KEYS, 4, 3 + n))
local together = true
for i = 1, n do
  local claim = claims[i]
  if not claim or #claim ~= 41 or string.sub(claim, 31) ~= batch then
    together = false
    break
  end
end

local function piece(pieces, claim)
  local low, high = string.byte(claim, 29, 30)
  local at = 4 * (low + 256 * high) + 1
  local a, b, c, d, e, f, g, h = string.byte(pieces, at, at + 7)
  return string.sub(pieces, 1 + a + 256 * (b + 256 * (c + 256 * d)), e + 256 * (f + 256 * (g + 256 * h)))
end

local stood = {}
local marks = {}
if together then
  local first = redis.call('SET', KEYS[2], ARGV[8], 'PX', ARGV[4], 'NX') and true or false
  if first then
    redis.call('SET', KEYS[3], ARGV[9], 'PX', ARGV[5])
  end
  for i = 1, n do
    stood[i] = first
    if first and ARGV[6] == '1' then
      redis.call('PEXPIRE', KEYS[3 + i], ARGV[4])
    end
  end
else
  for i = 1, n do
    local claim, name = claims[i], KEYS[3 + i]
    local start, event = string.sub(name, 1, -24), string.sub(name, -22)
    stood[i] = false
    if claim and #claim == 41 and redis.call('EXISTS', start .. 't' .. string.sub(claim, 31)) == 0 then
      local at = string.sub(claim, 1, 28) .. string.sub(ARGV[10], 2 * i - 1, 2 * i)
      if redis.call('SET', start .. 'd' .. event, piece(ARGV[9], at), 'PX', ARGV[5], 'NX') then
        redis.call('SET', name, claim .. piece(ARGV[8], at), 'PX', ARGV[4])
        stood[i] = true
      end
    end
  end
end
for i = 1, n do
  marks[i] = stood[i] and '1' or '0'
end

local at = 11
local settled = {}
for _ = 1, tonumber(ARGV[3]) do
  local i = tonumber(ARGV[at])
  local entity = KEYS[3 + n + tonumber(ARGV[at + 1])]
  if stood[i] then
    if settled[i] == nil then
      local name = KEYS[3 + i]
      local start, event = string.sub(name, 1, -24), string.sub(name, -22)
      local before = redis.call('GET', start .. 'b' .. event)
      settled[i] = not (before and string.sub(before, 1, 6) == 'denied')
      if settled[i] and not together then
        settled[i] = redis.call('SET', start .. 'p' .. event, 'denied', 'PX', ARGV[4], 'NX') and true or false
      end
    end
    if settled[i] and redis.call('EXISTS', entity) == 1 then
      redis.call('APPEND', entity, ARGV[at + 2])
    end
  end
  at = at + 3
end
return table.concat(marks)
