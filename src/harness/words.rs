//! A text as a test file asks for it: exactly, in part, or by a regular expression.
//!
//! Pure. Owns the three forms and how each is told to people.

use std::fmt;

use regex::Regex;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;

use crate::outbound;

/// A text, or what is asked of it.
#[derive(Debug, Clone)]
pub(super) enum Words {
    /// Exactly this.
    Are(String),
    /// This is in it.
    Contain(String),
    /// A regular expression that fits somewhere in it.
    Match(Regex),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct By {
    contains: Option<String>,
    matches: Option<String>,
}

impl Words {
    /// Whether the text is as wanted.
    pub(super) fn fit(&self, text: &str) -> bool {
        match self {
            Self::Are(wanted) => text == wanted,
            Self::Contain(part) => text.contains(part.as_str()),
            Self::Match(pattern) => pattern.is_match(text),
        }
    }

    /// The same for addresses: an exact one in the form that requests have, with the `/` behind a host that stands alone. The error says
    /// why it is none.
    pub(super) fn of_url(&self) -> Result<Self, String> {
        match self {
            Self::Are(text) => outbound::url(text).map(|url| Self::Are(url.into())),
            part => Ok(part.clone()),
        }
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Are(wanted) => write!(f, "{}", Json::from(wanted.as_str())),
            Self::Contain(part) => write!(f, "contains {}", Json::from(part.as_str())),
            Self::Match(pattern) => write!(f, "matches {}", Json::from(pattern.as_str())),
        }
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyWords;
        impl<'de> Visitor<'de> for AnyWords {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, { contains = \"…\" } or { matches = \"…\" }")
            }
            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words::Are(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Words, A::Error> {
                match By::deserialize(MapAccessDeserializer::new(map))? {
                    By { contains: Some(part), matches: None } => Ok(Words::Contain(part)),
                    By { contains: None, matches: Some(pattern) } => Regex::new(&pattern)
                        .map(Words::Match)
                        .map_err(|error| A::Error::custom(format!("matches: {error}"))),
                    _ => Err(A::Error::custom("one of contains and matches is needed")),
                }
            }
        }
        deserializer.deserialize_any(AnyWords)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_address_has_the_form_of_a_request_and_one_that_is_none_is_told() {
        let of_url = |text: &str| Words::Are(text.to_owned()).of_url();
        assert!(of_url("https://api.example").unwrap().fit("https://api.example/"));
        assert!(of_url("https://API.example:443/A?b=c d").unwrap().fit("https://api.example/A?b=c%20d"));
        assert!(of_url("api.example/x").unwrap_err().contains("not a URL"));
        assert!(of_url("ftp://api.example/").unwrap_err().contains("http or https"));
        assert!(Words::Contain("example/x".to_owned()).of_url().unwrap().fit("https://api.example/x"));
    }
}
