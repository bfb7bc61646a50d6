-- `ltn12`: sources and sinks, as far as requests and messages take them.
local type, concat, insert = type, table.concat, table.insert
local ltn12 = { source = {}, sink = {}, pump = {} }
local source, sink, pump = ltn12.source, ltn12.sink, ltn12.pump

function source.empty() return function() return nil end end

function source.string(text)
  local left = text
  return function()
    local all = left
    left = nil
    return all ~= "" and all or nil
  end
end

function source.table(parts)
  local at = 0
  return function()
    at = at + 1
    return parts[at]
  end
end

function source.cat(...)
  local sources, at = { ... }, 1
  return function()
    while sources[at] do
      local chunk, reason = sources[at]()
      if chunk then return chunk end
      if reason then return nil, reason end
      at = at + 1
    end
  end
end

function sink.table(parts)
  parts = parts or {}
  return function(chunk)
    if chunk then insert(parts, chunk) end
    return 1
  end, parts
end

function sink.null() return function() return 1 end end

function pump.step(from, to)
  local chunk, reason = from()
  local taken, refused = to(chunk, reason)
  if chunk and taken then return 1 end
  return nil, reason or refused
end

function pump.all(from, to)
  while true do
    local going, reason = pump.step(from, to)
    if not going then
      if reason then return nil, reason end
      return 1
    end
  end
end

-- All that a source gives, for those who send it at once.
function ltn12._whole(from)
  if type(from) ~= "function" then return nil end
  local parts = {}
  while true do
    local chunk, reason = from()
    if not chunk then
      if reason then return nil, reason end
      return concat(parts)
    end
    parts[#parts + 1] = chunk
  end
end

return ltn12
