//! `lt`: the report as a policy sees it.

use std::sync::Arc;

use mlua::{AnyUserData, IntoLua, Lua, MetaMethod, Table, UserData, UserDataFields, UserDataMethods, Value};

use super::address::Address;
use super::args;
use crate::policy::call::place;
use crate::report::LoginReport;

const FIELDS: &[&str] = &[
    "id",
    "t",
    "login",
    "remote",
    "pwhash",
    "success",
    "policy_reject",
    "fail_type",
    "session_id",
    "protocol",
    "tls",
    "device_id",
    "device_attrs",
    "attrs",
    "attrs_mv",
];

/// The report, read-only. Its tables are made when they are first asked for, and kept: a policy asks for them in loops.
pub(in crate::policy) struct Lt(Arc<LoginReport>);

impl Lt {
    pub(in crate::policy) fn new(report: Arc<LoginReport>) -> Self {
        Self(report)
    }
}

/// The user value under `slot`, made once.
fn kept<T: IntoLua>(
    lua: &Lua,
    this: &AnyUserData,
    slot: usize,
    make: impl FnOnce(&Lua, &LoginReport) -> mlua::Result<T>,
) -> mlua::Result<Value> {
    match this.nth_user_value::<Value>(slot)? {
        Value::Nil => {
            let value = make(lua, &this.borrow::<Lt>()?.0)?.into_lua(lua)?;
            this.set_nth_user_value(slot, &value)?;
            Ok(value)
        }
        value => Ok(value),
    }
}

fn pairs(lua: &Lua, pairs: &[(String, String)]) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, pairs.len())?;
    for (key, value) in pairs {
        table.raw_set(key.as_str(), value.as_str())?;
    }
    Ok(table)
}

fn lists(lua: &Lua, lists: &[(String, Vec<String>)]) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, lists.len())?;
    for (key, values) in lists {
        table.raw_set(key.as_str(), lua.create_sequence_from(values.iter().map(String::as_str))?)?;
    }
    Ok(table)
}

impl UserData for Lt {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("id", |_, this| Ok(this.0.id.to_string()));
        fields.add_field_method_get("t", |_, this| Ok(this.0.t.seconds()));
        fields.add_field_method_get("login", |lua, this| lua.create_string(&this.0.login));
        fields.add_field_method_get("pwhash", |lua, this| lua.create_string(&this.0.pwhash));
        fields.add_field_method_get("success", |_, this| Ok(this.0.success));
        fields.add_field_method_get("policy_reject", |_, this| Ok(this.0.policy_reject));
        fields.add_field_method_get("fail_type", |lua, this| lua.create_string(&this.0.fail_type));
        fields.add_field_method_get("session_id", |lua, this| lua.create_string(&this.0.session_id));
        fields.add_field_method_get("protocol", |lua, this| lua.create_string(&this.0.protocol));
        fields.add_field_method_get("tls", |_, this| Ok(this.0.tls));
        fields.add_field_method_get("device_id", |lua, this| lua.create_string(&this.0.device_id));
        fields
            .add_field_function_get("remote", |lua, this| kept(lua, &this, 1, |_, report| Ok(Address(report.remote))));
        fields
            .add_field_function_get("attrs", |lua, this| kept(lua, &this, 2, |lua, report| pairs(lua, &report.attrs)));
        fields.add_field_function_get("attrs_mv", |lua, this| {
            kept(lua, &this, 3, |lua, report| lists(lua, &report.attrs_mv))
        });
        fields.add_field_function_get("device_attrs", |lua, this| {
            kept(lua, &this, 4, |lua, report| pairs(lua, report.device()))
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(format!("report {}", this.0.id)));
        methods.add_meta_method(MetaMethod::Index, |lua, _, key: Value| -> mlua::Result<()> {
            Err(mlua::Error::runtime(place(lua, &unknown(&key, "no such field"))))
        });
        methods.add_meta_method(MetaMethod::NewIndex, |lua, _, (key, _): (Value, Value)| -> mlua::Result<()> {
            let name = args::string(&key).unwrap_or_default();
            let text = format!("lt.{}: a report cannot be changed", args::cut(&name, 64));
            Err(mlua::Error::runtime(place(lua, &text)))
        });
    }
}

fn unknown(key: &Value, what: &str) -> String {
    let name = args::string(key).unwrap_or_else(|| args::describe(key));
    let shown = args::cut(&name, 64);
    match args::nearest(&name, FIELDS) {
        Some(near) => format!("lt.{shown}: {what}; did you mean lt.{near}?"),
        None => format!("lt.{shown}: {what}; there are {}", FIELDS.join(", ")),
    }
}
