//! The calls that configure the program: each is a setting of ours, a registered function, or something that is not needed here.
//!
//! Owns what each means. Values are looked at no closer than their type: the configuration checks them with all others, and says the line.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mlua::{Lua, MultiValue, Table, Value as Lua_};
use serde_json::{Map, Value, json};

use super::told::{self, Meaning, Told};
use super::{OldConfig, Place, Registered, duration};
use crate::console::noise;
use crate::policy::api::args::{Args, string};
use crate::policy::api::log;
use crate::policy::call::{Answer, Host, position};
use crate::schedule::cron::{Plan, Scheduled};

/// Where the old program looks for MaxMind's files.
const GEOIP_FOLDER: &str = "/usr/share/GeoIP";
/// The port of `controlSocket` where its address has none.
const CONSOLE_PORT: u16 = 5199;

const NOT_NEEDED: &str = "is not needed here: each policy worker has thousands of calls in flight (detect.in_flight)";

/// What a call works on.
struct Said<'a> {
    config: &'a mut OldConfig,
    registered: &'a mut Registered,
    place: Place,
    /// What the call means, as far as it has run.
    means: Vec<Meaning>,
}

type Configure = fn(&mut Said, &mut Args) -> Answer<()>;

const CALLS: [(&str, Configure); 31] = [
    ("webserver", webserver),
    ("addListener", add_listener),
    ("setWebserverPassword", |said, args| said.text("http.password", args, "password")),
    ("setACL", set_acl),
    ("addACL", |said, args| said.entry("http.acl", args, "mask", true)),
    ("setMetricsNoPassword", |said, _| said.set("http.metrics_password", false)),
    ("setMaxWebserverConns", |said, args| said.number("http.max_connections", args)),
    ("controlSocket", control_socket),
    ("setNumLuaStates", |said, args| said.number("detect.workers", args)),
    ("setNumWorkerThreads", |said, args| said.unneeded(args, NOT_NEEDED)),
    ("setNumReportThreads", |said, args| said.unneeded(args, NOT_NEEDED)),
    ("setNumSchedulerThreads", |said, args| said.unneeded(args, NOT_NEEDED)),
    ("newGeoIP2DB", new_geoip),
    ("initGeoIPDB", |said, _| said.usual_geoip("Country")),
    ("initGeoIPCityDB", |said, _| said.usual_geoip("City")),
    ("initGeoIPISPDB", |said, _| said.usual_geoip("ISP")),
    ("addCustomWebHook", add_webhook),
    ("setNumWebHookThreads", |said, args| said.factor(args, |config| &mut config.hook_threads)),
    ("setNumWebHookConnsPerThread", |said, args| said.factor(args, |config| &mut config.hook_connections)),
    ("setWebHookQueueSize", |said, args| {
        said.unneeded(args, "is not needed here: webhooks wait in the alerts queue, on disk, and none is dropped")
    }),
    ("setWebHookTimeoutSecs", |said, args| said.seconds("notify.timeout", args)),
    ("disableCurlPeerVerification", |said, _| said.set("outbound.verify_certificates", false)),
    ("disableCurlHostVerification", |said, _| said.set("outbound.verify_hosts", false)),
    ("setCurlCABundleFile", |said, args| said.text("outbound.ca_file", args, "file")),
    ("setCurlClientCertAndKey", |said, args| {
        said.text("outbound.client_cert", args, "cert")?;
        said.text("outbound.client_key", args, "key")
    }),
    ("addCustomStat", |said, args| said.entry("policy.custom_stats", args, "name", false)),
    ("setReport", |said, args| {
        said.registered.report = Some(args.function("function")?);
        said.function(said.place.call.to_owned(), "one more policy, which has the file's name");
        Ok(())
    }),
    ("setBackground", |said, args| {
        let (name, function) = (args.string("name")?, args.function("function")?);
        said.means.push(Meaning::Background(name.clone()));
        said.registered.background.insert(name, function);
        Ok(())
    }),
    ("cronScheduleBackgroundFunc", |said, args| said.schedule(args, "cron")),
    ("intervalScheduleBackgroundFunc", |said, args| said.schedule(args, "interval")),
    ("setCustomEndpoint", |said, args| {
        let (name, function) = (args.string("name")?, args.function("function")?);
        said.function(
            format!("{} {name}", said.place.call),
            format!("POST /command/{name} runs it in a policy worker"),
        );
        said.registered.endpoints.insert(name, function);
        Ok(())
    }),
];

