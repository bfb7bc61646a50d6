//! `geo.lookup(address)`, `geo.country(address)`, `geo.asn(address)`, `geo.distance_km(a, b)`.
//!
//! Owns the form in which a policy sees what the GeoIP files say. What they do not know is nil.

use std::net::IpAddr;

use mlua::{Lua, Result, Table, Value};

use super::report::Address;
use super::{current, kind, wrong};
use crate::report::Geo;

/// The mean radius of the earth, IUGG.
const EARTH_KM: f64 = 6371.0088;

pub(super) fn module(lua: &Lua) -> Result<Table> {
    let module = lua.create_table()?;
    module.raw_set("lookup", lua.create_function(|lua, address: Value| table(lua, &geo(lua, "geo.lookup", &address)?))?)?;
    module.raw_set("country", lua.create_function(|lua, address: Value| Ok(geo(lua, "geo.country", &address)?.country))?)?;
    module.raw_set("asn", lua.create_function(|lua, address: Value| Ok(geo(lua, "geo.asn", &address)?.asn))?)?;
    module.raw_set("distance_km", lua.create_function(|lua, (a, b): (Value, Value)| {
        let (a, b) = (place(lua, &a)?, place(lua, &b)?);
        Ok(a.zip(b).map(|(a, b)| distance_km(a, b)))
    })?)?;
    Ok(module)
}

/// An address argument: `lt.remote` or its text.
pub(super) fn address(lua: &Lua, function: &str, value: &Value) -> Result<IpAddr> {
    match value {
        Value::UserData(data) => data.borrow::<Address>().map(|address| address.0).ok(),
        Value::String(text) => text.to_str().ok().and_then(|text| text.parse().ok()),
        _ => None,
    }
    .ok_or_else(|| wrong(lua, function, format!("takes an IP address (lt.remote, or text), not {}", kind(value))))
}

fn geo(lua: &Lua, function: &str, value: &Value) -> Result<Geo> {
    let (context, address) = (current(lua, function)?, address(lua, function, value)?);
    if address == context.report.remote {
        return Ok(context.report.geo.clone());
    }
    Ok(context.services.geoip.lookup(address))
}

/// What a policy sees of a [`Geo`].
pub(super) fn table(lua: &Lua, geo: &Geo) -> Result<Table> {
    let table = lua.create_table_with_capacity(0, 5)?;
    table.raw_set("country", geo.country.as_deref())?;
    table.raw_set("asn", geo.asn)?;
    table.raw_set("as_org", geo.as_org.as_deref())?;
    table.raw_set("latitude", geo.location.map(|(latitude, _)| latitude))?;
    table.raw_set("longitude", geo.location.map(|(_, longitude)| longitude))?;
    Ok(table)
}

/// A place: an address, or a table with latitude and longitude. `None`: the files do not know where it is.
fn place(lua: &Lua, value: &Value) -> Result<Option<(f64, f64)>> {
    let Value::Table(table) = value else { return Ok(geo(lua, "geo.distance_km", value)?.location) };
    let coordinate = |name: &str| table.raw_get::<Option<f64>>(name);
    Ok(coordinate("latitude")?.zip(coordinate("longitude")?))
}

/// The great-circle distance by the haversine formula, in kilometres.
fn distance_km(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (lat_a, lat_b) = (a.0.to_radians(), b.0.to_radians());
    let (d_lat, d_lon) = ((b.0 - a.0).to_radians(), (b.1 - a.1).to_radians());
    let h = (d_lat / 2.0).sin().powi(2) + lat_a.cos() * lat_b.cos() * (d_lon / 2.0).sin().powi(2);
    2.0 * EARTH_KM * h.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_an_atlas() {
        let (paris, new_york) = ((48.8566, 2.3522), (40.7128, -74.0060));
        assert!((distance_km(paris, new_york) - 5837.0).abs() < 10.0);
        assert!(distance_km(paris, paris) < 1e-9);
        assert!((distance_km((0.0, 179.5), (0.0, -179.5)) - 111.2).abs() < 0.5, "across the date line");
    }
}
