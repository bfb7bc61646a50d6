-- What a policy finds in its environment, and what it does not. Runs once in each machine, before any native function is made.
-- The chunk is named like mlua's own waiting loop, because mlua ends a dropped call only where that name is on top of the stack.
local pending, whose, max_result, max_subject, max_pattern = ...

local G, error, type, select, next, pairs, rawset, tostring, tonumber =
  _G, error, type, select, next, pairs, rawset, tostring, tonumber
local load, collectgarbage, concat, find_plain = load, collectgarbage, table.concat, string.find
local resume, yield, create, status, yieldable =
  coroutine.resume, coroutine.yield, coroutine.create, coroutine.status, coroutine.isyieldable

local stray = "a call that waits (history, state, http, wforce, time.sleep) cannot be made inside a callback of table.sort or string.gsub,"
  .. " or inside a metamethod that C code calls"

-- mlua takes this as the yield of its waiting functions: an error that says what is wrong instead of "C-call boundary".
function coroutine.yield(...)
  if not yieldable() then error(stray, 4) end
  return yield(...)
end
local handed_out_yield = yield

-- A wait inside a policy's own coroutine yields mlua's marker to whoever resumed it. Passed on to the top, it is a wait like any
-- other; not passed on, the policy would get the marker as a value and the answer never.
local forward
local function pump(thread, ok, value, ...)
  if ok and value == pending and status(thread) == "suspended" then
    if not yieldable() then return false, stray end
    return forward(thread, yield(pending))
  end
  return ok, value, ...
end
function forward(thread, signal)
  if signal ~= nil then
    -- The call was dropped: hand that down, and never run the policy again.
    resume(thread, signal)
    return yield()
  end
  return pump(thread, resume(thread))
end
local function finish(ok, ...)
  if ok then return ... end
  error((...), 0)
end

local co = {
  create = create,
  status = status,
  running = coroutine.running,
  isyieldable = yieldable,
  yield = handed_out_yield,
  resume = function(thread, ...) return pump(thread, resume(thread, ...)) end,
  wrap = function(f)
    local thread = create(f)
    return function(...) return finish(pump(thread, resume(thread, ...))) end
  end,
}

-- LuaJIT calls the handler of its own xpcall before it unwinds: after the watchdog raised, still inside of the hook, where no hook
-- runs, so that a handler that loops could not be stopped. Here it runs after the unwinding, as any other code.
local pcall = pcall
local function handled(handler, ok, ...)
  if ok then return ok, ... end
  return false, select(2, pcall(handler, (...)))
end
function G.xpcall(f, handler, ...) return handled(handler, pcall(f, ...)) end

-- C code cannot be stopped by the watchdog: what can be known to be too much beforehand is refused.
local S = string
local rep, find, match, gmatch, gsub = S.rep, S.find, S.match, S.gmatch, S.gsub
local function text(value)
  local kind = type(value)
  if kind == "string" then return value end
  return kind == "number" and tostring(value) or ""
