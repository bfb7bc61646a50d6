-- `socket.http` and `ssl.https`: LuaSocket's two forms of `request`, over the native `http`, which yields while it waits.
local native, ltn12 = ...
local type, error, pairs, tostring, tonumber, lower = type, error, pairs, tostring, tonumber, string.lower

-- What the native side sets itself.
local OURS = { ["content-length"] = true, ["transfer-encoding"] = true, connection = true, te = true, host = true }

local http = { TIMEOUT = 60, USERAGENT = "trackalert" }

local function ask(request, source, sink)
  local body, reason = request.body, nil
  if source then
    body, reason = ltn12._whole(source)
    if not body then return nil, reason or "the source gives nothing" end
  end
  local headers = {}
  for name, value in pairs(request.headers or {}) do
    if not OURS[lower(name)] then headers[name] = tostring(value) end
  end
  if request.user then
    headers.Authorization = "Basic " .. http._b64(request.user .. ":" .. (request.password or ""))
  end
  local answer
  answer, reason = native.request {
    method = request.method or (body and "POST" or "GET"),
    url = request.url,
    headers = headers,
    body = body,
    timeout = tonumber(http.TIMEOUT),
  }
  if not answer then return nil, reason end
  if sink then
    if answer.body ~= "" then sink(answer.body) end
    sink(nil)
  end
  return answer, answer.status, answer.headers, "HTTP/1.1 " .. answer.status
end

-- request(url) and request(url, body) give the body; request{…} gives 1 and the body into its sink.
function http.request(request, body)
  if type(request) == "table" then
    if type(request.url) ~= "string" then error("http.request: url: a string is required, got " .. type(request.url), 2) end
    local answer, status, headers, line = ask(request, request.source, request.sink)
    if not answer then return nil, status end
    return 1, status, headers, line
  end
  if type(request) ~= "string" then error("http.request: url: a string is required, got " .. type(request), 2) end
  local headers = body and { ["Content-Type"] = "application/x-www-form-urlencoded" } or nil
  local answer, status, given, line = ask { url = request, body = body, headers = headers }
  if not answer then return nil, status end
  return answer.body, status, given, line
end

return http