/// Puts the calls into `names`.
pub(super) fn install(
    lua: &Lua,
    host: &Rc<Host>,
    names: &Table,
    config: &Rc<RefCell<OldConfig>>,
    registered: &Rc<RefCell<Registered>>,
) -> mlua::Result<()> {
    for (name, call) in CALLS {
        let (config, registered, shared) = (Rc::clone(config), Rc::clone(registered), Rc::downgrade(host));
        let told = Cell::new(false);
        let function = host.pure(lua, move |lua, values: MultiValue| {
            if !is_loading(&shared, name, &told)? {
                return Ok(());
            }
            let (mut config, mut registered) = (config.borrow_mut(), registered.borrow_mut());
            let (place, shown, means) = (place(lua, name), told::shown(name, &values), Vec::new());
            let mut said = Said { config: &mut config, registered: &mut registered, place: place.clone(), means };
            // Told also where it fails, and the file goes on: what it has set before counts.
            let called = call(&mut said, &mut Args::new(name, values));
            let means = said.means;
            config.told.push(Told { place, call: shown, means });
            called
        })?;
        names.set(name, function)?;
    }
    let (config, shared, told) = (Rc::clone(config), Rc::downgrade(host), Cell::new(false));
    let set_key = host.pure(lua, move |lua, values: MultiValue| {
        if !is_loading(&shared, "setKey", &told)? {
            return Ok(false);
        }
        let (place, call) = (place(lua, "setKey"), told::shown("setKey", &values));
        let key = Args::new("setKey", values).string("key")?;
        // The old program says so and goes on; a console without its key stays shut.
        let fits = noise::key(&key).is_some();
        let mut config = config.borrow_mut();
        let means = if fits {
            config.set("console.key", key.trim(), &place);
            Meaning::Setting { key: "console.key", value: Value::from(key.trim()) }
        } else {
            Meaning::Nothing(format!("it is no base64 of {} bytes, and makeKey() makes one", noise::KEY))
        };
        config.told.push(Told { place, call, means: vec![means] });
        Ok(fits)
    })?;
    names.set("setKey", set_key)
}

/// Later a call changes nothing. Whoever types it at the console must hear of that; a report of an old file must not fail for it, and the
/// log says so, once in each machine.
fn is_loading(host: &Weak<Host>, name: &str, told: &Cell<bool>) -> Answer<bool> {
    let Some(host) = host.upgrade() else { return Ok(false) };
    if host.is_loading() {
        return Ok(true);
    }
    let text = format!("{name}: works only while the file is loaded; write it into the file, and restart");
    if host.running().is_some_and(|call| call.is_line()) {
        return Err(text);
    }
    if !told.replace(true) {
        log::write(&host, tracing::Level::WARN, &text, "");
    }
    Ok(false)
}

fn place(lua: &Lua, call: &'static str) -> Place {
    let (path, line) = position(lua).unwrap_or_default();
    Place { path: path.into(), line, call }
}

