//! What an error of Lua says to a person, and whether it is one of memory.

/// Bytes of an error that are kept.
const MAX_ERROR: usize = 1_024;

pub(super) fn is_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => is_memory(cause),
        // LuaJIT's words, where the error went through a coroutine or a pcall as a plain value. Only the whole text counts: a login
        // that contains the words must not cost a machine.
        mlua::Error::RuntimeError(text) => text == "not enough memory",
        _ => false,
    }
}

/// The type in Lua's own form of a value that is no string, as `error({code = 1})` gives it: `table: 0x7f…`, or `nil`. The address
/// would tell a person nothing, and make each error another one.
fn value_type(text: &str) -> Option<&str> {
    let (kind, address) = text.split_once(": 0x").unwrap_or((text, ""));
    let known = match address {
        "" => ["nil"].as_slice(),
        _ => &["table", "function", "userdata", "thread"],
    };
    known.contains(&kind).then_some(kind)
}

/// The error in one line or a few, without a traceback, cut to a bound.
pub(super) fn text(error: &mlua::Error) -> String {
    let mut error = error;
    while let mlua::Error::CallbackError { cause, .. } = error {
        error = cause;
    }
    let whole = match error {
        mlua::Error::RuntimeError(text) | mlua::Error::SyntaxError { message: text, .. } => text.clone(),
        other => other.to_string(),
    };
    let line = whole.split("\nstack traceback:").next().unwrap_or_default();
    let line = match value_type(line) {
        Some(kind) => format!("an error whose value is a {kind}"),
        None => line.to_owned(),
    };
    line[..line.floor_char_boundary(MAX_ERROR)].to_owned()
}
