//! Reports and searches by chance, the same in every run.

use std::net::Ipv4Addr;

use super::*;

/// A source of choices that is the same in every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len() as u64) as usize]
    }
}

const LOGINS: &[&str] = &["ann", "bob", "bobby", "ça", "dot.ted@example.com", "z"];
const COUNTRIES: &[&str] = &["DE", "FR", "NL"];
const FIELDS: &[&str] = &[
    "login",
    "protocol",
    "fail_type",
    "success",
    "tls",
    "remote",
    "geoip.country_code2",
    "geoip.asn",
    "geoip.latitude",
    "attrs.cos",
    "attrs.list",
    "device_attrs.os.family",
    "@timestamp",
    "t",
    "type",
];

pub(super) fn reports(dice: &mut Dice, count: u64) -> Vec<LoginReport> {
    (0..count)
        .map(|n| {
            // Four days, no two reports in one millisecond, not in order of time.
            let mut one =
                report(dice.pick::<&str>(LOGINS), START + ((n * 7919) % count) as f64 * 4.0 * DAY / count as f64);
            one.t = Time::from_micros(one.t.micros() + dice.roll(900) as i64);
            one.remote = match dice.roll(3) {
                0 => std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, dice.roll(9) as u16).into(),
                _ => Ipv4Addr::new(192, 0, 2, dice.roll(20) as u8).into(),
            };
            one.protocol = (*dice.pick(&["imap", "pop3", ""])).to_owned();
            one.success = dice.roll(3) > 0;
            one.fail_type = if one.success { "" } else { dice.pick(&["credentials", "account"]) }.to_owned();
            if dice.roll(3) > 0 {
                one.geo.country = Some((*dice.pick(COUNTRIES)).to_owned());
                one.geo.asn = Some(64_500 + dice.roll(4) as u32);
                one.geo.location = Some((dice.roll(20) as f64 - 9.5, 8.0));
            }
            if dice.roll(2) == 0 {
                one.attrs.push(("cos".to_owned(), (*dice.pick(&["gold", "silver"])).to_owned()));
            }
            if dice.roll(2) == 0 {
                one.attrs_mv.push(("list".to_owned(), vec!["x".to_owned(), (*dice.pick(&["x", "y"])).to_owned()]));
            }
            if dice.roll(2) == 0 {
                one.device_attrs.push(("os.family".to_owned(), (*dice.pick(&["Linux", "iOS"])).to_owned()));
            }
            one.stamp();
            one
        })
        .collect()
}

pub(super) fn clause(dice: &mut Dice, depth: u64) -> Value {
    let hour = |dice: &mut Dice| (START * 1000.0) as i64 + dice.roll(100) as i64 * 3_600_000;
    match dice.roll(if depth > 2 { 11 } else { 15 }) {
        0 => json!({"term": {"login": dice.pick(LOGINS)}}),
        1 => json!({"terms": {"geoip.country_code2": ["DE", dice.pick(COUNTRIES)]}}),
        2 => json!({"term": {"success": dice.roll(2) == 0}}),
        3 => json!({"term": {"remote": *dice.pick(&["192.0.2.3", "192.0.2.0/29", "2001:db8::/64", "0.0.0.0/0"])}}),
        4 => json!({"range": {"@timestamp": {"gte": hour(dice), "lt": hour(dice)}}}),
        5 => json!({"range": {"@timestamp": {"gt": format!("now-{}h", dice.roll(250)), "lte": "now-7d/d"}}}),
        6 => json!({"range": {"t": {"gt": START + dice.roll(4) as f64 * DAY}}}),
        7 => json!({"range": {"geoip.asn": {"gte": 64_501, "lt": 64_503}}}),
        8 => json!({"exists": {"field": dice.pick(FIELDS)}}),
        9 => {
            json!({"prefix": {*dice.pick(&["login", "attrs.list", "device_attrs.os.family"]): *dice.pick(&["b", "bob", "x", ""])}})
        }
        10 => json!({"range": {"attrs.cos": {"gte": "h"}}}),
        _ => {
            let mut list =
                |most: u64| -> Vec<Value> { (0..dice.roll(most + 1)).map(|_| clause(dice, depth + 1)).collect() };
            let (must, filter, should, none) = (list(2), list(2), list(3), list(1));
            let mut bool = json!({"must": must, "filter": filter, "should": should, "must_not": none});
            if dice.roll(2) == 0 {
                bool["minimum_should_match"] = json!(dice.roll(3));
            }
            json!({ "bool": bool })
        }
    }
}

pub(super) fn aggs(dice: &mut Dice, depth: u64) -> Value {
    let mut all = serde_json::Map::new();
    for n in 0..=dice.roll(2) {
        let field = *dice.pick(FIELDS);
        let (mut agg, buckets) = match dice.roll(7) {
            0 | 1 => {
                let order = *dice.pick(&["_count", "_key"]);
                let order = json!({order: *dice.pick(&["asc", "desc"])});
                let mut terms = json!({"field": field, "size": 1 + dice.roll(12), "order": order, "min_doc_count": 1 + dice.roll(3)});
                if field.starts_with("attrs.") {
                    terms["missing"] = json!("none");
                }
                (json!({ "terms": terms }), true)
            }
            2 => (json!({"cardinality": {"field": field}}), false),
            3 => {
                let width = *dice.pick(&[
                    ("fixed_interval", "5h"),
                    ("calendar_interval", "day"),
                    ("calendar_interval", "month"),
                ]);
                let least = dice.roll(3);
                (json!({"date_histogram": {"field": "@timestamp", width.0: width.1, "min_doc_count": least}}), true)
            }
            4 => {
                let sort = json!([{field: *dice.pick(&["asc", "desc"])}, {"t": "asc"}]);
                (
                    json!({"top_hits": {"size": 1 + dice.roll(4), "from": dice.roll(2), "sort": sort, "_source": false}}),
                    false,
                )
            }
            5 => {
                let metric = *dice.pick(&["min", "max", "stats", "value_count", "avg"]);
                let field = *dice.pick(&["@timestamp", "geoip.asn", "geoip.latitude", "success"]);
                (json!({metric: {"field": field}}), false)
            }
            _ => (json!({"filter": clause(dice, 1)}), true),
        };
        if buckets && depth < 2 && dice.roll(2) == 0 {
            agg["aggs"] = aggs(dice, depth + 1);
        }
        all.insert(format!("a{n}"), agg);
    }
    Value::Object(all)
}
