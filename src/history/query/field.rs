//! The fields of a report's document, and what may be done with each.
//!
//! Owns the names that a query may use. Knows nothing of how a driver keeps them.

use super::walk;
use crate::history::HistoryError;

/// A field of the document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Field {
    /// `@timestamp`: the report's time, a date in milliseconds.
    Timestamp,
    /// `t`: the report's time in seconds with a fraction.
    T,
    /// `id` or `_id`.
    Id,
    /// A string that is matched whole.
    Text(Text),
    /// `remote`: an address.
    Remote,
    /// A boolean.
    Flag(Flag),
    /// A number.
    Number(Number),
    /// `geoip.location`: only asked for whether it is there.
    Location,
    /// `attrs` or `device_attrs` as a whole: only asked for whether it has a key.
    Group(Group),
}

/// A field of strings that are matched whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Text {
    /// A field that every document has under a name of its own.
    Plain(&'static str),
    /// A key in one of the two objects with open keys.
    Sub(Group, String),
}

/// An object with open keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// `attrs`
    Attrs,
    /// `device_attrs`
    DeviceAttrs,
}

/// A boolean field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// `success`
    Success,
    /// `policy_reject`
    PolicyReject,
    /// `tls`
    Tls,
}

/// A numeric field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// `geoip.asn`
    Asn,
    /// `geoip.latitude`
    Latitude,
    /// `geoip.longitude`
    Longitude,
}

/// Every name with a fixed spelling.
const NAMES: &[&str] = &[
    "@timestamp",
    "t",
    "id",
    "_id",
    "login",
    "remote",
    "pwhash",
    "success",
    "policy_reject",
    "fail_type",
    "session_id",
    "protocol",
    "tls",
    "device_id",
    "type",
    "geoip.country_code2",
    "geoip.as_org",
    "geoip.city_name",
    "geoip.asn",
    "geoip.latitude",
    "geoip.longitude",
    "geoip.location",
    "attrs",
    "device_attrs",
];

/// The names of the plain text fields.
pub(crate) const TEXTS: &[&str] = &[
    "login",
    "pwhash",
    "fail_type",
    "session_id",
    "protocol",
    "device_id",
    "type",
    "geoip.country_code2",
    "geoip.as_org",
    "geoip.city_name",
];

impl Group {
    /// The name of the object.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attrs => "attrs",
            Self::DeviceAttrs => "device_attrs",
        }
    }
}

impl Flag {
    /// The name of the field.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::PolicyReject => "policy_reject",
            Self::Tls => "tls",
        }
    }
}

impl Number {
    /// The name of the field.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asn => "geoip.asn",
            Self::Latitude => "geoip.latitude",
            Self::Longitude => "geoip.longitude",
        }
    }
}

impl Field {
    /// The field of this name. An unknown name is an error: a misspelt field would else match nothing, silently.
    pub(super) fn parse(name: &str, path: &str) -> Result<Self, HistoryError> {
        if let Some(text) = TEXTS.iter().find(|text| **text == name) {
            return Ok(Self::Text(Text::Plain(text)));
        }
        Ok(match name {
            "@timestamp" => Self::Timestamp,
            "t" => Self::T,
            "id" | "_id" => Self::Id,
            "remote" => Self::Remote,
            "success" => Self::Flag(Flag::Success),
            "policy_reject" => Self::Flag(Flag::PolicyReject),
            "tls" => Self::Flag(Flag::Tls),
            "geoip.asn" => Self::Number(Number::Asn),
            "geoip.latitude" => Self::Number(Number::Latitude),
            "geoip.longitude" => Self::Number(Number::Longitude),
            "geoip.location" => Self::Location,
            "attrs" => Self::Group(Group::Attrs),
            "device_attrs" => Self::Group(Group::DeviceAttrs),
            _ => match name.split_once('.') {
                Some(("attrs", key)) if !key.is_empty() => Self::Text(Text::Sub(Group::Attrs, key.to_owned())),
                Some(("device_attrs", key)) if !key.is_empty() => {
                    Self::Text(Text::Sub(Group::DeviceAttrs, key.to_owned()))
                }
                _ => return Err(walk::unknown(path, name, "field", NAMES)),
            },
        })
    }

    /// The name of the field.
    pub fn name(&self) -> String {
        match self {
            Self::Timestamp => "@timestamp".to_owned(),
            Self::T => "t".to_owned(),
            Self::Id => "id".to_owned(),
            Self::Text(Text::Plain(name)) => (*name).to_owned(),
            Self::Text(Text::Sub(group, key)) => format!("{}.{key}", group.name()),
            Self::Remote => "remote".to_owned(),
            Self::Flag(flag) => flag.name().to_owned(),
            Self::Number(number) => number.name().to_owned(),
            Self::Location => "geoip.location".to_owned(),
            Self::Group(group) => group.name().to_owned(),
        }
    }

    /// Whether documents may be grouped, counted and sorted by it.
    pub(super) fn has_values(&self) -> bool {
        !matches!(self, Self::Location | Self::Group(_) | Self::Id)
    }

    /// Whether it is a number or a time, which has a smallest, a greatest, a mean.
    pub(super) fn is_numeric(&self) -> bool {
        matches!(self, Self::Timestamp | Self::T | Self::Number(_) | Self::Flag(_))
    }
}
