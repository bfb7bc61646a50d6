//! The four sources, the order among them, and the full text of what is wrong.

mod secrets;

use std::collections::BTreeSet;

use super::*;

/// A file in a folder of its own, so that messages have a short path.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The text without the folder's name.
    fn shorten(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn load(file: Option<&Path>, variables: &[(&str, &str)], sets: &[&str]) -> Result<Config, Errors> {
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Config::load_with(file, variables, &sets)
}

fn told(file: &str, variables: &[(&str, &str)], sets: &[&str]) -> String {
    let folder = Folder::new();
    let path = folder.write("ta.toml", file);
    folder.shorten(&load(Some(&path), variables, sets).unwrap_err().to_string())
}

fn told_set(set: &str) -> String {
    let text = load(None, &[], &[set]).unwrap_err().to_string();
    text.strip_prefix("the configuration has a mistake:\n  ").unwrap_or(&text).to_owned()
}

fn explained<'a>(config: &'a Config, key: &str) -> &'a Explained {
    config.explain().iter().find(|one| one.key == key).unwrap()
}

#[test]
fn duration_that_no_clock_can_tell_is_refused_before_it_is_added_to_now() {
    let error = load(None, &[], &["queue.kafka.revoke_timeout=500000000000years"]).unwrap_err().to_string();
    assert!(error.contains("queue.kafka.revoke_timeout: is too long: 100 years at most"), "{error}");
}

#[test]
fn nothing_given_gives_the_defaults() {
    let config = load(None, &[], &[]).unwrap();
    assert_eq!(config.data_dir, Path::new("./trackalert-data"));
    assert_eq!(config.detect.in_flight, 10_000);
    assert_eq!(config.detect.unsettled_bytes.as_u64(), 256 << 20);
    assert_eq!(config.policy.time_limit, std::time::Duration::from_secs(30));
    // What waits for this program reckons with it: an orchestrator's grace period, and wforce, which gives up after 2 s.
    assert_eq!(config.detect.drain_timeout, std::time::Duration::from_secs(25));
    assert!(config.receive.spool);
    assert_eq!(config.receive.spool_after, std::time::Duration::from_millis(1500));
    // With others, a new version would look for its queues in another place and leave behind what is in the old ones.
    assert_eq!((&*config.queue.reports, &*config.queue.alerts), ("trackalert-reports", "trackalert-alerts"));
    assert_eq!(config.queue.amqp.shards, 0);
    assert!(config.warnings.is_empty());
    assert!(config.explain().iter().all(|one| one.source == "default"), "{:#?}", config.explain());
}

#[test]
fn each_source_wins_over_the_one_before() {
    let folder = Folder::new();
    let path = folder.write("ta.toml", "[detect]\nin_flight = 1\nunsettled = 11\nlogin_backlog = 21\n");
    let env = [("TRACKALERT__DETECT__UNSETTLED", "12"), ("TRACKALERT__DETECT__LOGIN_BACKLOG", "22")];
    let config = load(Some(&path), &env, &["detect.login_backlog=23"]).unwrap();
    assert_eq!((config.detect.in_flight, config.detect.unsettled, config.detect.login_backlog), (1, 12, 23));
    let source = |key| folder.shorten(&explained(&config, key).source);
    assert_eq!(source("detect.in_flight"), "ta.toml:2");
    assert_eq!(source("detect.unsettled"), "TRACKALERT__DETECT__UNSETTLED");
    assert_eq!(source("detect.login_backlog"), "--set detect.login_backlog");
    assert_eq!(source("detect.workers"), "default");
}

