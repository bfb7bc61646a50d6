//! How a report lies in an index: the fields, and the compact form that the document is made from again.
//!
//! Owns the format on disk. Keys with open names are kept as terms `key NUL value` of one field for each object: a hostile attribute
//! name then is a term like any other, never a column or a path of its own.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tantivy::schema::{
    BytesOptions, Field, IndexRecordOption, IpAddrOptions, NumericOptions, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::{TantivyDocument, Term};

use crate::history::document;
use crate::history::query::field::{Flag, Group, Number, Text};
use crate::report::{Geo, LoginReport, ReportId, Time};

/// The text field that came later than the others.
const CITY: &str = "geoip.city_name";

/// The fields of an index, by what they hold.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) schema: Schema,
    kept: Field,
    id: Field,
    time: Field,
    texts: Vec<(&'static str, Field)>,
    attrs: Field,
    device_attrs: Field,
    remote: Field,
    flags: [Field; 3],
    numbers: [Field; 3],
}

/// The columns' names where they are not the fields' own: a dot would be read as a path.
fn column(name: &'static str) -> &'static str {
    match name {
        "geoip.country_code2" => "country",
        "geoip.as_org" => "as_org",
        CITY => "city",
        name => name,
    }
}

impl Fields {
    pub(super) fn new() -> Self {
        let mut schema = Schema::builder();
        let whole = TextFieldIndexing::default()
            .set_tokenizer("raw")
            .set_index_option(IndexRecordOption::Basic)
            .set_fieldnorms(false);
        let text = TextOptions::default().set_indexing_options(whole).set_fast("raw");
        let number = NumericOptions::default().set_fast();
        let searched = number.clone().set_indexed();
        let mut flag = |name: &str| schema.add_bool_field(name, searched.clone());
        let flags = [flag("success"), flag("policy_reject"), flag("tls")];
        let mut texts: Vec<_> = crate::history::query::field::TEXTS
            .iter()
            .filter(|name| **name != CITY)
            .map(|name| (*name, schema.add_text_field(column(name), text.clone())))
            .collect();
        let numbers = [
            schema.add_u64_field("asn", searched),
            schema.add_f64_field("latitude", number.clone()),
            schema.add_f64_field("longitude", number.clone()),
        ];
        let kept = schema.add_bytes_field("kept", BytesOptions::default().set_stored());
        let id = schema.add_u64_field("id", NumericOptions::default().set_indexed());
        let time = schema.add_i64_field("time", number);
        let attrs = schema.add_text_field("attrs", text.clone());
        let device_attrs = schema.add_text_field("device_attrs", text.clone());
        let remote = schema.add_ip_addr_field("remote", IpAddrOptions::default().set_indexed().set_fast());
        // What comes later comes last: a field is known by its place, and the days that were written before keep theirs (`grown`).
        texts.push((CITY, schema.add_text_field(column(CITY), text)));
        Self { kept, id, time, texts, attrs, device_attrs, remote, flags, numbers, schema: schema.build() }
    }

    /// The schema that an index of this one is to have from now on: `None` where it has it, an error where it is one of another kind.
    pub(super) fn grown(&self, old: &Schema) -> Result<Option<Schema>, String> {
        let (before, now) = (old.num_fields(), self.schema.num_fields());
        let same = old.fields().zip(self.schema.fields()).all(|((_, old), (_, new))| old == new);
        match before.cmp(&now) {
            _ if !same => Err("its fields are those of another program".to_owned()),
            Ordering::Greater => Err("it was written by a later version of this program".to_owned()),
            Ordering::Equal => Ok(None),
            Ordering::Less => Ok(Some(self.schema.clone())),
        }
    }

    /// The field that this text is in.
    pub(super) fn text(&self, text: &Text) -> Field {
        match text {
            Text::Sub(Group::Attrs, _) => self.attrs,
            Text::Sub(Group::DeviceAttrs, _) => self.device_attrs,
            // Only names of the list are ever made, so the first one never stands in for another.
            Text::Plain(name) => {
                self.texts.iter().find(|(known, _)| known == name).map_or(self.texts[0].1, |(_, field)| *field)
            }
        }
    }

    pub(super) fn group(&self, group: Group) -> Field {
        match group {
            Group::Attrs => self.attrs,
            Group::DeviceAttrs => self.device_attrs,
        }
    }

    pub(super) fn flag(&self, flag: Flag) -> Field {
        self.flags[flag as usize]
    }

    pub(super) fn number(&self, number: Number) -> Field {
        self.numbers[number as usize]
    }

    pub(super) fn remote(&self) -> Field {
        self.remote
    }

    pub(super) fn time(&self) -> Field {
        self.time
    }

    pub(super) fn id(&self) -> Field {
        self.id
    }

    pub(super) fn kept(&self) -> Field {
        self.kept
    }

    /// The term of half of the id. The other half is checked against what is kept, where it matters.
    pub(super) fn id_term(&self, id: &ReportId) -> Term {
        Term::from_field_u64(self.id, half(id))
    }

    /// The report as an index takes it.
    pub(super) fn document(&self, report: &LoginReport) -> Result<TantivyDocument, serde_json::Error> {
        let mut document = TantivyDocument::new();
        document.add_bytes(self.kept, &keep(report)?);
        document.add_u64(self.id, half(&report.id));
        document.add_i64(self.time, report.t.micros());
        let geo = &report.geo;
        for (name, field) in &self.texts {
            let value = match *name {
                "login" => Some(report.login.as_str()),
                "pwhash" => Some(report.pwhash.as_str()),
                "fail_type" => Some(report.fail_type.as_str()),
                "session_id" => Some(report.session_id.as_str()),
                "protocol" => Some(report.protocol.as_str()),
                "device_id" => Some(report.device_id.as_str()),
                "type" => Some(document::TYPE),
                "geoip.country_code2" => geo.country.as_deref(),
                CITY => geo.city.as_deref(),
                _ => geo.as_org.as_deref(),
            };
            if let Some(value) = value {
                document.add_text(*field, value);
            }
        }
        for (key, value) in &report.attrs {
            document.add_text(self.attrs, pair(key, value));
        }
        for (key, values) in &report.attrs_mv {
            for value in values {
                document.add_text(self.attrs, pair(key, value));
            }
        }
        for (key, value) in report.device() {
            document.add_text(self.device_attrs, pair(key, value));
        }
        let remote = match report.remote {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        document.add_ip_addr(self.remote, remote);
        for (field, value) in self.flags.iter().zip([report.success, report.policy_reject, report.tls]) {
            document.add_bool(*field, value);
        }
        if let Some(asn) = geo.asn {
            document.add_u64(self.numbers[0], u64::from(asn));
        }
        if let Some((latitude, longitude)) = geo.location {
            document.add_f64(self.numbers[1], latitude);
            document.add_f64(self.numbers[2], longitude);
        }
        Ok(document)
    }
}

/// The first half of the id as a number.
pub(super) fn half(id: &ReportId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// The term of a key and its value. A NUL in a key would let it pass for another key, so it is replaced.
pub(super) fn pair(key: &str, value: &str) -> String {
    let key: Cow<'_, str> = if key.contains('\0') { key.replace('\0', "\u{fffd}").into() } else { key.into() };
    format!("{key}\0{value}")
}

/// What is kept of a report: names short and empty values left out, since it is most of what lies on disk.
#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    t: i64,
    #[serde(borrow)]
    l: Cow<'a, str>,
    r: IpAddr,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    w: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_zero")]
    b: u8,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    f: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    s: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    p: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    d: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    e: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    a: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    m: Vec<(Cow<'a, str>, Cow<'a, [String]>)>,
    #[serde(default, skip_serializing_if = "is_empty")]
    g: Cow<'a, Geo>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(flags: &u8) -> bool {
    *flags == 0
}

fn is_empty(geo: &Geo) -> bool {
    *geo == Geo::default()
}

fn pairs(all: &[(String, String)]) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    all.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

fn owned(all: Vec<(Cow<'_, str>, Cow<'_, str>)>) -> Vec<(String, String)> {
    all.into_iter().map(|(key, value)| (key.into_owned(), value.into_owned())).collect()
}

fn keep(report: &LoginReport) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = report.id.as_bytes().to_vec();
    let kept = Kept {
        t: report.t.micros(),
        l: report.login.as_str().into(),
        r: report.remote,
        w: report.pwhash.as_str().into(),
        b: u8::from(report.success) | u8::from(report.policy_reject) << 1 | u8::from(report.tls) << 2,
        f: report.fail_type.as_str().into(),
        s: report.session_id.as_str().into(),
        p: report.protocol.as_str().into(),
        d: report.device_id.as_str().into(),
        e: pairs(report.device()),
        a: pairs(&report.attrs),
        m: report.attrs_mv.iter().map(|(key, values)| (key.as_str().into(), values.as_slice().into())).collect(),
        g: Cow::Borrowed(&report.geo),
    };
    serde_json::to_writer(&mut bytes, &kept)?;
    Ok(bytes)
}

/// The id in what was kept.
pub(super) fn kept_id(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..16)
}

/// The report from what was kept.
pub(super) fn unkeep(bytes: &[u8]) -> Result<LoginReport, String> {
    let (id, json) = bytes.split_at_checked(16).ok_or("a document is cut short")?;
    let kept: Kept<'_> = serde_json::from_slice(json).map_err(|error| format!("a document cannot be read: {error}"))?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(LoginReport {
        id: hex.parse().map_err(|_| "a document has no id")?,
        t: Time::from_micros(kept.t),
        login: kept.l.into_owned(),
        remote: kept.r,
        pwhash: kept.w.into_owned(),
        success: kept.b & 1 != 0,
        policy_reject: kept.b & 2 != 0,
        tls: kept.b & 4 != 0,
        fail_type: kept.f.into_owned(),
        session_id: kept.s.into_owned(),
        protocol: kept.p.into_owned(),
        device_id: kept.d.into_owned(),
        device_attrs: owned(kept.e),
        attrs: owned(kept.a),
        attrs_mv: kept.m.into_iter().map(|(key, values)| (key.into_owned(), values.into_owned())).collect(),
        parsed_device: OnceLock::new(),
        geo: kept.g.into_owned(),
    })
}
