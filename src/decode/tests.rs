use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { max_report: 64 * 1024, max_field: 256, max_attrs: 8 };
const SKEW: Duration = Duration::from_secs(600);

fn ok(json: &str) -> Decoded {
    decode(json.as_bytes(), &LIMITS).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn refused(json: &[u8]) -> Malformed {
    match decode(json, &LIMITS) {
        Err(error) => error,
        Ok(_) => panic!("taken: {}", String::from_utf8_lossy(json)),
    }
}

fn received() -> Time {
    Time::from_seconds(1_700_000_000.0).unwrap()
}

#[test]
fn smallest_report_has_the_documented_defaults() {
    let stamped = ok(r#"{"login":"ann","remote":"192.0.2.1"}"#).stamp(received(), SKEW);
    let report = stamped.report;
    assert_eq!((report.t, report.success, report.tls, report.pwhash.as_str()), (received(), false, false, ""));
    assert!(report.attrs.is_empty() && report.device_attrs.is_empty() && !stamped.skewed);
}

#[test]
fn everything_that_wforce_writes_is_read() {
    let decoded = ok(r#"{"attrs":{"cos":"gold","hosts":["a","b"],"n":3,"f":1.5,"b":true,"o":{"x":1},"z":null},
        "device_attrs":{"os.family":"iOS","os.major":12},"device_id":"x","fail_type":"credentials","login":"ann",
        "policy_reject":false,"protocol":"imap","pwhash":"a1b2","remote":"::ffff:192.0.2.9","session_id":"s","success":true,
        "t":1600000000.25,"tls":true,"type":"wforce_report","unknown":[[]]}"#);
    assert_eq!(decoded.dropped, 3, "os.major, o and z");
    let report = decoded.stamp(received(), SKEW).report;
    assert_eq!(report.remote.to_string(), "192.0.2.9", "an IPv4-mapped address folds to IPv4");
    assert_eq!(report.t.seconds(), 1_600_000_000.25);
    let text = |key: &str| report.attrs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    assert_eq!(
        (text("cos"), text("n"), text("f"), text("b"), text("o")),
        (Some("gold"), Some("3"), Some("1.5"), Some("true"), None)
    );
    assert_eq!(report.attrs_mv, [("hosts".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
    assert_eq!(report.device_attrs, [("os.family".to_owned(), "iOS".to_owned())]);
}

#[test]
fn each_malformed_report_is_refused_with_its_field() {
    let long = "x".repeat(300);
    let many: String = (0..9).map(|n| format!("\"k{n}\":\"v\",")).collect();
    let cases: Vec<(String, &str)> = vec![
        (String::new(), ""),
        ("{".into(), ""),
        ("null".into(), ""),
        ("\"text\"".into(), ""),
        (r#"{"login":"a","remote":"192.0.2.1"} x"#.into(), ""),
        (r#"{"remote":"192.0.2.1"}"#.into(), "login"),
        (r#"{"login":"","remote":"192.0.2.1"}"#.into(), "login"),
        (r#"{"login":7,"remote":"192.0.2.1"}"#.into(), "login"),
        (r#"{"login":"a"}"#.into(), "remote"),
        (r#"{"login":"a","remote":"192.0.2.1:25"}"#.into(), "remote"),
        (r#"{"login":"a","remote":"host.example"}"#.into(), "remote"),
        (r#"{"login":"a","remote":"192.0.2.1","success":"true"}"#.into(), "success"),
        (r#"{"login":"a","remote":"192.0.2.1","success":1}"#.into(), "success"),
        (r#"{"login":"a","remote":"192.0.2.1","tls":"no"}"#.into(), "tls"),
        (r#"{"login":"a","remote":"192.0.2.1","t":"2026-01-01T00:00:00Z"}"#.into(), "t"),
        (r#"{"login":"a","remote":"192.0.2.1","t":-5}"#.into(), "t"),
        (r#"{"login":"a","remote":"192.0.2.1","t":1e300}"#.into(), "t"),
        (r#"{"login":"a","remote":"192.0.2.1","attrs":[]}"#.into(), "attrs"),
        (r#"{"login":"a","remote":"192.0.2.1","device_attrs":"x"}"#.into(), "device_attrs"),
        (r#"{"login":"a","remote":"192.0.2.1","attrs":{"k":"1","k":"2"}}"#.into(), "attrs"),
        (r#"{"login":"a","remote":"192.0.2.1","attrs":{"k":"1","k":["2"]}}"#.into(), "attrs"),
        (format!(r#"{{"login":"{long}","remote":"192.0.2.1"}}"#), "login"),
        (format!(r#"{{"login":"a","remote":"192.0.2.1","pwhash":"{long}"}}"#), "pwhash"),
        (format!(r#"{{"login":"a","remote":"192.0.2.1","attrs":{{"{long}":"v"}}}}"#), "attrs"),
        (format!(r#"{{"login":"a","remote":"192.0.2.1","attrs":{{"k":["{long}"]}}}}"#), "attrs"),
        (format!(r#"{{"login":"a","remote":"192.0.2.1","attrs":{{{}}}}}"#, many.trim_end_matches(',')), "attrs"),
    ];
    for (json, field) in cases {
        let error = refused(json.as_bytes());
        assert_eq!(error.field, field, "{json}: {error}");
    }
    assert_eq!(refused(b"{\"login\":\"\xff\",\"remote\":\"192.0.2.1\"}").field, "login");
    assert!(decode(&vec![b' '; 70_000], &LIMITS).unwrap_err().reason.contains("receive.max_report"));
}

#[test]
fn doubled_field_is_refused() {
    assert!(refused(br#"{"login":"a","login":"b","remote":"192.0.2.1"}"#).reason.contains("duplicate field `login`"));
}

#[test]
fn nesting_without_end_is_refused_and_costs_no_stack() {
    let deep = format!(r#"{{"login":"a","remote":"192.0.2.1","attrs":{{"k":{}"#, "[".repeat(30_000));
    assert!(refused(deep.as_bytes()).reason.contains("recursion limit"));
}

#[test]
fn no_error_shows_what_a_field_held() {
    for json in [r#"{"login":"a","remote":"192.0.2.1","tls":"hunter2"}"#, r#"{"login":"a","remote":"hunter2"}"#] {
        assert!(!refused(json.as_bytes()).to_string().contains("hunter2"), "{}", refused(json.as_bytes()));
    }
}

#[test]
fn time_too_far_ahead_is_replaced_and_said() {
    let future = r#"{"login":"a","remote":"192.0.2.1","t":1900000000}"#;
    let stamped = ok(future).stamp(received(), SKEW);
    assert!(stamped.skewed);
    assert_eq!(stamped.report.t, received());
}

#[test]
fn time_that_rounds_to_zero_is_none() {
    let stamped = ok(r#"{"login":"a","remote":"192.0.2.1","t":1e-7}"#).stamp(received(), SKEW);
    assert_eq!(stamped.report.t, received());
}

#[test]
fn no_key_makes_an_error_long() {
    let (long, key) = ("k".repeat(60_000), "k".repeat(200));
    for maps in [
        format!(r#""attrs":{{"{long}":tru"#),
        format!(r#""attrs":{{"{key}":1,"{key}":[2]}}"#),
        format!(r#""device_attrs":{{"{key}":"1","{key}":"2"}}"#),
    ] {
        let error = refused(format!(r#"{{"login":"a","remote":"192.0.2.1",{maps}}}"#).as_bytes()).to_string();
        assert!(error.len() < 200, "{error}");
    }
}

#[test]
fn sender_cannot_choose_the_id_and_the_queue_can() {
    let json = r#"{"id":"000102030405060708090a0b0c0d0e0f","login":"a","remote":"192.0.2.1","t":1}"#;
    let stamped = ok(json).stamp(received(), SKEW);
    assert_ne!(stamped.report.id.to_string(), "000102030405060708090a0b0c0d0e0f");
    let queued = ok(json).from_queue(None, json.as_bytes(), "reports/0/1", received(), SKEW);
    assert_eq!(queued.report.id.to_string(), "000102030405060708090a0b0c0d0e0f");
    let early = ok(json).from_queue(None, json.as_bytes(), "reports/0/1", Time::from_micros(0), Duration::ZERO);
    assert_eq!(
        (early.report.id, early.skewed, early.untimed),
        (queued.report.id, true, false),
        "by a clock that is behind"
    );
}

#[test]
fn report_without_any_time_is_told_from_its_like_by_its_place_in_the_queue() {
    let json = r#"{"login":"a","remote":"192.0.2.1"}"#;
    let id = |place| ok(json).from_queue(None, json.as_bytes(), place, received(), SKEW).report.id;
    assert_ne!(id("reports/0/1"), id("reports/0/2"));
    assert_eq!(id("reports/0/1"), id("reports/0/1"));
}

#[test]
fn report_of_another_program_with_a_time_too_far_ahead_is_the_same_whenever_it_comes() {
    let json = r#"{"login":"a","remote":"192.0.2.1","t":1900000000}"#;
    let at = |seconds| received().plus(Duration::from_secs(seconds));
    let read = |published, received, place| ok(json).from_queue(published, json.as_bytes(), place, received, SKEW);
    let first = read(Some(received()), at(1), "reports/0/1");
    assert_eq!((first.report.t, first.skewed, first.untimed), (received(), true, false));
    assert_eq!(read(Some(received()), at(60), "reports/0/1").report, first.report, "published once, and read twice");
    let resent = read(Some(received()), Time::from_seconds(1.9e9).unwrap(), "reports/0/9");
    assert_eq!(resent.report.id, first.report.id, "a dead letter sent again when its time is no longer ahead");
    let next = read(Some(at(1)), at(60), "reports/0/2");
    assert_ne!(next.report.id, first.report.id, "another login by a clock that stands still");
}

#[test]
fn logins_alike_by_a_message_clock_that_is_missing_or_as_far_ahead_stay_two() {
    let ahead = Time::from_seconds(1.9e9);
    let at = |seconds| received().plus(Duration::from_secs(seconds));
    for (own, published) in [(",\"t\":1900000000", ahead), ("", ahead), (",\"t\":1900000000", None)] {
        let json = format!(r#"{{"login":"a","remote":"192.0.2.1"{own}}}"#);
        let read = |received, place| ok(&json).from_queue(published, json.as_bytes(), place, received, SKEW);
        let (first, second) = (read(at(1), "reports/0/1"), read(at(1), "reports/0/2"));
        assert_ne!(first.report.id, second.report.id, "{json} {published:?}");
        assert_eq!((first.report.t, first.skewed, first.untimed), (at(1), true, true));
        assert_eq!(read(at(60), "reports/0/1").report.id, first.report.id, "{json} {published:?} comes again");
    }
}

/// An object with values of all types, some of which grow when they become text.
fn values() -> impl Strategy<Value = serde_json::Value> {
    let plain = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,9}|[\\x00-\\x1f\"\\\\]{0,9}".prop_map(Into::into),
    ];
    let any = plain.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            inner.prop_map(|inner| serde_json::json!({ "k": inner })),
        ]
    });
    proptest::collection::btree_map("\\PC{0,4}", any, 0..4).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn any_bytes_are_a_report_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes, &LIMITS);
    }

    /// Whatever is taken, of whatever types, is read back as the same report under the same limits, if it is not longer than they say.
    #[test]
    fn what_is_taken_once_is_taken_again(
        t in prop_oneof![Just(0.0), 0.0..1e-5, 0.0..3e9, any::<f64>()],
        device_attrs in values(), attrs in values(), unknown in values(), max_report in 200_usize..4000,
    ) {
        let limits = Limits { max_report, ..LIMITS };
        let json = serde_json::json!({
            "login": "a", "remote": "192.0.2.1", "t": t, "device_attrs": device_attrs, "attrs": attrs, "unknown": unknown,
        });
        let stamped = match decode(json.to_string().as_bytes(), &limits) {
            Ok(decoded) => decoded.stamp(received(), SKEW),
            Err(_) => return Ok(()),
        };
        if stamped.body.len() <= max_report {
            let again = decode(&stamped.body, &limits).map_err(|error| TestCaseError::fail(format!("{json}: {error}")))?;
            prop_assert_eq!(again.dropped, 0);
            let later = received().plus(Duration::from_secs(86_400));
            let read = again.from_queue(Some(later), &stamped.body, "reports/0/1", later, SKEW);
            prop_assert_eq!(read.report, stamped.report);
        }
    }

    /// What `receive` writes into the queue is read back as the same report with the same id, however often.
    #[test]
    fn stamped_report_reads_back_the_same(
        login in "\\PC{1,20}", pwhash in "[0-9a-f]{0,4}", success: bool, t in 1_f64..2e9, v4: [u8; 4],
        attrs in proptest::collection::btree_map("\\PC{1,8}", "\\PC{0,8}", 0..4),
        several in proptest::collection::btree_map("[A-Z]{9}", proptest::collection::vec("\\PC{0,8}", 1..3), 0..2),
    ) {
        let remote = IpAddr::from(v4).to_string();
        let mut all: serde_json::Map<String, serde_json::Value> =
            attrs.into_iter().map(|(key, value)| (key, value.into())).collect();
        all.extend(several.into_iter().map(|(key, values)| (key, values.into())));
        let json = serde_json::json!({ "login": login, "remote": remote, "pwhash": pwhash, "success": success, "t": t, "attrs": all });
        let first = ok(&json.to_string()).stamp(Time::from_seconds(2e9).unwrap(), SKEW);
        let body = first.body.clone();
        let text = String::from_utf8(body.clone()).unwrap();
        let second = ok(&text).from_queue(Some(received()), &body, "reports/0/1", received(), Duration::from_secs(1 << 40)).report;
        prop_assert_eq!(&first.report, &second);
        prop_assert_eq!(second.id, ReportId::of(&second.canonical()));
    }
}
