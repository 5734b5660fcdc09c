-- Read entities as they are, enter claims that are new, and append the records of those that were new.
-- All at once: of a batch, of a label, of a release. Whoever sends it again moves nothing.
--
-- KEYS  epoch, edits, n claims, entities
-- ARGV  epoch expected, n, m, ms that the first m claims live and the others, ms that entities of each kind live
--       (joined by spaces), the kind of each entity (a byte each), recipe, n values of claims, records of each
--       entity
--
-- The recipe says of which events an entity's records are: for every entity their number and then, for each,
-- the number of its claim (from 1) and its size, 16 bits each.
--
-- Answers {epoch}, where it is not the one expected; else {epoch, edits, marks, known..., values...}: marks
-- are empty where every claim is new, else a digit for each, 1 for one that was known; of those the value of
-- the claim with its trace and the decision follow, and then the value of each entity as it was before.

local head = redis.call('MGET', KEYS[1], KEYS[2])
if head[1] ~= ARGV[1] then
  return {head[1]}
end

local n = tonumber(ARGV[2])
local own = tonumber(ARGV[3])
local before_entities = 2 + n
local before_values = 8
local before_records = 8 + n
local entities = #KEYS - before_entities

local known = {}
if n > 0 then
  known = redis.call('MGET', unpack(KEYS, 3, before_entities))
end
local values = {}
if entities > 0 then
  values = redis.call('MGET', unpack(KEYS, before_entities + 1, #KEYS))
  local absent = {}
  for k = 1, entities do
    if not values[k] then
      absent[#absent + 1] = KEYS[before_entities + k]
    end
  end
  -- MGET answers nothing for what is no string: find out before anything is written.
  if #absent > 0 and redis.call('EXISTS', unpack(absent)) > 0 then
    return redis.error_reply('WRONGTYPE Operation against a key holding the wrong kind of value')
  end
end

local out = {head[1], head[2], ''}
local marks = {}
local all_new = true
for i = 1, n do
  if known[i] then
    all_new = false
    marks[i] = '1'
  else
    marks[i] = '0'
    redis.call('SET', KEYS[2 + i], ARGV[before_values + i], 'PX', ARGV[i > own and 5 or 4])
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
  out[3] = table.concat(marks)
  for i = 1, n do
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

local lives
for k = 1, entities do
  local records = ARGV[before_records + k]
  if not all_new then
    records = picked(records)
  end
  if records ~= '' then
    local key = KEYS[before_entities + k]
    if values[k] then
      redis.call('APPEND', key, records)
    else
      if not lives then
        lives = {}
        for ms in string.gmatch(ARGV[6], '%d+') do
          lives[#lives + 1] = ms
        end
      end
      redis.call('SET', key, records, 'PX', lives[1 + string.byte(ARGV[7], k)])
    end
  end
end

local size = #out
for k = 1, entities do
  out[size + k] = values[k]
end
return out
