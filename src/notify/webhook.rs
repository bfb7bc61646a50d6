//! One alert as one HTTP POST, with wforce's signed headers.
//!
//! Owns the request, what its answer means, and that no part of the URL but the host comes into a log, a name or a dead letter: the
//! path and query of a chat service's webhook are its password. Follows no redirect: it would hand the alert, and its signature, to
//! somebody whom the settings do not name.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use sha2::{Digest, Sha256};

use super::channel::{ChannelSettings, Post, SendError};
use super::custom;
use super::custom::HookSettings;
use super::render::printable;
use crate::outbound::{self, Tls};
use crate::report::Time;
use crate::settings::Secret;

/// What of an answer is told to people, in characters.
const TOLD: usize = 200;
/// What of an answer is read so that the connection can be used again; a longer one closes it.
const READ: usize = 64 * 1024;

/// A receiver of alerts over HTTP.
pub struct Webhook {
    name: String,
    hook: String,
    address: Address,
    secret: Secret,
    client: Client,
    timeout: Duration,
    form: Form,
}

/// Where it leads.
enum Address {
    Url(Url),
    /// A custom webhook's, with `%{YYYY}`, `%{MM}` or `%{dd}` in it.
    Dated(String),
}

impl Address {
    fn at(&self, time: Time) -> Result<Url, String> {
        match self {
            Self::Url(url) => Ok(url.clone()),
            Self::Dated(text) => custom::dated(text, time).parse().map_err(|error| format!("not a URL: {error}")),
        }
    }
}

/// What its requests have besides the signed headers.
pub(super) struct Form {
    /// `X-Wforce-Event`.
    pub(super) event: HeaderValue,
    pub(super) content_type: HeaderValue,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) api_key: Option<HeaderValue>,
    /// What the headers and the URL say in another form: the password itself, and user and password in base64.
    pub(super) plain: Vec<Secret>,
    /// The body goes as one record of the Kafka REST form.
    pub(super) kafka: bool,
}

