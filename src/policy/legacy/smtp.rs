//! `send` of the module `socket.smtp`: one mail to one server.
//!
//! Owns the session. What the mail says is the policy's; nothing of it stands in an error.

use std::rc::Rc;

use lettre::address::Envelope;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use mlua::{Function, IntoLua, Lua, MultiValue, Value as Lua_};

use crate::policy::api::args::{Args, number, string};
use crate::policy::call::{Answer, Host};

const SEND: &str = "smtp.send";
/// Bytes of one mail.
const MAX_MAIL: usize = 10 << 20;
/// Receivers of one mail.
const MAX_RECEIVERS: usize = 100;

struct Mail {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    envelope: Envelope,
    text: Vec<u8>,
    server: String,
}

/// `send{ from =, rcpt = {…}, text =, server =, port =, user =, password =, domain = }`: nothing, or why it was not sent.
pub(super) fn function(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Function> {
    host.waiting(
        lua,
        SEND,
        |call, values| {
            let mail = parse(values)?;
            Ok(async move {
                let Mail { transport, envelope, text, server } = mail;
                let limit = call.services.web.connects().and_then(|()| call.may_wait(call.services.socket_timeout));
                let limit = match limit {
                    Ok(limit) => limit,
                    Err(why) => return Ok(Some(format!("{server}: {why}"))),
                };
                let sent = tokio::time::timeout(limit, transport.send_raw(&envelope, &text)).await;
                Ok(match sent {
                    Ok(Ok(_)) => None,
                    Ok(Err(error)) => Some(format!("{server}: {}", words(&error))),
                    Err(_) => Some(format!("{server}: not sent within {limit:?}")),
                })
            })
        },
        |lua, outcome: Option<String>| outcome.into_lua(lua),
    )
}

fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `<ann@example.com>` or without the brackets.
fn address(args: &Args, name: &str, value: &Lua_) -> Answer<Address> {
    let text = string(value).ok_or_else(|| args.wrong(name, "a string", value))?;
    text.trim().trim_start_matches('<').trim_end_matches('>').parse().map_err(|error| args.error(name, error))
}

fn parse(values: MultiValue) -> Answer<Mail> {
    let mut args = Args::new(SEND, values);
    let table = args.table("mail")?;
    let known = ["from", "rcpt", "text", "server", "port", "user", "password", "domain"];
    let [from, rcpt, text, server, port, user, password, domain] = args.fields(&table, known)?;
    let to = match &rcpt {
        Lua_::Table(list) => {
            let entries = list.sequence_values::<Lua_>();
            let parsed =
                entries.map(|entry| address(&args, "rcpt", &entry.map_err(|error| args.error("rcpt", error))?));
            parsed.collect::<Answer<Vec<_>>>()?
        }
        one => vec![address(&args, "rcpt", one)?],
    };
    if to.len() > MAX_RECEIVERS {
        return Err(args.error("rcpt", format!("names more than {MAX_RECEIVERS} receivers")));
    }
    let Lua_::String(text) = text else { return Err(args.wrong("source", "a source that gives text", &text)) };
    let text = text.as_bytes().to_vec();
    if text.len() > MAX_MAIL {
        return Err(args.error("source", format!("gives more than {MAX_MAIL} bytes")));
    }
    let from = address(&args, "from", &from)?;
    let envelope = Envelope::new(Some(from), to).map_err(|error| args.error("rcpt", error))?;
    let host = string(&server).unwrap_or_else(|| "127.0.0.1".to_owned());
    let port = number(&port).map_or(25, |port| port as u16);
    // The whole mail has its time in `function`.
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&host).port(port).timeout(None);
    if let (Some(user), Some(password)) = (string(&user), string(&password)) {
        builder = builder.credentials(Credentials::new(user, password));
    }
    if let Some(domain) = string(&domain) {
        builder = builder.hello_name(ClientId::Domain(domain));
    }
    Ok(Mail { transport: builder.build(), envelope, text, server: format!("{host}:{port}") })
}
