-- What an old configuration finds in its environment beyond what every policy does. Runs once in a machine that holds such a file.
local fresh = ...

local G, error, type, tostring, select, pairs, setmetatable = _G, error, type, tostring, select, pairs, setmetatable
local load, pcall, collectgarbage, concat = load, pcall, collectgarbage, table.concat
local open, setfenv, getfenv, gsub, gmatch = io.open, setfenv, getfenv, string.gsub, string.gmatch

local PATH = "./?.lua;/usr/local/share/lua/5.1/?.lua;/usr/local/share/lua/5.1/?/init.lua"
  .. ";/usr/share/lua/5.1/?.lua;/usr/share/lua/5.1/?/init.lua;/usr/share/luajit-2.1/?.lua"
local REFUSED = { ffi = true, debug = true }

local function copy(from)
  local to = {}
  for key, value in pairs(from) do to[key] = value end
  return to
end

local function compile(path, env)
  local file, reason = open(path, "rb")
  if not file then return nil, reason end
  local source = file:read("*a")
  file:close()
  -- The first line may be for a shell.
  if not source then return nil, path .. ": cannot be read" end
  return load(gsub(source, "^#[^\n]*", "", 1), "@" .. path, "t", env)
end

-- What `require` finds, which is the same as everywhere: `package`, and how it is searched.
local function packages()
  local preload = {}
  local package = { loaded = {}, preload = preload, path = PATH, cpath = "", config = "/\n;\n?\n!\n-\n" }

  local function find(name, env)
    if REFUSED[name] then return nil, "require: " .. name .. " is not given to policies" end
    if preload[name] then return preload[name] end
    local tried = { "no field package.preload['" .. name .. "']" }
    local as_file = gsub(name, "%.", "/")
    for pattern in gmatch(package.path, "[^;]+") do
      local path = gsub(pattern, "%?", (gsub(as_file, "%%", "%%%%")))
      local file = open(path, "rb")
      if file then
        file:close()
        local chunk, reason = compile(path, env)
        return chunk, not chunk and "require: " .. name .. ": " .. tostring(reason)
      end
      tried[#tried + 1] = "no file '" .. path .. "'"
    end
    return nil, "require: " .. name .. " is not found (modules in C cannot be loaded here):\n\t" .. concat(tried, "\n\t")
  end

  return package, find
end

-- The functions that load files, and the form of modules of Lua 5.1.
local function loaders(env, package)
  local loaded = package.loaded

  function env.dofile(path)
    local chunk, reason = compile(path or "", env)
    if not chunk then error(reason, 2) end
    return chunk()
  end

  function env.loadfile(path) return compile(path or "", env) end

  function package.seeall(module) setmetatable(module, { __index = env }) end

  function env.module(name, ...)
    local module = loaded[name]
    if type(module) ~= "table" then
      module = {}
      loaded[name] = module
      local at = env
      local parts = {}
      for part in gmatch(name, "[^.]+") do parts[#parts + 1] = part end
      for i = 1, #parts - 1 do
        at[parts[i]] = type(at[parts[i]]) == "table" and at[parts[i]] or {}
        at = at[parts[i]]
      end
      at[parts[#parts]] = module
    end
    module._M, module._NAME, module._PACKAGE = module, name, (gsub(name, "[^.]*$", ""))
    setfenv(2, module)
    for i = 1, select("#", ...) do (select(i, ...))(module) end
  end
end

-- The globals of the machine itself are nobody's.
local function environments(env)
  function env.getfenv(of)
    if type(of) == "number" then of = of > 0 and of + 1 or of end
    local found = getfenv(of or 2)
    return found == G and env or found
  end
  function env.setfenv(of, to)
    if of == 0 then error("setfenv: the environment of all is not given to policies", 2) end
    return setfenv(type(of) == "number" and of + 1 or of, to)
  end
end

-- The modules of ours, made when they are first required. They go before files of the same name: those would block the worker.
local function preload(env, package, modules)
  local given, http, json = package.preload, env.http, env.json
  function given.cjson()
    return { encode = json.encode, decode = json.decode, null = json.null, empty_array = json.empty_array }
  end
  given["cjson.safe"] = function()
    local function safe(f)
      return function(...)
        local ok, value = pcall(f, ...)
        if ok then return value end
        return nil, value
      end
    end
    return { encode = safe(json.encode), decode = safe(json.decode), null = json.null, empty_array = json.empty_array }
  end
  function given.mime() return { b64 = modules.b64, unb64 = modules.unb64 } end
  function given.ltn12() return modules.ltn12() end
  function given.elasticsearch() return modules.elasticsearch(http, json, modules.b64) end
  local function request()
    local module = modules.http(http, env.require "ltn12")
    module._b64 = modules.b64
    return module
  end
  given["socket.http"], given["ssl.https"] = request, request
  given["socket.smtp"] = function() return modules.smtp(modules.smtp_send, env.require "ltn12") end
  function given.redis() return modules.redis(modules.redis_call) end
end

return function(api, names, modules)
  local package, find = packages()
  local env = fresh(api, find, package.loaded)
  env.io, env.os = copy(G.io), copy(G.os)
  function env.os.exit() error("os.exit: would end the whole program, with what all others have in flight", 2) end
  env.jit = { version = G.jit.version, version_num = G.jit.version_num, os = G.jit.os, arch = G.jit.arch }
  env.collectgarbage = collectgarbage
  env.newproxy = G.newproxy
  env.gcinfo = function() return collectgarbage("count") end
  loaders(env, package)
  preload(env, package, modules)
  environments(env)
  env.package = package
  for name, value in pairs(names) do env[name] = value end
  for _, name in pairs { "string", "table", "math", "bit", "coroutine", "io", "os", "jit", "package" } do
    package.loaded[name] = env[name]
  end
  package.loaded._G = env
  return env
end
