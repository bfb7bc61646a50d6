//! `runCustomWebHook`: a webhook by its name, durable when the handler has returned.

use std::rc::Rc;

use bytes::Bytes;
use mlua::{Lua, Table, Value};

use crate::alert::Hook;
use crate::policy::api::args::{Args, cut};
use crate::policy::call::{Answer, Call, Host};

/// Webhooks of one call: more is a loop.
const MAX_HOOKS: usize = 100;
const RUN: &str = "runCustomWebHook";

pub(super) fn install(lua: &Lua, host: &Rc<Host>, names: &Table) -> mlua::Result<()> {
    names.set(RUN, host.function(lua, RUN, |_, call, values| run(call, &mut Args::new(RUN, values)))?)
}

fn run(call: &Call, args: &mut Args) -> Answer<bool> {
    let name = args.string("name")?;
    let body = match args.value() {
        // Bytes, whatever they are: the receiver gets exactly these.
        Value::String(text) => Bytes::copy_from_slice(&text.as_bytes()),
        other => return Err(args.wrong("body", "a string", &other)),
    };
    if !call.services.custom_webhooks.contains(&name) {
        let shown = cut(&name, 64);
        return Err(
            args.error("name", format!("there is no webhook {shown}; addCustomWebHook(\"{shown}\", …) makes it"))
        );
    }
    let most = call.services.max_alert;
    if body.len() as u64 > most.as_u64() {
        return Err(args.error("body", format!("has {} bytes; policy.max_alert is {most}", body.len())));
    }
    let mut hooks = call.hooks.borrow_mut();
    if hooks.len() >= MAX_HOOKS {
        return Err(format!("{RUN}: more than {MAX_HOOKS} webhooks in one call"));
    }
    let nth = hooks.len();
    hooks.push(Hook::new(name, body, call.id(), call.t(), nth));
    Ok(true)
}
