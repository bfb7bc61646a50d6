//! Notify against real HTTP receivers: who is told, how often, and what becomes of an alert that nobody takes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

#[path = "support/memory_state.rs"]
mod memory_state;
#[path = "support/receiver.rs"]
mod receiver;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use memory_state::MemoryState;
use receiver::{Answer, Receiver};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::{mpsc, watch};
use trackalert::alert::Alert;
use trackalert::health::Health;
use trackalert::notify::{ChannelSettings, HookSettings, Notify, NotifyError, Parts, Settings, build_channels};
use trackalert::outbound::Tls;
use trackalert::queue::delivery::ReasonKind;
use trackalert::queue::{AckToken, Delivery, Message, Reason, Settlement, Subscription, Tag, headers};
use trackalert::settings::Secret;
use trackalert::telemetry::Metrics;

const LIMIT: Duration = Duration::from_secs(30);

fn settings(urls: &[&str]) -> Settings {
    let channel = |url: &&str| ChannelSettings {
        kind: "webhook".to_owned(),
        url: (*url).to_owned(),
        secret: Secret::default(),
        secret_file: PathBuf::new(),
    };
    Settings {
        suppress: Duration::from_secs(3600),
        in_flight: 64,
        channel_in_flight: 8,
        custom_in_flight: 0,
        max_attempts: 3,
        give_up_after: LIMIT,
        retry_first: Duration::from_millis(5),
        retry_most: Duration::from_millis(50),
        timeout: Duration::from_secs(10),
        custom_webhooks: Vec::new(),
        channels: urls.iter().map(channel).collect(),
    }
}

/// Notify, fed and settled by hand.
struct Rig {
    deliveries: mpsc::Sender<Delivery>,
    settlements: mpsc::UnboundedReceiver<(Tag, Settlement)>,
    token: mpsc::UnboundedSender<(Tag, Settlement)>,
    pause: watch::Receiver<bool>,
    state: Arc<MemoryState>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    notify: Notify,
    source: tokio::task::AbortHandle,
    sequence: u64,
}

impl Rig {
    fn start(settings: Settings) -> Self {
        Self::on(settings, Arc::default())
    }

