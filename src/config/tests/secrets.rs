//! Secrets: where they come from, what is wrong with one, and that nothing shows one.

use super::*;

#[test]
fn a_secret_comes_from_a_file_without_its_last_line_end() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let secret = folder.write("password", " pass word \n");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let hooks = folder.write("hooks", "new\n\nold\r\n");
    std::fs::set_permissions(&hooks, PermissionsExt::from_mode(0o644)).unwrap();
    let file = folder.write(
        "ta.toml",
        &format!("http.password_file = {secret:?}\nreceive.webhook_secrets_file = {hooks:?}\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://localhost/\"\nsecret_file = {secret:?}\n"),
    );
    let config = load(Some(&file), &[], &[]).unwrap();
    assert_eq!(config.http.password.expose(), " pass word ");
    assert_eq!(
        config.receive.webhook_secrets.iter().map(|s| s.expose().to_owned()).collect::<Vec<_>>(),
        ["new", "old"]
    );
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let warning = folder.shorten(&config.warnings[0].to_string());
    assert_eq!(
        warning,
        "ta.toml:2: receive.webhook_secrets_file: every user of this machine can read hooks; chmod o-r hooks"
    );
    let source = folder.shorten(&explained(&config, "http.password").source);
    assert_eq!(source, "password, named by http.password_file (ta.toml:1)");
}

#[test]
fn a_secret_set_twice_or_in_a_bad_file_is_told() {
    let folder = Folder::new();
    let empty = folder.write("empty", "\n");
    let large = folder.write("large", &"x".repeat(70_000));
    let file = folder.write(
        "ta.toml",
        &format!("[http]\npassword = \"hunter2\"\npassword_file = {empty:?}\nadmin_password_file = {empty:?}\n[receive]\nwebhook_secrets_file = {large:?}\n"),
    );
    let text = folder.shorten(&load(Some(&file), &[], &[]).unwrap_err().to_string());
    assert_eq!(
        text,
        "the configuration has 3 mistakes:\n  \
         ta.toml:3: http.password_file: password is set too (ta.toml:2); set one of the two\n  \
         ta.toml:4: http.admin_password_file: empty is empty; write the secret into it\n  \
         ta.toml:6: receive.webhook_secrets_file: large: has more than 65536 bytes; that is no secret"
    );
    assert_eq!(
        told_set("http.password_file=/nowhere/x"),
        "--set http.password_file: /nowhere/x: there is no such file"
    );
}

