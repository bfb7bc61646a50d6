//! Runs the top level of policies in a machine: what a policy defines there is what is called later.
//!
//! Owns the limits on that. What is read from files is in [`super::load`].

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use mlua::Function;

use super::PolicySet;
use super::call::Host;
use super::legacy::{OldConfig, Registered};
use super::load::Policy;
use super::lua_error::text;
use super::sandbox::{self, Sandbox};
use super::watchdog::{self, Lane};
use crate::report::ReportId;

/// What the top level of one policy may use while it is loaded.
pub(super) const LOAD_CPU: Duration = Duration::from_secs(2);
pub(super) const LOAD_WALL: Duration = Duration::from_secs(10);

/// Which policy: the generation of its set, and its index there.
pub(super) type Which = (u64, usize);

/// Runs the top level of a policy. The watchdog knows it by the report that there is none of.
fn run_chunk(sandbox: &Sandbox, lane: &Lane, which: Which, policy: &Policy, chunk: &Function) -> Result<(), String> {
    let (set, index) = which;
    let watch = watchdog::Poll { set, policy: index, report: ReportId::default(), cpu: LOAD_CPU, wall: LOAD_WALL };
    let (outcome, used) = lane.watch(&sandbox.lua, watch, || chunk.call::<()>(()));
    if used > LOAD_CPU {
        return Err(format!("{}: used more CPU than {LOAD_CPU:?} while it was loaded", policy.place));
    }
    outcome.map_err(|error| policy.located(&text(&error)))
}

/// Loads a configuration of the old program; what its calls say goes into `config`.
pub(super) fn load_old(
    sandbox: &Sandbox,
    host: &Rc<Host>,
    lane: &Lane,
    which: Which,
    policy: &Policy,
    config: &Rc<RefCell<OldConfig>>,
) -> Result<Rc<RefCell<Registered>>, String> {
    let registered: Rc<RefCell<Registered>> = Rc::default();
    let chunk = sandbox.compile_old(host, policy, config, &registered);
    let chunk = chunk.map_err(|error| policy.located(&text(&error)))?;
    run_chunk(sandbox, lane, which, policy, &chunk)?;
    match config.borrow().unset(&registered.borrow()) {
        Some(unset) => Err(policy.located(&unset)),
        None => Ok(Rc::clone(&registered)),
    }
}

/// The lane of a thread that only loads.
pub(super) fn loading_lane() -> Rc<Lane> {
    watchdog::lane(LOAD_WALL)
}

pub(super) fn load(sandbox: &Sandbox, lane: &Lane, which: Which, policy: &Policy) -> Result<Function, String> {
    let told = |error: mlua::Error| policy.located(&text(&error));
    let (chunk, environment) = sandbox.compile(policy).map_err(told)?;
    run_chunk(sandbox, lane, which, policy, &chunk)?;
    match environment.raw_get::<mlua::Value>("report") {
        Ok(mlua::Value::Function(report)) => Ok(report),
        Ok(mlua::Value::Nil) => Err(format!("{}: defines no global function report(lt)", policy.place)),
        Ok(other) => Err(format!("{}: report must be a function, it is a {}", policy.place, other.type_name())),
        Err(error) => Err(told(error)),
    }
}

/// The modules that do not compile, each once.
pub(super) fn uncompiled(set: &PolicySet) -> Vec<String> {
    let lua = mlua::Lua::new_with(mlua::StdLib::NONE, mlua::LuaOptions::new());
    let Ok(lua) = lua else { return Vec::new() };
    let mut problems: Vec<String> = Vec::new();
    for policy in set.policies() {
        for module in policy.modules.iter().chain(policy.library.iter()) {
            if let Err(error) = sandbox::chunk(&lua, &module.chunk, &module.source).into_function() {
                problems.push(policy.located(&text(&error)));
            }
        }
    }
    problems.sort();
    problems.dedup();
    problems
}
