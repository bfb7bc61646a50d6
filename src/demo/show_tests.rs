//! The whole show against a stand-in for the program: it takes reports as the program does, now and then says "later", and sends the
//! alerts that a model of the policies raises.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;

use super::feed::{connect, exchange, sign};
use super::tests::Model;
use super::traffic::{FEWEST, Generated};
use super::{DemoError, Options, Running, run};
use crate::alert::Alert;
use crate::report::Time;

#[derive(Default)]
struct Seen {
    reports: u64,
    tries: u64,
    out_of_order: usize,
    last: HashMap<String, Time>,
    model: Model,
}

#[derive(Clone)]
struct StandIn {
    secret: String,
    receiver: SocketAddr,
    /// The kind of alert that it does not raise.
    blind: &'static str,
    seen: Arc<Mutex<Seen>>,
}

impl StandIn {
    fn take(&self, body: &[u8]) -> Result<Vec<Alert>, StatusCode> {
        let mut seen = self.seen.lock().unwrap();
        seen.tries += 1;
        if seen.tries.is_multiple_of(1500) {
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        }
        let json: Value = serde_json::from_slice(body).unwrap();
        let login = json["login"].as_str().unwrap().to_owned();
        let t = Time::from_seconds(json["t"].as_f64().unwrap()).unwrap();
        seen.reports += 1;
        if seen.last.insert(login.clone(), t).is_some_and(|last| last > t) {
            seen.out_of_order += 1;
        }
        let (remote, success) = (json["remote"].as_str().unwrap().parse().unwrap(), json["success"] == true);
        let mut alerts = seen.model.report(&Generated { t, login, remote, success, body: Vec::new() });
        alerts.retain(|alert| alert.kind != self.blind);
        Ok(alerts)
    }
}

async fn report(State(program): State<StandIn>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers["x-wforce-event"], "report");
    assert_eq!(headers["x-wforce-signature"].to_str().unwrap(), sign(&program.secret, &body));
    assert!(headers.contains_key("content-length"));
    let alerts = match program.take(&body) {
        Ok(alerts) => alerts,
        Err(status) => return (status, [("retry-after", "0")], "later").into_response(),
    };
    for alert in alerts {
        let body = Bytes::from(serde_json::to_vec(&alert).unwrap());
        let request = Request::post("/alerts").header("host", "x");
        let request = request.header("x-wforce-signature", sign(&program.secret, &body)).body(Full::new(body)).unwrap();
        let mut open = connect(program.receiver).await.unwrap();
        assert_eq!(exchange(&mut open, request).await.unwrap().status, StatusCode::OK);
    }
    (StatusCode::OK, r#"{"status":"ok"}"#).into_response()
}

async fn metrics(State(program): State<StandIn>) -> String {
    let handled = program.seen.lock().unwrap().reports;
    format!(
        "trackalert_handled_reports_total {handled}\ntrackalert_queue_messages{{queue=\"reports\"}} 0\n\
         trackalert_in_flight 0\ntrackalert_unsettled 0\n"
    )
}

async fn demo(blind: &'static str, keep: Option<&Path>) -> (Result<bool, DemoError>, Arc<Mutex<Seen>>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let options = Options { keep: keep.map(Path::to_owned), exit: true, seed: 9, reports: FEWEST };
    let start = async |file: &Path, sets: &[String]| {
        let config: toml_edit::DocumentMut = std::fs::read_to_string(file).unwrap().parse().unwrap();
        let (key, channels) = sets[0].split_once('=').unwrap();
        assert_eq!(key, "notify.channels");
        let channels: toml_edit::Value = channels.parse().unwrap();
        let channel = channels.as_array().unwrap().get(0).unwrap().as_inline_table().unwrap();
        let url = channel["url"].as_str().unwrap();
        let program = StandIn {
            secret: config["receive"]["webhook_secrets"][0].as_str().unwrap().to_owned(),
            receiver: url.strip_prefix("http://").unwrap().strip_suffix("/alerts").unwrap().parse().unwrap(),
            blind,
            seen: Arc::clone(&seen),
        };
        assert_eq!(channel["secret"].as_str(), Some(program.secret.as_str()));
        let listener = tokio::net::TcpListener::bind(config["http"]["listen"][0].as_str().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/command/report", post(report)).route("/metrics", get(metrics));
        let server = tokio::spawn(axum::serve(listener, router.with_state(program)).into_future());
        Ok(Running { address, drain: Box::pin(async move { server.abort() }) })
    };
    (run(options, start).await, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn show_finds_every_story_when_the_program_does_and_sends_each_report_once_and_in_its_logins_order() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let (found, seen) = demo("", Some(&kept)).await;
    assert!(found.unwrap());
    assert!(kept.join("trackalert.toml").is_file() && kept.join("demo-asn.mmdb").is_file());
    {
        let seen = seen.lock().unwrap();
        assert_eq!(seen.out_of_order, 0);
        assert!(seen.reports.abs_diff(FEWEST as u64) * 100 <= FEWEST as u64, "{}", seen.reports);
        assert!(seen.tries > seen.reports, "none was sent again");
    }
    let kept_reports = std::fs::read_to_string(kept.join("reports.ndjson")).unwrap();
    assert_eq!(kept_reports.lines().count() as u64, seen.lock().unwrap().reports);
    let (again, _) = demo("", Some(&kept)).await;
    assert!(matches!(again, Err(DemoError::NotEmpty(_))), "a folder with something in it must not be used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn show_says_so_when_the_program_misses_a_story() {
    let (found, _) = demo("dormant_account", None).await;
    assert!(!found.unwrap());
}

#[tokio::test]
async fn program_that_does_not_start_is_said_with_its_reason() {
    let options = Options { keep: None, exit: true, seed: 1, reports: FEWEST };
    let failed = run(options, async |_: &Path, _: &[String]| Err("the disk is full".to_owned())).await;
    assert_eq!(failed.unwrap_err().to_string(), "the program did not start: the disk is full");
    let few = Options { keep: None, exit: true, seed: 1, reports: 10 };
    let failed = run(few, async |_: &Path, _: &[String]| Err(String::new())).await;
    assert!(matches!(failed, Err(DemoError::TooFew(10))));
}
