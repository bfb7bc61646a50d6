//! `trackalert query`: the history, in Elasticsearch's language or by plain flags.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use reqwest::Method;
use serde_json::{Value, json};

use super::session::Session;
use super::when::When;
use super::{Common, Failure, output};
use crate::config::Roles;
use crate::history::Kind;

/// A larger question is none.
const MAX_BODY: u64 = 1 << 20;
/// Columns of the table, and where in a document each is.
const COLUMNS: [(&str, &str); 9] = [
    ("time", "@timestamp"),
    ("login", "login"),
    ("remote", "remote"),
    ("ok", "success"),
    ("fail", "fail_type"),
    ("country", "geoip.country_code2"),
    ("network", "geoip.as_org"),
    ("protocol", "protocol"),
    ("device", "device_id"),
];

const EXAMPLES: &str = r#"Examples:
  trackalert query --login alice --since 7d
  trackalert query --remote 198.51.100.7 --failed --by login
  trackalert query --country NL --since 2026-03-01 --until 2026-03-08 --size 100 --format ndjson
  trackalert query '{"size": 0, "aggs": {"c": {"terms": {"field": "geoip.country_code2"}}}}'
  trackalert query --file per_day.json
  trackalert query --login alice --print            the body that the flags make, to start from"#;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// An Elasticsearch search body; - reads it from stdin
    #[arg(conflicts_with_all = ["file", "Flags"])]
    body: Option<String>,
    /// A file with such a body
    #[arg(long, value_name = "FILE", conflicts_with = "Flags")]
    file: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// Only print the search body
    #[arg(long)]
    print: bool,
    /// How to print the answer
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Open the data folder; no trackalert must be running on it
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, Default, clap::Args)]
#[group(id = "Flags", multiple = true)]
struct Flags {
    /// Of this login
    #[arg(long)]
    login: Option<String>,
    /// From this address or network
    #[arg(long, value_name = "ADDRESS")]
    remote: Option<String>,
    /// From this country, two letters
    #[arg(long, value_name = "CODE")]
    country: Option<String>,
    /// Over this protocol
    #[arg(long)]
    protocol: Option<String>,
    /// Only successful logins
    #[arg(long, conflicts_with = "failed")]
    success: bool,
    /// Only failed logins
    #[arg(long)]
    failed: bool,
    /// Since: 7d, 2026-03-01, 2026-03-01T12:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,
    /// Before
    #[arg(long, value_name = "WHEN")]
    until: Option<When>,
    /// Count by this field instead of listing: login, remote, geoip.country_code2, …
    #[arg(long, value_name = "FIELD")]
    by: Option<String>,
    /// The most rows, or with --by the most groups (20 unless given)
    #[arg(long, value_name = "N")]
    size: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Rows (the default on a terminal)
    Table,
    /// The whole answer (the default in a pipe)
    Json,
    /// One document or bucket a line
    Ndjson,
}

impl Flags {
    fn body(&self) -> Result<Value, Failure> {
        let mut filter = Vec::new();
        let mut term = |field: &str, value: Value| filter.push(json!({ "term": { field: value } }));
        if let Some(login) = &self.login {
            term("login", json!(login));
        }
        if let Some(remote) = &self.remote {
            if remote.parse::<IpAddr>().is_err() && remote.parse::<ipnet::IpNet>().is_err() {
                return Err(Failure::usage(format!("--remote {remote}: no address and no network")));
            }
            term("remote", json!(remote));
        }
        if let Some(country) = &self.country {
            term("geoip.country_code2", json!(country.to_uppercase()));
        }
        if let Some(protocol) = &self.protocol {
            term("protocol", json!(protocol));
        }
        if self.success || self.failed {
            term("success", json!(self.success));
        }
        let mut range = serde_json::Map::new();
        range.extend(self.since.map(|when| ("gte".to_owned(), json!(when.0.rfc3339()))));
        range.extend(self.until.map(|when| ("lt".to_owned(), json!(when.0.rfc3339()))));
        if !range.is_empty() {
            filter.push(json!({ "range": { "@timestamp": range } }));
        }
        let mut body = json!({ "query": { "bool": { "filter": filter } } });
        match &self.by {
            Some(field) => {
                body["size"] = json!(0);
                body["aggs"] = json!({ field: { "terms": { "field": field, "size": self.size.unwrap_or(20) } } });
            }
            None => {
                body["size"] = json!(self.size.unwrap_or(20));
                body["sort"] = json!([{ "@timestamp": "desc" }]);
            }
        }
        Ok(body)
    }
}

impl Args {
    fn question(&self) -> Result<Value, Failure> {
        let text = match (&self.body, &self.file) {
            (Some(dash), _) if dash == "-" => read(std::io::stdin().lock(), "stdin")?,
            (Some(text), _) => text.clone(),
            (None, Some(path)) => from_file(path)?,
            (None, None) => return self.flags.body(),
        };
        serde_json::from_str(&text).map_err(|error| Failure::usage(format!("the search body is not JSON: {error}")))
    }
}

fn from_file(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    read(file, &path.display().to_string())
}

