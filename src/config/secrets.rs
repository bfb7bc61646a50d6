//! Secrets, and the files that they lie in: the configuration itself, or one of their own (`password_file` instead of `password`).
//!
//! Owns reading the latter, and the look at who may read either. Never keeps a secret anywhere but in the value that it is for, and never shows one.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use super::explain;
use super::merged::Merged;
use super::sources::Source;
use super::unknown::{SECRETS_OF_A_WAY, WAYS_OUT};
use crate::settings::MASK;

/// A larger file is no file of secrets; whoever names /dev/zero is told instead of waiting.
const MAX_FILE: u64 = 64 << 10;

/// Puts the contents of each `X_file` into `X`.
pub(super) fn resolve(merged: &mut Merged) {
    let mut keys = merged.known.secrets();
    let mut urls = Vec::new();
    for list in WAYS_OUT {
        for index in 0..merged.list(list).map_or(0, |entries| entries.len()) {
            keys.extend(SECRETS_OF_A_WAY.map(|part| format!("{list}[{index}].{part}")));
            urls.push(format!("{list}[{index}].url"));
        }
    }
    refuse_masks(merged, &keys, &urls);
    warn_of_readers(merged, &keys, &urls);
    for key in keys {
        one(merged, &key);
    }
}

/// What `trackalert config` prints in a secret's place would be taken for the secret where its output becomes a configuration.
fn refuse_masks(merged: &mut Merged, keys: &[String], urls: &[String]) {
    for key in keys {
        let is_mask = |value: &Value| value.as_str() == Some(MASK);
        let value = merged.get(key);
        if is_mask(value) || value.as_array().is_some_and(|items| items.iter().any(is_mask)) {
            merged.refuse(key, "is the mask that stands for a secret; write the secret itself, or name a file of it");
        }
    }
    for key in urls {
        if merged.text(key).is_some_and(|url| url.contains(MASK)) {
            merged.refuse(key, "has a mask in place of its secret part; write the whole address");
        }
    }
}

/// Secrets that stand in a configuration file which everybody can read: said once a file.
fn warn_of_readers(merged: &mut Merged, keys: &[String], urls: &[String]) {
    let urls = urls.iter().filter(|key| merged.text(key).is_some_and(|url| explain::has_credentials(&url)));
    let secrets = keys.iter().filter(|key| !is_unset(merged.get(key)));
    let found: Vec<String> = secrets.chain(urls).cloned().collect();
    let mut said = Vec::new();
    for key in found {
        let Some(Source::File { path, .. }) = merged.source(&key) else { continue };
        let path = path.clone();
        if said.contains(&path) || !std::fs::metadata(&path).is_ok_and(|meta| world_readable(&meta)) {
            continue;
        }
        let shown = path.display().to_string();
        said.push(path);
        merged.warn(&key, format!("a secret that every user of this machine can read; chmod o-r {shown}"));
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn world_readable(meta: &std::fs::Metadata) -> bool {
    meta.permissions().mode() & 0o004 != 0
}

fn one(merged: &mut Merged, key: &str) {
    let file_key = format!("{key}_file");
    let Some(path) = merged.text(&file_key).filter(|path| !path.is_empty()) else { return };
    let is_list = merged.get(key).is_array();
    if !is_unset(merged.get(key)) {
        let place = merged.source(key).map(|source| format!(" ({source})")).unwrap_or_default();
        let name = key.rsplit('.').next().unwrap_or(key).to_owned();
        merged.complain(&file_key, format!("{name} is set too{place}; set one of the two"));
        return;
    }
    match read(Path::new(&path)) {
        Ok((text, for_all)) => {
            if for_all {
                merged.warn(&file_key, format!("every user of this machine can read {path}; chmod o-r {path}"));
            }
            let value = if is_list {
                Value::Array(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Value::from).collect())
            } else {
                Value::from(text)
            };
            if is_unset(&value) {
                // An empty password would mean that none is asked for.
                merged.refuse(&file_key, format!("{path} is empty; write the secret into it"));
                return;
            }
            let source = merged.source(&file_key).map_or_else(String::new, ToString::to_string);
            merged.notes.insert(key.to_owned(), format!("{path}, named by {file_key} ({source})"));
            merged.set(key, value);
        }
        Err(said) => merged.refuse(&file_key, format!("{path}: {said}")),
    }
}

/// The text without its last line's end, and whether every user of the machine can read it.
fn read(path: &Path) -> Result<(String, bool), String> {
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("cannot be read: {error}"),
    })?;
    let meta = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if meta.is_dir() {
        return Err("is a folder; name a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("has more than {MAX_FILE} bytes; that is no secret"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok((text.to_owned(), world_readable(&meta)))
}
