---@meta trackalert
-- What a policy may call, for editors with LuaLS (lua-language-server): docs/policies.md says what each does. In `.luarc.json`:
--   { "runtime.version": "LuaJIT", "workspace.library": ["policies/types"] }
-- A test holds that this names all of it and nothing else. Nothing loads it.

---An address. It can be joined with `..`, and goes into evidence, a search body or `state.add` as it is.
---@class (exact) trackalert.Address
---@operator concat(string|number): string
local Address = {}
---@return string
function Address:tostring() end
---@return boolean
function Address:isIPv4() end
---@return boolean
function Address:isIPv6() end
---@return boolean
function Address:isMappedIPv4() end

---One login attempt. It cannot be changed.
---@class (exact) trackalert.Report
---@field id string 32 hexadecimal digits; the same whenever this report is handed out
---@field t number when the attempt was made: seconds since 1970
---@field login string never empty
---@field remote trackalert.Address
---@field success boolean
---@field fail_type ""|"internal"|"credentials"|"account"|"expired"|"disabled"|"policy"
---@field policy_reject boolean obsolete since fail_type
---@field pwhash string
---@field protocol string `imap`, `pop3`, `smtp`, `http`, …
---@field tls boolean
---@field session_id string
---@field device_id string
---@field device_attrs table<string, string> flat keys such as `os.family`
---@field attrs table<string, string>
---@field attrs_mv table<string, string[]>

---A policy defines this function. What it raises and writes takes effect when it has returned without an error.
---@alias trackalert.Handler fun(lt: trackalert.Report)

---@class (exact) trackalert.Alert
---@field kind string one word for what it is
---@field title string one line for people
---@field severity? "info"|"low"|"medium"|"high"|"critical" medium
---@field key? string with kind, what suppression goes by; the login
---@field text? string more for people
---@field evidence? table what the policy saw
---@field attack? any the technique
---@field audience? any whom it is for

---Raises an alert, once the handler has returned.
---@param alert trackalert.Alert
function alert(alert) end

geo = {}
---@class (exact) trackalert.Geo
---@field country? string ISO 3166-1 alpha-2
---@field city? string
---@field asn? integer
---@field as_org? string
---@field latitude? number
---@field longitude? number
---@param address trackalert.Address|string
---@return trackalert.Geo
function geo.lookup(address) end
---@param address trackalert.Address|string
---@return string?
function geo.country(address) end
---@param address trackalert.Address|string
---@return integer?
function geo.asn(address) end
---@param a trackalert.Address|string|trackalert.Geo
---@param b trackalert.Address|string|trackalert.Geo
---@return number? kilometres
function geo.distance_km(a, b) end

history = {}
---Waits. Asks in the form of Elasticsearch, up to the report's time and without the report itself.
---@param body table
---@return table answer
function history.search(body) end

http = {}
---@class (exact) trackalert.http.Answer
---@field status integer
---@field headers table<string, string> by names in lower case
---@field body string
local Answer = {}
---@return any value
---@return string? why
function Answer:json() end
---@class (exact) trackalert.http.GetOptions
---@field headers? table<string, string|number>
---@field query? table<string, string|number|boolean|trackalert.Address>
---@field timeout? number seconds
---@class (exact) trackalert.http.PostOptions
---@field headers? table<string, string|number>
---@field query? table<string, string|number|boolean|trackalert.Address>
---@field json? any
---@field timeout? number seconds
---@class (exact) trackalert.http.Request
---@field url string
---@field method? "GET"|"HEAD"|"POST"|"PUT"|"PATCH"|"DELETE"|"OPTIONS"
---@field headers? table<string, string|number>
---@field query? table<string, string|number|boolean|trackalert.Address>
---@field body? string
---@field json? any
---@field timeout? number seconds
---Waits.
---@param url string
---@param options? trackalert.http.GetOptions
---@return trackalert.http.Answer? answer
---@return string? why
---@return boolean? sent the server may have the request all the same
function http.get(url, options) end
---Waits.
---@param url string
---@param body? string
---@param options? trackalert.http.PostOptions
---@return trackalert.http.Answer? answer
---@return string? why
---@return boolean? sent the server may have the request all the same
function http.post(url, body, options) end
---Waits.
---@param request trackalert.http.Request
---@return trackalert.http.Answer? answer
---@return string? why
---@return boolean? sent the server may have the request all the same
function http.request(request) end

json = {}
---@param value any
---@return string
function json.encode(value) end
---@param text string
---@return any
function json.decode(text) end
---@type lightuserdata
json.null = nil
---@type lightuserdata
json.empty_array = nil

log = {}
---@param message string|number
---@param fields? table
function log.error(message, fields) end
---@param message string|number
---@param fields? table
function log.warn(message, fields) end
---@param message string|number
---@param fields? table
function log.info(message, fields) end
---@param message string|number
---@param fields? table
function log.debug(message, fields) end

net = {}
---@class (exact) trackalert.net.Set
---@operator len: integer
local Set = {}
---@param address trackalert.Address|string
---@return boolean
function Set:has(address) end
---@return integer
function Set:size() end
---@param text string|trackalert.Address
---@return trackalert.Address?
function net.address(text) end
---Networks, of which a leading `!` takes one out; the longest prefix decides.
---@param networks (string|trackalert.Address)[]
---@return trackalert.net.Set
function net.set(networks) end
---The same from a file, which is read again when it changes. While the policy is loaded only.
---@param path string
---@return trackalert.net.Set
function net.file(path) end

state = {}
---Waits.
---@param key string
---@return any
function state.get(key) end
---@param key string
---@param value any
---@param options? { ttl: number }|number seconds
function state.set(key, value, options) end
---Waits.
---@param key string
---@param member string|number|trackalert.Address
---@param options { within: number }
---@return integer how many different members
function state.add(key, member, options) end
---Waits.
---@param key string
---@param options { within: number }
---@return integer
function state.count(key, options) end

time = {}
---@return number the report's time
function time.now() end
---Waits, in real time.
---@param seconds number
function time.sleep(seconds) end
---@param seconds? number
---@param pattern? string one of strftime
---@return string
function time.format(seconds, pattern) end

wforce = {}
---@class (exact) trackalert.wforce.Login
---@field login string
---@field remote trackalert.Address|string
---@field pwhash? string
---@field protocol? string
---@field device_id? string
---@field session_id? string
---@field tls? boolean
---@field attrs? table
---@field device_attrs? table
---@class (exact) trackalert.wforce.Report: trackalert.wforce.Login
---@field success boolean
---@field fail_type? string
---@field policy_reject? boolean
---@class (exact) trackalert.wforce.Entry
---@field ip? trackalert.Address|string
---@field login? string
---@field netmask? string
---@class (exact) trackalert.wforce.NewEntry: trackalert.wforce.Entry
---@field expire_secs number
---@field reason string
---Waits.
---@param attempt trackalert.wforce.Login
---@return { status: integer, msg: string, r_attrs: table }? answer
---@return string? why
function wforce.allow(attempt) end
---Waits.
---@param attempt trackalert.wforce.Report
---@return true? done
---@return string? why
function wforce.report(attempt) end
---Waits.
---@param entry trackalert.wforce.NewEntry
---@return true? done
---@return string? why
function wforce.addBLEntry(entry) end
---Waits.
---@param entry trackalert.wforce.Entry
---@return true? done
---@return string? why
function wforce.delBLEntry(entry) end
