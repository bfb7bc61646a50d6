//! The two maps of a report, read without knowing their values' types beforehand.
//!
//! Owns which values are kept (strings, arrays of strings, numbers and booleans as their text) and which are dropped and counted
//! (objects, null, anything else in an array). Pure.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// `device_attrs`: strings only.
#[derive(Debug, Default)]
pub(super) struct DeviceAttributes {
    pub(super) values: Vec<(String, String)>,
    pub(super) dropped: u32,
    /// The length of the longest string, keys included.
    pub(super) longest: usize,
}

/// `attrs`: one value or several.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    single: Vec<(String, String)>,
    multi: Vec<(String, Vec<String>)>,
    pub(super) dropped: u32,
    pub(super) longest: usize,
}

/// Pairs by key.
type Pairs<T> = Vec<(String, T)>;

/// Sorts by key; an error is a key that stands there twice.
pub(super) fn sorted<T>(mut pairs: Pairs<T>) -> Result<Pairs<T>, String> {
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    match pairs.windows(2).position(|pair| pair[0].0 == pair[1].0) {
        Some(at) => Err(pairs.swap_remove(at).0),
        None => Ok(pairs),
    }
}

impl Attributes {
    /// Values, those in arrays counted each.
    pub(super) fn count(&self) -> usize {
        self.single.len() + self.multi.iter().map(|(_, values)| values.len().max(1)).sum::<usize>()
    }

    pub(super) fn sorted(self) -> Result<(Pairs<String>, Pairs<Vec<String>>), String> {
        let (single, multi) = (sorted(self.single)?, sorted(self.multi)?);
        match multi.iter().find(|(key, _)| single.binary_search_by(|(other, _)| other.cmp(key)).is_ok()) {
            Some((key, _)) => Err(key.clone()),
            None => Ok((single, multi)),
        }
    }
}

/// A value of any type.
enum Any {
    Text(String),
    /// A number or a boolean, as its text.
    Plain(String),
    Several(Vec<String>, u32),
    Other,
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyVisitor)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Any;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number, a boolean or an array of these")
    }

    fn visit_str<E>(self, text: &str) -> Result<Any, E> {
        Ok(Any::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Any, E> {
        Ok(Any::Text(text))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Any, E> {
        Ok(Any::Plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Any, E> {
        Ok(Any::Plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Any, E> {
        Ok(Any::Plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Any, E> {
        Ok(Any::Plain(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Any, A::Error> {
        let (mut values, mut dropped) = (Vec::new(), 0);
        while let Some(item) = items.next_element::<Any>()? {
            match item {
                Any::Text(text) | Any::Plain(text) => values.push(text),
                Any::Several(..) | Any::Other => dropped += 1,
            }
        }
        Ok(Any::Several(values, dropped))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Any, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Any::Other)
    }
}

struct DeviceVisitor;

impl<'de> Visitor<'de> for DeviceVisitor {
    type Value = DeviceAttributes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<DeviceAttributes, A::Error> {
        let mut attributes = DeviceAttributes::default();
        while let Some((key, value)) = entries.next_entry::<String, Any>()? {
            let Any::Text(value) = value else {
                attributes.dropped += 1;
                continue;
            };
            attributes.longest = attributes.longest.max(key.len()).max(value.len());
            attributes.values.push((key, value));
        }
        Ok(attributes)
    }
}

impl<'de> Deserialize<'de> for DeviceAttributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DeviceVisitor)
    }
}

struct AttributesVisitor;

impl<'de> Visitor<'de> for AttributesVisitor {
    type Value = Attributes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings and arrays of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Attributes, A::Error> {
        let mut attributes = Attributes::default();
        while let Some((key, value)) = entries.next_entry::<String, Any>()? {
            attributes.longest = attributes.longest.max(key.len());
            match value {
                Any::Text(text) | Any::Plain(text) => {
                    attributes.longest = attributes.longest.max(text.len());
                    attributes.single.push((key, text));
                }
                Any::Several(values, dropped) => {
                    let longest = values.iter().map(String::len).max().unwrap_or(0);
                    attributes.longest = attributes.longest.max(longest);
                    attributes.dropped += dropped;
                    attributes.multi.push((key, values));
                }
                Any::Other => attributes.dropped += 1,
            }
        }
        Ok(attributes)
    }
}

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AttributesVisitor)
    }
}
