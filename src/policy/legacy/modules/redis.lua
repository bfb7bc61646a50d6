-- `redis`: the client of that name. A command is a method in lower case; a server that does not answer, or refuses, is an error.
local call = ...
local type, select, pairs, ipairs, tostring, tonumber, setmetatable, upper, lower, match =
  type, select, pairs, ipairs, tostring, tonumber, setmetatable, string.upper, string.lower, string.match

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

-- connect(host, port), connect{ host =, port =, db = }, connect("redis://host:port").
function redis.connect(host, port)
  local server = { host = "127.0.0.1", port = 6379, db = 0, user = "", password = "" }
  if type(host) == "table" then
    server.host, server.port, server.db = host.host or server.host, host.port or server.port, tonumber(host.db) or 0
  elseif host ~= nil then
    local name, number = match(tostring(host), "^%a+://([^:/]+):?(%d*)")
    server.host, server.port = name or tostring(host), tonumber(port or number) or server.port
  end
  return setmetatable({ _server = server }, Client)
end

function redis.command(name)
  return function(self, ...) return call(self._server, flat(upper(name), ...)) end
end

return redis
