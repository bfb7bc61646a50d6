-- One address fails on many different logins within minutes.
--
-- Catches   password spraying and the trying-out of stolen lists from one address; each login counts once, however often it fails.
-- Misses    the same from many addresses, or slower than the window.
-- False     a large company or a mobile provider behind one address (NAT). Where more different logins succeed than fail from it
--           in the window the alert is "low": people who mistype stand among many who do not, a list of stolen names does not.

local WINDOW = 300             -- seconds
local LOGINS = 15              -- so many different logins make an attack
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

local function keys(buckets)
  local list = {}
  for _, bucket in ipairs(buckets) do list[#list + 1] = bucket.key end
  return list
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
  -- Raised by the count alone and not by a note that it was raised, so that a report delivered again decides as before; the window of
  -- notify keeps people from hearing it twice. From twice the limit on every tenth is enough to open the next window.
  if failing < LOGINS or (failing >= 2 * LOGINS and failing % 10 ~= 0) then return end

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
      some_logins = aggs and keys(aggs.logins.buckets), fail_types = kinds, protocols = aggs and keys(aggs.protocols.buckets),
    },
  }
end
