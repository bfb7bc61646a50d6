//! The answers that a case gives to the HTTP requests of its policy, in place of the network.
//!
//! Owns the keys of an answer, which request gets which, and what went out. Never opens a connection: the outcome of a case must not hang on
//! who answers there today.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use toml::Value;

use super::calls;
use super::compare::{Difference, cut, quoted, shortened};
use super::reports::json;
use super::words::Words;
use crate::outbound;
use crate::policy::web::{self, Answer, Fetch, NoAnswer, Request};

/// An answer as a test file writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnswerText {
    method: Option<String>,
    url: Words,
    status: Option<i64>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    json: Option<Value>,
    error: Option<String>,
    sent: Option<bool>,
    times: Option<usize>,
}

/// An answer that a case gives.
#[derive(Debug, Clone)]
pub(super) struct Given {
    method: Option<Method>,
    url: Words,
    outcome: Result<Answer, NoAnswer>,
    /// How many requests it answers; `None`: all that come.
    times: Option<usize>,
}

impl Given {
    /// Out of its text.
    pub(super) fn of(text: &AnswerText) -> Result<Self, String> {
        if text.times == Some(0) {
            return Err("times: at least 1; without the key it answers all that come".to_owned());
        }
        Ok(Self {
            method: calls::method(text.method.as_deref())?,
            url: calls::url(&text.url)?,
            outcome: match &text.error {
                Some(said) => Err(NoAnswer { said: text.alone(said)?, sent: text.sent.unwrap_or(true) }),
                None if text.sent.is_some() => return Err("sent: belongs to error; an answer has gone out".to_owned()),
                None => Ok(text.answer()?),
            },
            times: text.times,
        })
    }

    fn fits(&self, request: &Request) -> bool {
        self.method.as_ref().is_none_or(|method| *method == request.method) && self.url.fit(request.url.as_str())
    }
}

impl AnswerText {
    /// The error, beside which there is no answer.
    fn alone(&self, said: &str) -> Result<String, String> {
        let answer = [
            ("status", self.status.is_some()),
            ("headers", !self.headers.is_empty()),
            ("body", self.body.is_some()),
            ("json", self.json.is_some()),
        ];
        match answer.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => {
                Err(format!("error: the policy gets nil and this text, and no answer; take {key} out, or error"))
            }
            None if said.is_empty() => Err("error: say why there is no answer, as the policy would be told".to_owned()),
            None => Ok(said.to_owned()),
        }
    }

    fn answer(&self) -> Result<Answer, String> {
        let status = u16::try_from(self.status.unwrap_or(200)).ok().filter(|status| (100..=599).contains(status));
        let status = status.ok_or("status: a number from 100 to 599 is needed")?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let known = name.parse::<HeaderName>().map_err(|_| format!("headers.{name}: is no name of a header"))?;
            let value = HeaderValue::from_str(value).map_err(|_| format!("headers.{name}: is no value of a header"))?;
            if headers.insert(known, value).is_some() {
                return Err(format!("headers.{name}: is there twice; the case of letters makes no other header"));
            }
        }
        let body = match (&self.body, &self.json) {
            (Some(_), Some(_)) => return Err("json: body is given too; give one of the two".to_owned()),
            (Some(body), None) => Bytes::from(body.clone()),
            (None, Some(value)) => {
                headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
                Bytes::from(json(value, None).to_string())
            }
            (None, None) => Bytes::new(),
        };
        Ok(Answer { status, headers, body })
    }
}

/// A request that no answer fitted, with all that are like it.
#[derive(Debug)]
struct Unanswered {
    method: Method,
    url: Url,
    /// The report during which the first one was made.
    report: usize,
    requests: usize,
    /// An answer would have fitted, and was used up.
    used_up: bool,
}

#[derive(Default)]
struct Seen {
    /// The report that is being handled, from 1.
    report: usize,
    /// How often each answer was given.
    used: Vec<usize>,
    made: Vec<(usize, Request)>,
    unanswered: Vec<Unanswered>,
    /// Where in that list a request stands.
    known: HashMap<(Method, Url), usize>,
}

/// Answers the requests of one case.
pub(super) struct Answers {
    given: Vec<Given>,
    /// `policy.http.max_answer`.
    most: ByteSize,
    /// What goes out is looked at afterwards. Else nothing of it is kept: a policy may send a thousand bodies of a megabyte.
    keeps: bool,
    seen: Mutex<Seen>,
}

