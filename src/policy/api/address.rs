//! An address as a policy sees it: `lt.remote`.

use std::net::IpAddr;

use mlua::{MetaMethod, UserData, UserDataMethods, Value};

use super::args;

/// An IP address. A report's is folded to IPv4 where it is IPv4-mapped.
pub(in crate::policy) struct Address(pub(in crate::policy) IpAddr);

impl Address {
    /// The address behind a Lua value: an address or its text.
    pub(in crate::policy) fn of(value: &Value) -> Option<IpAddr> {
        match value {
            Value::UserData(data) => data.borrow::<Self>().ok().map(|address| address.0.to_canonical()),
            Value::String(_) => {
                args::string(value)?.trim().parse::<IpAddr>().ok().map(|address| address.to_canonical())
            }
            _ => None,
        }
    }
}

impl UserData for Address {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("tostring", |_, this, ()| Ok(this.0.to_string()));
        methods.add_method("isIPv4", |_, this, ()| Ok(this.0.is_ipv4()));
        methods.add_method("isIPv6", |_, this, ()| Ok(this.0.is_ipv6()));
        // Those of reports are folded before a policy sees them; `newCA` of an old configuration makes others.
        methods.add_method("isMappedIPv4", |_, this, ()| Ok(this.0 != this.0.to_canonical()));
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(this.0.to_string()));
        methods.add_meta_function(MetaMethod::Eq, |_, (a, b): (Value, Value)| {
            Ok(Self::of(&a).is_some_and(|a| Self::of(&b) == Some(a)))
        });
        methods.add_meta_function(MetaMethod::Lt, |_, (a, b): (Value, Value)| Ok(Self::of(&a) < Self::of(&b)));
        methods.add_meta_function(MetaMethod::Le, |_, (a, b): (Value, Value)| Ok(Self::of(&a) <= Self::of(&b)));
        methods.add_meta_function(MetaMethod::Concat, |_, (a, b): (Value, Value)| {
            let part = |value: &Value| match value {
                Value::UserData(_) => Self::of(value).map(|address| address.to_string()),
                other => args::string(other),
            };
            match (part(&a), part(&b)) {
                (Some(a), Some(b)) => Ok(a + &b),
                _ => Err(mlua::Error::runtime(format!(
                    "an address is joined with strings and numbers only, not with {}",
                    args::describe(if part(&a).is_none() { &a } else { &b })
                ))),
            }
        });
    }
}