impl fmt::Debug for Webhook {
    /// Its name says the host, and that is all of the URL that is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("name", &self.name).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Webhook {
    /// `path` is the key of its settings, for errors; `taken` says which names other channels have.
    pub(super) fn new(
        path: &str,
        index: usize,
        settings: &ChannelSettings,
        timeout: Duration,
        tls: &Tls,
        taken: impl Fn(&str) -> bool,
    ) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let url = address(&settings.url).map_err(|why| errors.push(format!("{path}.url: {why}"))).ok();
        // The configuration has read the file into `secret`. Without that the alerts would go out unsigned, and be refused.
        if settings.secret.is_empty() && !settings.secret_file.as_os_str().is_empty() {
            errors.push(format!("{path}.secret_file: {} was not read", settings.secret_file.display()));
        }
        let client = url.as_ref().and_then(|url| {
            let built = client(url, timeout, tls);
            built.map_err(|error| errors.push(format!("{path}: cannot set up HTTP: {}", outbound::words(error)))).ok()
        });
        let (Some(url), Some(client), true) = (url, client, errors.is_empty()) else {
            return Err(errors);
        };
        let form = Form {
            event: HeaderValue::from_static("alert"),
            content_type: HeaderValue::from_static("application/json"),
            authorization: None,
            api_key: None,
            plain: login(&url),
            kafka: false,
        };
        let mut name = format!("webhook:{}", outbound::host(&url));
        if taken(&name) {
            name = format!("{name}#{index}");
        }
        let (hook, secret, address) = (index.to_string(), settings.secret.clone(), Address::Url(url));
        Ok(Self { name, hook, address, secret, client, timeout, form })
    }

    /// The custom webhook of these settings, whose key is `path`.
    pub(super) fn custom(
        path: &str,
        index: usize,
        settings: &HookSettings,
        timeout: Duration,
        tls: &Tls,
    ) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let sample = custom::dated(&settings.url, Time::from_micros(0));
        let url = address(&sample).map_err(|why| errors.push(format!("{path}.url: {why}"))).ok();
        if settings.secret.is_empty() && !settings.secret_file.as_os_str().is_empty() {
            errors.push(format!("{path}.secret_file: {} was not read", settings.secret_file.display()));
        }
        let form = settings.form().map_err(|why| errors.push(format!("{path}.{why}"))).ok();
        let client = url.as_ref().and_then(|url| {
            let built = client(url, timeout, tls);
            built.map_err(|error| errors.push(format!("{path}: cannot set up HTTP: {}", outbound::words(error)))).ok()
        });
        let (Some(url), Some(client), Some(mut form), true) = (url, client, form, errors.is_empty()) else {
            return Err(errors);
        };
        form.plain.extend(login(&url));
        let address = if sample == settings.url { Address::Url(url) } else { Address::Dated(settings.url.clone()) };
        let (name, hook, secret) = (custom::channel(&settings.name), index.to_string(), settings.secret.clone());
        Ok(Self { name, hook, address, secret, client, timeout, form })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn send(&self, post: &Post) -> Result<(), SendError> {
        let never = |said| SendError { again: false, wait: None, said };
        let url = self.address.at(post.time).map_err(never)?;
        let body = if self.form.kafka { custom::record(&post.body).map_err(never)? } else { post.body.clone() };
        let mut request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, self.form.content_type.clone())
            .header("Idempotency-Key", &post.id)
            .header("X-Wforce-Event", self.form.event.clone())
            .header("X-Wforce-HookID", &self.hook)
            .header("X-Wforce-Delivery", BASE64.encode(Sha256::digest(&body)));
        let more = [(AUTHORIZATION, &self.form.authorization), (custom::API_KEY, &self.form.api_key)];
        for (name, value) in more.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))) {
            request = request.header(name, value);
        }
        if let Some(signature) = sign(&self.secret, &body) {
            request = request.header("X-Wforce-Signature", signature);
        }
        let again = |said| SendError { again: true, wait: None, said };
        let answer = request.body(body).send().await.map_err(|error| again(self.words(error, post.time)))?;
        let (status, wait) = (answer.status(), retry_after(answer.headers()));
        let text = read(answer).await;
        if status.is_success() {
            return Ok(());
        }
        let text = printable(&self.conceal(&text, post.time), TOLD);
        let hint = if status.is_redirection() { " (redirects are not followed: name the new address)" } else { "" };
        Err(SendError {
            again: worth_another_try(status),
            wait,
            said: format!("answered {status}{hint}{}{text}", if text.is_empty() { "" } else { ": " }),
        })
    }

    /// What went wrong before there was an answer, without the URL.
    fn words(&self, error: reqwest::Error, time: Time) -> String {
        if error.is_timeout() && !error.is_connect() {
            return format!("no answer within notify.timeout ({:?})", self.timeout);
        }
        printable(&self.conceal(&outbound::words(error), time), TOLD)
    }

    /// A receiver may repeat what it was sent, at the time of a report: takes our secrets out of its words.
    fn conceal(&self, text: &str, time: Time) -> String {
        let url = self.address.at(time).ok();
        let of_url = url.as_ref().map(|url| {
            [url.path().trim_start_matches('/'), url.password().unwrap_or_default(), url.query().unwrap_or_default()]
        });
        let headers = [&self.form.authorization, &self.form.api_key];
        let headers = headers.into_iter().flatten().filter_map(|value| value.to_str().ok());
        let plain = self.form.plain.iter().map(Secret::expose);
        let parts = of_url.into_iter().flatten().chain(headers).chain(plain).chain([self.secret.expose()]);
        // Short parts are words like "alerts"; hiding them would make the answer unreadable and hide nothing. Of the dates that stand in
        // a path the whole is long enough.
        let mut long: Vec<&str> = parts.filter(|part| part.len() >= 8 || self.form.is_password(part)).collect();
        // The longest first: a part of one that is gone cannot be found any more.
        long.sort_by_key(|part| std::cmp::Reverse(part.len()));
        long.into_iter().fold(text.to_owned(), |text, part| text.replace(part, "***"))
    }
}