impl Said<'_> {
    fn set(&mut self, key: &'static str, value: impl Into<Value>) -> Answer<()> {
        let value = value.into();
        self.config.set(key, value.clone(), &self.place);
        self.means.push(Meaning::Setting { key, value });
        Ok(())
    }

    fn push(&mut self, key: &'static str, value: impl Into<Value>, after_default: bool) {
        let value = value.into();
        self.config.push(key, value.clone(), after_default, &self.place);
        self.means.push(Meaning::Entry { key, value });
    }

    fn geoip(&mut self, name: String, path: String) {
        self.push("geoip.files", path.as_str(), false);
        self.means.push(Meaning::Is(format!("getGeoIP2DB({name:?}) finds it")));
        self.registered.geoip.insert(name, path);
    }

    fn function(&mut self, what: String, text: impl Into<String>) {
        self.means.push(Meaning::Function { what, text: text.into() });
    }

    fn text(&mut self, key: &'static str, args: &mut Args, argument: &str) -> Answer<()> {
        let text = args.string(argument)?;
        self.set(key, text)
    }

    fn number(&mut self, key: &'static str, args: &mut Args) -> Answer<()> {
        let number = args.whole("number")?;
        self.set(key, number)
    }

    fn seconds(&mut self, key: &'static str, args: &mut Args) -> Answer<()> {
        let seconds = args.whole("seconds")?;
        self.set(key, format!("{seconds}s"))
    }

    fn entry(&mut self, key: &'static str, args: &mut Args, argument: &str, after_default: bool) -> Answer<()> {
        let entry = args.string(argument)?;
        self.push(key, entry, after_default);
        Ok(())
    }

    fn unneeded(&mut self, args: &mut Args, text: &'static str) -> Answer<()> {
        args.value();
        self.config.note(text, &self.place);
        let why = text.strip_prefix("is not needed here: ").unwrap_or(text);
        self.means.push(Meaning::Nothing(why.to_owned()));
        Ok(())
    }

    /// Threads times connections of a thread are webhooks at once; of two calls with the same name the last one counts.
    fn factor(&mut self, args: &mut Args, factor: fn(&mut OldConfig) -> &mut Option<i64>) -> Answer<()> {
        *factor(self.config) = Some(args.whole("number")?);
        let factors = [self.config.hook_threads, self.config.hook_connections];
        let product = factors.into_iter().flatten().fold(1, i64::saturating_mul);
        self.config.set("notify.custom_in_flight", product, &self.place);
        self.means.push(Meaning::Is(format!("a factor of notify.custom_in_flight, which is {product} with it")));
        Ok(())
    }

    fn usual_geoip(&mut self, name: &str) -> Answer<()> {
        self.geoip(name.to_owned(), usual_geoip(name));
        Ok(())
    }

    fn schedule(&mut self, args: &mut Args, kind: &'static str) -> Answer<()> {
        let (when, name) = (args.string(kind)?, args.string("name")?);
        let what = |when: &str| format!("runs {name} {when}, in a process with the role schedule");
        let plan = if kind == "cron" {
            self.means.push(Meaning::Is(what(&format!("at {when} by this machine's clock"))));
            Plan::cron(&when).map_err(|error| args.error(kind, error))?
        } else {
            let seconds = duration::seconds(&when).filter(|seconds| *seconds > 0);
            let form = || args.error(kind, "must be h[h][:mm][:ss], and more than nothing: \"00:00:01\" is a second");
            let seconds = seconds.ok_or_else(form)?;
            self.means.push(Meaning::Is(what(&format!("every {seconds} s"))));
            Plan::Every(Duration::from_secs(seconds))
        };
        self.config.wanted.push((self.place.clone(), name.clone()));
        self.config.scheduled.push(Scheduled { name, plan });
        Ok(())
    }
}

/// The file that a database has when nobody names it: of what is bought, else of what is free.
fn usual_geoip(name: &str) -> String {
    let named = |series: &str| format!("{GEOIP_FOLDER}/{series}-{name}.mmdb");
    let bought = named("GeoIP2");
    // The free series has no ISP; its ASN file has the organisation.
    let free = if name == "ISP" { format!("{GEOIP_FOLDER}/GeoLite2-ASN.mmdb") } else { named("GeoLite2") };
    // Once for the process: a machine that is made after a file came would ask for one that was not opened at the start.
    static BOUGHT: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());
    let mut known = BOUGHT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_bought = *known.entry(bought.clone()).or_insert_with(|| std::path::Path::new(&bought).exists());
    if is_bought { bought } else { free }
}

fn webserver(said: &mut Said, args: &mut Args) -> Answer<()> {
    let address = args.string("address")?;
    said.push("http.listen", format!("http://{address}"), false);
    said.text("http.password", args, "password")
}