#[test]
fn all_mistakes_are_told_at_once_with_their_places() {
    let text = told(
        r#"data_dir = "/var/lib/trackalert"

[http]
lisen = ["127.0.0.1:8085"]
max_connections = "many"
password = 1234
tls_cert = "cert.pem"

[detct]
workers = 2

[queue]
kind = "sqs"

[queue.kafka]
broker = "localhost:9092"

[policy]
breaker = 1.5
time_limit = "soon"
in_flight = 8000

[[notify.channels]]
kind = "webhook"
url = "ftp://example.com/"
secrt = "x"

[[notify.channels]]
kind = "pager"
"#,
        &[("TRACKALERT__RECEIVE__MAX_SKEWED", "1m"), ("TRACKALERT__HISTORY__KIND", "elasticsearch")],
        &["notify.retry_most=0s", "histry.kind=none", "log.format=pretty", "detect"],
    );
    let expected = r#"the configuration has 19 mistakes:
  ta.toml:4: http.lisen: unknown; did you mean http.listen?
  ta.toml:5: http.max_connections: "many" is no whole number, 0 or more
  ta.toml:6: http.password: must be a text; put it in quotes
  ta.toml:7: http.tls_cert: http.tls_key is not set; HTTPS needs both
  ta.toml:10: detct.workers: unknown; did you mean detect.workers?
  ta.toml:13: queue.kind: "sqs" is no kind; use "embedded" or "kafka" or "amqp"
  ta.toml:16: queue.kafka.broker: unknown; did you mean queue.kafka.brokers?
  ta.toml:19: policy.breaker: 1.5 is no share: 0 to 1 (1 turns the breaker off)
  ta.toml:20: policy.time_limit: "soon" is no duration, such as "10s" or "5m"
  ta.toml:21: policy.in_flight: 8000 is out of range: 1 to 4000 (one LuaJIT VM holds about 8,000 references)
  ta.toml:25: notify.channels[0].url: is no address that begins with http:// or https:// and names a host
  ta.toml:26: notify.channels[0].secrt: unknown; did you mean secret?
  ta.toml:29: notify.channels[1].kind: is no kind of channel; use "webhook" (the log has every alert anyhow)
  TRACKALERT__HISTORY__KIND: history.kind: "elasticsearch" is not in this program yet; use "embedded" or "none"
  TRACKALERT__RECEIVE__MAX_SKEWED: receive.max_skewed: unknown; did you mean receive.max_skew?
  --set detect: has no value; write --set section.key=value
  --set histry.kind: unknown; did you mean history.kind?
  --set log.format: "pretty" is no form of the log; use "auto", "text" or "json"
  --set notify.retry_most: must be longer than nothing"#;
    assert_eq!(text, expected);
}