fn read(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(MAX_BODY).read_to_string(&mut text).map_err(|error| Failure::failed(format!("{name}: {error}")))?;
    Ok(text)
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let body = args.question()?;
    if args.print {
        return output::line(format_args!("{body:#}"));
    }
    if common.load()?.history.kind == Kind::None {
        return Err(Failure::usage(
            "history.kind is \"none\": no report is kept, so there is nothing to search; set it to \"embedded\" to keep them",
        ));
    }
    let format = args.format.unwrap_or(if output::to_terminal() { Format::Table } else { Format::Json });
    Session::with(common, args.offline.then_some(Roles::none()), async |client| {
        let answer: Value = client.admin(Method::POST, "/v1/admin/query", &[], Some(body.to_string())).await?;
        match format {
            Format::Json => output::line(format_args!("{answer:#}")),
            Format::Ndjson => {
                for row in hits(&answer).iter().filter_map(|hit| hit.get("_source")) {
                    output::line(row)?;
                }
                for (_, bucket) in buckets(&answer) {
                    output::line(bucket)?;
                }
                say_others(&answer, args.flags.by.as_deref());
                Ok(())
            }
            Format::Table => {
                tables(&answer)?;
                say_others(&answer, args.flags.by.as_deref());
                Ok(())
            }
        }
    })
}

fn hits(answer: &Value) -> &[Value] {
    answer.pointer("/hits/hits").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The buckets of the outermost aggregations, with the aggregation's name.
fn buckets(answer: &Value) -> Vec<(&str, Value)> {
    let mut all = Vec::new();
    for (name, aggregation) in answer.get("aggregations").and_then(Value::as_object).into_iter().flatten() {
        match aggregation.get("buckets") {
            Some(Value::Array(buckets)) => all.extend(buckets.iter().map(|bucket| (name.as_str(), bucket.clone()))),
            Some(Value::Object(named)) => all.extend(named.iter().map(|(key, bucket)| {
                let mut bucket = bucket.clone();
                bucket["key"] = json!(key);
                (name.as_str(), bucket)
            })),
            _ => all.push((name.as_str(), aggregation.clone())),
        }
    }
    all
}

fn tables(answer: &Value) -> Result<(), Failure> {
    let rows = hits(answer);
    if !rows.is_empty() {
        let mut table = output::table(&COLUMNS.map(|(head, _)| head));
        for hit in rows {
            let source = hit.get("_source").unwrap_or(&Value::Null);
            table.add_row(COLUMNS.map(|(_, path)| cell(dotted(source, path))));
        }
        output::line(table)?;
    }
    let buckets = buckets(answer);
    if !buckets.is_empty() {
        let mut table = output::table(&["aggregation", "key", "documents", "more"]);
        for (name, bucket) in &buckets {
            let key = bucket.get("key_as_string").or_else(|| bucket.get("key"));
            table.add_row([output::clean(name), cell(key), cell(bucket.get("doc_count")), rest(bucket)]);
        }
        output::line(table)?;
    }
    let total = answer.pointer("/hits/total/value").and_then(Value::as_u64).unwrap_or_default();
    let more =
        if answer.pointer("/hits/total/relation").and_then(Value::as_str) == Some("gte") { "at least " } else { "" };
    let took = answer.get("took").and_then(Value::as_u64).unwrap_or_default();
    output::say(format_args!("{more}{total} found, {} shown, {took} ms", rows.len()));
    Ok(())
}

/// With `--by`: that there are more groups than the answer has.
fn say_others(answer: &Value, by: Option<&str>) {
    let Some(aggregation) = by.and_then(|field| answer.get("aggregations")?.get(field)) else { return };
    let others = aggregation.get("sum_other_doc_count").and_then(Value::as_u64).unwrap_or_default();
    if others > 0 {
        let shown = aggregation.get("buckets").and_then(Value::as_array).map_or(0, Vec::len);
        output::say(format_args!(
            "only the {shown} largest groups are shown; {others} more reports are in others (a larger --size shows them)"
        ));
    }
}

/// A value by its dotted path, whether the document is nested or flat.
fn dotted<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if let Some(found) = value.get(path) {
        return Some(found);
    }
    let (first, rest) = path.split_once('.')?;
    dotted(value.get(first)?, rest)
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => output::clean(text),
        Some(other) => output::clean(&other.to_string()),
    }
}

/// What a bucket holds besides its key and count.
fn rest(bucket: &Value) -> String {
    let known = ["key", "key_as_string", "doc_count"];
    let parts = bucket.as_object().into_iter().flatten().filter(|(key, _)| !known.contains(&key.as_str()));
    let parts = parts.map(|(key, value)| match value.get("value") {
        Some(single) => format!("{key} = {single}"),
        None => format!("{key} = {value}"),
    });
    output::clean(&parts.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_make_a_search_body() {
        let flags = Flags {
            login: Some("alice".into()),
            country: Some("nl".into()),
            failed: true,
            since: Some("2026-03-01".parse().unwrap()),
            by: Some("remote".into()),
            ..Flags::default()
        };
        assert_eq!(
            flags.body().unwrap(),
            json!({
                "query": {"bool": {"filter": [
                    {"term": {"login": "alice"}},
                    {"term": {"geoip.country_code2": "NL"}},
                    {"term": {"success": false}},
                    {"range": {"@timestamp": {"gte": "2026-03-01T00:00:00.000Z"}}},
                ]}},
                "size": 0,
                "aggs": {"remote": {"terms": {"field": "remote", "size": 20}}},
            })
        );
        let wrong = Flags { remote: Some("somewhere".into()), ..Flags::default() };
        assert!(matches!(wrong.body(), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_value_is_found_nested_and_flat() {
        assert_eq!(cell(dotted(&json!({"geoip": {"as_org": "A\u{1b}"}}), "geoip.as_org")), "A\u{fffd}");
        assert_eq!(cell(dotted(&json!({"geoip.as_org": "A"}), "geoip.as_org")), "A");
        assert_eq!(cell(dotted(&json!({"geoip": 3}), "geoip.as_org")), "");
    }
}