fn add_listener(said: &mut Said, args: &mut Args) -> Answer<()> {
    let (address, tls) = (args.string("address")?, args.boolean("tls")?);
    if !tls {
        said.push("http.listen", format!("http://{address}"), false);
        return Ok(());
    }
    let (cert, key) = (args.string("cert")?, args.string("key")?);
    let options = args.optional_table("options")?;
    for (setting, argument, path) in [("http.tls_cert", "cert", cert), ("http.tls_key", "key", key)] {
        if said.config.get(setting).is_some_and(|before| before.as_str() != Some(path.as_str())) {
            return Err(args.error(argument, "an earlier listener has another one; all listeners have the same here"));
        }
        said.set(setting, path)?;
    }
    said.push("http.listen", format!("https://{address}"), false);
    let Some(options) = options else { return Ok(()) };
    for pair in options.pairs::<Lua_, Lua_>() {
        let (name, value) = pair.map_err(|error| args.error("options", error))?;
        let (name, value) = (string(&name).unwrap_or_default(), string(&value).unwrap_or_default());
        let oldest = match (name.as_str(), value.as_str()) {
            // Whoever allows older ones loses nothing that is safe.
            ("min_protocol" | "minimum_protocol", "SSLv3" | "TLSv1" | "TLSv1.0" | "TLSv1.1" | "TLSv1.2") => "1.2",
            ("min_protocol" | "minimum_protocol", "TLSv1.3") => "1.3",
            ("min_protocol" | "minimum_protocol", other) => {
                return Err(args.error(&name, format!("{other} is no version of TLS, such as TLSv1.2")));
            }
            (other, _) => return Err(args.error("options", format!("{other} cannot be honoured here; take it out"))),
        };
        if said.config.get("http.tls_min").is_some_and(|before| before.as_str() != Some(oldest)) {
            return Err(args.error(&name, "an earlier listener has another one; all listeners have the same here"));
        }
        said.set("http.tls_min", oldest)?;
    }
    Ok(())
}

fn set_acl(said: &mut Said, args: &mut Args) -> Answer<()> {
    let masks = args.texts("masks")?;
    said.set("http.acl", masks)
}

fn control_socket(said: &mut Said, args: &mut Args) -> Answer<()> {
    let address = args.string("address")?;
    let has_port = address.parse::<std::net::SocketAddr>().is_ok();
    let bare = address.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let address = match bare {
        Ok(ip) if !has_port => std::net::SocketAddr::new(ip, CONSOLE_PORT).to_string(),
        _ => address,
    };
    said.set("console.listen", address)
}

fn new_geoip(said: &mut Said, args: &mut Args) -> Answer<()> {
    let (name, path) = (args.string("name")?, args.string("path")?);
    said.geoip(name, path);
    Ok(())
}

/// Keys of a hook, and of ours.
const HOOK_KEYS: [(&str, &str); 6] = [
    ("url", "url"),
    ("secret", "secret"),
    ("basic-auth", "basic_auth"),
    ("api-key", "api_key"),
    ("content-type", "content_type"),
    ("kafka", "kafka"),
];

fn add_webhook(said: &mut Said, args: &mut Args) -> Answer<()> {
    let name = args.string("name")?;
    let table = args.table("config")?;
    let values = args.fields(&table, HOOK_KEYS.map(|(key, _)| key))?;
    let mut hook = Map::from_iter([("name".to_owned(), json!(name))]);
    for ((key, ours), value) in HOOK_KEYS.into_iter().zip(&values) {
        let given = match value {
            Lua_::Nil => continue,
            Lua_::Boolean(flag) if key == "kafka" => Value::from(*flag),
            value => match string(value) {
                Some(text) if key == "kafka" => Value::from(text == "true"),
                Some(text) => Value::from(text),
                None => return Err(args.wrong(key, "a string", value)),
            },
        };
        hook.insert(ours.to_owned(), given);
    }
    if !hook.contains_key("url") {
        return Err(args.error("url", "is missing"));
    }
    said.push("notify.custom_webhooks", Value::Object(hook), false);
    Ok(())
}