impl Form {
    /// A password is one however short.
    fn is_password(&self, part: &str) -> bool {
        !part.is_empty() && self.plain.iter().any(|secret| secret.expose() == part)
    }
}

/// base64 of HMAC-SHA256 over the exact bytes; `None` without a secret.
fn sign(secret: &Secret, body: &[u8]) -> Option<String> {
    if secret.is_empty() {
        return None;
    }
    // A key of any length is taken.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).ok()?;
    mac.update(body);
    Some(BASE64.encode(mac.finalize().into_bytes()))
}

/// What says that the alert itself is refused is final; what says "not now" is not.
fn worth_another_try(status: StatusCode) -> bool {
    let not_now = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    !(status.is_client_error() || status.is_redirection()) || not_now.contains(&status)
}

/// `Retry-After` in either of its forms.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Time::from_micros(at.as_microsecond()).since(Time::now()))
}

/// The beginning of an answer. What cannot be read is not there: the status has said enough.
async fn read(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < READ {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk[..chunk.len().min(READ)]),
            Ok(None) | Err(_) => break,
        }
    }
    String::from_utf8_lossy(&bytes[..bytes.len().min(8 * TOLD)]).into_owned()
}

/// The secret of a URL, which is its password or else its user, in each form in which a receiver sees it: as it stands there, and decoded,
/// by itself and in the header that the client makes of both.
fn login(url: &Url) -> Vec<Secret> {
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = (url.username(), url.password().unwrap_or_default());
    let secret = if password.is_empty() { user } else { password };
    if secret.is_empty() {
        return Vec::new();
    }
    let encoded = BASE64.encode(format!("{}:{}", decoded(user), decoded(password)));
    [encoded, decoded(secret), secret.to_owned()].map(Secret::from).into()
}

/// The URL, or why it is none.
fn address(text: &str) -> Result<Url, String> {
    if text.is_empty() {
        return Err("must be set, as in \"https://example.com/alerts\"".to_owned());
    }
    outbound::url(text)
}

/// Host and port of a URL; `None`: it is none.
pub(super) fn host(url: &str) -> Option<String> {
    Some(outbound::host(&Url::parse(url).ok()?)).filter(|host| !host.is_empty())
}

