-- Put a snapshot in the place of what it was folded from, and keep all that was appended since.
--
-- KEYS  entity
-- ARGV  the first bytes that its value had (24), how many bytes were folded, snapshot, ms that it lives
--
-- Those first bytes hold a count of snapshots, so that no other value can be taken for the one that was read.
-- Answers 1, or 0 where another snapshot came first.

if redis.call('GETRANGE', KEYS[1], 0, 23) ~= ARGV[1] then
  return 0
end
local since = redis.call('GETRANGE', KEYS[1], ARGV[2], -1)
redis.call('SET', KEYS[1], ARGV[3] .. since, 'PX', ARGV[4])
return 1