    fn on(settings: Settings, state: Arc<MemoryState>) -> Self {
        let (deliveries, receiver) = mpsc::channel(64);
        let (pause, paused) = watch::channel(false);
        let (token, settlements) = mpsc::unbounded_channel();
        let closed = deliveries.clone();
        let source = tokio::spawn(async move { closed.closed().await });
        let abort = source.abort_handle();
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(Health::default()));
        let notify = Notify::start(Parts {
            settings,
            tls: Tls::default(),
            alerts: Subscription { deliveries: receiver, pause, source },
            state: Arc::clone(&state) as _,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
        })
        .unwrap();
        Self {
            deliveries,
            settlements,
            token,
            pause: paused,
            state,
            metrics,
            health,
            notify,
            source: abort,
            sequence: 0,
        }
    }

    async fn hand_out(&mut self, message: Message) -> u64 {
        self.sequence += 1;
        let tag = Tag { lane: 0, generation: 0, sequence: self.sequence };
        let delivery = Delivery {
            message: Arc::new(message),
            redelivered: 0,
            coordinates: format!("alerts/0/{}", self.sequence),
            token: AckToken::new(tag, self.token.clone()),
        };
        self.deliveries.send(delivery).await.unwrap();
        self.sequence
    }

    async fn settlement(&mut self) -> (u64, Settlement) {
        let (tag, settlement) = tokio::time::timeout(LIMIT, self.settlements.recv()).await.unwrap().unwrap();
        (tag.sequence, settlement)
    }

    /// Hands one out and waits for what becomes of it.
    async fn settle(&mut self, message: Message) -> Settlement {
        let sequence = self.hand_out(message).await;
        let (settled, settlement) = self.settlement().await;
        assert_eq!(settled, sequence);
        settlement
    }

    async fn rejected(&mut self, message: Message) -> Reason {
        match self.settle(message).await {
            Settlement::Reject(reason) => reason,
            other => panic!("expected a dead letter, got {other:?}"),
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn alert(id: &str, kind: &str, key: &str, minute: i64) -> Alert {
    let at = jiff::Timestamp::from_second(1_790_000_000 + 60 * minute).unwrap();
    serde_json::from_value(json!({
        "id": id, "time": at.to_string(), "kind": kind, "severity": "high", "title": "alice from elsewhere", "text": "",
        "login": "alice", "remote": "192.0.2.7", "evidence": { "n": 3, "f": 0.1 }, "attack": null, "audience": null,
        "key": key, "policy": "new_origin",
    }))
    .unwrap()
}

fn message(alert: &Alert) -> Message {
    Message::new(alert.key.clone(), serde_json::to_vec(alert).unwrap())
}

fn raised(id: &str, minute: i64) -> Message {
    message(&alert(id, "new_country", "alice", minute))
}

fn only(mut message: Message, names: &str) -> Message {
    message.headers.push((headers::ONLY.to_owned(), names.to_owned()));
    message
}

#[tokio::test]
async fn sent_once_per_window() {
    let receiver = Receiver::start().await;
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    assert_eq!(rig.settle(raised("opener", 0)).await, Settlement::Ack);
    for (id, minute) in [("later", 59), ("earlier", -30)] {
        assert_eq!(rig.settle(raised(id, minute)).await, Settlement::Ack);
    }
    assert_eq!(rig.metrics.suppressed.get(), 2);
    rig.settle(raised("a-window-before", -60)).await;
    rig.settle(message(&alert("other-key", "new_country", "bob", 1))).await;
    rig.settle(message(&alert("other-kind", "dormant", "alice", 1))).await;
    assert_eq!(receiver.ids(), ["opener", "a-window-before", "other-key", "other-kind"]);

    // Across a restart.
    let state = Arc::clone(&rig.state);
    rig.notify.drain(LIMIT).await;
    let mut rig = Rig::on(settings(&[&receiver.url()]), state);
    rig.settle(raised("after-restart", 30)).await;
    rig.settle(raised("next-window", 60)).await;
    // A replay of a month ago beside it has windows of its own and does not close today's.
    rig.settle(raised("replayed", -43_200)).await;
    rig.settle(raised("replayed-again", -43_190)).await;
    rig.settle(raised("today", 70)).await;
    assert_eq!(receiver.ids()[4..], ["next-window", "replayed"]);
}

#[tokio::test]
async fn redelivered_alert_passes_its_own_window() {
    let receiver = Receiver::start().await;
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    rig.settle(raised("opener", 0)).await;
    let state = Arc::clone(&rig.state);
    drop(rig);
    // The process died between the answer and the ack.
    let mut rig = Rig::on(settings(&[&receiver.url()]), state);
    assert_eq!(rig.settle(raised("opener", 0)).await, Settlement::Ack);
    assert_eq!(rig.settle(raised("other", 1)).await, Settlement::Ack);
    assert_eq!(receiver.ids(), ["opener", "opener"]);
}

#[tokio::test]
async fn window_closes_when_its_opener_was_never_delivered() {
    let receiver = Receiver::start().await;
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    receiver.answers(Answer::status(403));
    rig.rejected(raised("refused", 0)).await;
    receiver.answers(Answer::status(200));
    assert_eq!(rig.settle(raised("next", 1)).await, Settlement::Ack);
    assert_eq!(rig.settle(raised("third", 2)).await, Settlement::Ack);
    assert_eq!(receiver.ids(), ["refused", "next"]);
}

#[tokio::test]
async fn same_key_raised_while_the_opener_is_in_flight_is_told_once() {
    let receiver = Receiver::start().await;
    receiver.answers(Answer { after: Duration::from_millis(300), ..Answer::status(200) });
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    let opener = rig.hand_out(raised("opener", 0)).await;
    for n in 0..20 {
        rig.hand_out(raised(&format!("follower-{n}"), n)).await;
    }
    let mut order = Vec::new();
    for _ in 0..21 {
        let (sequence, settlement) = rig.settlement().await;
        assert_eq!(settlement, Settlement::Ack);
        order.push(sequence);
    }
    assert_eq!(order.last(), Some(&opener), "the followers do not wait for the opener's receiver");
    assert_eq!(receiver.ids(), ["opener"]);
}

#[tokio::test]
async fn receiver_down_then_up() {
    let address = Receiver::start().await.address;
    let mut settings = settings(&[&format!("http://{address}/")]);
    settings.max_attempts = 10_000;
    let mut rig = Rig::start(settings);
    rig.hand_out(raised("patient", 0)).await;
    let retries = rig.metrics.retries.with_label_values(&["channel"]);
    until("a retry", || retries.get() >= 2).await;
    let name = format!("webhook:{address}");
    until("the health to name the channel", || rig.health.waiting().contains_key(&name)).await;
    assert!(rig.metrics.render().contains(&format!("trackalert_waiting_for{{dependency=\"{name}\"}} 1")));

    let receiver = Receiver::at(address).await;
    assert_eq!(rig.settlement().await.1, Settlement::Ack);
    assert_eq!(receiver.ids(), ["patient"]);
    assert!(rig.health.waiting().is_empty());
    assert!(rig.metrics.render().contains(&format!("trackalert_waiting_for{{dependency=\"{name}\"}} 0")));
}

#[tokio::test]
async fn receiver_refuses_for_good_becomes_dead_letter() {
    let receiver = Receiver::start().await;
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    let long = format!("no such route /services/T0K3N-of-the-hook\n{}", "x".repeat(5000));
    receiver.answers(Answer { body: long, ..Answer::status(404) });
    let reason = rig.rejected(raised("refused", 0)).await;
    assert_eq!((reason.kind, reason.attempts), (ReasonKind::Channel, 1), "a refusal is not repeated");
    assert_eq!(reason.only, [format!("webhook:{}", receiver.address)]);
    assert!(reason.text.contains("answered 404") && reason.text.contains("no such route"), "{}", reason.text);
    assert!(!reason.text.contains("T0K3N") && !reason.text.contains('\n'), "{}", reason.text);
    assert!(reason.text.len() < 400, "{}", reason.text);

    // A redirect is not followed.
    let elsewhere = Receiver::start().await;
    receiver.answers(Answer { headers: vec![("location", elsewhere.url())], ..Answer::status(307) });
    assert!(rig.rejected(raised("moved", 100)).await.text.contains("redirects are not followed"));
    assert!(elsewhere.requests().is_empty());

    // A receiver that is ill is tried until the last try.
    receiver.answers(Answer::status(503));
    let reason = rig.rejected(raised("ill", 200)).await;
    assert_eq!(reason.attempts, 3);
    assert_eq!(receiver.ids()[2..], ["ill", "ill", "ill"]);
}

#[tokio::test]
async fn one_of_two_channels_fails() {
    let (good, bad) = (Receiver::start().await, Receiver::start().await);
    bad.answers(Answer::status(400));
    let mut rig = Rig::start(settings(&[&good.url(), &bad.url()]));
    let reason = rig.rejected(raised("half", 0)).await;
    let failed = format!("webhook:{}", bad.address);
    assert_eq!(reason.only, std::slice::from_ref(&failed));
    assert_eq!(good.ids(), ["half"]);

    assert_eq!(rig.settle(raised("next", 1)).await, Settlement::Ack, "somebody was told: the window stays");
    assert_eq!(rig.metrics.suppressed.get(), 1);

    bad.answers(Answer::status(200));
    let logged = rig.metrics.sent.with_label_values(&["log"]);
    assert_eq!(logged.get(), 1);
    assert_eq!(rig.settle(only(raised("half", 0), &failed)).await, Settlement::Ack);
    assert_eq!(good.ids(), ["half"], "sent again to the one that failed only");
    assert_eq!(bad.ids(), ["half", "half"]);
    assert_eq!(logged.get(), 1, "logged once");

    let reason = rig.rejected(only(raised("half", 0), "webhook:gone.example")).await;
    assert_eq!(reason.only, ["webhook:gone.example"]);
    assert!(reason.text.contains("no such channel any more"), "{}", reason.text);
}

#[tokio::test]
async fn body_is_the_alert_and_its_signature_verifies() {
    let receiver = Receiver::start().await;
    let mut settings = settings(&[&receiver.url(), &receiver.url()]);
    settings.channels[1].secret = Secret::from("hush-hush".to_owned());
    let mut rig = Rig::start(settings);
    let sent = alert("a1", "new_country", "alice", 0);
    rig.settle(message(&sent)).await;

    let requests = receiver.requests();
    assert_eq!(requests.len(), 2);
    for request in &requests {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body, serde_json::to_value(&sent).unwrap());
        assert_eq!(body.as_object().unwrap().len(), 13, "id time kind severity title text login remote evidence …");
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["idempotency-key"], "a1");
        assert_eq!(request.headers["x-wforce-event"], "alert");
        assert!(request.headers["user-agent"].to_str().unwrap().starts_with("trackalert/"));
    }
    let signed: Vec<_> = requests.iter().filter_map(|r| Some((r, r.headers.get("x-wforce-signature")?))).collect();
    assert_eq!(signed.len(), 1, "only the channel with a secret signs");
    let (request, signature) = signed[0];
    let mut mac = Hmac::<Sha256>::new_from_slice(b"hush-hush").unwrap();
    mac.update(&request.body);
    mac.verify_slice(&BASE64.decode(signature.as_bytes()).unwrap()).unwrap();
}

