-- One address fails on many different logins within minutes.
--
-- Catches   password spraying and the trying-out of stolen lists from one address; each login counts once, however often it fails.
-- Misses    the same from many addresses, or slower than the window.
-- False     a large company or a mobile provider behind one address (NAT). Where more different logins succeed than fail from it
--           in the window the alert is "low": people who mistype stand among many who do not, a list of stolen names does not.

local WINDOW = 300             -- seconds
local LOGINS = 15              -- so many different logins make an attack
local AGAIN = 300              -- an attack that goes on is told again once in each such stretch of seconds
local LONGEST_LOGIN = 512      -- no account has a longer name; such a report is noise and must not fail this policy

-- Failures that say nothing about a guess: our own faults, and accounts that may not log in whatever the password.
local NO_GUESS = { internal = true, expired = true, disabled = true }

local function ask_history(address)
  local found = history.search {
    size = 0,
    query = { bool = { filter = {
      { term = { remote = address } }, { term = { success = false } },
      { range = { ["@timestamp"] = { gte = ("now-%ds"):format(WINDOW) } } },
    } } },
    aggs = {
      logins = { terms = { field = "login", size = 20 } }, kinds = { terms = { field = "fail_type", size = 10 } },
      protocols = { terms = { field = "protocol", size = 10 } },
    },
  }
  return found.aggregations
end

-- The keys of buckets; a list that is empty stays a list for who reads the alert.
local function keys(buckets)
  local list = {}
  for _, bucket in ipairs(buckets or {}) do list[#list + 1] = bucket.key end
  return #list > 0 and list or json.empty_array
end

-- Whether this attack is to be told now: once for each size (15 logins, 30, 60, ...) in each stretch of time. So a flood of reports
-- raises a handful of alerts and costs as many searches, an attack that goes on for hours is told again (the window of notify keeps
-- people from hearing it more often than they want), and repeated tries of the same logins add nothing.
-- It is noted with state.add and not with state.set, because an add is seen at once by the reports of other logins that run beside this
-- one. The second key is this report's own: one that runs again, because its worker was given up, must not take its own note for that
-- of another and stay silent.
local function is_news(lt, address, failing)
  local size = LOGINS
  while failing >= 2 * size do size = 2 * size end
  local told = ("told %s %d %d"):format(address, size, math.floor(lt.t / AGAIN))
  local mine = told .. " by " .. lt.id
  local within = { within = AGAIN }
  if state.count(told, within) > 0 and state.count(mine, within) == 0 then return false end
  state.add(told, "told", within)
  state.add(mine, "told", within)
  return true
end

function report(lt)
  if #lt.login > LONGEST_LOGIN then return end
  local address = lt.remote:tostring()
  if lt.success then
    state.add("ok " .. address, lt.login, { within = WINDOW })
    return
  end
  if NO_GUESS[lt.fail_type] then return end
  local failing = state.add("fail " .. address, lt.login, { within = WINDOW })
  if failing < LOGINS or not is_news(lt, address, failing) then return end

  local succeeding = state.count("ok " .. address, { within = WINDOW })
  local shared = succeeding > failing
  local aggs = ask_history(address)
  local kinds = {}
  for _, bucket in ipairs(aggs and aggs.kinds.buckets or {}) do kinds[bucket.key] = bucket.doc_count end
  local here = geo.lookup(lt.remote)
  alert {
    kind = "one_address_many_logins",
    severity = shared and "low" or "high",
    key = address,
    title = ("%s failed on %d different logins within %d minutes"):format(address, failing, WINDOW / 60),
    text = shared and "Even more logins succeed from this address: it may be shared by many people."
      or "Block the address, and look for logins that succeeded from it.",
    attack = "T1110.003",
    evidence = {
      address = address, country = here.country, as_org = here.as_org, window_seconds = WINDOW,
      failing_logins = failing, succeeding_logins = succeeding, last_login = lt.login,
      -- The history shows a report about a second late: these may lack the latest.
      some_logins = keys(aggs and aggs.logins.buckets), fail_types = kinds, protocols = keys(aggs and aggs.protocols.buckets),
    },
  }
end
