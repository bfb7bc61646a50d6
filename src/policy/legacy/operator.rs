//! What an operator types at the console: `stats()`, `showACL()`, `reload()`, `shutdown()` and their like.
//!
//! Owns the names. What each shows or does is the program's ([`Operator`]): a policy never gets near it, for they work at the console only.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use mlua::{Lua, Table};

use super::Registered;
use crate::console::noise;
use crate::policy::api::args::Args;
use crate::policy::call::{Answer, Call, Host};
use crate::report::ReportId;

/// What a command shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Reports, memory, time.
    Stats,
    /// Who may connect.
    Acl,
    /// The custom webhooks.
    Webhooks,
    /// How long reports waited and ran.
    Perf,
    /// Commands over HTTP.
    Commands,
    /// The counters of `addCustomStat`.
    CustomStats,
    /// The program's version.
    Version,
}

/// The program, as far as an operator at the console sees it.
pub trait Operator: Send + Sync {
    /// For people.
    fn show(&self, what: Show) -> String;
    /// Reads the GeoIP files again, once for all workers that run the same line, and says what came of each. It holds no thread: that of
    /// a worker has thousands of reports in flight.
    fn reload_geoip(&self, line: ReportId) -> BoxFuture<'static, String>;
    /// Exchanges the policies and reads the files again, as a signal does, once for all workers that run the same line. An error: what was
    /// refused stays as it was. It holds no thread either: the exchange waits for the workers.
    fn reload(&self, line: ReportId) -> BoxFuture<'static, Result<String, String>>;
    /// Drains and ends the program.
    fn shutdown(&self);
    /// Encrypts and decrypts a text with the console's key; the error says why that is not possible.
    fn test_crypto(&self, text: &str) -> Result<(), String>;
}

const RELOAD_GEOIP: &str = "reloadGeoIPDBs";
/// Ours: the old program had to be started again.
const RELOAD: &str = "reload";

const SHOWN: [(&str, Show); 7] = [
    ("stats", Show::Stats),
    ("showACL", Show::Acl),
    ("showCustomWebHooks", Show::Webhooks),
    ("showPerfStats", Show::Perf),
    ("showCommandStats", Show::Commands),
    ("showCustomStats", Show::CustomStats),
    ("showVersion", Show::Version),
];

fn operator(name: &str, call: &Call) -> Result<Arc<dyn Operator>, String> {
    if !call.is_line() {
        return Err(format!("{name}: works at the console only"));
    }
    call.services.operator.clone().ok_or_else(|| format!("{name}: there is no program around this"))
}

/// Puts the commands into `names`.
pub(in crate::policy) fn install(
    lua: &Lua,
    host: &Rc<Host>,
    names: &Table,
    registered: Option<&Rc<std::cell::RefCell<Registered>>>,
) -> mlua::Result<()> {
    for (name, what) in SHOWN {
        names.set(name, host.function(lua, name, move |_, call, _| Ok(operator(name, call)?.show(what)))?)?;
    }
    let endpoints = registered.map(Rc::clone);
    let show_endpoints = host.pure(lua, move |_, _| {
        let names = endpoints.as_ref().map(|all| all.borrow().endpoints.keys().cloned().collect::<Vec<_>>());
        Ok(names.unwrap_or_default().join("\n"))
    })?;
    names.set("showCustomEndpoints", show_endpoints)?;
    let reload_geoip = host.waiting(
        lua,
        RELOAD_GEOIP,
        |call, _| {
            let reading = operator(RELOAD_GEOIP, &call)?.reload_geoip(call.id());
            Ok(async move { soon(&call, RELOAD_GEOIP, reading).await })
        },
        |lua, said: String| lua.create_string(said),
    )?;
    names.set(RELOAD_GEOIP, reload_geoip)?;
    let reload = host.waiting(
        lua,
        RELOAD,
        |call, _| {
            let reloading = operator(RELOAD, &call)?.reload(call.id());
            Ok(async move { soon(&call, RELOAD, reloading).await?.map_err(|refused| format!("{RELOAD}: {refused}")) })
        },
        |lua, said: String| lua.create_string(said),
    )?;
    names.set(RELOAD, reload)?;
    let shutdown = host.function(lua, "shutdown", |_, call, _| {
        operator("shutdown", call)?.shutdown();
        Ok("draining")
    })?;
    names.set("shutdown", shutdown)?;
    let crypto = host.function(lua, "testCrypto", |_, call, values| {
        let text = Args::new("testCrypto", values).string("text")?;
        let tested = operator("testCrypto", call)?.test_crypto(&text);
        tested.map(|()| "it came out as it went in").map_err(|error| format!("testCrypto: {error}"))
    })?;
    names.set("testCrypto", crypto)?;
    names.set("makeKey", host.pure(lua, |_, _| Ok(noise::make_key()))?)
}

/// What comes of it within the time of the call, which would otherwise end with the machine that everybody's reports run in.
async fn soon<T>(call: &Call, name: &str, work: impl Future<Output = T>) -> Answer<T> {
    let most = call.may_wait(Duration::MAX)?;
    let done = tokio::time::timeout(most, work).await;
    done.map_err(|_| format!("{name}: still under way after {most:?}; the log says what comes of it"))
}
