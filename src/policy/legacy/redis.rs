//! The commands of the module `redis`, over one connection a server and thread.
//!
//! Owns the connections. Commands of all reports of a machine share one, each answered in its turn, so that a report that waits holds up
//! no other; a command that would change or hold the connection for the others is refused. A command is never sent twice: whether the
//! server did it is not known. An answer over `policy.http.max_answer` is an error, and where it is far over it, the end of its connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use mlua::{Function, Lua, MultiValue, Table, Value as Lua_};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, Value};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

use super::bounded::Bounded;
use crate::policy::api::args::{Args, number, string};
use crate::policy::call::{Answer, Host};

const CALL: &str = "redis";
/// Servers of one thread.
const MAX_CONNECTIONS: usize = 64;
/// Arguments of one command, and their bytes.
const MAX_ARGUMENTS: usize = 10_000;
const MAX_BYTES: usize = 4 << 20;
/// Commands under way at once on one connection. Further ones wait: the answers come one after another in any case.
const AT_ONCE: usize = 64;
/// An answer that is so many times as large as it may be is not read to its end, which costs the others on its connection their answers.
const FAR_OVER: u64 = 16;

/// Who is asked, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Server {
    host: String,
    port: u16,
    db: i64,
    user: String,
    password: String,
}

/// A connection, and what it runs on as long as somebody needs it.
struct Connection {
    redis: MultiplexedConnection,
    /// An answer was far too large.
    broken: Arc<AtomicBool>,
    _driver: AbortOnDropHandle<()>,
}

/// A connection, or the one attempt to get one that all who need it wait for.
type Shared = Rc<OnceCell<Connection>>;

thread_local! {
    static CONNECTIONS: RefCell<HashMap<Server, Shared>> = RefCell::default();
}

/// What to do instead of a command that would change the connection for all others, or keep them waiting.
fn instead(command: &str) -> Option<&'static str> {
    Some(match command {
        "SELECT" => "use client:select(db), or connect{ host = …, db = … }",
        "AUTH" | "HELLO" => "use client:auth(password)",
        "MULTI" | "EXEC" | "DISCARD" | "WATCH" | "UNWATCH" => "use eval: the server runs a script as one",
        "BLPOP" | "BRPOP" | "BRPOPLPUSH" | "BLMOVE" | "BLMPOP" | "BZPOPMIN" | "BZPOPMAX" | "BZMPOP" | "WAIT"
        | "WAITAOF" => "use the command that does not wait, and time.sleep",
        "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "SUNSUBSCRIBE" | "MONITOR"
        | "SYNC" | "PSYNC" => "messages cannot be listened for here; write them into a list and read that",
        "CLIENT" | "RESET" | "QUIT" | "READONLY" | "READWRITE" | "ASKING" => {
            "take it out: connections are the program's"
        }
        _ => return None,
    })
}

