-- `elasticsearch`: the client of that name, over the native `http`, which yields while it waits. Each call gives its data, or nil and
-- the reason.
local http, json, b64 = ...
local type, error, pairs, ipairs, tostring, setmetatable = type, error, pairs, ipairs, tostring, setmetatable
local concat, format, gsub, byte = table.concat, string.format, string.gsub, string.byte

local Client = {}
Client.__index = Client

local PATHS = { search = "_search", count = "_count", msearch = "_msearch" }
-- What of the arguments is no parameter of the query.
local PARTS = { index = true, type = true, id = true, body = true }

local function escaped(text)
  return (gsub(tostring(text), "[^%w%-%._~%*,]", function(c) return format("%%%02X", byte(c)) end))
end

-- A list of indices is written with commas.
local function part(value)
  return type(value) == "table" and concat(value, ",") or value
end

local function path_of(arguments, ending)
  local parts = {}
  for _, value in ipairs { part(arguments.index) or false, part(arguments.type) or false } do
    if value then parts[#parts + 1] = escaped(value) end
  end
  if ending then parts[#parts + 1] = ending end
  return "/" .. concat(parts, "/")
end

local function query_of(arguments)
  local query = {}
  for name, value in pairs(arguments) do
    if not PARTS[name] then query[name] = type(value) == "table" and concat(value, ",") or value end
  end
  return query
end

-- What the server says of a request that it refuses.
local function refusal(status, data)
  local reason = type(data) == "table" and data.error
  if type(reason) == "table" then
    local cause = type(reason.root_cause) == "table" and reason.root_cause[1] or reason
    reason = tostring(cause.type) .. ": " .. tostring(cause.reason)
  end
  return "status " .. status .. (reason and ": " .. tostring(reason) or "")
end

-- What stores something new (`once`) goes to another host only where the one before cannot have it: it would be stored twice.
function Client:_ask(method, path, arguments, request, once)
  local hosts, reasons = self.hosts, {}
  for _ = 1, #hosts do
    local host = hosts[self.next % #hosts + 1]
    request.method, request.url = method, host.url .. path
    request.query, request.headers = query_of(arguments), request.headers or {}
    request.headers.Authorization, request.timeout = host.authorization, self.timeout
    local answer, reason, sent = http.request(request)
    if answer then
      local data, broken = answer:json()
      if answer.status >= 400 then return nil, refusal(answer.status, data) end
      return data, broken
    end
    reasons[#reasons + 1] = reason
    -- The next call begins with the next one, too.
    self.next = self.next + 1
    if once and sent then break end
  end
  return nil, concat(reasons, "; ")
end

local function checked(name, arguments)
  if type(arguments) ~= "table" then
    error("elasticsearch: " .. name .. ": a table is required, got " .. type(arguments), 3)
  end
  return arguments
end

-- A body is a table, or JSON as a text.
local function with_body(body)
  if type(body) == "string" then return { body = body, headers = { ["Content-Type"] = "application/json" } } end
  return { json = body }
end

function Client:search(arguments)
  checked("search", arguments)
  return self:_ask("POST", path_of(arguments, PATHS.search), arguments, with_body(arguments.body))
end

function Client:count(arguments)
  checked("count", arguments)
  return self:_ask("POST", path_of(arguments, PATHS.count), arguments, with_body(arguments.body))
end

function Client:index(arguments)
  checked("index", arguments)
  if not arguments.index then error("elasticsearch: index: index is missing", 2) end
  local kind = arguments.type or "_doc"
  local path = "/" .. escaped(arguments.index) .. "/" .. escaped(kind)
  if arguments.id then path = path .. "/" .. escaped(arguments.id) end
  return self:_ask(arguments.id and "PUT" or "POST", path, arguments, with_body(arguments.body), not arguments.id)
end

-- The body is a list of headers and searches in turn, or the lines themselves.
function Client:msearch(arguments)
  checked("msearch", arguments)
  local lines = arguments.body
  if type(lines) == "table" then
    local encoded = {}
    for i, line in ipairs(lines) do encoded[i] = type(line) == "string" and line or json.encode(line) end
    lines = concat(encoded, "\n") .. "\n"
  end
  local request = { body = lines, headers = { ["Content-Type"] = "application/x-ndjson" } }
  return self:_ask("POST", path_of(arguments, PATHS.msearch), arguments, request)
end

local elasticsearch = {}

function elasticsearch.client(options)
  options = checked("client", options or {})
  local client = setmetatable({ hosts = {}, next = 0, timeout = nil }, Client)
  for i, host in ipairs(options.hosts or { {} }) do
    local name = host.host or "localhost"
    if type(name) ~= "string" then error("elasticsearch: client: hosts[" .. i .. "].host: a string is required", 2) end
    client.hosts[i] = {
      url = (host.protocol or "http") .. "://" .. name .. ":" .. tostring(host.port or 9200),
      authorization = host.username and "Basic " .. b64(host.username .. ":" .. (host.password or "")) or nil,
    }
  end
  if #client.hosts == 0 then error("elasticsearch: client: hosts: is empty", 2) end
  return client
end

return elasticsearch
