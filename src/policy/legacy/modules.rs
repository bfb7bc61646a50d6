//! The modules that existing policies `require`: over the native API, under their own names.
//!
//! Owns which there are. What a module does stands in `modules/`, in Lua: so a wait in it is a wait of the policy.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mlua::{Lua, MultiValue, Table, Value};

use crate::policy::api::args::Args;
use crate::policy::call::{Answer, Host};

/// Bytes of what is encoded.
const MAX_BYTES: usize = 16 << 20;

const CHUNKS: [(&str, &str); 5] = [
    ("elasticsearch", include_str!("modules/elasticsearch.lua")),
    ("http", include_str!("modules/http.lua")),
    ("ltn12", include_str!("modules/ltn12.lua")),
    ("redis", include_str!("modules/redis.lua")),
    ("smtp", include_str!("modules/smtp.lua")),
];

/// The chunks of the modules, and the functions that they need.
pub(super) fn table(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let modules = lua.create_table()?;
    for (name, source) in CHUNKS {
        // A name of ours: an error inside is told with the line of the policy.
        modules.set(name, lua.load(source).set_name(format!("=__{name}")).into_function()?)?;
    }
    modules.set("redis_call", super::redis::function(lua, host)?)?;
    modules.set("smtp_send", super::smtp::function(lua, host)?)?;
    let b64 = host.pure(lua, |_, values| Ok(STANDARD.encode(bytes("mime.b64", values)?)))?;
    modules.set("b64", b64)?;
    let unb64 = host.pure(lua, |lua, values| {
        let text = bytes("mime.unb64", values)?;
        let decoded = STANDARD.decode(text.trim_ascii()).map_err(|error| format!("mime.unb64: text: {error}"))?;
        lua.create_string(decoded).map_err(|error| format!("mime.unb64: {error}"))
    })?;
    modules.set("unb64", unb64)?;
    Ok(modules)
}

fn bytes(function: &'static str, values: MultiValue) -> Answer<Vec<u8>> {
    let args = &mut Args::new(function, values);
    match args.value() {
        Value::String(text) if text.as_bytes().len() > MAX_BYTES => {
            Err(args.error("text", format!("has more than {MAX_BYTES} bytes")))
        }
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        other => Err(args.wrong("text", "a string", &other)),
    }
}
