//! The requests that a case expects to go out, the custom webhooks that it expects to be run, and those that were.
//!
//! Owns the keys of both and what each is compared with. Which of those made is taken for which expected one is [`super::compare`]'s; what
//! a request is answered stands in [`super::answers`].

use std::collections::BTreeMap;

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName};
use serde::Deserialize;
use serde_json::Value as Json;
use toml::Value;

use super::compare::{Field, Listed, quoted, shortened, spread, subset};
use super::reports::json;
use super::words::Words;
use crate::alert::Hook;
use crate::policy::web::{self, Request};

/// A request as a test file writes it. What is left out is not looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallText {
    method: Option<String>,
    url: Words,
    json: Option<Value>,
    body: Option<Words>,
    #[serde(default)]
    headers: BTreeMap<String, Words>,
    pub(super) times: Option<usize>,
}

/// A custom webhook as a test file writes it. What is left out is not looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HookText {
    name: String,
    json: Option<Value>,
    body: Option<Words>,
    pub(super) times: Option<usize>,
}

/// What is asked of a body.
#[derive(Debug, Clone)]
struct ExpectedBody {
    json: Option<Json>,
    words: Option<Words>,
}

/// One request that is to go out.
#[derive(Debug, Clone)]
pub(super) struct ExpectedCall {
    method: Option<Method>,
    url: Words,
    headers: Vec<(HeaderName, Words)>,
    body: ExpectedBody,
}

/// One custom webhook that is to be run.
#[derive(Debug, Clone)]
pub(super) struct ExpectedHook {
    name: String,
    body: ExpectedBody,
}

impl ExpectedCall {
    /// Out of its text.
    pub(super) fn of(text: &CallText) -> Result<Self, String> {
        let mut headers = Vec::new();
        for (name, words) in &text.headers {
            let known = name.parse::<HeaderName>().map_err(|_| format!("headers.{name}: is no name of a header"))?;
            headers.push((known, words.clone()));
        }
        Ok(Self {
            method: method(text.method.as_deref())?,
            url: url(&text.url)?,
            headers,
            body: ExpectedBody::of(text.json.as_ref(), text.body.as_ref()),
        })
    }
}

/// The method that a test file names.
pub(super) fn method(name: Option<&str>) -> Result<Option<Method>, String> {
    let named = name.map(|name| web::method(name).map_err(|why| format!("method: {} {why}", quoted(name))));
    named.transpose()
}

/// The address that a test file asks for.
pub(super) fn url(words: &Words) -> Result<Words, String> {
    words.of_url().map_err(|why| format!("url: {words}: {why}; write a whole one, or {{ contains = \"…\" }}"))
}

impl ExpectedHook {
    /// Out of its text.
    pub(super) fn of(text: &HookText) -> Self {
        Self { name: text.name.clone(), body: ExpectedBody::of(text.json.as_ref(), text.body.as_ref()) }
    }
}

impl ExpectedBody {
    fn of(value: Option<&Value>, words: Option<&Words>) -> Self {
        Self { json: value.map(|value| json(value, None)), words: words.cloned() }
    }

    fn against(&self, got: &[u8], fields: &mut Vec<Field>) {
        let text = String::from_utf8_lossy(got);
        if let Some(wanted) = &self.json {
            match serde_json::from_slice::<Json>(got) {
                Ok(value) => subset("json", wanted, Some(&value), fields),
                Err(_) if got.is_empty() => subset("json", wanted, None, fields),
                Err(_) => fields.push(Field {
                    name: "json".to_owned(),
                    expected: Some(shortened(wanted.to_string())),
                    got: Some(format!("no JSON: {}", quoted(&text))),
                }),
            }
        }
        if let Some(words) = self.words.as_ref().filter(|words| !words.fit(&text)) {
            let (expected, got) = (Some(shortened(words.to_string())), Some(quoted(&text)));
            fields.push(Field { name: "body".to_owned(), expected, got });
        }
    }

    fn wanted(&self) -> Vec<Field> {
        let mut values = self.json.as_ref().map(|value| spread("json", value)).unwrap_or_default();
        values.extend(self.words.as_ref().map(|words| ("body".to_owned(), shortened(words.to_string()))));
        values.into_iter().map(|(name, value)| Field { name, expected: Some(value), got: None }).collect()
    }
}

/// A body that came, for people.
fn came(body: &[u8]) -> Vec<Field> {
    let values = match serde_json::from_slice::<Json>(body) {
        Ok(value) => spread("json", &value),
        Err(_) if body.is_empty() => Vec::new(),
        Err(_) => vec![("body".to_owned(), quoted(&String::from_utf8_lossy(body)))],
    };
    values.into_iter().map(|(name, value)| Field { name, expected: None, got: Some(value) }).collect()
}

/// A request that went out.
pub(super) struct Made {
    pub(super) request: Request,
    /// The report whose handler made it, for people.
    pub(super) by: String,
}

