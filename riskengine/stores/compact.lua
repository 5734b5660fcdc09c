-- Put a snapshot in the place of what it was folded from, and keep all that was appended since.
--
-- KEYS  entity, claims of the reservations that were granted in what was folded
-- ARGV  the first bytes that its value had (24), how many bytes were folded, snapshot, ms that it lives, ms that
--       an undecided claim lives, and of each claim what would give its reservation back
--
-- Those first bytes hold a count of snapshots, so that no other value can be taken for the one that was read.
-- A snapshot does not tell whose reservations it holds: of events that are not decided (their claim has no trace
-- yet, nor has their batch), which may never be if their engine has died, that is kept beside the claim (h).
-- Answers 1, or 0 where another snapshot came first.

if redis.call('GETRANGE', KEYS[1], 0, 23) ~= ARGV[1] then
  return 0
end
local since = redis.call('GETRANGE', KEYS[1], ARGV[2], -1)
redis.call('SET', KEYS[1], ARGV[3] .. since, 'PX', ARGV[4])
if #KEYS > 1 then
  local claims = redis.call('MGET', unpack(KEYS, 2, #KEYS))
  local decided = {}
  for i = 2, #KEYS do
    local claim = claims[i - 1]
    if claim and #claim == 41 then
      local start, batch = string.sub(KEYS[i], 1, -24), string.sub(claim, 31)
      if decided[batch] == nil then
        decided[batch] = redis.call('EXISTS', start .. 't' .. batch) == 1
      end
      if not decided[batch] then
        local held = start .. 'h' .. string.sub(KEYS[i], -22)
        redis.call('APPEND', held, ARGV[4 + i])
        redis.call('PEXPIRE', held, ARGV[5])
      end
    end
  end
end
return 1
