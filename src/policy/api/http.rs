//! `http.get`, `http.post`, `http.request`: asks a server, and waits without holding the thread.
//!
//! Owns what a policy may ask and the form of the answer. A server that does not answer is no error of the policy: it gets `nil` and the
//! reason, and decides.

use std::rc::Rc;

use bytes::Bytes;
use mlua::{Function, IntoLuaMulti, Lua, MultiValue, Table, Value};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};

use super::address::Address;
use super::args::{Args, cut, describe, string};
use super::json;
use crate::outbound;
use crate::policy::call::{Answer, Host};
use crate::policy::web::{self, Fetch};

/// Bytes. A field of a report has 4 KiB as it comes, and thrice that in a URL: none of these may be reached by what an attacker writes.
const MAX_URL: usize = 64 << 10;
const MAX_HEADERS: usize = 64 << 10;
const MAX_BODY: usize = 1 << 20;
/// Entries.
const MAX_ENTRIES: usize = 100;
/// How the message is framed and how long the connection stays is not the policy's business.
const OURS: [&str; 6] = ["connection", "content-length", "te", "trailer", "transfer-encoding", "upgrade"];
/// Under which name a machine keeps the metatable of answers.
const ANSWER: &str = "trackalert.http.answer";

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let methods = lua.create_table()?;
    methods.set("json", host.pure(lua, decode)?)?;
    let meta = lua.create_table()?;
    meta.set("__index", methods)?;
    meta.set("__metatable", false)?;
    lua.set_named_registry_value(ANSWER, meta)?;

    let http = lua.create_table()?;
    http.set("get", asking(lua, host, "http.get", get)?)?;
    http.set("post", asking(lua, host, "http.post", post)?)?;
    http.set("request", asking(lua, host, "http.request", request)?)?;
    Ok(http)
}

fn asking(
    lua: &Lua,
    host: &Rc<Host>,
    name: &'static str,
    parse: fn(&mut Args) -> Answer<web::Request>,
) -> mlua::Result<Function> {
    host.waiting(
        lua,
        name,
        move |call, values| {
            let request = parse(&mut Args::new(name, values))?;
            Ok(async move { Ok(call.web().request(request).await) })
        },
        give,
    )
}

/// What a policy gave, as it gave it.
#[derive(Default)]
struct Given {
    url: Value,
    headers: Value,
    query: Value,
    body: Value,
    json: Value,
    timeout: Value,
}

fn get(args: &mut Args) -> Answer<web::Request> {
    let url = args.value();
    let mut given = Given { url, ..Given::default() };
    if let Some(options) = args.optional_table("options")? {
        let [headers, query, timeout] = args.fields(&options, ["headers", "query", "timeout"])?;
        given = Given { headers, query, timeout, ..given };
    }
    given.request(args, Method::GET)
}

fn post(args: &mut Args) -> Answer<web::Request> {
    let (url, body) = (args.value(), args.value());
    if let Value::Table(_) = body {
        return Err(args.error("body", "a string is required, got a table; a table goes into the options, as json"));
    }
    let mut given = Given { url, body, ..Given::default() };
    if let Some(options) = args.optional_table("options")? {
        let [headers, query, json, timeout] = args.fields(&options, ["headers", "query", "json", "timeout"])?;
        given = Given { headers, query, json, timeout, ..given };
    }
    given.request(args, Method::POST)
}

fn request(args: &mut Args) -> Answer<web::Request> {
    let options = args.table("request")?;
    let known = ["method", "url", "headers", "query", "body", "json", "timeout"];
    let [method, url, headers, query, body, json, timeout] = args.fields(&options, known)?;
    let method = match &method {
        Value::Nil => Method::GET,
        Value::String(_) => {
            let name = string(&method).unwrap_or_default();
            web::method(&name).map_err(|why| args.error("method", format!("{} {why}", cut(&name, 64))))?
        }
        other => return Err(args.wrong("method", "a string", other)),
    };
    Given { url, headers, query, body, json, timeout }.request(args, method)
}

impl Given {
    fn request(&self, args: &Args, method: Method) -> Answer<web::Request> {
        let url = self.url(args)?;
        let mut headers = self.headers(args)?;
        let body = match (&self.body, &self.json) {
            (Value::Nil, Value::Nil) => Bytes::new(),
            (Value::Nil, value) => {
                let value = json::to_json(value).map_err(|reason| args.at("json", &reason))?;
                headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
                Bytes::from(serde_json::to_vec(&value).map_err(|error| args.error("json", error))?)
            }
            // The bytes as they are: a body may be in any encoding.
            (Value::String(body), Value::Nil) => Bytes::copy_from_slice(&body.as_bytes()),
            (body, Value::Nil) => match string(body) {
                Some(text) => Bytes::from(text),
                None => return Err(args.wrong("body", "a string", body)),
            },
            _ => return Err(args.error("json", "body is given too; give one of the two")),
        };
        if body.len() > MAX_BODY {
            return Err(args.error("body", format!("has {} bytes; at most {MAX_BODY}", body.len())));
        }
        let timeout = (!self.timeout.is_nil()).then(|| args.seconds("timeout", &self.timeout)).transpose()?;
        Ok(web::Request { method, url, headers, body, timeout })
    }

