//! The entries of `notify.custom_webhooks`, which have no defaults in `config/default.toml` to be checked by.
//!
//! Owns what an entry must have. Shows no value of one: an address or a key may be a secret in the wrong place.

use serde_json::Value;

use super::check::is_http;
use super::merged::Merged;
use super::unknown::{HOOK_KEYS, HOOKS, nearest};

pub(super) fn all(merged: &mut Merged) {
    let Some(list) = merged.list(HOOKS) else { return };
    let before = merged.errors.len();
    let mut names: Vec<&str> = Vec::new();
    for (index, hook) in list.iter().enumerate() {
        let path = format!("{HOOKS}[{index}]");
        let Some(hook) = hook.as_object() else {
            merged.complain(&path, "is no webhook; write [[notify.custom_webhooks]] with name and url below");
            continue;
        };
        for key in hook.keys().filter(|key| !HOOK_KEYS.contains(&key.as_str())) {
            let near = nearest(key, HOOK_KEYS.into_iter()).map(|near| format!("; did you mean {near}?"));
            let near = near.unwrap_or_else(|| format!("; a custom webhook has {}", HOOK_KEYS.join(", ")));
            merged.complain(&format!("{path}.{key}"), format!("unknown{near}"));
        }
        for key in HOOK_KEYS {
            let fits = match hook.get(key) {
                None => true,
                Some(value) if key == "kafka" => value.is_boolean(),
                Some(value) => value.is_string(),
            };
            if !fits {
                let text = if key == "kafka" { "must be true or false" } else { "must be a text; put it in quotes" };
                merged.complain(&format!("{path}.{key}"), text);
            }
        }
        let text = |key: &str| hook.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("name") {
            "" => merged.complain(&path, "has no name"),
            name if names.contains(&name) => merged.complain(&format!("{path}.name"), "is the name of an earlier one"),
            name => names.push(name),
        }
        match text("url") {
            "" => merged.complain(&path, "has no url"),
            // The parts of a date may stand anywhere behind the host.
            url if !is_http(&url.replace("%{", "").replace('}', "")) => {
                let text = "is no address that begins with http:// or https:// and names a host";
                merged.complain(&format!("{path}.url"), text);
            }
            _ => {}
        }
    }
    if merged.errors.len() > before {
        merged.set(HOOKS, Value::Array(Vec::new()));
    }
}
