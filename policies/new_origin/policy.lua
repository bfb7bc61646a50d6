-- A login succeeds from a country, or from a network, in which this account was never seen before.
--
-- Catches   a stolen password used from the thief's own country or provider, at the first use.
-- Misses    a thief in the victim's own network (a proxy near the victim), and accounts that are still being learnt.
-- False     travel, a new mobile provider, a VPN. A new network alone is therefore only "low".
--
-- The network is the autonomous system where a GeoIP file names it, else the /24 (IPv4) or /48 (IPv6) around the address.

local DAY = 86400
local LEARN_TIME = 14 * DAY    -- nothing is said of an account before this time has passed since its first login here ...
local LEARN_LOGINS = 10        -- ... or so many logins have succeeded, whichever is first
local REMEMBER = 180 * DAY     -- an account without a login for so long is learnt anew
local REFRESH = DAY            -- a known place is noted again when so much time has passed: most logins cost no write
local MOST_PLACES = 64         -- networks remembered for one account; the longest unseen goes first
local LONGEST_LOGIN = 512      -- no account has a longer name; such a report is noise and must not fail this policy

local function prefix(address)
  local v4 = address:match("^(%d+%.%d+%.%d+)%.%d+$")
  if v4 then return v4 .. ".0/24" end
  local groups = {}
  for group in (address:match("^(.-)::") or address):gmatch("[^:]+") do groups[#groups + 1] = group end
  return ("%s:%s:%s::/48"):format(groups[1] or "0", groups[2] or "0", groups[3] or "0")
end

local function seen(places, place, at)
  if place then places[place] = math.max(places[place] or 0, at) end
end

-- What the history knows of the account's successful logins before this one, added to what the state knows.
local function ask_history(lt, known)
  local found = history.search {
    size = 0,
    query = { bool = { filter = {
      { term = { login = lt.login } }, { term = { success = true } },
      { range = { ["@timestamp"] = { gte = "now-180d" } } },
    } } },
    aggs = {
      first = { min = { field = "@timestamp" } }, last = { max = { field = "@timestamp" } },
      countries = { terms = { field = "geoip.country_code2", size = 100 } },
      systems = { terms = { field = "geoip.asn", size = MOST_PLACES } },
      addresses = { terms = { field = "remote", size = 1000 } },
    },
  }
  local aggs, count = found.aggregations, found.hits.total.value
  if not aggs or count == 0 then return end
  known.logins = math.max(known.logins, count)
  known.first = math.min(known.first, aggs.first.value / 1000)
  known.last = math.max(known.last, aggs.last.value / 1000)
  for _, bucket in ipairs(aggs.countries.buckets) do seen(known.countries, bucket.key, known.last) end
  for _, bucket in ipairs(aggs.systems.buckets) do seen(known.systems, "AS" .. bucket.key, known.last) end
  for _, bucket in ipairs(aggs.addresses.buckets) do seen(known.prefixes, prefix(bucket.key), known.last) end
end

-- Keeps the places seen last; equal times go by name, so that a report delivered again finds the same ones.
local function forget_oldest(places)
  local names = {}
  for place in pairs(places) do names[#names + 1] = place end
  if #names <= MOST_PLACES then return end
  table.sort(names, function(a, b)
    if places[a] ~= places[b] then return places[a] > places[b] end
    return a < b
  end)
  for i = MOST_PLACES + 1, #names do places[names[i]] = nil end
end

-- New is only what could have been known: where no place of this sort was ever seen, the GeoIP file has just come.
local function is_new(places, place)
  return place ~= nil and next(places) ~= nil and places[place] == nil
end

-- Whether noting the place would change what is known: it is new, or was noted long ago.
local function is_due(places, place, at)
  return place ~= nil and (places[place] == nil or at - places[place] >= REFRESH)
end

-- The names in order; a list that is empty stays a list for who reads the alert.
local function sorted(places)
  local names = {}
  for place in pairs(places) do names[#names + 1] = place end
  table.sort(names)
  return #names > 0 and names or json.empty_array
end

local function how_many(places)
  local count = 0
  for _ in pairs(places) do count = count + 1 end
  return count
end

function report(lt)
  if not lt.success or #lt.login > LONGEST_LOGIN then return end
  local here = geo.lookup(lt.remote)
  local country, system, near = here.country, here.asn and ("AS" .. here.asn), prefix(lt.remote:tostring())
  local known = state.get(lt.login)
  local asked = known == nil
  if asked then
    known = { logins = 0, first = lt.t, last = 0, countries = {}, systems = {}, prefixes = {} }
    ask_history(lt, known)
  end

  local function news()
    local new_network
    if system then new_network = is_new(known.systems, system) else new_network = is_new(known.prefixes, near) end
    return is_new(known.countries, country), new_network
  end
  local learnt = known.logins >= LEARN_LOGINS or (known.logins > 0 and lt.t - known.first >= LEARN_TIME)
  local new_country, new_network = news()
  if learnt and (new_country or new_network) and not asked then
    asked = true             -- the state may have been lost or forgotten something; a search only where it decides
    ask_history(lt, known)
    new_country, new_network = news()
  end

  if learnt and (new_country or new_network) then
    local place = new_country and ("the country " .. country) or ("the network " .. (here.as_org or system or near))
    alert {
      kind = new_country and "new_country" or "new_network",
      severity = new_country and "medium" or "low",
      title = ("%s logged in from %s for the first time"):format(lt.login, place),
      text = "If this was not its owner, the password is known to somebody else. Travel and new providers look the same.",
      evidence = {
        country = country, asn = here.asn, as_org = here.as_org, network = system or near, protocol = lt.protocol,
        known_countries = sorted(known.countries), known_networks = how_many(system and known.systems or known.prefixes),
        first_seen = time.format(known.first), last_login = time.format(known.last), logins = known.logins,
      },
    }
  end

  -- An account that is learnt and logs in from where it always does is not written: what is counted and dated is then the first login
  -- of each day, and the history, which is asked before anything is said, knows the rest.
  local due = asked or not learnt or is_due(known.countries, country, lt.t) or is_due(known.systems, system, lt.t)
    or is_due(known.prefixes, near, lt.t)
  if not due then return end
  known.logins, known.last = known.logins + 1, math.max(known.last, lt.t)
  known.first = math.min(known.first, lt.t)
  seen(known.countries, country, lt.t)
  seen(known.systems, system, lt.t)
  seen(known.prefixes, near, lt.t)
  forget_oldest(known.systems)
  forget_oldest(known.prefixes)
  state.set(lt.login, known, { ttl = REMEMBER })
end