#[tokio::test]
async fn malformed_alert_becomes_dead_letter_and_the_next_goes_on() {
    let receiver = Receiver::start().await;
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    let broken = |change: fn(&mut Value)| {
        let mut value = serde_json::to_value(alert("a", "k", "x", 0)).unwrap();
        change(&mut value);
        Message::new("x", serde_json::to_vec(&value).unwrap())
    };
    for (message, names) in [
        (Message::new("x", &b"not json"[..]), "not an alert"),
        (broken(|v| v["severity"] = json!("dire")), "severity"),
        (broken(|v| v["time"] = json!("yesterday")), "time"),
        (broken(|v| v["id"] = json!("a\r\nX-Injected: 1")), "id"),
        (broken(|v| drop(v.as_object_mut().unwrap().remove("title"))), "title"),
    ] {
        let reason = rig.rejected(message).await;
        assert_eq!(reason.kind, ReasonKind::Malformed);
        assert!(reason.text.contains(names), "{}", reason.text);
    }
    assert_eq!(rig.settle(raised("good", 0)).await, Settlement::Ack);
    assert_eq!(receiver.ids(), ["good"]);
}

#[tokio::test]
async fn busy_receiver_is_left_alone_as_long_as_it_asks() {
    let receiver = Receiver::start().await;
    receiver.answers(Answer { headers: vec![("retry-after", "1".to_owned())], ..Answer::status(429) });
    let mut settings = settings(&[&receiver.url()]);
    settings.retry_most = Duration::from_secs(20);
    let mut rig = Rig::start(settings);
    let began = Instant::now();
    rig.hand_out(raised("polite", 0)).await;
    until("the first try", || receiver.requests().len() == 1).await;
    receiver.answers(Answer::status(200));
    assert_eq!(rig.settlement().await.1, Settlement::Ack);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(receiver.ids(), ["polite", "polite"]);
}

