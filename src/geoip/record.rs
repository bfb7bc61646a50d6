//! One record of a GeoIP file, in MaxMind's form or in the flat one of free databases, and what it says.
//!
//! ```text
//! MaxMind, DB-IP     {"country": {"iso_code": "NL"}, "city": {"names": {"en": "Delft"}}, "location": {"latitude": 52.0, …}}
//! ip-location-db     {"country_code": "NL", "city": "Delft", "latitude": 52.0, "longitude": 4.4}
//! IPinfo             {"country": "NL" or "Netherlands", "country_code": "NL", "asn": "AS64500", "as_name": "Example Net"}
//! ```
//!
//! Owns the names of both forms. Pure; a value of an unexpected type is unknown and never costs the rest of its record.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::report::Geo;

/// A longer name is cut: it goes into every document of its network.
const LONGEST_NAME: usize = 256;

/// One value, of whatever type the writer of the file chose. `M` is what is read of it where it is a map.
#[derive(Default)]
enum Value<'a, M = IgnoredAny> {
    #[default]
    Nothing,
    Text(&'a str),
    Number(f64),
    Map(M),
}

/// The parts of a record that we use, of whatever kind of database. A key that is not there is unknown.
#[derive(Deserialize)]
pub(super) struct Record<'a> {
    #[serde(borrow, default)]
    country: Value<'a, Country<'a>>,
    #[serde(borrow, default)]
    city: Value<'a, Named<'a>>,
    #[serde(borrow, default)]
    location: Value<'a, Place<'a>>,
    #[serde(borrow, default)]
    autonomous_system_number: Value<'a>,
    #[serde(borrow, default)]
    autonomous_system_organization: Value<'a>,
    // The flat form.
    #[serde(borrow, default)]
    country_code: Value<'a>,
    #[serde(borrow, default)]
    city_name: Value<'a>,
    #[serde(borrow, default)]
    latitude: Value<'a>,
    #[serde(borrow, default)]
    longitude: Value<'a>,
    #[serde(borrow, default)]
    lat: Value<'a>,
    #[serde(borrow, default)]
    lng: Value<'a>,
    #[serde(borrow, default)]
    lon: Value<'a>,
    #[serde(borrow, default)]
    asn: Value<'a>,
    #[serde(borrow, default)]
    as_organization: Value<'a>,
    #[serde(borrow, default)]
    as_name: Value<'a>,
    #[serde(borrow, default)]
    as_org: Value<'a>,
    #[serde(borrow, default)]
    org: Value<'a>,
}

#[derive(Default, Deserialize)]
struct Country<'a> {
    #[serde(borrow, default)]
    iso_code: Value<'a>,
}

#[derive(Default, Deserialize)]
struct Named<'a> {
    #[serde(borrow, default)]
    names: Value<'a, Names<'a>>,
}

#[derive(Default, Deserialize)]
struct Names<'a> {
    #[serde(borrow, default)]
    en: Value<'a>,
}

#[derive(Default, Deserialize)]
struct Place<'a> {
    #[serde(borrow, default)]
    latitude: Value<'a>,
    #[serde(borrow, default)]
    longitude: Value<'a>,
}

impl Record<'_> {
    /// Adds to `geo` what it lacks and this record knows.
    pub(super) fn fill(&self, geo: &mut Geo) {
        if geo.country.is_none() {
            geo.country = self.country();
        }
        if geo.city.is_none() {
            geo.city = self.city();
        }
        if geo.location.is_none() {
            geo.location = self.place();
        }
        if geo.asn.is_none() {
            geo.asn = self.autonomous_system_number.system().or_else(|| self.asn.system());
        }
        if geo.as_org.is_none() {
            let names =
                [&self.autonomous_system_organization, &self.as_organization, &self.as_name, &self.as_org, &self.org];
            geo.as_org = names.into_iter().find_map(Value::name);
        }
    }

    /// `country` is a map in the one form, a code in the other, and a name where a code stands beside it.
    fn country(&self) -> Option<String> {
        let nested = match &self.country {
            Value::Map(country) => country.iso_code.code(),
            _ => None,
        };
        nested.or_else(|| self.country_code.code()).or_else(|| self.country.code())
    }

    fn city(&self) -> Option<String> {
        let nested = match &self.city {
            Value::Map(Named { names: Value::Map(names) }) => names.en.name(),
            _ => None,
        };
        nested.or_else(|| self.city.name()).or_else(|| self.city_name.name())
    }

    fn place(&self) -> Option<(f64, f64)> {
        let nested = match &self.location {
            Value::Map(place) => place.latitude.number().zip(place.longitude.number()),
            _ => None,
        };
        let flat = || self.latitude.number().zip(self.longitude.number());
        let short = || self.lat.number().zip(self.lng.number().or_else(|| self.lon.number()));
        let on_earth = |(lat, lon): &(f64, f64)| (-90.0..=90.0).contains(lat) && (-180.0..=180.0).contains(lon);
        nested.or_else(flat).or_else(short).filter(on_earth)
    }
}

