//! `lt`: the report, as a policy sees it.
//!
//! Owns its fields. A field is made when it is asked for; tables are made once and kept with the value in Lua, so that a policy that
//! reads one twice gets the same one.

use std::net::IpAddr;
use std::sync::Arc;

use mlua::{AnyUserData, Lua, MetaMethod, Result, Table, UserData, UserDataFields, UserDataMethods, Value};

use super::{geo, nearest, wrong};
use crate::report::LoginReport;

const FIELDS: &[&str] = &[
    "t", "remote", "login", "pwhash", "success", "policy_reject", "fail_type", "session_id", "protocol", "tls", "device_id",
    "device_attrs", "attrs", "attrs_mv", "geo", "id",
];

/// The report.
pub(in crate::policy) struct Lt {
    report: Arc<LoginReport>,
}

impl Lt {
    pub(in crate::policy) const fn new(report: Arc<LoginReport>) -> Self {
        Self { report }
    }
}

/// Makes a value once and keeps it with the userdata, in Lua's own memory.
fn kept(lua: &Lua, this: &AnyUserData, slot: usize, make: impl FnOnce(&Lua, &LoginReport) -> Result<Value>) -> Result<Value> {
    let kept: Value = this.nth_user_value(slot)?;
    if !kept.is_nil() {
        return Ok(kept);
    }
    let report = Arc::clone(&this.borrow::<Lt>()?.report);
    let made = make(lua, &report)?;
    this.set_nth_user_value(slot, &made)?;
    Ok(made)
}

impl UserData for Lt {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("t", |_, this| Ok(this.report.t.seconds()));
        fields.add_field_method_get("id", |_, this| Ok(this.report.id.to_string()));
        fields.add_field_method_get("login", |lua, this| lua.create_string(&this.report.login));
        fields.add_field_method_get("pwhash", |lua, this| lua.create_string(&this.report.pwhash));
        fields.add_field_method_get("success", |_, this| Ok(this.report.success));
        fields.add_field_method_get("policy_reject", |_, this| Ok(this.report.policy_reject));
        fields.add_field_method_get("fail_type", |lua, this| lua.create_string(&this.report.fail_type));
        fields.add_field_method_get("session_id", |lua, this| lua.create_string(&this.report.session_id));
        fields.add_field_method_get("protocol", |lua, this| lua.create_string(&this.report.protocol));
        fields.add_field_method_get("tls", |_, this| Ok(this.report.tls));
        fields.add_field_method_get("device_id", |lua, this| lua.create_string(&this.report.device_id));
        fields.add_field_function_get("remote", |lua, this| {
            kept(lua, &this, 1, |lua, report| Ok(Value::UserData(lua.create_userdata(Address(report.remote))?)))
        });
        fields.add_field_function_get("device_attrs", |lua, this| {
            kept(lua, &this, 2, |lua, report| pairs(lua, &report.device_attrs))
        });
        fields.add_field_function_get("attrs", |lua, this| kept(lua, &this, 3, |lua, report| pairs(lua, &report.attrs)));
        fields.add_field_function_get("attrs_mv", |lua, this| kept(lua, &this, 4, |lua, report| {
            let table = lua.create_table_with_capacity(0, report.attrs_mv.len())?;
            for (key, values) in &report.attrs_mv {
                table.raw_set(key.as_str(), lua.create_sequence_from(values.iter().map(String::as_str))?)?;
            }
            Ok(Value::Table(table))
        }));
        fields.add_field_function_get("geo", |lua, this| {
            kept(lua, &this, 5, |lua, report| Ok(Value::Table(geo::table(lua, &report.geo)?)))
        });
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::Index, |lua, _, key: Value| -> Result<Value> {
            let name = key.to_string()?;
            Err(wrong(lua, "lt", format!("has no field `{name}`; {}", nearest(&name, FIELDS))))
        });
    }
}

fn pairs(lua: &Lua, pairs: &[(String, String)]) -> Result<Value> {
    let table: Table = lua.create_table_with_capacity(0, pairs.len())?;
    for (key, value) in pairs {
        table.raw_set(key.as_str(), value.as_str())?;
    }
    Ok(Value::Table(table))
}

/// An IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) IpAddr);

impl UserData for Address {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("tostring", |_, this, ()| Ok(this.0.to_string()));
        methods.add_method("isIPv4", |_, this, ()| Ok(this.0.is_ipv4()));
        methods.add_method("isIPv6", |_, this, ()| Ok(this.0.is_ipv6()));
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(this.0.to_string()));
        methods.add_meta_function(MetaMethod::Concat, |_, (a, b): (Value, Value)| Ok(a.to_string()? + &b.to_string()?));
        methods.add_meta_function(MetaMethod::Eq, |_, (a, b): (AnyUserData, AnyUserData)| {
            Ok(a.borrow::<Self>().ok().zip(b.borrow::<Self>().ok()).is_some_and(|(a, b)| *a == *b))
        });
    }
}
