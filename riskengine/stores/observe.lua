-- Read entities as they are, enter claims that are new, and append the records of those that were new.
-- All at once: of a batch, of a label, of a release. Whoever sends it again moves nothing.
--
-- KEYS  epoch, edits, n claims, entities
-- ARGV  epoch expected, n, m, ms that the first m claims live and the others, ms that entities of each kind live
--       (14 digits each), the kind of each entity (a byte each), recipe, n values of claims, records of each
--       entity
--
-- The recipe says of which events an entity's records are: for every entity their number and then, for each,
-- the number of its claim (from 1) and its size, 16 bits each.
--
-- Answers {epoch}, where it is not the one expected; else {epoch, edits, marks, known..., values...}: marks
-- are empty where every claim is new, else a digit for each, 1 for one that was known; of those the value of
-- the claim with its trace and the decision follow, and then the value of each entity as it was before.

local DIGITS = 14
local n = tonumber(ARGV[2])
local own = tonumber(ARGV[3])
local before_entities = 2 + n
local before_values = 8
local before_records = 8 + n
local entities = #KEYS - before_entities

-- All values at one go: each call of a command takes 2 us.
local found = redis.call('MGET', KEYS[1], KEYS[2], unpack(KEYS, before_entities + 1))
if found[1] ~= ARGV[1] then
  return {found[1]}
end

-- MGET answers nothing for what is no string: find out before anything is written.
local absent = {}
for k = 1, entities do
  if not found[2 + k] then
    absent[#absent + 1] = KEYS[before_entities + k]
  end
end
if #absent > 0 and redis.call('EXISTS', unpack(absent)) > 0 then
  return redis.error_reply('WRONGTYPE Operation against a key holding the wrong kind of value')
end

local out = {found[1], found[2], ''}
local known = {}
local all_new = true
for i = 1, n do
  local name, value, live = KEYS[2 + i], ARGV[before_values + i], ARGV[i > own and 5 or 4]
  if not redis.call('SET', name, value, 'PX', live, 'NX') then
    known[i] = redis.call('MGET', name)[1]
    if known[i] then
      all_new = false
    else  -- no string, and none of ours
      redis.call('SET', name, value, 'PX', live)
    end
  end
end

-- What is kept of a known event: claim with trace, and decision; of a batch both are kept together.
local kept = {}
local function get(name)
  if kept[name] == nil then
    kept[name] = redis.call('GET', name)
  end
  return kept[name]
end
local function piece(name, claim)
  local pieces = get(name)
  if not pieces then
    return false
  end
  local low, high = string.byte(claim, 29, 30)
  local at = 4 * (low + 256 * high) + 1
  local a, b, c, d, e, f, g, h = string.byte(pieces, at, at + 7)
  return string.sub(pieces, 1 + a + 256 * (b + 256 * (c + 256 * d)), e + 256 * (f + 256 * (g + 256 * h)))
end

if not all_new then
  local marks = {}
  for i = 1, n do
    marks[i] = known[i] and '1' or '0'
    if known[i] then
      local key, claim = KEYS[2 + i], known[i]
      local start = string.sub(key, 1, -24)
      local decision = redis.call('GET', start .. 'd' .. string.sub(key, -22))
      if not decision and #claim == 41 and string.sub(key, -23, -23) == 'c' then
        local batch = string.sub(claim, 31)
        local trace = piece(start .. 't' .. batch, claim)
        if trace then
          decision = piece(start .. 'k' .. batch, claim)
          claim = claim .. trace
        end
      end
      out[#out + 1] = claim
      out[#out + 1] = decision
    end
  end
  out[3] = table.concat(marks)
end

local recipe = ARGV[8]
local at = 1
local function number()
  local low, high = string.byte(recipe, at, at + 1)
  at = at + 2
  return low + 256 * high
end

-- The part of an entity's records whose claims are new.
local function picked(records)
  local parts = {}
  local start = 1
  for _ = 1, number() do
    local claim, size = number(), number()
    if not known[claim] then
      parts[#parts + 1] = string.sub(records, start, start + size - 1)
    end
    start = start + size
  end
  return table.concat(parts)
end

for k = 1, entities do
  local records = ARGV[before_records + k]
  if not all_new then
    records = picked(records)
  end
  if records ~= '' then
    local key = KEYS[before_entities + k]
    if found[2 + k] then
      redis.call('APPEND', key, records)
    else
      local at = DIGITS * string.byte(ARGV[7], k)
      redis.call('SET', key, records, 'PX', tonumber(string.sub(ARGV[6], at + 1, at + DIGITS)))
    end
  end
end

local size = #out
for k = 1, entities do
  out[size + k] = found[2 + k]
end
return out