#[tokio::test]
async fn receiver_that_asks_for_more_than_an_alert_may_wait_makes_a_dead_letter_of_it() {
    let receiver = Receiver::start().await;
    receiver.answers(Answer { headers: vec![("retry-after", "20".to_owned())], ..Answer::status(503) });
    let mut settings = settings(&[&receiver.url()]);
    (settings.retry_most, settings.give_up_after) = (Duration::from_secs(20), Duration::from_secs(15));
    let mut rig = Rig::start(settings);
    let Settlement::Reject(reason) = rig.settle(raised("late", 0)).await else { panic!("it is no dead letter") };
    assert!(reason.kind == ReasonKind::Channel && reason.attempts == 1, "{reason:?}");
    assert!(reason.text.contains("503") && reason.text.contains("notify.give_up_after"), "{reason:?}");
    assert_eq!(receiver.ids(), ["late"]);
}

#[tokio::test]
async fn alerts_that_wait_for_a_receiver_that_hangs_are_given_up_in_time() {
    let receiver = Receiver::start().await;
    receiver.answers(Answer { after: Duration::from_secs(3600), ..Answer::status(200) });
    let mut settings = settings(&[&receiver.url()]);
    (settings.channel_in_flight, settings.max_attempts) = (1, 1000);
    (settings.timeout, settings.give_up_after) = (Duration::from_secs(3), Duration::from_secs(5));
    let mut rig = Rig::start(settings);
    for n in 0..6 {
        rig.hand_out(message(&alert(&format!("a{n}"), "new_country", &format!("login{n}"), 0))).await;
    }
    let mut tried = 0;
    for _ in 0..6 {
        let Settlement::Reject(reason) = rig.settlement().await.1 else { panic!("it is no dead letter") };
        assert!(reason.text.contains("notify.give_up_after"), "{reason:?}");
        tried += reason.attempts as usize;
    }
    assert!(tried < 6, "each had its try: this proves nothing");
    assert_eq!(receiver.ids().len(), tried, "the letters tell of other tries than there were");
}