/// `call(server, arguments)`: the answer, or an error.
pub(super) fn function(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Function> {
    host.waiting(
        lua,
        CALL,
        |call, values| {
            let (server, command) = parse(values)?;
            Ok(async move {
                let limit = call.services.web.connects().and_then(|()| call.may_wait(call.services.socket_timeout));
                let outcome = match limit {
                    Ok(limit) => {
                        let shared = shared(&server);
                        let answered =
                            tokio::time::timeout(limit, ask(&server, &shared, command, call.services.max_answer)).await;
                        answered.unwrap_or_else(|_| {
                            // It may be dead without a word; whoever asks next begins with another one.
                            forget(&server, &shared);
                            Err(format!("no answer within {limit:?}"))
                        })
                    }
                    Err(why) => Err(why),
                };
                outcome.map_err(|error| {
                    let Server { host, port, .. } = &server;
                    format!("{CALL}: {host}:{port}: {error}")
                })
            })
        },
        give,
    )
}

fn parse(values: MultiValue) -> Answer<(Server, Cmd)> {
    let mut args = Args::new(CALL, values);
    let (server, arguments) = (args.table("server")?, args.table("arguments")?);
    let [host, port, db, user, password] = args.fields(&server, ["host", "port", "db", "user", "password"])?;
    let text = |value: &Lua_| string(value).unwrap_or_default();
    let host = text(&host);
    if host.is_empty() || host.contains(['@', '/']) {
        // Not repeated: it may be an address with a password in it.
        return Err(args.error("host", "must be the name or the address of a server"));
    }
    let port = number(&port).filter(|port| port.fract() == 0.0 && (1.0..65_536.0).contains(port));
    let server = Server {
        host,
        port: port.ok_or_else(|| args.error("port", "must be a whole number from 1 to 65535"))? as u16,
        db: number(&db).unwrap_or_default() as i64,
        user: text(&user),
        password: text(&password),
    };
    let mut command = Cmd::new();
    let (mut bytes, mut first, mut streams) = (0, String::new(), false);
    for (at, value) in arguments.sequence_values::<Lua_>().enumerate() {
        let value = value.map_err(|error| args.error("arguments", error))?;
        let name = format!("argument {}", at + 1);
        match &value {
            // Bytes, whatever they are.
            Lua_::String(text) => {
                bytes += text.as_bytes().len();
                command.arg(&text.as_bytes()[..]);
            }
            Lua_::Boolean(flag) => drop(command.arg(flag.to_string())),
            other => {
                let text = string(other).ok_or_else(|| args.wrong(&name, "a string", other))?;
                bytes += text.len();
                command.arg(text);
            }
        }
        let word = string(&value).unwrap_or_default().to_ascii_uppercase();
        if at == 0 {
            first = word;
            if let Some(instead) = instead(&first) {
                return Err(args.error(&first, format!("all reports share the connection; {instead}")));
            }
        } else if first.starts_with("XREAD") && !streams {
            streams = word == "STREAMS";
            if word == "BLOCK" {
                let text =
                    "BLOCK would keep all reports waiting that share the connection; ask without it, and time.sleep";
                return Err(args.error(&first, text));
            }
        }
        if at >= MAX_ARGUMENTS || bytes > MAX_BYTES {
            let reason = format!("more than {MAX_ARGUMENTS} arguments or {MAX_BYTES} bytes in one command");
            return Err(args.error("arguments", reason));
        }
    }
    Ok((server, command))
}

fn shared(server: &Server) -> Shared {
    CONNECTIONS.with_borrow_mut(|connections| {
        if connections.len() >= MAX_CONNECTIONS && !connections.contains_key(server) {
            connections.clear();
        }
        Rc::clone(connections.entry(server.clone()).or_default())
    })
}

/// Where another one has taken its place, that one stays.
fn forget(server: &Server, used: &Shared) {
    CONNECTIONS.with_borrow_mut(|connections| {
        if connections.get(server).is_some_and(|known| Rc::ptr_eq(known, used)) {
            connections.remove(server);
        }
    });
}

async fn ask(server: &Server, shared: &Shared, command: Cmd, most: ByteSize) -> Result<Value, String> {
    let Connection { redis, broken, .. } = shared.get_or_try_init(|| connect(server, most)).await?;
    let answer = redis.clone().send_packed_command(&command).await;
    let too_large = |whose| Err(format!("{whose} is larger than policy.http.max_answer ({most})"));
    match answer {
        Ok(value) => {
            if wire_length(&value) as u64 > most.as_u64() {
                return too_large("the answer");
            }
            value.extract_error().map_err(|error| error.to_string())
        }
        Err(error) => {
            if error.is_unrecoverable_error() || error.is_connection_dropped() {
                forget(server, shared);
            }
            if broken.load(Ordering::Relaxed) {
                too_large("an answer on the connection")
            } else {
                Err(error.to_string())
            }
        }
    }
}

async fn connect(server: &Server, most: ByteSize) -> Result<Connection, String> {
    let mut login = RedisConnectionInfo::default().set_db(server.db).set_skip_set_lib_name();
    if !server.user.is_empty() {
        login = login.set_username(&server.user);
    }
    if !server.password.is_empty() {
        login = login.set_password(&server.password);
    }
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|error| error.to_string())?;
    // A command is one write, and waits for no other.
    let _ = stream.set_nodelay(true);
    let broken = Arc::<AtomicBool>::default();
    let bounded = Bounded::new(stream, most.as_u64().saturating_mul(FAR_OVER), Arc::clone(&broken));
    // The whole command has its time in `function`.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None::<Duration>)
        .set_concurrency_limit(AT_ONCE);
    let connected = MultiplexedConnection::new_with_config(&login, bounded, config).await;
    let (redis, driver) = connected.map_err(|error| error.to_string())?;
    Ok(Connection { redis, broken, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) })
}

/// Bytes of an answer as the server sent it.
fn wire_length(value: &Value) -> usize {
    // The type, the number, the end of the line.
    let line = |number: &dyn ToString| number.to_string().len() + 3;
    match value {
        Value::Int(number) => line(number),
        Value::SimpleString(text) => text.len() + 3,
        Value::BulkString(bytes) => line(&bytes.len()) + bytes.len() + 2,
        Value::Array(items) => line(&items.len()) + items.iter().map(wire_length).sum::<usize>(),
        // `+OK`, `$-1`; others do not come.
        _ => 5,
    }
}

fn give(lua: &Lua, value: Value) -> mlua::Result<Lua_> {
    Ok(match value {
        Value::Nil => Lua_::Nil,
        Value::Int(number) => Lua_::Number(number as f64),
        Value::Double(number) => Lua_::Number(number),
        Value::Boolean(flag) => Lua_::Boolean(flag),
        Value::Okay => Lua_::Boolean(true),
        Value::SimpleString(text) => Lua_::String(lua.create_string(text)?),
        Value::BulkString(bytes) => Lua_::String(lua.create_string(bytes)?),
        Value::VerbatimString { text, .. } => Lua_::String(lua.create_string(text)?),
        Value::Array(items) | Value::Set(items) => Lua_::Table(list(lua, items)?),
        Value::Map(pairs) => Lua_::Table(list(lua, pairs.into_iter().flat_map(<[Value; 2]>::from).collect())?),
        // What nothing that is asked here answers.
        _ => Lua_::Nil,
    })
}

/// What is nil in an array is false, as the old module had it: a table has no nil in it.
fn list(lua: &Lua, items: Vec<Value>) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(items.len(), 0)?;
    for (at, item) in items.into_iter().enumerate() {
        let value = give(lua, item)?;
        table.raw_set(at + 1, if value.is_nil() { Lua_::Boolean(false) } else { value })?;
    }
    Ok(table)
}