/// The requests of a case.
pub(super) struct Calls;

impl Listed for Calls {
    type Wanted = ExpectedCall;
    type Got = Made;
    const MANY: &'static str = "calls";

    fn against(&self, wanted: &ExpectedCall, made: &Made) -> Vec<Field> {
        let request = &made.request;
        let mut fields = Vec::new();
        let mut look = |name: &str, fits: bool, expected: String, got: String| {
            if !fits {
                fields.push(Field { name: name.to_owned(), expected: Some(expected), got: Some(got) });
            }
        };
        if let Some(method) = &wanted.method {
            look("method", *method == request.method, quoted(method.as_str()), quoted(request.method.as_str()));
        }
        let url = request.url.as_str();
        look("url", wanted.url.fit(url), shortened(wanted.url.to_string()), quoted(url));
        for (name, words) in &wanted.headers {
            let got = header(&request.headers, name);
            let fits = got.as_ref().is_some_and(|got| words.fit(got));
            let got = got.map_or_else(|| "nothing".to_owned(), |got| quoted(&got));
            look(&format!("headers.{name}"), fits, shortened(words.to_string()), got);
        }
        wanted.body.against(&request.body, &mut fields);
        fields
    }

    fn is_like(&self, wanted: &ExpectedCall, made: &Made) -> bool {
        wanted.url.fit(made.request.url.as_str())
    }

    fn wanted(&self, wanted: &ExpectedCall) -> (String, Vec<Field>) {
        let words =
            |name: String, words: &Words| Field { name, expected: Some(shortened(words.to_string())), got: None };
        let mut fields = Vec::new();
        let url = match &wanted.url {
            Words::Are(url) => shortened(url.clone()),
            part => {
                fields.push(words("url".to_owned(), part));
                String::new()
            }
        };
        fields.extend(wanted.headers.iter().map(|(name, wanted)| words(format!("headers.{name}"), wanted)));
        fields.extend(wanted.body.wanted());
        let method = wanted.method.as_ref().map(Method::as_str).unwrap_or_default();
        let title = ["call", method, &url].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        (title, fields)
    }

    fn got(&self, made: &Made) -> (String, Vec<Field>) {
        let Request { method, url, body, .. } = &made.request;
        (format!("call {method} {}, made by {}", shortened(url.to_string()), made.by), came(body))
    }
}

/// All values of a header.
fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// A webhook that was run.
pub(super) struct Run {
    pub(super) hook: Hook,
    /// The report whose handler ran it, for people.
    pub(super) by: String,
}

/// The webhooks of a case.
pub(super) struct Webhooks;

impl Listed for Webhooks {
    type Wanted = ExpectedHook;
    type Got = Run;
    const MANY: &'static str = "webhooks";

    fn against(&self, wanted: &ExpectedHook, run: &Run) -> Vec<Field> {
        let mut fields = Vec::new();
        if wanted.name != run.hook.name {
            let (expected, got) = (Some(quoted(&wanted.name)), Some(quoted(&run.hook.name)));
            fields.push(Field { name: "name".to_owned(), expected, got });
        }
        wanted.body.against(&run.hook.body, &mut fields);
        fields
    }

    fn is_like(&self, wanted: &ExpectedHook, run: &Run) -> bool {
        wanted.name == run.hook.name
    }

    fn wanted(&self, wanted: &ExpectedHook) -> (String, Vec<Field>) {
        (format!("webhook {}", wanted.name), wanted.body.wanted())
    }