#[tokio::test]
async fn state_that_is_away_delays_an_alert_and_loses_none() {
    let receiver = Receiver::start().await;
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    rig.state.set_down(true);
    rig.hand_out(raised("waits", 0)).await;
    until("the health to name the state", || rig.health.waiting().contains_key("state (notify)")).await;
    assert!(receiver.requests().is_empty(), "not sent before its window is on disk");
    let waiting = |dependency: &str| rig.metrics.waiting.with_label_values(&[dependency]).get();
    assert_eq!((waiting("state (notify)"), waiting("state")), (1, 0), "detect's word is detect's to take away");
    rig.state.set_down(false);
    assert_eq!(rig.settlement().await.1, Settlement::Ack);
    assert_eq!(rig.metrics.waiting.with_label_values(&["state (notify)"]).get(), 0);
    assert_eq!(receiver.ids(), ["waits"]);
}

#[tokio::test]
async fn drain_finishes_what_is_being_sent_and_hands_back_what_waits() {
    let (slow, down) = (Receiver::start().await, Receiver::start().await);
    slow.answers(Answer { after: Duration::from_millis(400), ..Answer::status(200) });
    let mut rig = Rig::start(settings(&[&slow.url()]));
    let sent = rig.hand_out(raised("being-sent", 0)).await;
    until("the request", || slow.requests().len() == 1).await;
    let paused = rig.pause.clone();
    rig.notify.drain(LIMIT).await;
    assert!(*paused.borrow());
    let (tag, settlement) = rig.settlements.recv().await.unwrap();
    assert_eq!((tag.sequence, settlement), (sent, Settlement::Ack));

    down.answers(Answer::status(500));
    let mut patient = settings(&[&down.url()]);
    (patient.retry_first, patient.retry_most) = (Duration::from_secs(3600), Duration::from_secs(3600));
    patient.give_up_after = Duration::from_secs(7200);
    let mut rig = Rig::start(patient);
    rig.hand_out(raised("waits-an-hour", 0)).await;
    until("the first try", || rig.metrics.retries.with_label_values(&["channel"]).get() == 1).await;
    tokio::time::timeout(Duration::from_secs(5), rig.notify.drain(LIMIT)).await.unwrap();
    assert_eq!(rig.settlements.recv().await.unwrap().1, Settlement::Nack);
}

#[tokio::test]
async fn drain_ends_in_time_though_a_receiver_hangs() {
    let receiver = Receiver::start().await;
    receiver.answers(Answer { after: Duration::from_secs(3600), ..Answer::status(200) });
    let mut rig = Rig::start(settings(&[&receiver.url()]));
    rig.hand_out(raised("hangs", 0)).await;
    until("the request", || receiver.requests().len() == 1).await;
    tokio::time::timeout(Duration::from_secs(8), rig.notify.drain(Duration::from_millis(100))).await.unwrap();
    assert_eq!(rig.settlements.recv().await.unwrap().1, Settlement::Nack);
}

#[tokio::test]
async fn channel_that_is_down_holds_up_no_other() {
    let (good, down) = (Receiver::start().await, Receiver::start().await);
    down.answers(Answer { after: Duration::from_secs(3600), ..Answer::status(200) });
    let mut settings = settings(&[&good.url(), &down.url()]);
    (settings.in_flight, settings.channel_in_flight) = (60, 2);
    let mut rig = Rig::start(settings);
    let told = || good.ids().len();
    for n in 0..50 {
        rig.hand_out(message(&alert(&format!("a{n}"), "new_country", &format!("login{n}"), 0))).await;
    }
    until("all alerts at the receiver that works", || told() == 50).await;
    assert_eq!(down.requests().len(), 2, "tries at once on the channel that hangs");
    assert!(rig.settlements.try_recv().is_err(), "an alert was settled before its last channel was done");
    // And the whole has a bound.
    for n in 50..70 {
        rig.hand_out(message(&alert(&format!("a{n}"), "new_country", &format!("login{n}"), 0))).await;
    }
    until("alerts up to the bound", || told() == 60).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(told(), 60);
}

