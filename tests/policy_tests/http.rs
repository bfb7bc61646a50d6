//! What a case of `trackalert test` answers to the HTTP requests of its policy, and which requests it expects: plain examples, and each
//! way in which one is wrong.

use serde_json::Value;

use crate::cases::{QUIET, elements, json, run, site, write};

const ONE: &str = "[[case]]\nname = \"x\"\nreports = [{ login = \"ann\", remote = \"192.0.2.1\" }]\n";

/// Asks whether an address is known to be bad, and tells a ticket system of it.
const ASKS: &str = "function report(lt)
  local answer, why = http.get('https://bad.example/v1', { query = { ip = lt.remote } })
  if not answer then
    alert { kind = 'unknown', title = why }
    return
  end
  local verdict = answer:json() or {}
  if answer.status == 200 and verdict.bad then
    local told, reason = http.post('https://tickets.example/new', nil,
      { headers = { Authorization = 'Bearer T' }, json = { login = lt.login, ip = lt.remote, score = verdict.score } })
    alert { kind = 'bad', title = 'bad', evidence = { ticket = told and told.status, reason = reason, type = answer.headers['content-type'] } }
  end
end";

const ANSWERS: &str = "http = [
  { method = \"GET\", url = { contains = \"bad.example/v1?ip=192.0.2.1\" }, json = { bad = true, score = 0.9 } },
  { method = \"GET\", url = { contains = \"bad.example\" }, json = { bad = false } },
  { url = \"https://tickets.example/new\", status = 201 },
]
";

#[test]
fn given_answers_reach_the_policy_and_the_calls_are_looked_at() {
    let right = "alerts = [{ kind = \"bad\", evidence = { ticket = 201, type = \"application/json\" } }]
calls = [
  { method = \"GET\", url = \"https://bad.example/v1?ip=192.0.2.1\" },
  { method = \"post\", url = { matches = \"/new$\" }, json = { login = \"ann\", score = 0.9 }, headers = { authorization = { contains = \"Bearer\" } } },
  { url = { contains = \"192.0.2.2\" }, body = \"\" },
]
";
    let reports = ONE.replace("}]", "}, { login = \"bob\", remote = \"192.0.2.2\" }]");
    let folder = site(ASKS, &format!("{ANSWERS}{reports}{right}"));
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 0, "{ran}");
    for (from, to, shown) in [
        (
            "score = 0.9 }, headers",
            "score = 0.8 }, headers",
            "differs: call POST https://tickets.example/new, made by report 1 (the start, ./policies/p/tests/cases.toml:8)\n      \
             - json.score  0.8\n      + json.score  0.9\n",
        ),
        (
            "\"Bearer\"",
            "\"Basic\"",
            "- headers.authorization  contains \"Basic\"\n      + headers.authorization  \"Bearer T\"\n",
        ),
        ("\"GET\", url = \"https", "\"PUT\", url = \"https", "- method  \"PUT\"\n      + method  \"GET\"\n"),
        ("body = \"\"", "times = 2", "missing: call\n      - url  contains \"192.0.2.2\"\n"),
        (
            "  { url = { contains = \"192.0.2.2\" }, body = \"\" },\n",
            "",
            "unexpected: call GET https://bad.example/v1?ip=192.0.2.2, made by report 2 (+1s, ./policies/p/tests/cases.toml:8)\n",
        ),
        ("/new$", "/other$", "unexpected: call POST https://tickets.example/new, made by report 1 "),
        ("/new$", "/other$", "      + json.ip     \"192.0.2.1\"\n"),
    ] {
        let changed = right.replace(from, to);
        assert_ne!(changed, right, "{from}");
        write(&folder.path().join("policies/p/tests/cases.toml"), &format!("{ANSWERS}{reports}{changed}"));
        let ran = run(folder.path(), &[]);
        assert!(ran.code == 1 && ran.out.contains(shown), "{to}: {shown} is missing in\n{ran}");
    }
    // Without the key nothing is looked at; an empty list says that nothing may go out.
    for (calls, code) in [("", 0), ("calls = []\n", 1)] {
        let alerts = "alerts = [{ kind = \"bad\" }]\n";
        write(&folder.path().join("policies/p/tests/cases.toml"), &format!("{ANSWERS}{ONE}{alerts}{calls}"));
        let ran = run(folder.path(), &[]);
        assert_eq!(ran.code, code, "{calls}: {ran}");
    }
}

#[test]
fn answer_of_the_case_goes_before_the_files_and_a_sequence_is_given_in_turn() {
    let policy = "function report(lt)
      local answer, why = http.get('http://x.example/')
      alert { kind = 'got', title = answer and answer.body or why, key = lt.id, evidence = { status = answer and answer.status } }
    end";
    let head = "http = [{ url = \"http://x.example\", body = \"the file's\" }]\n";
    let tests = format!(
        "{head}[[case]]\nname = \"x\"\nreports = [{{ login = \"a\", remote = \"::1\", repeat = 5 }}]
http = [
  {{ url = {{ contains = \"x.example\" }}, status = 503, body = \"first\", times = 2, headers = {{ Retry-After = \"5\" }} }},
  {{ url = {{ contains = \"x.example\" }}, error = \"no whole answer within 5s\", times = 1 }},
]
alerts = [
  {{ kind = \"got\", title = \"first\", evidence = {{ status = 503 }}, times = 2 }},
  {{ kind = \"got\", title = \"no whole answer within 5s\", t = \"+2s\" }},
  {{ kind = \"got\", title = \"the file's\", evidence = {{ status = 200 }}, times = 2 }},
]
[[case]]\nname = \"another case begins anew\"\nreports = [{{ login = \"a\", remote = \"::1\" }}]
alerts = [{{ kind = \"got\", title = \"the file's\" }}]\n"
    );
    let folder = site(policy, &tests);
    let ran = run(folder.path(), &[]);
    assert!(ran.code == 0 && ran.out.contains("2 cases: 2 passed"), "{ran}");
}

#[test]
fn request_without_an_answer_fails_the_case_even_where_the_policy_bears_it() {
    let folder = site(ASKS, &format!("{ONE}alerts = [{{ kind = \"unknown\" }}]\n"));
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 1, "{ran}");
    let told = "    unanswered: GET https://bad.example/v1?ip=192.0.2.1, asked by report 1 (the start, ./policies/p/tests/cases.toml:3)\n      \
                no answer in http fits; give one: http = [{ method = \"GET\", url = \"https://bad.example/v1?ip=192.0.2.1\", \
                json = { status = \"ok\" } }]\n";
    assert!(ran.out.contains(told) && !ran.out.contains("unexpected"), "{told} is missing in\n{ran}");

    let (code, answer) = json(folder.path(), &["--junit", "report.xml"]);
    let difference = &answer["cases"][0]["differences"][0];
    assert_eq!(
        (code, difference["kind"].as_str(), difference["fields"].as_array().unwrap().len()),
        (1, Some("unanswered"), 0)
    );
    assert!(difference["text"].as_str().unwrap().contains("give one"), "{answer:#}");
    let all = elements(&std::fs::read_to_string(folder.path().join("report.xml")).unwrap());
    let failure = all.iter().find(|one| one.0 == "failure").unwrap();
    assert_eq!(failure.1["type"], "unanswered");
    assert!(failure.2.contains("unanswered: GET https://bad.example/"), "{failure:?}");

    // A policy that does not bear it: the cause stands beside its failure.
    let folder =
        site("function report(lt) local a = http.get('http://x/') return a.status end", &format!("{ONE}alerts = []\n"));
    let ran = run(folder.path(), &[]);
    for told in [
        "the policy failed on report 1",
        "attempt to index local 'a' (a nil value)",
        "unanswered: GET http://x/, asked by report 1 ",
    ] {
        assert!(ran.code == 1 && ran.out.contains(told), "{told} is missing in\n{ran}");
    }
}

#[test]
fn answer_larger_than_the_policy_may_have_is_no_answer() {
    let policy =
        "function report(lt) local a, why = http.get('http://x/') alert { kind = 'k', title = why or 'all' } end";
    let tests = format!(
        "http = [{{ url = \"http://x/\", body = \"{}\" }}]\n{ONE}alerts = [{{ kind = \"k\", title = \"all\" }}]\n",
        "x".repeat(1025)
    );
    let folder = site(policy, &tests);
    assert_eq!(run(folder.path(), &[]).code, 0);
    let ran = run(folder.path(), &["--set", "policy.http.max_answer=1 KiB"]);
    let told = "+ title  \"the answer of x is larger than policy.http.max_answer (1.0 KiB)\"";
    assert!(ran.code == 1 && ran.out.contains(told), "{told} is missing in\n{ran}");
}

#[test]
fn wforce_goes_by_the_same_answers_on_a_server_of_its_own_or_those_of_the_configuration() {
    let policy = "function report(lt)
      local verdict = wforce.allow { login = lt.login, remote = lt.remote }
      if verdict.status < 0 then
        local done, why = wforce.addBLEntry { ip = lt.remote, expire_secs = 60, reason = 'test' }
        alert { kind = 'blocked', title = why or 'done' }
      end
    end";
    let tests = |server: &str, times: usize| {
        format!(
            "http = [
  {{ url = \"{server}/?command=allow\", json = {{ status = -1, msg = \"no\" }} }},
  {{ url = {{ contains = \"command=addBLEntry\" }}, json = {{ status = \"ok\" }} }},
]
{ONE}alerts = [{{ kind = \"blocked\", title = \"done\" }}]
calls = [
  {{ method = \"POST\", url = \"{server}/?command=allow\", json = {{ login = \"ann\" }} }},
  {{ url = {{ contains = \"/?command=addBLEntry\" }}, json = {{ ip = \"192.0.2.1\", expire_secs = 60 }}, times = {times} }},
]\n"
        )
    };
    let folder = site(policy, &tests("http://wforce.test", 1));
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 0, "{ran}");
    // Each server of the configuration is told.
    write(&folder.path().join("policies/p/tests/cases.toml"), &tests("http://one.example:8084", 2));
    let servers = "policy.wforce.servers=[\"http://one.example:8084\", \"http://two.example:8084\"]";
    let ran = run(folder.path(), &["--set", servers]);
    assert_eq!(ran.code, 0, "{ran}");
}

#[test]
fn each_mistake_in_answers_and_calls_is_told_with_its_line() {
    let one = format!("{ONE}alerts = []\n");
    for (tests, line, expected) in [
        (
            format!("{one}http = [{{ url = \"http://x/\", body = \"\", json = 1 }}]\n"),
            ":5:",
            "http: json: body is given too",
        ),
        (
            format!("{one}http = [{{ url = \"http://x/\" }},\n{{ url = \"http://x/\", status = 600 }}]\n"),
            ":6:",
            "http: status: a number",
        ),
        (format!("http = [{{ url = \"http://x/\", times = 0 }}]\n{one}"), ":1:", "http: times: at least 1"),
        (format!("http = [{{ url = \"http://x/\", error = \"x\", body = \"y\" }}]\n{one}"), ":1:", "http: error: "),
        (
            format!("{one}http = [{{ url = \"http://x/\", headers = {{ \"a:\" = \"b\" }} }}]\n"),
            ":5:",
            "http: headers.a:: is no name",
        ),
        (format!("{one}http = [{{ url = \"x.example/a\" }}]\n"), ":5:", "http: url: \"x.example/a\": not a URL"),
        (format!("{one}http = [{{ status = 200 }}]\n"), ":5:", "missing field `url`"),
        (format!("{one}http = [{{ url = \"http://x/\", boddy = \"\" }}]\n"), ":5:", "unknown field `boddy`"),
        (format!("{one}http = [{{ url = {{ contain = \"x\" }} }}]\n"), ":5:", "unknown field `contain`"),
        (format!("{one}calls = [{{ url = \"x\" }}]\n"), ":5:", "calls: url: \"x\": not a URL"),
        (
            format!("{one}calls = [{{ url = \"http://x/\", method = \"BREW\" }}]\n"),
            ":5:",
            "calls: method: \"BREW\" is none of GET, ",
        ),
        (format!("{one}calls = [{{ url = \"http://x/\", times = 0 }}]\n"), ":5:", "calls: times: 1 to 10000 calls"),
        (
            format!("{one}calls = [{{ url = \"http://x/\", headers = {{ \"\" = \"x\" }} }}]\n"),
            ":5:",
            "calls: headers.: is no name",
        ),
        (format!("{one}calls = [{{ url = \"http://x/\", status = 1 }}]\n"), ":5:", "unknown field `status`"),
        (format!("{one}webhooks = [{{ name = \"x\" }}]\n"), ":5:", "webhooks: only an old configuration runs webhooks"),
    ] {
        let folder = site(QUIET, &tests);
        let ran = run(folder.path(), &[]);
        let told = format!("BROKEN  ./policies/p/tests/cases.toml{line}");
        let all = ran.out.contains(&told) && ran.out.contains(expected);
        assert!(ran.code == 2 && all, "{tests}: {told} {expected} is missing in\n{ran}");
    }
    let folder = site(QUIET, &format!("{one}webhooks = []\ncalls = []\n"));
    assert_eq!(run(folder.path(), &[]).code, 0, "an empty list of webhooks may stand in any case");
}

#[test]
fn device_is_read_as_the_program_reads_it_where_the_report_has_no_device_attrs() {
    let policy = "function report(lt)
      alert { kind = 'device', title = lt.protocol, key = lt.id, evidence = {
        browser = lt.device_attrs['browser.family'], client = lt.device_attrs['imapc.family'], app = lt.device_attrs['app.name'] } }
    end";
    let tests = "[[case]]\nname = \"x\"\ndefaults = { login = \"a\", remote = \"::1\" }\nreports = [
  { protocol = \"http\", device_id = \"Mozilla/5.0 Firefox/68.0\" },
  { protocol = \"http\", device_id = \"Mozilla/5.0 Firefox/68.0\", device_attrs = { \"browser.family\" = \"given\" } },
  { protocol = \"imap\", device_id = '\"name\" \"Mail\" \"version\" \"11.2\"' },
  { protocol = \"mobileapi\", device_id = \"App/2.1 (iOS 17.1; iPhone15,2)\" },
]\nalerts = [
  { kind = \"device\", title = \"http\", evidence = { browser = \"Known\" } },
  { kind = \"device\", title = \"http\", evidence = { browser = \"given\" } },
  { kind = \"device\", title = \"imap\", evidence = { client = \"Mail\" } },
  { kind = \"device\", title = \"mobileapi\", evidence = { app = \"App\" } },
]\n";
    let folder = site(policy, tests);
    let at = folder.path();
    write(
        &at.join("regexes.yaml"),
        "user_agent_parsers:\n  - regex: 'Firefox/(\\d+)'\n    family_replacement: 'Known'\nos_parsers: []\ndevice_parsers: []\n",
    );
    let ran = run(at, &["-R", "regexes.yaml"]);
    assert_eq!(ran.code, 0, "{ran}");
    // Without regexes the rest is read, and it is said what is missing.
    let ran = run(at, &["-R", "none.yaml"]);
    assert!(
        ran.code == 1 && ran.out.contains("- evidence.browser  \"Known\"\n      + evidence.browser  nothing"),
        "{ran}"
    );
    assert_eq!(ran.out.matches("differs: ").count(), 1, "{ran}");
    assert!(ran.err.contains("no regexes to read it by (detect.device_regexes)"), "{ran}");
    // A file that is named and broken is told, and not passed over.
    write(&at.join("regexes.yaml"), "user_agent_parsers: [");
    let ran = run(at, &["-R", "regexes.yaml"]);
    assert!(ran.code == 2 && ran.err.contains("detect.device_regexes: regexes.yaml: "), "{ran}");
    // Who has no device has nothing to do with them.
    let folder = site(QUIET, &format!("{ONE}alerts = []\n"));
    write(&folder.path().join("regexes.yaml"), "user_agent_parsers: [");
    assert_eq!(run(folder.path(), &["-R", "regexes.yaml"]).code, 0);
}

#[test]
fn flood_of_requests_is_listed_in_part() {
    let policy = "function report(lt) for i = 1, 60 do http.get('http://x/' .. i) end end";
    let folder = site(policy, &format!("{ONE}alerts = []\ncalls = []\n"));
    let (code, answer) = json(folder.path(), &[]);
    let titles: Vec<&str> =
        answer["cases"][0]["differences"].as_array().unwrap().iter().filter_map(|one| one["title"].as_str()).collect();
    assert_eq!((code, titles.len()), (1, 42), "{titles:?}");
    assert_eq!((titles[20], titles[41]), ("40 more such requests", "40 more such calls"));
    assert_eq!(answer["cases"][0]["log"], Value::Array(Vec::new()));
}