#[test]
fn a_file_that_is_no_toml_is_told_with_line_and_column_and_without_the_line() {
    let text = told("[http]\npassword = \"hunter2\n", &[], &[]);
    assert!(text.contains("ta.toml:2: column 20: not TOML: "), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let text = told("[http]\nmax_headers = 1\nmax_headers = 2\n", &[], &[]);
    assert!(text.contains("ta.toml:3: column 1: not TOML: duplicate key"), "{text}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let text = load(Some(Path::new("nowhere/ta.toml")), &[], &[]).unwrap_err().to_string();
    assert!(text.contains("nowhere/ta.toml: there is no such file; name your configuration with -C FILE"), "{text}");
    let text = load(Some(Path::new("/")), &[], &[]).unwrap_err().to_string();
    assert!(text.contains("/: is a folder"), "{text}");
}

#[test]
fn a_section_written_as_a_value_and_a_value_written_as_a_section_are_told() {
    let text = told("http = 5\n[detect.workers]\nx = 1\n", &[], &[]);
    assert!(text.contains("ta.toml:1: http: is a section; write [http] and its keys below"), "{text}");
    assert!(text.contains("ta.toml:2: detect.workers: a table is no whole number, 0 or more"), "{text}");
    assert!(told_set("http=5").contains("--set http: is a section"));
}

#[test]
fn lists_from_the_environment_are_toml_or_comma_separated() {
    let env =
        [("TRACKALERT__GEOIP__FILES", "a.mmdb, b.mmdb"), ("TRACKALERT__HTTP__LISTEN", r#"["[::1]:1", "127.0.0.1:2"]"#)];
    let config = load(None, &env, &["policy.path="]).unwrap();
    assert_eq!(explained(&config, "geoip.files").value, serde_json::json!(["a.mmdb", "b.mmdb"]));
    assert_eq!(explained(&config, "http.listen").value, serde_json::json!(["[::1]:1", "127.0.0.1:2"]));
    assert_eq!(explained(&config, "policy.path").value, serde_json::json!([]));
    let channels = r#"notify.channels=[{kind = "webhook", url = "http://127.0.0.1:9/x"}]"#;
    let config = load(None, &[], &[channels]).unwrap();
    assert_eq!(config.notify.channels.len(), 1);
}

#[test]
fn a_number_as_password_from_the_environment_is_a_text() {
    let config = load(None, &[("TRACKALERT__HTTP__PASSWORD", "0123")], &[]).unwrap();
    assert_eq!(config.http.password.expose(), "0123");
}

#[test]
fn foreign_variables_with_one_underscore_are_left_alone() {
    let env = [("TRACKALERT_SERVICE_HOST", "10.0.0.1"), ("TRACKALERT_PORT", "tcp://x"), ("PATH", "/bin")];
    assert!(load(None, &env, &[]).is_ok());
}

#[test]
fn the_data_folder_is_what_is_set_else_systemds_else_here() {
    let systemd = [("STATE_DIRECTORY", "/var/lib/trackalert:/var/lib/other")];
    let config = load(None, &systemd, &[]).unwrap();
    assert_eq!(config.data_dir, Path::new("/var/lib/trackalert"));
    assert_eq!(explained(&config, "data_dir").source, "STATE_DIRECTORY");
    assert_eq!(load(None, &systemd, &["data_dir=/srv/ta"]).unwrap().data_dir, Path::new("/srv/ta"));
    assert_eq!(load(None, &[("STATE_DIRECTORY", "")], &[]).unwrap().data_dir, Path::new("./trackalert-data"));
}

#[test]
fn a_broken_list_is_told_with_its_place_and_without_a_word_of_it() {
    let channels = [
        r#"[{kind="webhook",url="https://u:pw@h/",secret="s3cret"}"#,
        r#"[{kind="webhook",url="https://u:pw@h/",secret=s3cret}]"#,
        r#"[{kind="webhook" url="https://u:pw@h/",secret="s3cret"}]"#,
        r#"[{kind="s3cret",url="u:pw@h"}]"#,
        r#"{kind="webhook",url="https://u:pw@h/",secret="s3cret"}"#,
        r#"["https://u:pw@h/", "s3cret"]"#,
        r#"[{kind="webhook",url=["https://u:pw@h/"],secret={a="s3cret"}}]"#,
        r#"[[{kind="webhook",url="https://u:pw@h/",secret="s3cret"}]]"#,
        r#"[{kind="webhook",url="https://u:pw@/",secret="s3cret"}]"#,
        "s3cret pw",
    ];
    for value in channels {
        let set = load(None, &[], &[&format!("notify.channels={value}")]);
        let env = load(None, &[("TRACKALERT__NOTIFY__CHANNELS", value)], &[]);
        let text = told(&format!("notify.channels = {}\n", toml_edit::Value::from(value)), &[], &[]);
        for text in [set.unwrap_err().to_string(), env.unwrap_err().to_string(), text] {
            assert!(!text.contains("s3cret") && !text.contains("pw"), "{value}: {text}");
            assert!(text.contains("notify.channels"), "{value}: {text}");
        }
    }
    assert!(told_set(&format!("notify.channels={}", channels[0])).contains("column 56 of the value: no list as TOML"));
    for value in [r#"["s3cret", "x]"#, r#"[5, "s3cret"]"#, r#"[["s3cret"]]"#] {
        let text = told_set(&format!("receive.webhook_secrets={value}"));
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_told_by_what_the_setting_takes() {
    let text = told(
        "data_dir = 5\n[receive]\nwebhook_secrets = \"hunter2\"\nmax_report = -1\n[geoip]\nfiles = \"a.mmdb\"\n\
         check_every = 60\n[http]\nlisten = [8085]\nmetrics_password = 1\nadmin_password = [\"hunter2\"]\n\
         [notify]\nchannels = \"hunter2\"\n[policy]\nbreaker = \"x\"\nmax_attempts = 1.5\n[queue]\nkind = 3\n",
        &[],
        &[],
    );
    assert_eq!(
        text,
        "the configuration has 12 mistakes:\n  \
         ta.toml:1: data_dir: must be a text: the path of a folder\n  \
         ta.toml:3: receive.webhook_secrets: must be a list of texts, such as [\"one\", \"two\"]\n  \
         ta.toml:4: receive.max_report: -1 is no size, such as \"64 KiB\" or \"2 GiB\"\n  \
         ta.toml:6: geoip.files: \"a.mmdb\" is no list; write it as [\"one\", \"two\"]\n  \
         ta.toml:7: geoip.check_every: 60 is no duration, such as \"10s\" or \"5m\"\n  \
         ta.toml:9: http.listen[0]: 8085 is no text; put it in quotes\n  \
         ta.toml:10: http.metrics_password: 1 is neither true nor false\n  \
         ta.toml:11: http.admin_password: must be a text; put it in quotes\n  \
         ta.toml:13: notify.channels: must be a list of channels; write [[notify.channels]] with kind and url below\n  \
         ta.toml:15: policy.breaker: \"x\" is no number\n  \
         ta.toml:16: policy.max_attempts: 1.5 is no whole number, 0 or more\n  \
         ta.toml:18: queue.kind: 3 is no text; put it in quotes"
    );
}

#[test]
fn values_that_do_not_fit_together_are_told() {
    for (set, expected) in [
        ("detect.unsettled=5", "detect.in_flight (10000) must not be larger than detect.unsettled (5)"),
        ("policy.retry_first=1h", "policy.retry_first (1h) must not be larger than policy.retry_most (10s)"),
        ("receive.max_field=1 MiB", "receive.max_field (1 MiB) must not be larger than receive.max_report (64 KiB)"),
        ("queue.alerts=trackalert-reports", "is the same as queue.reports"),
        ("queue.alerts=a b", "is no name of a queue"),
        ("http.tls_key=k.pem", "http.tls_cert is not set; HTTPS needs both"),
        ("http.listen=localhost", "\"localhost\" is no address with port"),
        ("http.listen=", "names no address"),
        ("http.acl=10.0.0", "\"10.0.0\" is no network"),
        ("http.max_head=1 KiB", "is too small: at least 8.0 KiB"),
        ("queue.kafka.brokers=localhost", "\"localhost\" is no broker, such as \"kafka1:9092\""),
        ("queue.kafka.brokers=", "names no broker"),
        ("queue.kafka.group=", "names no group"),
        ("queue.kafka.partitions=0", "0 is out of range: 1 to 100000"),
        ("queue.kafka.properties=x", "is no table; write"),
        ("queue.kafka.properties={a=[1]}", "a is a list"),
        ("queue.kafka.properties={\"group.id\"=\"x\"}", "group.id is not to be set here: set queue.kafka.group"),
        ("queue.kafka.properties={\"acks\"=\"0\"}", "acks is not to be set here: a promise of the program rests"),
        ("queue.kind=sqs", "\"sqs\" is no kind; use \"embedded\" or \"kafka\" or \"amqp\""),
        ("schedule.election.kind=kubernetes", "not in this program yet; use \"none\""),
        ("log.level=nonsense=loud", "is no level and no filter"),
        ("notify.channels=[1]", "is no channel"),
        ("notify.channels=[{}]", "has no kind"),
        ("notify.channels=[{kind=\"webhook\"}]", "has no url"),
        ("http.acl=", "locks everybody out"),
        ("log.level=wran", "\"wran\" is no level; did you mean \"warn\"?"),
        ("log.level=trackalert", "\"trackalert\" is no level; use error, warn, info"),
        ("log.level=", "\"\" is no level"),
        ("log.format=txt", "\"txt\" is no form of the log; did you mean \"text\"?"),
        ("policy.breaker=nan", "\"nan\" is no number"),
        ("state.handled_for=5", "\"5\" is no duration, such as \"10s\" or \"5m\""),
        ("notify.timeout=99999999999999999999y", "is no duration, such as"),
        ("history.writer_memory=lots", "\"lots\" is no size, such as \"64 KiB\" or \"2 GiB\""),
        ("receive.spool_logins=0", "0 is out of range: 1 to 10000000"),
        ("receive.spool_max_bytes=1", "is too small: at least 1.0 MiB"),
        ("receive.spool_after=1m", "must not be larger than receive.publish_timeout"),
        ("receive.rekey_from=wforce", "it needs queue.kind = \"kafka\""),
        ("receive.rekey_from=a b", "\"a b\" is no name of a queue"),
        ("policy.http.max_answer=1", "is too small: at least 1.0 KiB"),
        ("policy.http.in_flight=0", "0 is out of range: 1 to 100000"),
        ("policy.wforce.servers=w1:8084", "the password is policy.wforce.password"),
        ("policy.wforce.servers=http://w1,http://w2/?x", "the password is policy.wforce.password"),
        ("http.metrics_password=yes", "\"yes\" is neither true nor false"),
        ("detect.workers=-1", "-1 is out of range: 0 to 1024"),
    ] {
        let text = told_set(set);
        assert!(text.starts_with("--set ") && text.contains(expected), "{set}: {text}");
    }
    let text = load(None, &[], &["queue.kind=kafka", "receive.rekey_from=trackalert-reports"]).unwrap_err().to_string();
    assert!(text.contains("is the same as queue.reports"), "{text}");
    assert!(load(None, &[], &["queue.amqp.hold=10m"]).is_ok());
    let text = load(None, &[], &["queue.kind=amqp", "queue.amqp.hold=10m"]).unwrap_err().to_string();
    assert!(load(None, &[], &["queue.kind=amqp", "queue.amqp.hold=30m"]).is_err());
    assert!(text.contains("notify.give_up_after (15m) must not be larger than queue.amqp.hold (10m)"), "{text}");
}

#[test]
fn every_default_is_written_down_and_passes_its_own_checks() {
    let config = load(None, &[], &[]).unwrap();
    // What the structs hold is what the file names: serialized, they give the same keys.
    let mut held = BTreeSet::new();
    collect("", &serde_json::to_value(&config).unwrap(), &mut held);
    let written: BTreeSet<String> = config.explain().iter().map(|one| one.key.clone()).collect();
    let empty = BTreeSet::new();
    assert_eq!(held.difference(&written).cloned().collect::<BTreeSet<_>>(), empty, "held and not written down");
    assert_eq!(written.difference(&held).next(), None, "written down and not held");
}

fn collect(prefix: &str, value: &serde_json::Value, into: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                collect(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, into);
            }
        }
        _ => {
            into.insert(prefix.to_owned());
        }
    }
}

#[test]
fn the_whole_configuration_as_toml_is_read_back_as_the_same() {
    let config = load(None, &[], &["detect.workers=3", "geoip.files=a,b"]).unwrap();
    let text: String = config.explain().iter().map(|one| format!("{} = {}\n", one.key, one.toml())).collect();
    let folder = Folder::new();
    let again = load(Some(&folder.write("ta.toml", &text)), &[], &[]).unwrap();
    assert_eq!(serde_json::to_value(&config).unwrap(), serde_json::to_value(&again).unwrap());
}