impl<M> Value<'_, M> {
    fn text(&self) -> Option<&str> {
        match self {
            // "-" is what some files write for unknown.
            Self::Text(text) => Some(text.trim()).filter(|text| !text.is_empty() && *text != "-"),
            _ => None,
        }
    }

    /// A name for people.
    fn name(&self) -> Option<String> {
        self.text().map(|text| text[..text.floor_char_boundary(LONGEST_NAME)].to_owned())
    }

    /// A country's code of two letters, upper case. "ZZ" stands for unknown.
    fn code(&self) -> Option<String> {
        let code = self.text().filter(|text| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_alphabetic()))?;
        Some(code.to_ascii_uppercase()).filter(|code| code != "ZZ")
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => self.text()?.parse().ok(),
        }
    }

    /// The number of an autonomous system: 64500, "64500" or "AS64500".
    fn system(&self) -> Option<u32> {
        let digits = |text: &str| text.strip_prefix("AS").or_else(|| text.strip_prefix("as"))?.parse().ok();
        let number = self.number().or_else(|| digits(self.text()?))?;
        // A cast from a number outside of 32 bits saturates; such a number is no AS number.
        (1.0..=f64::from(u32::MAX)).contains(&number).then_some(number as u32)
    }
}

impl<'de: 'a, 'a, M: Deserialize<'de>> Deserialize<'de> for Value<'a, M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

struct Any<M>(PhantomData<M>);

impl<'de, M: Deserialize<'de>> Visitor<'de> for Any<M> {
    type Value = Value<'de, M>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Self::Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Self::Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Nothing)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        M::deserialize(MapAccessDeserializer::new(map)).map(Value::Map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From JSON, whose types are those of the files.
    fn geo(record: &str) -> Geo {
        let mut geo = Geo::default();
        serde_json::from_str::<Record<'_>>(record).unwrap().fill(&mut geo);
        geo
    }

    fn said(record: &str) -> String {
        let geo = geo(record);
        let text = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
        let place = geo.location.map_or("?".to_owned(), |(lat, lon)| format!("{lat},{lon}"));
        let asn = geo.asn.map_or("?".to_owned(), |asn| asn.to_string());
        format!("{} {} {place} {asn} {}", text(geo.country), text(geo.city), text(geo.as_org))
    }

    #[test]
    fn each_form_of_the_known_databases_is_read() {
        for (record, expected) in [
            // GeoLite2-City, DB-IP
            (
                r#"{"city": {"geoname_id": 1, "names": {"de": "Den Haag", "en": "The Hague"}}, "country": {"iso_code": "nl"},
                   "location": {"latitude": 52.08, "longitude": 4, "time_zone": "x"}, "subdivisions": [{"iso_code": "ZH"}]}"#,
                "NL The Hague 52.08,4 ? ?",
            ),
            // GeoLite2-ASN
            (
                r#"{"autonomous_system_number": 64500, "autonomous_system_organization": "Example Net"}"#,
                "? ? ? 64500 Example Net",
            ),
            // ip-location-db: geo-whois-asn-country, city
            (r#"{"country_code": "DE"}"#, "DE ? ? ? ?"),
            (
                r#"{"city": "Köln", "country_code": "DE", "latitude": 50.93, "longitude": 6.95, "postcode": "50667", "state1": "NW"}"#,
                "DE Köln 50.93,6.95 ? ?",
            ),
            // IPinfo: country_asn, lite, location
            (
                r#"{"as_domain": "x.example", "as_name": "Example Net", "asn": "AS64501", "country": "JP", "country_name": "Japan"}"#,
                "JP ? ? 64501 Example Net",
            ),
            (
                r#"{"asn": "AS64502", "as_name": "Cogent", "country": "Canada", "country_code": "CA", "continent_code": "NA"}"#,
                "CA ? ? 64502 Cogent",
            ),
            (r#"{"city": "Oslo", "country": "NO", "lat": "59.91", "lng": "10.74"}"#, "NO Oslo 59.91,10.74 ? ?"),
            // IPLocate
            (r#"{"asn": 64503, "country_code": "FR", "org": "Exemple SA"}"#, "FR ? ? 64503 Exemple SA"),
        ] {
            assert_eq!(said(record), expected, "{record}");
        }
    }

    #[test]
    fn value_of_an_unexpected_type_is_unknown_and_leaves_the_rest() {
        for (record, expected) in [
            (r#"{"country": ["DE"], "asn": 5}"#, "? ? ? 5 ?"),
            (r#"{"country": {"iso_code": {"x": 1}}, "city": {"names": "Bonn"}, "asn": "5"}"#, "? ? ? 5 ?"),
            (r#"{"country": true, "city": 7, "location": "51,7", "country_code": "BE"}"#, "BE ? ? ? ?"),
            (r#"{"latitude": 91, "longitude": 0, "asn": 0}"#, "? ? ? ? ?"),
            (r#"{"latitude": "nan", "longitude": "0", "asn": 4294967296}"#, "? ? ? ? ?"),
            (r#"{"latitude": 1.0, "asn": "ASx", "as_name": "-", "city": " "}"#, "? ? ? ? ?"),
            (r#"{"country": "Germany", "country_code": "ZZ"}"#, "? ? ? ? ?"),
            (r#"{"country": "é"}"#, "? ? ? ? ?"),
            ("{}", "? ? ? ? ?"),
        ] {
            assert_eq!(said(record), expected, "{record}");
        }
        let long = format!(r#"{{"city": "{}"}}"#, "é".repeat(500));
        assert_eq!(geo(&long).city.unwrap(), "é".repeat(LONGEST_NAME / 2));
    }

    #[test]
    fn what_is_known_already_stays() {
        let mut geo = Geo { country: Some("NL".to_owned()), ..Geo::default() };
        serde_json::from_str::<Record<'_>>(r#"{"country_code": "BE", "city": "Gent"}"#).unwrap().fill(&mut geo);
        assert_eq!((geo.country.as_deref(), geo.city.as_deref()), (Some("NL"), Some("Gent")));
    }
}