    fn got(&self, run: &Run) -> (String, Vec<Field>) {
        (format!("webhook {}, run by {}", run.hook.name, run.by), came(&run.hook.body))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::compare::listed;
    use super::*;
    use crate::report::{ReportId, Time};

    fn made(method: Method, url: &str, body: &'static str) -> Made {
        let headers = [("authorization".parse().unwrap(), "Bearer x".parse().unwrap())].into_iter().collect();
        let body = Bytes::from_static(body.as_bytes());
        Made {
            request: Request { method, url: url.parse().unwrap(), headers, body, timeout: None },
            by: "report 1".into(),
        }
    }

    fn call(toml: &str) -> ExpectedCall {
        ExpectedCall::of(&toml::from_str(toml).unwrap()).unwrap()
    }

    fn told<L: Listed>(list: &L, wanted: &[L::Wanted], got: &[L::Got]) -> Vec<String> {
        let all = listed(list, wanted, got);
        let line = |field: &Field| format!("{}: {:?} {:?}", field.name, field.expected, field.got);
        all.iter()
            .map(|one| {
                let fields: Vec<_> = one.fields.iter().map(line).collect();
                format!("{} {} [{}]", one.sort.name(), one.title, fields.join(" | "))
            })
            .collect()
    }

    #[test]
    fn call_is_held_in_part_and_each_value_that_differs_is_shown() {
        let got = [made(Method::POST, "https://api.example/x?a=1", r#"{"login":"ann","n":1.0,"deep":{"a":1,"b":2}}"#)];
        for fits in [
            "url = \"https://api.example/x?a=1\"",
            "url = { contains = \"/x\" }\nmethod = \"post\"\njson = { n = 1, deep = { b = 2 } }",
            "url = { matches = \"^https:\" }\nbody = { contains = \"ann\" }\nheaders = { Authorization = { matches = \"^Bearer \" } }",
        ] {
            assert_eq!(told(&Calls, &[call(fits)], &got), Vec::<String>::new(), "{fits}");
        }
        let off = "url = { contains = \"/x\" }\nmethod = \"PUT\"\njson = { n = 2, no = 1 }\nbody = \"y\"\nheaders = { authorization = \"z\", x-none = \"q\" }";
        let all = told(&Calls, &[call(off)], &got);
        assert_eq!(all.len(), 1);
        for field in [
            "differs call POST https://api.example/x?a=1, made by report 1 [method: Some(\"\\\"PUT\\\"\") Some(\"\\\"POST\\\"\")",
            "headers.authorization: Some(\"\\\"z\\\"\") Some(\"\\\"Bearer x\\\"\")",
            "headers.x-none: Some(\"\\\"q\\\"\") Some(\"nothing\")",
            "json.n: Some(\"2\") Some(\"1.0\")",
            "json.no: Some(\"1\") Some(\"nothing\")",
            "body: Some(\"\\\"y\\\"\")",
        ] {
            assert!(all[0].contains(field), "{field} is missing in {}", all[0]);
        }
    }

    #[test]
    fn call_of_another_address_is_missing_and_the_one_made_unexpected() {
        let got = [made(Method::GET, "https://api.example/y", ""), made(Method::POST, "https://api.example/z", "a=b")];
        let wanted = [
            call("url = { contains = \"/x\" }\nmethod = \"GET\"\njson = { a = 1 }"),
            call("url = \"https://a.example\""),
        ];
        assert_eq!(
            told(&Calls, &wanted, &got),
            [
                "missing call GET [url: Some(\"contains \\\"/x\\\"\") None | json.a: Some(\"1\") None]",
                "missing call https://a.example/ []",
                "unexpected call GET https://api.example/y, made by report 1 []",
                "unexpected call POST https://api.example/z, made by report 1 [body: None Some(\"\\\"a=b\\\"\")]",
            ]
        );
    }

    #[test]
    fn body_that_is_no_json_is_shown_where_json_was_wanted() {
        let wanted = call("url = { contains = \"x\" }\njson = { a = 1 }");
        let of = |body| told(&Calls, std::slice::from_ref(&wanted), &[made(Method::POST, "http://x/", body)]).join("");
        assert!(of("a=1").contains("no JSON: \\\"a=1\\\""), "{}", of("a=1"));
        assert!(of("").contains("json: Some(\"{\\\"a\\\":1}\") Some(\"nothing\")"), "{}", of(""));
        assert!(of("[1]").contains("Some(\"[1]\")"), "{}", of("[1]"));
    }

    #[test]
    fn webhook_goes_by_its_name_and_body() {
        let run = |name: &str, body: &'static str| {
            let hook =
                Hook::new(name.into(), Bytes::from_static(body.as_bytes()), ReportId::default(), Time::default(), 0);
            Run { hook, by: "report 1".into() }
        };
        let hook = |toml: &str| ExpectedHook::of(&toml::from_str(toml).unwrap());
        let got = [run("siem", r#"{"login":"ann"}"#), run("chat", "hello")];
        let right = [
            hook("name = \"chat\"\nbody = { contains = \"ell\" }"),
            hook("name = \"siem\"\njson = { login = \"ann\" }"),
        ];
        assert_eq!(told(&Webhooks, &right, &got), Vec::<String>::new());
        let wrong = [hook("name = \"chat\"\nbody = \"bye\""), hook("name = \"mail\"")];
        assert_eq!(
            told(&Webhooks, &wrong, &got),
            [
                "differs webhook chat, run by report 1 [body: Some(\"\\\"bye\\\"\") Some(\"\\\"hello\\\"\")]",
                "missing webhook mail []",
                "unexpected webhook siem, run by report 1 [json.login: None Some(\"\\\"ann\\\"\")]",
            ]
        );
    }

    #[test]
    fn mistakes_of_a_call_name_the_key() {
        for (toml, expected) in [
            ("url = \"x\"", "url: \"x\": not a URL"),
            ("url = \"http://x/\"\nmethod = \"BREW\"", "method: \"BREW\" is none of GET, "),
            ("url = \"http://x/\"\nheaders = { \"a b\" = \"x\" }", "headers.a b: is no name of a header"),
        ] {
            let text: CallText = toml::from_str(toml).unwrap();
            let said = ExpectedCall::of(&text).unwrap_err();
            assert!(said.contains(expected), "{toml}: {said}");
        }
    }
}