#[test]
fn no_secret_is_shown_by_anything_that_prints_a_configuration() {
    let sets = [
        "http.password=hunter2",
        "http.admin_password=hunter2",
        "receive.webhook_secrets=hunter2,hunter2",
        r#"notify.channels=[{kind="webhook", url="https://u:hunter2@chat.example/hooks/hunter2?t=hunter2", secret="hunter2"}]"#,
    ];
    let config = load(None, &[], &sets).unwrap();
    for one in config.explain() {
        assert!(!one.toml().contains("hunter2"), "{one:?}");
    }
    assert_eq!(explained(&config, "http.password").toml(), "\"********\"");
    assert_eq!(explained(&config, "receive.webhook_secrets").toml(), r#"["********", "********"]"#);
    let channel = explained(&config, "notify.channels").toml();
    assert!(channel.contains(r#"url = "https://********@chat.example/hooks/********""#), "{channel}");
    let bad =
        load(None, &[], &["receive.webhook_secrets=hunter2", "detect.workers=x", "receive.webhook_secrets_file=/x"]);
    assert!(!bad.unwrap_err().to_string().contains("hunter2"));
}

#[test]
fn the_mask_of_a_secret_is_no_secret() {
    for set in [
        "http.password=********",
        "receive.webhook_secrets=a,********",
        r#"notify.channels=[{kind="webhook", url="http://h/", secret="********"}]"#,
    ] {
        assert!(told_set(set).contains("is the mask that stands for a secret"), "{set}: {}", told_set(set));
    }
    let url = r#"notify.channels=[{kind="webhook", url="http://********@h/"}]"#;
    assert!(told_set(url).contains("notify.channels: has a mask in place of its secret part"));
}

#[test]
fn what_is_masked_says_so_and_a_channel_whose_secret_lies_in_a_file_needs_no_mask() {
    let folder = Folder::new();
    let secret = folder.write("secret", "hunter2\n");
    let channel = |more: &str| format!("notify.channels=[{{kind=\"webhook\", url=\"http://h/x\", {more}}}]");
    let of = |set: String| explained(&load(None, &[], &[&set]).unwrap(), "notify.channels").clone();
    let plain = of(channel("secret=\"hunter2\""));
    assert!(plain.masked && !plain.toml().contains("hunter2"), "{plain:?}");
    let from_file = of(channel(&format!("secret_file={secret:?}")));
    assert!(!from_file.masked && from_file.toml().contains("secret = \"\""), "{from_file:?}");
    assert!(load(None, &[], &[&format!("notify.channels={}", from_file.toml())]).is_ok());
}

#[test]
fn a_secret_in_a_file_that_everybody_can_read_is_warned_of_once() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let file = folder.write("ta.toml", "[http]\nadmin_password = \"a\"\npassword = \"b\"\n");
    let warnings = |mode| {
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        let config = load(Some(&file), &[("TRACKALERT__RECEIVE__WEBHOOK_SECRETS", "c")], &[]).unwrap();
        config.warnings.iter().map(|warning| folder.shorten(&warning.to_string())).collect::<Vec<_>>()
    };
    let expected = "ta.toml:3: http.password: a secret that every user of this machine can read; chmod o-r ta.toml";
    assert_eq!(warnings(0o644), [expected]);
    assert_eq!(warnings(0o640), [""; 0]);
    let url = folder.write("url.toml", "[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://u:p@h/\"\n");
    std::fs::set_permissions(&url, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(load(Some(&url), &[], &[]).unwrap().warnings[0].key, "notify.channels[0].url");
    let none = folder.write("none.toml", "[http]\npassword = \"\"\n");
    std::fs::set_permissions(&none, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(load(Some(&none), &[], &[]).unwrap().warnings, []);
}

#[test]
fn properties_of_the_kafka_client_are_taken_and_their_secrets_masked() {
    let folder = Folder::new();
    let text = "[queue]\nkafka.password = \"hunter2\"\n[queue.kafka.properties]\nsecurity.protocol = \"SASL_SSL\"\n\"ssl.key.password\" = \"hunter3\"\nssl.key.pem = \"hunter4\"\nretries = 5\n";
    let config = load(Some(&folder.write("ta.toml", text)), &[], &[]).unwrap();
    let flat = config.queue.kafka.properties.flat().unwrap();
    assert!(flat.contains(&("security.protocol".to_owned(), "SASL_SSL".to_owned())), "{flat:?}");
    assert!(flat.contains(&("ssl.key.pem".to_owned(), "hunter4".to_owned())), "{flat:?}");
    assert!(flat.contains(&("retries".to_owned(), "5".to_owned())), "{flat:?}");
    let shown = explained(&config, "queue.kafka.properties");
    assert!(shown.masked && shown.toml().contains("SASL_SSL"), "{}", shown.toml());
    let printed = format!("{config:?}{}{}", serde_json::to_string(&config).unwrap(), shown.toml());
    assert!(!printed.contains("hunter"), "a secret is shown");
    let refused = told("[queue.kafka.properties]\nsasl.password = \"hunter2\"\n", &[], &[]);
    assert!(refused.contains("set queue.kafka.password") && !refused.contains("hunter2"), "{refused}");
}

#[test]
fn password_in_the_address_of_a_wforce_server_is_refused_and_not_shown() {
    let text = load(None, &[], &["policy.wforce.servers=http://wforce:s3cret@w1:8084"]).unwrap_err().to_string();
    assert!(text.contains("policy.wforce.servers: is no address") && !text.contains("s3cret"), "{text}");
    let config = load(None, &[], &["policy.wforce.servers=http://w1:8084", "policy.wforce.password=s3cret"]).unwrap();
    assert_eq!(config.policy.wforce.password.expose(), "s3cret");
    assert!(!format!("{config:?}{:?}", config.explain()).contains("s3cret"));
}

#[test]
fn queues_on_amqp_need_an_address_and_nothing_shows_it() {
    let told = |sets: &[&str]| load(None, &[], &[&["queue.kind=amqp"], sets].concat()).unwrap_err().to_string();
    if !cfg!(feature = "amqp") {
        assert!(told(&[]).contains("build it with the cargo feature \"amqp\""), "{}", told(&[]));
        return;
    }
    assert!(told(&[]).contains("queue.amqp.url: is not set"), "{}", told(&[]));
    for url in ["http://s3cret@host/", "s3cret", "amqp:"] {
        let text = told(&[&format!("queue.amqp.url={url}")]);
        assert!(text.contains("is no address such as") && !text.contains("s3cret"), "{text}");
    }
    let text = told(&["queue.amqp.url=amqp://ann:s3cret@host", "queue.amqp.password=other"]);
    assert!(text.contains("set one of the two") && !text.contains("s3cret"), "{text}");
    let text = told(&["queue.amqp.url=amqp://ann:s3cret@[2001:db8::7]:5672/mail"]);
    assert!(text.contains("has an IPv6 address") && !text.contains("s3cret"), "{text}");
    let url = "queue.amqp.url=amqp://ann@host";
    for (set, said) in [
        ("queue.amqp.client_cert=/c.pem", "needs queue.amqp.client_key as well"),
        ("queue.amqp.ca_file=/ca.pem", "write amqps:// in queue.amqp.url"),
        ("queue.amqp.management_url=host:15672", "is no address such as"),
        ("queue.amqp.management_url=http://ann:s3cret@host", "are those of queue.amqp.url"),
        ("queue.amqp.member_timeout=900ms", "is too short: 1s at least"),
        ("queue.amqp.shards=1001", "1001 is out of range: 0 to 1000"),
    ] {
        let text = told(&[url, set]);
        assert!(text.contains(said) && !text.contains("s3cret"), "{text}");
    }
    let folder = Folder::new();
    let file = format!("queue.amqp.url_file={}", folder.write("url", "amqp://ann:s3cret@host/mail\n").display());
    let config = load(None, &[], &["queue.kind=amqp", &file]).unwrap();
    assert_eq!(config.queue.amqp.url.expose(), "amqp://ann:s3cret@host/mail");
    assert!(!format!("{config:?}{:?}", config.explain()).contains("s3cret"));
}
