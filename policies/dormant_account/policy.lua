-- An account that nobody used for a long time logs in again.
--
-- Catches   forgotten accounts that somebody else wakes: former employees, test accounts, mailboxes of the dead.
-- Misses    accounts that have slept longer than the history is kept and the state remembers: they look new.
-- False     seasonal users, long leave, a second mailbox. A login from the country of the last one is therefore "medium", from
--           another one "high".

local DAY = 86400
local SLEEP = 90 * DAY         -- without a successful login for so long, an account sleeps
local REMEMBER = 400 * DAY     -- how long the last login is remembered without the history
local LONGEST_LOGIN = 512      -- no account has a longer name; such a report is noise and must not fail this policy

-- The account's last successful login that the history knows: its time and country.
local function ask_history(lt)
  local found = history.search {
    size = 1,
    query = { bool = { filter = { { term = { login = lt.login } }, { term = { success = true } } } } },
    sort = { { ["@timestamp"] = "desc" } },
    aggs = { last = { max = { field = "@timestamp" } } },
  }
  local hit = found.hits.hits[1]
  if not hit or not found.aggregations then return nil end
  local geoip = hit._source.geoip
  return { at = found.aggregations.last.value / 1000, country = geoip and geoip.country_code2, remote = hit._source.remote }
end

function report(lt)
  if not lt.success or #lt.login > LONGEST_LOGIN then return end
  local here, address = geo.lookup(lt.remote), lt.remote:tostring()
  local country = here.country
  local last = state.get(lt.login) or ask_history(lt)
  -- Reports of one login may come out of their order: an older one neither wakes an account nor sets its clock back.
  if last and lt.t <= last.at then return end

  if last and lt.t - last.at >= SLEEP then
    local days = math.floor((lt.t - last.at) / DAY)
    local elsewhere = country ~= nil and last.country ~= nil and country ~= last.country
    alert {
      kind = "dormant_account",
      severity = elsewhere and "high" or "medium",
      title = ("%s logged in after %d days without a login%s"):format(
        lt.login, days, elsewhere and (", from " .. country .. " instead of " .. last.country) or ""),
      text = "Ask whether the account is still somebody's; close it if not.",
      attack = "T1078",
      evidence = {
        days = days, last_login = time.format(last.at), last_country = last.country, last_remote = last.remote,
        country = country, as_org = here.as_org, remote = address, protocol = lt.protocol,
      },
    }
  end
  state.set(lt.login, { at = lt.t, country = country, remote = address }, { ttl = REMEMBER })
end
