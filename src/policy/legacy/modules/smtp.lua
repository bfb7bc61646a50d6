-- `socket.smtp`: `message` makes a source, `send` gives it to a server.
local send, ltn12 = ...
local type, error, pairs, ipairs, tostring, gsub, concat = type, error, pairs, ipairs, tostring, string.gsub, table.concat

local smtp = { SERVER = "localhost", PORT = 25, TIMEOUT = 60 }

local function header(name, value)
  -- A line end in a value would begin a header of somebody else's.
  return name .. ": " .. gsub(tostring(value), "%s*[\r\n]+%s*", " ")
end

local function headers_of(message, lines)
  for name, value in pairs(message.headers or {}) do
    lines[#lines + 1] = header((gsub(name, "^%l", string.upper)), value)
  end
end

local function text_of(body)
  if type(body) == "function" then return ltn12._whole(body) or "" end
  return (gsub(tostring(body or ""), "\r?\n", "\r\n"))
end

local boundaries = 0

local function build(message, lines)
  headers_of(message, lines)
  if type(message.body) == "table" then
    boundaries = boundaries + 1
    local boundary = "=_trackalert_" .. boundaries .. "_" .. tostring(message):gsub("%W", "")
    lines[#lines + 1] = 'Content-Type: multipart/mixed; boundary="' .. boundary .. '"'
    lines[#lines + 1] = ""
    lines[#lines + 1] = message.body.preamble or ""
    for _, part in ipairs(message.body) do
      lines[#lines + 1] = "--" .. boundary
      build(part, lines)
    end
    lines[#lines + 1] = "--" .. boundary .. "--"
    lines[#lines + 1] = message.body.epilogue or ""
    return
  end
  lines[#lines + 1] = ""
  lines[#lines + 1] = text_of(message.body)
end

-- A source of the mail's text.
function smtp.message(message)
  if type(message) ~= "table" then error("smtp.message: a table is required, got " .. type(message), 2) end
  local lines = {}
  build(message, lines)
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
