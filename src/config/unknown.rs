//! The names of all settings, and what somebody may have meant by a name that is none.
//!
//! The names come from `config/default.toml` itself, so that a setting which is not written down there does not exist.

use std::collections::BTreeMap;

use serde_json::Value;

use super::sources::Layer;

/// The keys of one entry of `notify.channels`, which the defaults cannot name because they have no entry.
pub(super) const CHANNEL_KEYS: [&str; 4] = ["kind", "url", "secret", "secret_file"];

/// The keys of one entry of `notify.custom_webhooks`.
pub(super) const HOOK_KEYS: [&str; 8] =
    ["name", "url", "secret", "secret_file", "basic_auth", "api_key", "content_type", "kafka"];

pub(super) const CHANNELS: &str = "notify.channels";
pub(super) const HOOKS: &str = "notify.custom_webhooks";
/// The lists of ways out. Each entry has a `url`, which may carry a password.
pub(super) const WAYS_OUT: [&str; 2] = [CHANNELS, HOOKS];
/// What else of an entry is a secret.
pub(super) const SECRETS_OF_A_WAY: [&str; 3] = ["secret", "basic_auth", "api_key"];

/// What a known name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Section,
    Key,
}

/// All names, with the defaults.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    names: BTreeMap<String, Name>,
    defaults: BTreeMap<String, Value>,
    /// In the order of `config/default.toml`.
    pub(super) order: Vec<String>,
}

impl Known {
    /// The names of a TOML document.
    pub(super) fn of(defaults: &str) -> Result<Self, toml_edit::TomlError> {
        let document = toml_edit::Document::parse(defaults)?;
        let mut known = Self::default();
        known.learn("", document.as_table());
        Ok(known)
    }

    fn learn(&mut self, prefix: &str, table: &toml_edit::Table) {
        for (name, item) in table {
            let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            let what = if item.is_table() { Name::Section } else { Name::Key };
            self.names.insert(key.clone(), what);
            match item.as_table() {
                Some(inner) => self.learn(&key, inner),
                None => self.order.push(key),
            }
        }
    }

    /// Notes the defaults, once they are read.
    pub(super) fn with_defaults(mut self, layer: &Layer) -> Self {
        self.defaults = layer.0.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
        self
    }

    pub(super) fn get(&self, key: &str) -> Option<Name> {
        self.names.get(key).copied()
    }

    pub(super) fn default_of(&self, key: &str) -> &Value {
        self.defaults.get(key).unwrap_or(&Value::Null)
    }

    /// The sections without any key yet.
    pub(super) fn empty_sections(&self) -> impl Iterator<Item = &str> {
        self.names
            .iter()
            .filter(|(name, what)| **what == Name::Section && !self.order.iter().any(|key| inside(key, name)))
            .map(|(name, _)| name.as_str())
    }

    /// Whether the value of a setting is a secret: it has a twin that names a file.
    pub(super) fn is_secret(&self, key: &str) -> bool {
        self.names.contains_key(&format!("{key}_file"))
            || key.split_once('[').is_some_and(|(list, rest)| {
                let part = rest.rsplit('.').next().unwrap_or_default();
                WAYS_OUT.contains(&list) && SECRETS_OF_A_WAY.contains(&part)
            })
    }

    /// Whether no message may show the value: a secret, an entry of a list of secrets, anything of the ways out (an address may carry
    /// a password, and a text that is no such list may hold all of it).
    pub(super) fn may_hold_secret(&self, key: &str) -> bool {
        let setting = key.split('[').next().unwrap_or_default();
        self.is_secret(key)
            || self.is_secret(setting)
            || WAYS_OUT.contains(&setting)
            || setting.starts_with("queue.kafka.properties")
    }

    /// The secrets, in order.
    pub(super) fn secrets(&self) -> Vec<String> {
        self.order.iter().filter(|key| self.is_secret(key)).cloned().collect()
    }

    /// What to say of a name that is none.
    pub(super) fn say_unknown(&self, key: &str) -> String {
        if let Some(section) = self.empty_sections().find(|section| inside(key, section)) {
            return format!("[{section}] is not in this program yet");
        }
        match nearest(key, self.order.iter().map(String::as_str)) {
            Some(near) => format!("unknown; did you mean {near}?"),
            None => "unknown; `trackalert config` lists every setting".to_owned(),
        }
    }
}

fn inside(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// The known name that was most likely meant: the right key in a wrong section, or a few letters away.
pub(super) fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let wanted = last(key);
    let limit = (key.len() / 4).clamp(1, 4);
    names
        .map(|name| {
            let distance = strsim::damerau_levenshtein(key, name);
            // The same word elsewhere, or a misspelt word elsewhere, beats a name that merely looks alike.
            let word = strsim::damerau_levenshtein(&wanted, &last(name));
            let moved = if word == 0 && wanted.len() > 3 { Some((0, distance)) } else { None };
            let near = (distance <= limit).then_some((distance, distance));
            (near.into_iter().chain(moved).min(), name)
        })
        .filter_map(|(score, name)| score.map(|score| (score, name)))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_name() {
        let known = Known::of(super::super::DEFAULTS).unwrap();
        let say = |key| known.say_unknown(key);
        assert_eq!(say("http.lisen"), "unknown; did you mean http.listen?");
        assert_eq!(say("htp.listen"), "unknown; did you mean http.listen?");
        assert_eq!(say("http.max_skew"), "unknown; did you mean receive.max_skew?");
        assert_eq!(say("datadir"), "unknown; did you mean data_dir?");
        assert_eq!(say("queue.kafka.broker"), "unknown; did you mean queue.kafka.brokers?");
        assert_eq!(say("x.y"), "unknown; `trackalert config` lists every setting");
    }
}
