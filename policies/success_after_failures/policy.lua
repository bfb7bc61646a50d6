-- A login succeeds shortly after failures for the same account from many different addresses.
--
-- Catches   a distributed guessing attack, many bots with a few tries each, at the moment when it hits.
-- Misses    an attack slower than the window, and one from a single address (that is wforce's own work).
-- False     the owner who logs in as usual while others try the account: that is why a success from an address that had been used
--           before counts as "low" only. An owner on a phone that changes its address with an old password needs five of them.

local WINDOW = 3600            -- failures are counted for so many seconds
local ADDRESSES = 5            -- so many different addresses make an attack
local KNOWN_DAYS = 90          -- an address from which the account logged in within these days, not under attack, is known
local AGAIN = 600              -- a login that goes on from one address under attack is told again once in each such stretch of seconds
local MOST_KNOWN = 32          -- addresses remembered for one account; the longest unseen goes first
local LONGEST_LOGIN = 512      -- no account has a longer name; such a report is noise and must not fail this policy

-- Failures that say nothing about a guess: our own faults, and accounts that may not log in whatever the password.
local NO_GUESS = { internal = true, expired = true, disabled = true }

local function ask_history(lt, address)
  local before = ("now-%ds"):format(WINDOW)
  local found = history.search {
    size = 0,
    query = { bool = { filter = {
      { term = { login = lt.login } }, { range = { ["@timestamp"] = { gte = ("now-%dd"):format(KNOWN_DAYS) } } },
    } } },
    aggs = {
      failures = {
        filter = { bool = { filter = { { term = { success = false } }, { range = { ["@timestamp"] = { gte = before } } } } } },
        aggs = {
          addresses = { terms = { field = "remote", size = 20 } },
          countries = { terms = { field = "geoip.country_code2", size = 20 } },
        },
      },
      before = {
        filter = { bool = { filter = {
          { term = { success = true } }, { term = { remote = address } }, { range = { ["@timestamp"] = { lt = before } } },
        } } },
      },
    },
  }
  return found.aggregations
end

-- Notes an address, at most once a day: most logins come from one that is known, and cost no write.
local function learn(lt, known, address)
  if known[address] and lt.t - known[address] < 86400 then return end
  known[address] = lt.t
  local names = {}
  for name in pairs(known) do names[#names + 1] = name end
  table.sort(names, function(a, b)
    if known[a] ~= known[b] then return known[a] > known[b] end
    return a < b
  end)
  for i = MOST_KNOWN + 1, #names do known[names[i]] = nil end
  state.set("known " .. lt.login, known, { ttl = KNOWN_DAYS * 86400 })
end

-- The keys of buckets; a list that is empty stays a list for who reads the alert.
local function keys(buckets)
  local list = {}
  for _, bucket in ipairs(buckets or {}) do list[#list + 1] = bucket.key end
  return #list > 0 and list or json.empty_array
end

-- Whether this login from this address is news. A mail client logs in every few minutes, and an attack lasts for hours: without this
-- each of its logins would be a search and an alert. A report delivered again decides as before: the note is written with its marker.
local function is_news(lt, address)
  local key = ("told %s %s"):format(address, lt.login)
  local told = state.get(key)
  if told and lt.t >= told and lt.t - told < AGAIN then return false end
  state.set(key, lt.t, { ttl = AGAIN })
  return true
end

function report(lt)
  if #lt.login > LONGEST_LOGIN then return end
  local address = lt.remote:tostring()
  if not lt.success then
    if not NO_GUESS[lt.fail_type] then state.add("failed " .. lt.login, address, { within = WINDOW }) end
    return
  end
  local addresses, seen = state.count("failed " .. lt.login, { within = WINDOW }), state.get("known " .. lt.login) or {}
  -- Under attack nothing is learnt: the thief's second login must not look like the owner's.
  if addresses < ADDRESSES then return learn(lt, seen, address) end
  if not is_news(lt, address) then return end

  local aggs = ask_history(lt, address)
  local known = seen[address] ~= nil and lt.t - seen[address] < KNOWN_DAYS * 86400
  known = known or (aggs ~= nil and aggs.before.doc_count > 0)
  local here = geo.lookup(lt.remote)
  alert {
    kind = "success_after_failures",
    severity = known and "low" or "high",
    -- A key of its own, so that the owner's login does not suppress the thief's.
    key = known and (lt.login .. " (known address)") or lt.login,
    title = ("%s logged in from %s address after failures from %d addresses within %d minutes"):format(
      lt.login, known and "a known" or "a new", addresses, WINDOW / 60),
    text = known and "The account is under attack; this login looks like its owner's."
      or "Somebody may have found the password: lock the account, or ask its owner.",
    attack = "T1110",
    evidence = {
      address = address, known_address = known, country = here.country, as_org = here.as_org, protocol = lt.protocol,
      failing_addresses = addresses, window_seconds = WINDOW,
      -- The history shows a report about a second late: the list may lack the latest.
      failures = aggs and aggs.failures.doc_count or 0, some_addresses = keys(aggs and aggs.failures.addresses.buckets),
      countries = keys(aggs and aggs.failures.countries.buckets),
    },
  }
end
