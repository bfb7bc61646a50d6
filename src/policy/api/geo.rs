//! `geo.lookup`, `geo.country`, `geo.asn`, `geo.distance_km`: what the GeoIP files say of an address.

use std::rc::Rc;

use mlua::{Lua, MultiValue, Table, Value};

use super::address::Address;
use super::args::{Args, number};
use crate::policy::call::{Answer, Call, Host};
use crate::report::Geo;

/// The mean radius of the earth.
const EARTH_KM: f64 = 6_371.0;

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let geo = lua.create_table()?;
    let lookup = host.function(lua, "geo.lookup", |lua, call, values| {
        table(lua, &one(call, "geo.lookup", values)?).map_err(|error| format!("geo.lookup: {error}"))
    })?;
    geo.set("lookup", lookup)?;
    let country = host.function(lua, "geo.country", |_, call, values| Ok(one(call, "geo.country", values)?.country))?;
    geo.set("country", country)?;
    let asn = host.function(lua, "geo.asn", |_, call, values| Ok(one(call, "geo.asn", values)?.asn))?;
    geo.set("asn", asn)?;
    let distance = host.function(lua, "geo.distance_km", |_, call, values| {
        let mut args = Args::new("geo.distance_km", values);
        let (a, b) = (point(call, &mut args, "a")?, point(call, &mut args, "b")?);
        Ok(a.zip(b).map(|(a, b)| distance_km(a, b)))
    })?;
    geo.set("distance_km", distance)?;
    Ok(geo)
}

fn one(call: &Call, function: &'static str, values: MultiValue) -> Answer<Geo> {
    let mut args = Args::new(function, values);
    let value = args.value();
    look(call, &value).ok_or_else(|| args.wrong("address", "an address or its text", &value))
}

/// What is known of an address; the report's own was looked up when it came.
fn look(call: &Call, value: &Value) -> Option<Geo> {
    let address = Address::of(value)?;
    let own = call.report().filter(|report| report.remote == address);
    Some(own.map_or_else(|| call.services.geoip.lookup(address), |report| report.geo.clone()))
}

fn table(lua: &Lua, geo: &Geo) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.raw_set("country", geo.country.as_deref())?;
    table.raw_set("city", geo.city.as_deref())?;
    table.raw_set("asn", geo.asn)?;
    table.raw_set("as_org", geo.as_org.as_deref())?;
    table.raw_set("latitude", geo.location.map(|(latitude, _)| latitude))?;
    table.raw_set("longitude", geo.location.map(|(_, longitude)| longitude))?;
    Ok(table)
}

/// An address, or a table with latitude and longitude (an answer of `geo.lookup`, say). `None` where the place is not known.
fn point(call: &Call, args: &mut Args, name: &str) -> Answer<Option<(f64, f64)>> {
    let value = args.value();
    if let Value::Table(table) = &value {
        let degrees = |key: &str| table.raw_get::<Value>(key).ok().and_then(|value| number(&value));
        return Ok(degrees("latitude").zip(degrees("longitude")));
    }
    let geo = look(call, &value);
    geo.map(|geo| geo.location)
        .ok_or_else(|| args.wrong(name, "an address, its text, or a table with latitude and longitude", &value))
}

/// Along the surface, by the haversine formula.
fn distance_km((lat_a, lon_a): (f64, f64), (lat_b, lon_b): (f64, f64)) -> f64 {
    let half = |a: f64, b: f64| ((b - a).to_radians() / 2.0).sin().powi(2);
    let h = half(lat_a, lat_b) + lat_a.to_radians().cos() * lat_b.to_radians().cos() * half(lon_a, lon_b);
    2.0 * EARTH_KM * h.clamp(0.0, 1.0).sqrt().asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_along_the_surface() {
        let (amsterdam, sydney) = ((52.37, 4.90), (-33.87, 151.21));
        assert!((distance_km(amsterdam, sydney) - 16_645.0).abs() < 50.0);
        assert!((distance_km((0.0, 179.5), (0.0, -179.5)) - 111.2).abs() < 0.1, "across the date line");
        assert!(distance_km(amsterdam, amsterdam) < 1e-6);
    }
}