/// For a custom webhook.
fn for_hook(name: &str, n: usize) -> Message {
    let mut message = Message::new(format!("webhook:{name}"), "{}");
    let headers =
        [(headers::WEBHOOK, name.to_owned()), (headers::ID, format!("{name}{n}")), (headers::TIME, "0".to_owned())];
    message.headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
    message
}

fn hook(name: &str, url: &str) -> HookSettings {
    HookSettings {
        name: name.to_owned(),
        url: url.to_owned(),
        secret: Secret::default(),
        secret_file: PathBuf::new(),
        basic_auth: Secret::default(),
        api_key: Secret::default(),
        content_type: String::new(),
        kafka: false,
    }
}

#[tokio::test]
async fn custom_webhooks_are_bounded_together_where_that_is_set_and_each_for_itself_where_not() {
    for (together, at_once) in [(3, 3), (0, 4)] {
        let receiver = Receiver::start().await;
        receiver.answers(Answer { after: Duration::from_secs(3600), ..Answer::status(200) });
        let custom_webhooks = ["one", "two"].map(|name| hook(name, &receiver.url())).into();
        let mut rig =
            Rig::start(Settings { custom_webhooks, custom_in_flight: together, channel_in_flight: 2, ..settings(&[]) });
        for n in 0..10 {
            rig.hand_out(for_hook("one", n)).await;
            rig.hand_out(for_hook("two", n)).await;
        }
        until("the requests", || receiver.requests().len() == at_once).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(receiver.requests().len(), at_once);
    }
}

#[tokio::test]
async fn alert_that_never_had_a_place_names_the_setting_that_gives_more() {
    for (together, key) in [(1, "notify.custom_in_flight"), (0, "notify.channel_in_flight")] {
        let receiver = Receiver::start().await;
        receiver.answers(Answer { after: Duration::from_secs(3600), ..Answer::status(200) });
        let settings = Settings {
            custom_webhooks: vec![hook("one", &receiver.url())],
            custom_in_flight: together,
            channel_in_flight: 1,
            give_up_after: Duration::from_secs(1),
            ..settings(&[])
        };
        let mut rig = Rig::start(settings);
        rig.hand_out(for_hook("one", 0)).await;
        until("the place to be taken", || receiver.requests().len() == 1).await;
        rig.hand_out(for_hook("one", 1)).await;
        let Settlement::Reject(reason) = rig.settlement().await.1 else { panic!("it is no dead letter") };
        assert!(reason.attempts == 0 && reason.text.contains(key), "{reason:?}");
    }
}

#[tokio::test]
async fn source_that_ends_without_a_drain_is_an_error() {
    let receiver = Receiver::start().await;
    let rig = Rig::start(settings(&[&receiver.url()]));
    assert!(!rig.notify.ended());
    rig.source.abort();
    drop(rig.deliveries);
    until("the end of notify", || rig.notify.ended()).await;
    assert_eq!(rig.health.hung(Duration::ZERO), ["notify"], "livez takes it for done");
    assert_eq!(rig.notify.drain(LIMIT).await, Some(NotifyError::SourceEnded));

    let rig = Rig::start(settings(&[&receiver.url()]));
    let health = Arc::clone(&rig.health);
    assert_eq!(rig.notify.drain(LIMIT).await, None);
    assert!(health.hung(Duration::ZERO).is_empty());
}

#[test]
fn errors_of_the_settings_come_all_at_once_with_their_keys() {
    let mut wrong = settings(&["http://good.example/", "hunter2", "http://good.example/x"]);
    wrong.channels[2].kind = "pigeon".to_owned();
    wrong.max_attempts = 0;
    let errors = build_channels(&wrong, &Tls::default()).unwrap_err();
    for key in ["notify.max_attempts: ", "notify.channels[1].url: ", "notify.channels[2].kind: "] {
        assert!(errors.iter().any(|error| error.starts_with(key)), "{key} in {errors:?}");
    }
    assert_eq!(errors.len(), 3);
    let names = build_channels(&settings(&["http://one.example/a", "http://one.example/b"]), &Tls::default()).unwrap();
    assert_eq!(
        names.iter().map(|channel| channel.name()).collect::<Vec<_>>(),
        ["webhook:one.example", "webhook:one.example#1"]
    );
}