end
function S.rep(s, n, sep)
  local times = tonumber(n)
  if times and times > 0 and (#text(s) + #text(sep)) * times > max_result then
    error("string.rep: the result would be over " .. max_result .. " bytes", 2)
  end
  return rep(s, n, sep)
end
local function bound(name, s, p)
  if #text(s) > max_subject then error(name .. ": the subject is over " .. max_subject .. " bytes", 3) end
  if #text(p) > max_pattern then error(name .. ": the pattern is over " .. max_pattern .. " bytes", 3) end
end
function S.find(s, p, init, plain)
  if not plain then bound("string.find", s, p) end
  return find(s, p, init, plain)
end
function S.match(s, p, init)
  bound("string.match", s, p)
  return match(s, p, init)
end
function S.gmatch(s, p)
  bound("string.gmatch", s, p)
  return gmatch(s, p)
end
function S.gsub(s, p, r, n)
  bound("string.gsub", s, p)
  if n == nil then return gsub(s, p, r) end
  return gsub(s, p, r, n)
end
S.dump = nil
getmetatable("").__metatable = false

local safe = {
  "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget", "rawlen", "rawset", "select",
  "setmetatable", "tonumber", "tostring", "type", "unpack", "xpcall", "_VERSION",
}
local libraries = { string = S, table = table, math = math, bit = bit, coroutine = co }
math.randomseed = nil

local function copy(from)
  local to = {}
  for key, value in pairs(from) do rawset(to, key, value) end
  return to
end

-- Turns (false, text) of a native function into an error.
local function guard(raw)
  return function(...) return finish(raw(...)) end
end

-- Lua that policies share: each policy gets an instance of its own. Written here and not in C code, so that a module may wait at its top
-- level. Two handlers may be in the same module at once then, so that what is under way is kept by call: only within one call is a
-- module that is required while it loads a circle. A module of an old configuration may be in `loaded` before it is whole (`module` puts
-- it there): until then it is for those who are loading it, in `half`, and everybody else loads it, too.
local function requirer(env, find, loaded)
  local under_way, half = {}, {}
  local function over(call, name, ok, value)
    local chain, loaders = under_way[call], half[name]
    chain[#chain] = nil
    if #chain == 0 then under_way[call] = nil end
    local mine = loaders and loaders[call]
    if not ok then
      if mine then
        loaders[call] = nil
        -- Nothing of it stays: the next try is a new one.
        if next(loaders) == nil then half[name], loaded[name] = nil, nil end
      end
      -- Another handler was faster, and has all of it.
      if not mine and loaded[name] ~= nil and not half[name] then return loaded[name] end
      error(value, 0)
    end
    -- Another handler may have been faster: all have the same one.
    if mine or loaded[name] == nil then
      half[name] = nil
      if value ~= nil then
        loaded[name] = value
      elseif loaded[name] == nil then
        loaded[name] = true
      end
    end
    return loaded[name]
  end
  return function(name)
    if type(name) ~= "string" then error("require: name: a string is required, got " .. type(name), 2) end
    local found, loaders = loaded[name], half[name]
    if found ~= nil and (not loaders or loaders[whose()]) then return found end
    local module, why = find(name, env)
    if not module then error(why, find_plain(why, "require: ", 1, true) == 1 and 2 or 0) end
    local call = whose()
    local chain = under_way[call] or {}
    under_way[call] = chain
    for i = 1, #chain do
      if chain[i] == name then
        error("require: a circle: " .. concat(chain, " requires ", i) .. " requires " .. name, 2)
      end
    end
    chain[#chain + 1] = name
    loaders = loaders or {}
    loaders[call], half[name] = true, loaders
    return over(call, name, pcall(module, name))
  end
end

local function nowhere(name) return nil, "require: " .. tostring(name) .. " cannot be loaded here" end

-- A fresh environment: its own copy of every table, so that nothing that one policy changes is there for another. `find` and `loaded` are
-- those of its `require`.
local function environment(api, find, loaded)
  local env = {}
  for _, name in pairs(safe) do env[name] = G[name] end
  for name, library in pairs(libraries) do env[name] = copy(library) end
  for name, value in pairs(api) do env[name] = type(value) == "table" and copy(value) or value end
  env._G = env

  function env.load(chunk, name, _, where)
    local kind = type(chunk)
    if kind ~= "string" and kind ~= "function" then
      error("load: chunk: a string or a function is required, got " .. kind, 2)
    end
    if type(name) ~= "string" or find_plain(name, "=__", 1, true) == 1 then name = "=(load)" end
    return load(chunk, name, "t", where == nil and env or where)
  end
  function env.loadstring(chunk, name) return env.load(chunk, name) end
  env.require = requirer(env, find or nowhere, loaded or {})
  function env.collectgarbage(what)
    if what ~= "count" then error("collectgarbage: only \"count\" is allowed", 2) end
    return collectgarbage("count")
  end
  local say = env._print
  env._print = nil
  function env.print(...)
    local parts = {}
    for i = 1, select("#", ...) do parts[i] = tostring((select(i, ...))) end
    if say then say(concat(parts, "\t")) end
  end
  return env
end

return environment, guard
