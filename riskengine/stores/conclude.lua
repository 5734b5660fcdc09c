-- Keep decisions, each by itself with what its event moved, and give back what denied events hold.
--
-- KEYS  epoch, n claims, entities that something is given back to
-- ARGV  epoch expected, n, r, ms that a trace lives, ms that a decision lives, whether who decides has seen what
--       an operator released (1) or not (0), or what the claims of those events have in the place of a batch's
--       name that are to be decided, n times (claim's value with its trace, decision), r times (number of the
--       event, number of the entity, records)
--
-- What was decided without us is to count where nobody else had entered it: who did may hold something for it,
-- which only the one who knows of it gives back.
--
-- An event of which there is no claim was lost by the server: it is new when it comes again.
-- The first decision of an event stands, also one that is kept together with its batch's: of a second one
-- nothing is kept, and nothing is given back. Where an operator released what an undecided event held, an empty
-- decision keeps its engine from deciding, should it live. What is given back is marked (p), so that it is given
-- back once, even where a decision is lost and made again; what was given back before the decision has a mark of
-- its own (b).
-- Answers a digit for each event, 1 where its decision stands (also for who says it again, as the answer was
-- lost); or -1 where the epoch is not the one expected.

local n = tonumber(ARGV[2])
local found = redis.call('MGET', unpack(KEYS, 1, 1 + n))
if found[1] ~= ARGV[1] then
  return -1
end

local alone = '!!!!!!!!!!!'  -- what claims have in the place of a batch's name
local entered = #ARGV[6] == #alone and ARGV[6]
local stood = {}
local marks = {}
local at = 7
for i = 1, n do
  local claim = KEYS[1 + i]
  local start = string.sub(claim, 1, -24)
  local decision = start .. 'd' .. string.sub(claim, -22)
  local before = found[1 + i]
  local batch = before and string.sub(before, 31, 41) or alone
  local together = batch ~= alone and redis.call('EXISTS', start .. 't' .. batch) == 1
  local ours = before and not together and (not entered or batch == entered)
  local first = ours and redis.call('SET', decision, ARGV[at + 1], 'PX', ARGV[5], 'NX')
  if before and not together and not first and ARGV[6] == '1' and redis.call('GET', decision) == '' then
    first = redis.call('SET', decision, ARGV[at + 1], 'PX', ARGV[5])
  end
  if first then
    redis.call('SET', claim, ARGV[at], 'PX', ARGV[4])
    stood[i] = true
  end
  local stands = first or ours and redis.call('GET', decision) == ARGV[at + 1]
  marks[i] = stands and '1' or '0'
  at = at + 2
end

local settled = {}
for _ = 1, tonumber(ARGV[3]) do
  local i = tonumber(ARGV[at])
  local entity = KEYS[1 + n + tonumber(ARGV[at + 1])]
  if stood[i] then
    if settled[i] == nil then
      local claim = KEYS[1 + i]
      local start, name = string.sub(claim, 1, -24), string.sub(claim, -22)
      local before = redis.call('GET', start .. 'b' .. name)
      settled[i] = not (before and string.sub(before, 1, 6) == 'denied')
        and redis.call('SET', start .. 'p' .. name, 'denied', 'PX', ARGV[4], 'NX') and true or false
    end
    if settled[i] and redis.call('EXISTS', entity) == 1 then
      redis.call('APPEND', entity, ARGV[at + 2])
    end
  end
  at = at + 3
end
return table.concat(marks)