impl Answers {
    /// Of two answers that fit a request the earlier one is given.
    pub(super) fn new(given: Vec<Given>, most: ByteSize, keeps: bool) -> Self {
        let seen = Seen { used: vec![0; given.len()], ..Seen::default() };
        Self { given, most, keeps, seen: Mutex::new(seen) }
    }

    /// From now on requests belong to this report.
    pub(super) fn at(&self, report: usize) {
        self.lock().report = report;
    }

    /// What went out, each with its report.
    pub(super) fn made(&self) -> Vec<(usize, Request)> {
        std::mem::take(&mut self.lock().made)
    }

    /// The requests that had no answer. `by` names a report for people.
    pub(super) fn unanswered(&self, by: impl Fn(usize) -> String) -> Vec<Difference> {
        let all = self.lock().unanswered.iter().map(|one| one.told(&by)).collect();
        cut(all, "requests")
    }

    fn answer(&self, request: Request) -> Result<Answer, NoAnswer> {
        let mut seen = self.lock();
        let Seen { report, used, made, unanswered, known } = &mut *seen;
        let mut fitting = self.given.iter().zip(used).filter(|(given, _)| given.fits(&request)).peekable();
        let used_up = fitting.peek().is_some();
        let found = fitting.find(|(given, used)| given.times.is_none_or(|times| **used < times));
        let outcome = match found {
            Some((given, used)) => {
                *used += 1;
                given.outcome.clone()
            }
            None => {
                let (method, url) = (request.method.clone(), request.url.clone());
                let said = format!("the test has no answer to {method} {url}");
                let at = *known.entry((method.clone(), url.clone())).or_insert_with(|| {
                    unanswered.push(Unanswered { method, url, report: *report, requests: 0, used_up });
                    unanswered.len() - 1
                });
                unanswered[at].requests += 1;
                Err(NoAnswer { said, sent: true })
            }
        };
        let outcome = outcome.and_then(|answer| match answer.body.len() as u64 > self.most.as_u64() {
            true => Err(NoAnswer { said: web::too_large(&outbound::host(&request.url), self.most), sent: true }),
            false => Ok(answer),
        });
        if self.keeps {
            made.push((*report, request));
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unanswered {
    fn told(&self, by: impl Fn(usize) -> String) -> Difference {
        let Self { method, url, report, requests, used_up } = self;
        let (method, url) = (method.as_str(), shortened(url.to_string()));
        let times = if *requests > 1 { format!(", {requests} times in all") } else { String::new() };
        let title = format!("{method} {url}, asked by {}{times}", by(*report));
        let why = match used_up {
            true => "each answer that fits is used up (times); give one more",
            false => "no answer in http fits; give one",
        };
        let (named, at) = (quoted(method), quoted(&url));
        let text = format!("{why}: http = [{{ method = {named}, url = {at}, json = {{ status = \"ok\" }} }}]");
        Difference::unanswered(title, text)
    }
}

impl Fetch for Answers {
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Answer, NoAnswer>> {
        Box::pin(std::future::ready(self.answer(request)))
    }

    fn connects(&self) -> Result<(), String> {
        Err("a test of a policy reaches no network".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(toml: &str) -> Result<Given, String> {
        Given::of(&toml::from_str(toml).unwrap())
    }

    fn ask(answers: &Answers, method: Method, url: &str) -> Result<(u16, String), String> {
        let request =
            Request { method, url: url.parse().unwrap(), headers: HeaderMap::new(), body: Bytes::new(), timeout: None };
        let answered = answers.answer(request).map_err(|error| error.said);
        answered.map(|answer| (answer.status, String::from_utf8(answer.body.to_vec()).unwrap()))
    }

    #[test]
    fn first_answer_that_fits_wins_and_one_that_is_used_up_gives_way() {
        let answers = [
            "url = \"http://x/\"\nmethod = \"GET\"\nbody = \"one\"\ntimes = 2",
            "url = \"http://x/\"\nmethod = \"get\"\nstatus = 503\ntimes = 1",
            "url = { matches = \"/y$\" }\nerror = \"no whole answer within 5s\"",
            "url = \"http://x\"\njson = [1, { a = 1.5 }]",
        ];
        let answers = answers.map(|toml| given(toml).unwrap()).to_vec();
        let answers = Answers::new(answers, ByteSize::kib(1), true);
        let get = || ask(&answers, Method::GET, "http://x/");
        assert_eq!((get(), get()), (Ok((200, "one".into())), Ok((200, "one".into()))));
        assert_eq!(get(), Ok((503, String::new())));
        assert_eq!(get(), Ok((200, "[1,{\"a\":1.5}]".into())), "an answer of no method answers every one");
        assert_eq!(ask(&answers, Method::PUT, "http://x/y"), Err("no whole answer within 5s".into()));
        assert_eq!(answers.made().len(), 5);
        assert!(answers.unanswered(|_| String::new()).is_empty());
    }

    #[test]
    fn request_without_an_answer_is_told_once_with_its_report_and_a_hint() {
        let answers = Answers::new(vec![given("url = \"http://x/a\"\ntimes = 1").unwrap()], ByteSize::kib(1), false);
        answers.at(1);
        assert!(ask(&answers, Method::GET, "http://x/a").is_ok());
        answers.at(2);
        for url in ["http://x/a", "http://x/b", "http://x/b"] {
            assert_eq!(ask(&answers, Method::GET, url), Err(format!("the test has no answer to GET {url}")));
        }
        let told = answers.unanswered(|report| format!("report {report}"));
        assert_eq!(told[0].title, "GET http://x/a, asked by report 2");
        assert!(told[0].text.starts_with("each answer that fits is used up (times)"), "{}", told[0].text);
        assert_eq!(told[1].title, "GET http://x/b, asked by report 2, 2 times in all");
        let hint = "no answer in http fits; give one: http = [{ method = \"GET\", url = \"http://x/b\", json = { status = \"ok\" } }]";
        assert_eq!(told[1].text, hint);
        assert!(answers.made().is_empty(), "what nobody looks at is not kept");
    }

    #[test]
    fn larger_answer_than_the_policy_may_have_is_none() {
        let answers = vec![given("url = \"http://x/\"\nbody = \"12345\"").unwrap()];
        let answers = Answers::new(answers, ByteSize::b(4), false);
        let said = ask(&answers, Method::GET, "http://x/").unwrap_err();
        assert!(said.contains("the answer of x is larger than policy.http.max_answer"), "{said}");
    }

    #[test]
    fn json_names_its_type_unless_the_headers_do() {
        let kind = |toml: &str| {
            let Given { outcome: Ok(answer), .. } = given(toml).unwrap() else { panic!("{toml}") };
            answer.headers[CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        assert_eq!(kind("url = \"http://x/\"\njson = {}"), "application/json");
        assert_eq!(kind("url = \"http://x/\"\njson = {}\nheaders = { Content-Type = \"a/b\" }"), "a/b");
    }

    #[test]
    fn each_mistake_of_an_answer_names_the_key() {
        for (toml, expected) in [
            ("json = 1\nbody = \"x\"", "json: body is given too"),
            ("status = 99", "status: a number from 100 to 599"),
            ("status = 600", "status: a number from 100 to 599"),
            ("status = -1", "status: a number from 100 to 599"),
            ("times = 0", "times: at least 1"),
            ("error = \"x\"\nstatus = 200", "take status out, or error"),
            ("error = \"x\"\nbody = \"\"", "take body out, or error"),
            ("error = \"x\"\njson = 1", "take json out, or error"),
            ("error = \"x\"\nheaders = { a = \"b\" }", "take headers out, or error"),
            ("error = \"\"", "error: say why there is no answer"),
            ("sent = false", "sent: belongs to error"),
            ("headers = { \"a b\" = \"x\" }", "headers.a b: is no name"),
            ("headers = { a = \"x\\ny\" }", "headers.a: is no value"),
            ("headers = { X-A = \"1\", x-a = \"2\" }", "is there twice"),
            ("method = \"BREW\"", "method: \"BREW\" is none of GET"),
        ] {
            let said = given(&format!("url = \"http://x/\"\n{toml}")).unwrap_err();
            assert!(said.contains(expected), "{toml}: {said}");
        }
        assert!(given("url = \"//x\"").unwrap_err().starts_with("url: \"//x\": not a URL"));
    }
}
