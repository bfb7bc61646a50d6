-- `socket.smtp`: `message` makes a source, `send` gives it to a server.
local send, ltn12 = ...
local type, error, pairs, ipairs, tostring, date = type, error, pairs, ipairs, tostring, os.date
local gsub, find, lower, upper, concat, sort = string.gsub, string.find, string.lower, string.upper, table.concat, table.sort

local smtp = { SERVER = "localhost", PORT = 25, TIMEOUT = 60 }

local function header(name, value)
  -- A line end in a value would begin a header of somebody else's.
  return name .. ": " .. gsub(tostring(value), "%s*[\r\n]+%s*", " ")
end

local function text_of(body)
  if type(body) == "function" then return ltn12._whole(body) or "" end
  return (gsub(tostring(body or ""), "\r?\n", "\r\n"))
end

local boundaries = 0

-- What a mail must have and the policy has not given; the names are in lower case, each once.
local function headers_of(message, whole)
  local headers = {}
  for name, value in pairs(message.headers or {}) do headers[lower(tostring(name))] = tostring(value) end
  if whole then
    headers.date = headers.date or date("!%a, %d %b %Y %H:%M:%S +0000")
    headers["mime-version"] = "1.0"
  end
  return headers
end

local function write(headers, lines)
  local names = {}
  for name in pairs(headers) do names[#names + 1] = name end
  sort(names)
  for _, name in ipairs(names) do lines[#lines + 1] = header((gsub(name, "%f[%a]%l", upper)), headers[name]) end
  lines[#lines + 1] = ""
end

local function build(message, lines, whole)
  local headers = headers_of(message, whole)
  if type(message.body) == "table" then
    boundaries = boundaries + 1
    local boundary = "=_trackalert_" .. boundaries .. "_" .. tostring(message):gsub("%W", "")
    -- One that the policy has given would not be the one that stands between the parts.
    local kind = gsub(headers["content-type"] or "multipart/mixed", ";%s*[Bb][Oo][Uu][Nn][Dd][Aa][Rr][Yy]%s*=[^;]*", "")
    headers["content-type"] = kind .. '; boundary="' .. boundary .. '"'
    write(headers, lines)
    lines[#lines + 1] = message.body.preamble or ""
    for _, part in ipairs(message.body) do
      lines[#lines + 1] = "--" .. boundary
      build(part, lines, false)
    end
    lines[#lines + 1] = "--" .. boundary .. "--"
    lines[#lines + 1] = message.body.epilogue or ""
    return
  end
  local text = text_of(message.body)
  headers["content-type"] = headers["content-type"] or "text/plain; charset=utf-8"
  if find(text, "[\128-\255]") then headers["content-transfer-encoding"] = headers["content-transfer-encoding"] or "8bit" end
  write(headers, lines)
  lines[#lines + 1] = text
end

-- A source of the mail's text.
function smtp.message(message)
  if type(message) ~= "table" then error("smtp.message: a table is required, got " .. type(message), 2) end
  local lines = {}
  build(message, lines, true)
  return ltn12.source.string(concat(lines, "\r\n") .. "\r\n")
end

-- 1, or nil and why it was not sent.
function smtp.send(mail)
  if type(mail) ~= "table" then error("smtp.send: a table is required, got " .. type(mail), 2) end
  local text, reason = ltn12._whole(mail.source)
  if not text then return nil, reason or "the source gives nothing" end
  reason = send {
    from = mail.from, rcpt = mail.rcpt, text = text, server = mail.server or smtp.SERVER, port = mail.port or smtp.PORT,
    user = mail.user, password = mail.password, domain = mail.domain,
  }
  if reason then return nil, reason end
  return 1
end

return smtp
