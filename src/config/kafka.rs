//! What `[queue.kafka]` may say, beyond the types of its settings.
//!
//! Owns which properties of the client are refused, and why. Never shows a value of one that is a secret.

use serde_json::Value;

use super::merged::Merged;
use crate::queue::kafka::{OURS, Properties};

const BROKERS: &str = "queue.kafka.brokers";
const GROUP: &str = "queue.kafka.group";
const PROPERTIES: &str = "queue.kafka.properties";

/// Whether this program has the driver.
const BUILT_IN: bool = cfg!(feature = "kafka");

pub(super) fn all(merged: &mut Merged) {
    let chosen = merged.text("queue.kind").is_some_and(|kind| kind == "kafka");
    if chosen && !BUILT_IN {
        merged.refuse(
            "queue.kind",
            "\"kafka\" is not in this program: it was built without the cargo feature `kafka`; use one that has it, or \"embedded\"",
        );
    }
    brokers(merged);
    if merged.text(GROUP).is_some_and(|group| group.is_empty()) {
        merged.refuse(GROUP, "names no group");
    }
    properties(merged);
}

fn brokers(merged: &mut Merged) {
    let Some(list) = merged.list(BROKERS) else { return };
    if list.is_empty() {
        merged.refuse(BROKERS, "names no broker");
    }
    for (index, item) in list.iter().enumerate() {
        let Some(text) = item.as_str() else { continue };
        let host_and_port = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !text.contains([',', ' ', '/', '@']) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !host_and_port {
            merged.refuse(&format!("{BROKERS}[{index}]"), format!("\"{text}\" is no broker, such as \"kafka1:9092\""));
            break;
        }
    }
}

fn properties(merged: &mut Merged) {
    let Value::Object(map) = merged.get(PROPERTIES).clone() else {
        // Whatever stands there may hold a secret.
        merged.refuse(PROPERTIES, "is no table; write [queue.kafka.properties] and \"name\" = \"value\" below");
        return;
    };
    let map = Properties::from(map.into_iter().collect::<std::collections::BTreeMap<_, _>>());
    match map.flat() {
        Err(name) => {
            merged.refuse(PROPERTIES, format!("{name} is a list; a property is a text, a number, true or false"))
        }
        Ok(flat) => {
            for (name, _) in flat {
                if let Some((_, why)) = OURS.iter().find(|(ours, _)| *ours == name) {
                    merged.complain(PROPERTIES, format!("{name} is not to be set here: {why}"));
                }
            }
        }
    }
}
