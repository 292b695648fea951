"""The atomic operations on a stream, as Lua scripts that Redis runs without interruption. KEYS[1] is the stream.

Written for Redis 6.2: group lag is counted here, because the server's own figure is absent there and undefined
elsewhere once entries are deleted.
"""

OWNS = """
local function owns(group, id, consumer)
  local pending = redis.pcall('XPENDING', KEYS[1], group, id, id, 1, consumer)  -- an error: Redis came back empty
  return not pending.err and #pending > 0
end
"""

# ARGV payload. Returns 1 if it is among the newest entries.
HOLDS = """
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 100)) do
  if entry[2][2] == ARGV[1] then return 1 end
end
return 0
"""

# ARGV group, id. Acknowledges, and deletes the entry once no group waits for it.
SETTLE = """
local function split(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(seq)
end
local function before(a, b)
  local a_ms, a_seq = split(a)
  local b_ms, b_seq = split(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local id = ARGV[2]
redis.call('XACK', KEYS[1], ARGV[1], id)
for _, facts in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #facts, 2 do group[facts[i]] = facts[i + 1] end
  if before(group['last-delivered-id'], id) then return 0 end
  if #redis.call('XPENDING', KEYS[1], group['name'], id, id, 1) > 0 then return 0 end
end
return redis.call('XDEL', KEYS[1], id)
"""

# ARGV group, consumer, lease in ms, limit. Claims entries whose lease has run out: [[id, payload, attempt]...].
RECLAIM = """
local claimed, cursor, limit = {}, '0-0', tonumber(ARGV[4])
repeat
  local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], cursor, 'COUNT', limit - #claimed)
  cursor = reply[1]
  for _, entry in ipairs(reply[2]) do
    if entry and entry[2] then
      local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)
      claimed[#claimed + 1] = {entry[1], entry[2], pending[1][4]}
    end
  end
until cursor == '0-0' or #claimed >= limit
return claimed
"""

# ARGV group, consumer, ids... Resets the idle time of ids that are still owned; returns those that others have claimed.
RENEW = (
    OWNS
    + """
local lost = {}
for i = 3, #ARGV do
  if owns(ARGV[1], ARGV[i], ARGV[2]) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""
)

# ARGV group, consumer, ids... Gives back the ids that are still owned, with an idle time so long that the next reclaim
# takes them.
HAND_BACK = (
    OWNS
    + """
for i = 3, #ARGV do
  if owns(ARGV[1], ARGV[i], ARGV[2]) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], 'returned', 0, ARGV[i], 'TIME', 1, 'JUSTID')
  end
end
return 0
"""
)

# ARGV group, consumer, ids... Releases every pending entry of this consumer except the given ids, which it really holds.
# The others were given to a former process of the same name, or in an answer that was lost on its way.
DISOWN = """
local holds = {}
for i = 3, #ARGV do holds[ARGV[i]] = true end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000000, ARGV[2])
if pending.err then return 0 end
for _, entry in ipairs(pending) do
  if not holds[entry[1]] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], 'returned', 0, entry[1], 'TIME', 1, 'JUSTID')
  end
end
return 0
"""

# ARGV group, consumer. Deletes a consumer without pending entries; deleting one that has some would lose them.
LEAVE = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if not pending.err and #pending == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return 0
"""

# ARGV group. Returns [number of entries not acknowledged or not yet given, age of the oldest in ms].
BACKLOG = """
local last
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('NOGROUP no such stream') end
for _, facts in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #facts, 2 do group[facts[i]] = facts[i + 1] end
  if group['name'] == ARGV[1] then last = group['last-delivered-id'] end
end
if not last then return redis.error_reply('NOGROUP no such group') end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
local waiting = redis.call('XRANGE', KEYS[1], '(' .. last, '+')
local oldest = pending[1] > 0 and pending[2] or (waiting[1] and waiting[1][1])
if not oldest then return {0, 0} end
local now = redis.call('TIME')
local age_ms = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(string.match(oldest, '%d+'))
return {pending[1] + #waiting, math.max(0, age_ms)}
"""

# ARGV groups... Deletes all entries and deliveries, and the groups that are not named. The key keeps its newest id, so
# that a late acknowledgement of an old delivery never hits a new entry.
CLEAR = """
local keep = {}
for _, name in ipairs(ARGV) do keep[name] = true end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for _, facts in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #facts, 2 do group[facts[i]] = facts[i + 1] end
  local name = group['name']
  if #ARGV > 0 and not keep[name] then
    redis.call('XGROUP', 'DESTROY', KEYS[1], name)
  else
    for _, pending in ipairs(redis.call('XPENDING', KEYS[1], name, '-', '+', 1000000)) do
      redis.call('XACK', KEYS[1], name, pending[1])
    end
    redis.call('XGROUP', 'SETID', KEYS[1], name, '$')
  end
end
return redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)
"""
