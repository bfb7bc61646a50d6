-- `redis`: the client of that name. A command is a method in lower case; a server that does not answer, or refuses, is an error.
local call = ...
local type, select, pairs, ipairs, tostring, tonumber, setmetatable, error = type, select, pairs, ipairs, tostring, tonumber, setmetatable, error
local upper, lower, match, gsub, char = string.upper, string.lower, string.match, string.gsub, string.char

-- What answers 0 or 1 and means no or yes.
local FLAGS = {
  exists = true, expire = true, pexpire = true, expireat = true, pexpireat = true, persist = true, move = true, renamenx = true,
  setnx = true, msetnx = true, sismember = true, smove = true, hset = true, hsetnx = true, hexists = true,
}
local function pairs_of(list)
  local map = {}
  for i = 1, #list, 2 do map[list[i]] = list[i + 1] end
  return map
end

-- Tables among the arguments go in flat: a list as it is, a map as its keys and values.
local function flat(name, ...)
  local all = { name }
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    if type(value) ~= "table" then
      all[#all + 1] = value
    elseif #value > 0 then
      for _, item in ipairs(value) do all[#all + 1] = item end
    else
      for key, item in pairs(value) do
        all[#all + 1] = key
        all[#all + 1] = item
      end
    end
  end
  return all
end

local methods = {}

function methods:select(db)
  self._server.db = tonumber(db) or 0
  return true
end

-- auth(password) and auth(user, password): used from the next command on.
function methods:auth(user, password)
  if password == nil then user, password = "", user end
  self._server.user, self._server.password = user, password
  return true
end

function methods:ping() return call(self._server, { "PING" }) == "PONG" end
function methods:hgetall(key) return pairs_of(call(self._server, { "HGETALL", key })) end
function methods:config(what, name, value)
  local answer = call(self._server, flat("CONFIG", upper(what), name, value))
  return lower(what) == "get" and pairs_of(answer) or answer
end
function methods:raw_cmd(line)
  local words = {}
  for word in line:gmatch("%S+") do words[#words + 1] = word end
  return call(self._server, words)
end
-- Connections are the machine's and stay.
function methods:quit() return true end

local Client = {}
function Client.__index(_, name)
  if methods[name] then return methods[name] end
  if type(name) ~= "string" or not match(name, "^%a[%a_]*$") then return nil end
  local command, flag = upper(name), FLAGS[name]
  local function method(self, ...)
    local answer = call(self._server, flat(command, ...))
    if flag and type(answer) == "number" then return answer > 0 end
    return answer
  end
  methods[name] = method
  return method
end

local redis = {}

local function plain(text)
  return (gsub(text, "%%(%x%x)", function(code) return char(tonumber(code, 16)) end))
end

-- What is wrong is not repeated: a password stands in it.
local function from_url(server, scheme, rest)
  local authority, path, options = match(rest, "^([^/?#]*)/?([^?#]*)(.*)$")
  -- The old module's option of its sockets; anything else may be a part of a password.
  local known = options == "" or match(options, "^%?tcp_nodelay=%w+$")
  local login, place = match(authority, "^(.*)@([^@]*)$")
  place = place or authority
  local host, port = match(place, "^%[([%x:.]+)%]:?(%d*)$")
  if not host then host, port = match(place, "^([^:%[%]]+):?(%d*)$") end
  if not known or (scheme ~= "redis" and scheme ~= "tcp") or not host or not match(path, "^%d*$") then
    error("redis.connect: host: is no redis://[user:password@]host[:port][/db], which is all that is understood", 3)
  end
  server.host, server.port, server.db = host, tonumber(port) or server.port, tonumber(path) or 0
  if login then
    local user, password = match(login, "^([^:]*):?(.*)$")
    server.user, server.password = plain(user), plain(password)
  end
end

-- connect(host, port), connect{ host =, port =, db = }, connect("redis://user:password@host:port/db").
function redis.connect(host, port)
  local server = { host = "127.0.0.1", port = 6379, db = 0, user = "", password = "" }
  if type(host) == "table" then
    -- Left out, it would be another server that is asked.
    if host.path then error("redis.connect: path: sockets of the file system are not understood; give host and port", 2) end
    server.host, server.port, server.db = host.host or server.host, host.port or server.port, tonumber(host.db) or 0
  elseif host ~= nil then
    local place, rest = match(tostring(host), "^(%a[%w+.-]*)://(.*)$")
    if place then
      from_url(server, lower(place), rest)
    else
      server.host = tostring(host)
    end
    server.port = tonumber(port) or server.port
  end
  return setmetatable({ _server = server }, Client)
end

function redis.command(name)
  return function(self, ...) return call(self._server, flat(upper(name), ...)) end
end

return redis