    fn url(&self, args: &Args) -> Answer<Url> {
        let Value::String(_) = &self.url else { return Err(args.wrong("url", "a string", &self.url)) };
        let text = string(&self.url).unwrap_or_default();
        let mut url = outbound::url(&text).map_err(|why| args.error("url", why))?;
        let mut pairs = Vec::new();
        each(args, "query", &self.query, |name, value| {
            let text = match value {
                Value::Boolean(value) => Some(value.to_string()),
                Value::UserData(_) => Address::of(value).map(|address| address.to_string()),
                other => string(other),
            };
            let text = text.ok_or_else(|| args.wrong(&format!("query.{name}"), "a string", value))?;
            pairs.push((name, text));
            Ok(())
        })?;
        if !pairs.is_empty() {
            // The same question is the same URL, whatever order the table has: for caches, and for whoever compares.
            pairs.sort();
            url.query_pairs_mut().extend_pairs(pairs);
        }
        if url.as_str().len() > MAX_URL {
            return Err(args.error("url", format!("has {} bytes; at most {MAX_URL}", url.as_str().len())));
        }
        Ok(url)
    }

    fn headers(&self, args: &Args) -> Answer<HeaderMap> {
        let mut headers = HeaderMap::new();
        let mut size = 0;
        each(args, "headers", &self.headers, |name, value| {
            let path = format!("headers.{}", cut(&name, 64));
            let text = string(value).ok_or_else(|| args.wrong(&path, "a string", value))?;
            let key: HeaderName = name.parse().map_err(|_| args.error(&path, "is no name of a header"))?;
            if OURS.contains(&key.as_str()) {
                return Err(args.error(&path, "is set by the program"));
            }
            // An attacker may have written it: a line end must neither add a header nor make the policy fail.
            let line = text.replace(|c: char| c.is_ascii_control() && c != '\t', "?");
            let value = HeaderValue::from_bytes(line.as_bytes()).map_err(|error| args.error(&path, error))?;
            size += key.as_str().len() + line.len();
            headers.insert(key, value);
            Ok(())
        })?;
        if size > MAX_HEADERS {
            return Err(args.error("headers", format!("have {size} bytes; at most {MAX_HEADERS}")));
        }
        Ok(headers)
    }
}

/// Each entry of a table of options that may be left out. The names are strings.
fn each(args: &Args, option: &str, value: &Value, mut take: impl FnMut(String, &Value) -> Answer<()>) -> Answer<()> {
    let table = match value {
        Value::Nil => return Ok(()),
        Value::Table(table) => table,
        other => return Err(args.wrong(option, "a table", other)),
    };
    for (count, pair) in table.pairs::<Value, Value>().enumerate() {
        let (key, value) = pair.map_err(|error| args.error(option, error))?;
        let Value::String(_) = &key else {
            return Err(args.error(option, format!("the keys must be names, one is {}", describe(&key))));
        };
        if count == MAX_ENTRIES {
            return Err(args.error(option, format!("has more than {MAX_ENTRIES} entries")));
        }
        take(string(&key).unwrap_or_default(), &value)?;
    }
    Ok(())
}

/// The answer as a table; or nil, why there is none, and whether the server may have the request all the same.
fn give(lua: &Lua, outcome: Result<web::Answer, web::NoAnswer>) -> mlua::Result<MultiValue> {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(web::NoAnswer { said, sent }) => return (Value::Nil, said, sent).into_lua_multi(lua),
    };
    let headers = lua.create_table_with_capacity(0, answer.headers.keys_len())?;
    for name in answer.headers.keys() {
        let values: Vec<&[u8]> = answer.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        headers.raw_set(name.as_str(), lua.create_string(values.join(&b", "[..]))?)?;
    }
    let table = lua.create_table_with_capacity(0, 3)?;
    table.raw_set("status", answer.status)?;
    table.raw_set("headers", headers)?;
    table.raw_set("body", lua.create_string(&answer.body)?)?;
    table.set_metatable(Some(lua.named_registry_value(ANSWER)?))?;
    (table,).into_lua_multi(lua)
}

/// `answer:json()`: the body as a value. One that is no JSON is the server's fault: nil and the reason.
fn decode(lua: &Lua, values: MultiValue) -> Answer<(Value, Option<String>)> {
    let args = &mut Args::new("answer:json", values);
    let body = match args.value() {
        Value::Table(answer) => answer.raw_get::<Value>("body").unwrap_or(Value::Nil),
        other => return Err(args.wrong("answer", "an answer of http", &other)),
    };
    let Value::String(body) = body else { return Err(args.wrong("answer.body", "a string", &body)) };
    match serde_json::from_slice(&body.as_bytes()) {
        Ok(value) => {
            let value = json::to_lua(lua, &value).map_err(|error| args.error("answer", error))?;
            Ok((value, None))
        }
        Err(error) => Ok((Value::Nil, Some(format!("the body is no JSON: {error}")))),
    }
}
