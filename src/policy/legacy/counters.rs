//! `incCustomStat` and `durationToSeconds`.

use std::rc::Rc;

use mlua::{Lua, Table};

use super::duration;
use crate::policy::api::args::{Args, cut};
use crate::policy::call::Host;

pub(super) fn install(lua: &Lua, host: &Rc<Host>, names: &Table) -> mlua::Result<()> {
    let increment = host.function(lua, "incCustomStat", |_, call, values| {
        let args = &mut Args::new("incCustomStat", values);
        let name = args.string("name")?;
        if !call.services.custom_stats.contains(&name) {
            let shown = cut(&name, 64);
            return Err(args.error("name", format!("there is no counter {shown}; addCustomStat(\"{shown}\") makes it")));
        }
        call.services.metrics.custom_stats.with_label_values(&[&name]).inc();
        Ok(())
    })?;
    names.set("incCustomStat", increment)?;
    let to_seconds = host.pure(lua, |_, values| {
        let args = &mut Args::new("durationToSeconds", values);
        let text = args.string("duration")?;
        let form = || args.error("duration", "must be h[h][:mm][:ss]: \"10\" is ten hours, \"00:00:01\" a second");
        duration::seconds(&text).map(|seconds| seconds as f64).ok_or_else(form)
    })?;
    names.set("durationToSeconds", to_seconds)
}
