//! GeoIP look-ups under the old names, in files that say something.

use crate::bench::on_worker;
use crate::old::machine;
use serde_json::{Value, json};

/// A file that says this of 192.0.2.0/24, from which the reports of the tests come.
fn mmdb(record: &Value) -> tempfile::TempPath {
    let mut writer = mmdb_writer::Writer::new("test");
    writer.insert("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap(), record).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), writer.to_bytes().unwrap()).unwrap();
    file.into_temp_path()
}

/// Runs the body of a report function that finds this record in the database `db`.
fn finds(record: &Value, body: &str) {
    let file = mmdb(record);
    let source = format!(
        "newGeoIP2DB('x', '{}')\nsetReport(function(lt)\nlocal db, ca = getGeoIP2DB('x'), newCA('192.0.2.7')\n{body}\nend)",
        file.display()
    );
    let outcome = on_worker(async { machine(&source).at(1.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
}

fn maxmind() -> Value {
    json!({
        "country": { "iso_code": "NL", "names": { "en": "Netherlands" } },
        "subdivisions": [{ "iso_code": "ZH" }],
        "city": { "names": { "en": "Delft", "de": "Delft (Stadt)" } },
        "postal": { "code": "2611" },
        "continent": { "code": "EU" },
        "location": { "latitude": 52.25, "longitude": -4.5, "accuracy_radius": 20 },
        "traits": { "is_anycast": true },
        "isp": "Example ISP",
    })
}

const CITY: &str = r#"
    local expected = {
      country_code = "NL", country_name = "Netherlands", region = "ZH", city = "Delft", postal_code = "2611", continent_code = "EU",
      latitude = 52.25, longitude = -4.5,
    }
    local city = db:lookupCity(ca)
    for name, value in pairs(expected) do assert(city[name] == value, name .. ": " .. tostring(city[name])) end
    for name in pairs(city) do assert(expected[name] ~= nil, name) end
    assert(db:lookupCountry(ca) == "NL")
    assert(db:lookupCountry(newCA("198.51.100.1")) == "" and db:lookupCity(newCA("2001:db8::1")).city == "")
"#;

#[test]
fn look_ups_find_what_a_file_in_maxminds_form_says() {
    finds(&maxmind(), CITY);
    finds(
        &maxmind(),
        r#"
        assert(db:lookupISP(ca) == "Example ISP")
        assert(db:lookupStringValue(ca, { "city", "names", "de" }) == "Delft (Stadt)")
        assert(db:lookupStringValue(ca, { "subdivisions", 0, "iso_code" }) == "ZH", "a list begins at 0")
        assert(db:lookupUIntValue(ca, { "location", "accuracy_radius" }) == 20)
        assert(db:lookupBoolValue(ca, { "traits", "is_anycast" }) == true)
        assert(db:lookupDoubleValue(ca, { "location", "longitude" }) == -4.5)
        -- What is there and of another kind is not found.
        assert(db:lookupStringValue(ca, { "location", "latitude" }) == "" and db:lookupUIntValue(ca, { "isp" }) == 0)
        assert(db:lookupBoolValue(ca, { "isp" }) == false and db:lookupDoubleValue(ca, { "city", "names" }) == 0)
        "#,
    );
}

#[test]
fn look_ups_find_what_a_flat_file_says() {
    let flat = json!({
        "country_code": "NL", "country": "Netherlands", "state1": "ZH", "city": "Delft", "postcode": "2611", "continent": "EU",
        "latitude": 52.25, "longitude": -4.5, "as_name": "Example Net",
    });
    finds(&flat, CITY);
    finds(&flat, "assert(db:lookupISP(ca) == 'Example Net')");
    finds(
        &json!({ "country_code": "NL", "autonomous_system_organization": "Example Organisation" }),
        "assert(db:lookupISP(ca) == 'Example Organisation')",
    );
}

#[test]
fn look_up_with_a_wrong_argument_names_itself() {
    finds(
        &maxmind(),
        r#"
        local all = {
          "lookupCountry", "lookupISP", "lookupCity", "lookupStringValue", "lookupUIntValue", "lookupBoolValue", "lookupDoubleValue",
        }
        local function refused(expected, f, ...)
          local arguments = { ... }
          local ok, reason = pcall(function() local found = f(unpack(arguments)) end)
          assert(not ok and reason:find("trackalert.conf:%d+: ") and reason:find(expected, 1, true), reason)
        end
        for nth, name in ipairs(all) do
          refused(": " .. name .. ": ca: an address is required, got the number 5", db[name], db, 5, {})
          refused(": " .. name .. ": a database of getGeoIP2DB is required, got userdata; write db:" .. name, db[name], ca, {})
          if nth > 3 then refused(": " .. name .. ": path: a table is required, got nil", db[name], db, ca) end
        end
        "#,
    );
    let older = "initGeoIPDB() initGeoIPISPDB() initGeoIPCityDB()
        setReport(function(lt)
          for _, name in ipairs { 'lookupCountry', 'lookupISP', 'lookupCity' } do
            local ok, reason = pcall(function() local found = _G[name](5) end)
            assert(not ok and reason:find('trackalert.conf:%d+: ' .. name .. ': ca: an address is required'), reason)
          end
        end)";
    let outcome = on_worker(async { machine(older).at(1.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
}
