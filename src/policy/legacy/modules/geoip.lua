-- `getGeoIP2DB` and the older `lookupCountry`, `lookupISP`, `lookupCity`: look-ups in MaxMind's form, and in the flat one of free files.
-- What is not known is "", 0, false or 0.0.
local records, has = ...
local error, ipairs, type, tostring, setmetatable, getmetatable = error, ipairs, type, tostring, setmetatable, getmetatable

local function at(record, path)
  for _, key in ipairs(path) do
    -- A list begins at 0 for whoever wrote the path, and at 1 here.
    if type(record) ~= "table" then return nil end
    record = record[type(key) == "number" and key + 1 or key]
  end
  return record
end

local function first(record, kind, ...)
  for _, path in ipairs { ... } do
    local value = at(record, path)
    if type(value) == kind then return value end
  end
end

local Database = {}
Database.__index = Database

local function record_of(name, db, ca)
  if type(db) ~= "table" or getmetatable(db) ~= Database then
    error(name .. ": a database of getGeoIP2DB is required, got " .. type(db) .. "; write db:" .. name .. "(…)", 3)
  end
  return records[name](db._name, ca)
end

function Database:lookupCountry(ca)
  local record = record_of("lookupCountry", self, ca)
  return first(record, "string", { "country", "iso_code" }, { "country_code" }, { "registered_country", "iso_code" }) or ""
end

function Database:lookupISP(ca)
  local record = record_of("lookupISP", self, ca)
  return first(record, "string", { "isp" }, { "organization" }, { "autonomous_system_organization" }, { "as_name" }) or ""
end

function Database:lookupCity(ca)
  local record = record_of("lookupCity", self, ca)
  local function text(...) return first(record, "string", ...) or "" end
  return {
    country_code = text({ "country", "iso_code" }, { "country_code" }),
    country_name = text({ "country", "names", "en" }, { "country" }),
    region = text({ "subdivisions", 0, "iso_code" }, { "state1" }, { "region" }),
    city = text({ "city", "names", "en" }, { "city" }),
    postal_code = text({ "postal", "code" }, { "postcode" }),
    continent_code = text({ "continent", "code" }, { "continent" }),
    latitude = first(record, "number", { "location", "latitude" }, { "latitude" }) or 0.0,
    longitude = first(record, "number", { "location", "longitude" }, { "longitude" }) or 0.0,
  }
end

local function value(name, kind, default)
  return function(self, ca, path)
    local record = record_of(name, self, ca)
    if type(path) ~= "table" then error(name .. ": path: a table is required, got " .. type(path), 2) end
    return first(record, kind, path) or default
  end
end
Database.lookupStringValue = value("lookupStringValue", "string", "")
Database.lookupUIntValue = value("lookupUIntValue", "number", 0)
Database.lookupBoolValue = value("lookupBoolValue", "boolean", false)
Database.lookupDoubleValue = value("lookupDoubleValue", "number", 0.0)

local names = {}

function names.getGeoIP2DB(name)
  if not has(name) then error("getGeoIP2DB: name: newGeoIP2DB has named no file " .. tostring(name), 2) end
  return setmetatable({ _name = name }, Database)
end

-- The older forms have a file each.
local function older(name, file, call)
  names[name] = function(ca)
    if not has(file) then error(name .. ": there is no file " .. file .. "; " .. call .. "() or newGeoIP2DB names it", 2) end
    return Database[name](names.getGeoIP2DB(file), ca)
  end
end
older("lookupCountry", "Country", "initGeoIPDB")
older("lookupISP", "ISP", "initGeoIPISPDB")
older("lookupCity", "City", "initGeoIPCityDB")

return names