fn client(url: &Url, timeout: Duration, tls: &Tls) -> reqwest::Result<Client> {
    if url.scheme() == "http" { outbound::plain(timeout).build() } else { tls.client(timeout).build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str, secret: &str) -> Result<Webhook, Vec<String>> {
        let settings = ChannelSettings {
            kind: "webhook".to_owned(),
            url: url.to_owned(),
            secret: Secret::from(secret.to_owned()),
            secret_file: std::path::PathBuf::new(),
        };
        Webhook::new("notify.channels[3]", 3, &settings, Duration::from_secs(1), &Tls::default(), |name| {
            name == "webhook:taken.example"
        })
    }

    #[test]
    fn name_is_the_host_and_never_the_secret_part() {
        let name = |url| webhook(url, "").unwrap().name().to_owned();
        assert_eq!(name("http://user:hunter2@example.com/T0K3N?key=v"), "webhook:example.com");
        assert_eq!(name("http://[::1]:9000/x"), "webhook:[::1]:9000");
        assert_eq!(name("http://taken.example/"), "webhook:taken.example#3");
    }

    #[test]
    fn no_way_of_printing_shows_more_of_the_url_than_its_host() {
        let url = "https://user:hunter2@chat.example:8443/services/T0K3N?key=v4lue";
        let settings = ChannelSettings {
            kind: "webhook".to_owned(),
            url: url.to_owned(),
            secret: Secret::from("s1gn".to_owned()),
            secret_file: std::path::PathBuf::new(),
        };
        let shown = format!("{settings:?} {:?}", webhook(url, "s1gn").unwrap());
        for secret in ["hunter2", "T0K3N", "v4lue", "s1gn"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert_eq!(shown.matches("chat.example:8443").count(), 2, "{shown}");
        let broken = ChannelSettings { url: "hunter2".to_owned(), ..settings };
        assert!(!format!("{broken:?}").contains("hunter2"), "what is no URL may be a secret in the wrong place");
    }

    #[test]
    fn secret_that_nobody_has_read_is_an_error_and_not_an_unsigned_alert() {
        let settings = ChannelSettings {
            kind: "webhook".to_owned(),
            url: "http://example.com/".to_owned(),
            secret: Secret::default(),
            secret_file: "/etc/hook".into(),
        };
        let errors = Webhook::new("c", 0, &settings, Duration::from_secs(1), &Tls::default(), |_| false).unwrap_err();
        assert_eq!(errors, ["c.secret_file: /etc/hook was not read"]);
    }

    #[test]
    fn wrong_url_is_named_by_its_key_and_not_repeated() {
        for (url, part) in [
            ("", "must be set"),
            ("hunter2", "not a URL"),
            ("ftp://hunter2.example", "http or https"),
            ("http://:hunter2@/", "not a URL"),
        ] {
            let errors = webhook(url, "").unwrap_err();
            assert_eq!(errors.len(), 1);
            assert!(errors[0].starts_with("notify.channels[3].url: ") && errors[0].contains(part), "{errors:?}");
            assert!(!errors[0].contains("hunter2"), "{errors:?}");
        }
    }

    #[test]
    fn answer_that_repeats_our_secrets_is_concealed() {
        let hook = webhook("http://u:passw0rd1@example.com/services/T0K3N?auth=12345", "sign-secret").unwrap();
        let echo = "bad: POST /services/T0K3N?auth=12345 by passw0rd1 with sign-secret";
        let told = hook.conceal(echo, Time::from_micros(0));
        for secret in ["T0K3N", "12345", "passw0rd1", "sign-secret"] {
            assert!(!told.contains(secret), "{told}");
        }
        assert!(told.starts_with("bad: POST "));
    }

    #[test]
    fn short_password_of_a_url_is_concealed_in_every_form() {
        let hook = webhook("http://ann:p%40ss@example.com/", "").unwrap();
        let told = hook.conceal("ann sent p@ss as p%40ss, Basic YW5uOnBAc3M=", Time::from_micros(0));
        assert_eq!(told, "ann sent *** as ***, Basic ***");
        let hook = webhook("http://t0ken@example.com/", "").unwrap();
        assert_eq!(hook.conceal("t0ken: Basic dDBrZW46", Time::from_micros(0)), "***: Basic ***");
    }

    #[test]
    fn dated_path_and_a_plain_password_are_concealed_too() {
        let settings = HookSettings {
            name: "h".to_owned(),
            url: "http://example.com/T0K3N/%{YYYY}".to_owned(),
            secret: Secret::default(),
            secret_file: std::path::PathBuf::new(),
            basic_auth: Secret::from("ann:hunter2".to_owned()),
            api_key: Secret::default(),
            content_type: String::new(),
            kafka: false,
        };
        let hook = Webhook::custom("h", 0, &settings, Duration::from_secs(1), &Tls::default()).unwrap();
        let time = Time::from_micros(1_700_000_000_000_000);
        let told = hook.conceal("no /T0K3N/2023 for ann with hunter2 (YW5uOmh1bnRlcjI=)", time);
        assert_eq!(told, "no /*** for ann with *** (***)");
    }

    #[test]
    fn refusals_are_final_and_busy_answers_are_not() {
        for (status, again) in [
            (301, false),
            (400, false),
            (401, false),
            (404, false),
            (408, true),
            (425, true),
            (429, true),
            (500, true),
            (503, true),
        ] {
            assert_eq!(worth_another_try(StatusCode::from_u16(status).unwrap()), again, "{status}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("17"), Some(Duration::from_secs(17)));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(read("Wed, 21 Oct 2099 07:28:00 GMT").unwrap() > Duration::from_secs(86_400));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn signature_is_hmac_sha256_in_base64() {
        // RFC 4231, test case 2.
        let signature = sign(&Secret::from("Jefe".to_owned()), b"what do ya want for nothing?").unwrap();
        assert_eq!(signature, "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=");
        assert_eq!(sign(&Secret::default(), b"x"), None);
    }
}
