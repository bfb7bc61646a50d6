//! The virtual machine: every policy of a set in an environment of its own, and many calls in flight.
//!
//! Owns a call from its start to its effects or its failure, and the limits on it. Never retries a call and never replaces itself: it
//! says that it is spoiled, and [`crate::detect`] builds another.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use mlua::Function;
use tokio_util::sync::CancellationToken;

use super::api::lt::Lt;
use super::call::{Call, Cause, Host};
use super::legacy::Registered;
use super::load::LoadError;
use super::lua_error::{is_memory, text};
use super::sandbox::Sandbox;
use super::top_level::{LOAD_CPU, LOAD_WALL, load, load_old, uncompiled};
use super::watchdog::{self, Lane};
use super::{Effects, Failure, PolicySet, Services, Settings};
use crate::report::LoginReport;
use crate::telemetry::Metrics;

/// The limits of a machine, out of [`Settings`].
#[derive(Clone, Copy)]
struct Limits {
    time: Duration,
    cpu: Duration,
    memory: usize,
    age: Duration,
    stuck_after: Duration,
}

/// One virtual machine. It stays on the thread on which it was built.
pub struct Vm {
    pub(super) policies: Vec<Loaded>,
    generation: u64,
    pub(super) services: Option<Rc<Services>>,
    limits: Limits,
    pub(super) host: Rc<Host>,
    spoiled: Cell<bool>,
    /// When it is to be replaced for its age.
    old_at: Instant,
    retired: CancellationToken,
    lane: Rc<Lane>,
    // Last: what the fields above hold of the machine goes before it.
    pub(super) sandbox: Sandbox,
}

pub(super) struct Loaded {
    pub(super) name: Rc<str>,
    /// `None`: an old configuration that sets no report function.
    report: Option<Function>,
    /// What an old configuration has registered besides.
    pub(super) registered: Option<Rc<RefCell<Registered>>>,
}

/// How a call ended before its effects were looked at.
pub(super) enum Ended<R> {
    Returned(R),
    Raised(mlua::Error),
    Failed(Failure),
}

impl Vm {
    /// A machine with every policy of the set loaded. An error lists every policy that does not load.
    pub fn new(set: &PolicySet, services: &Services, settings: &Settings) -> Result<Self, LoadError> {
        let limits = Limits {
            time: settings.time_limit,
            cpu: settings.cpu_limit,
            memory: usize::try_from(settings.memory.as_u64()).unwrap_or(usize::MAX),
            // Not all at the same time: each takes its worker some milliseconds.
            age: settings.vm_age.mul_f64(rand::random_range(0.9..1.1)),
            stuck_after: settings.stuck_after,
        };
        let mut services = services.clone();
        let added = set.custom_stats().filter(|name| !services.custom_stats.iter().any(|known| known == name));
        services.custom_stats = services.custom_stats.iter().cloned().chain(added.map(str::to_owned)).collect();
        Self::build(set, set.generation(), Some(Rc::new(services)), limits)
    }

    /// A machine that only shows whether the policies load, and whether what they may require compiles: that may be asked for in a
    /// handler, where it would be found too late.
    pub(super) fn scratch(set: &PolicySet) -> Result<(), LoadError> {
        let limits =
            Limits { time: LOAD_WALL, cpu: LOAD_CPU, memory: 256 << 20, age: LOAD_WALL, stuck_after: LOAD_WALL };
        let vm = Self::build(set, 0, None, limits);
        let mut problems = vm.as_ref().err().map(|error| error.problems.clone()).unwrap_or_default();
        for problem in uncompiled(set) {
            // A policy that requires it has told of it already.
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(LoadError { problems }) }
    }

    fn build(
        set: &PolicySet,
        generation: u64,
        services: Option<Rc<Services>>,
        limits: Limits,
    ) -> Result<Self, LoadError> {
        let host = Rc::new(Host::default());
        if let Some(services) = &services {
            host.set_geoip(&services.geoip);
        }
        let sandbox = Sandbox::new(&host, limits.memory, set.policies().iter().any(|policy| policy.old))
            .map_err(|error| LoadError::one(format!("no virtual machine for the policies: {}", text(&error))))?;
        if let Some(services) = &services {
            sandbox.lua.set_app_data(Counted::new(&services.metrics));
        }
        let lane = watchdog::lane(limits.stuck_after);
        let (mut loaded, mut problems) = (Vec::new(), Vec::new());
        for (index, policy) in set.policies().iter().enumerate() {
            let _loading = host.load(policy, set.networks());
            let outcome = if policy.old {
                let config = Rc::new(RefCell::default());
                let registered = load_old(&sandbox, &host, &lane, (generation, index), policy, &config);
                registered.map(|registered| {
                    let report = registered.borrow_mut().report.take();
                    (report, Some(registered))
                })
            } else {
                load(&sandbox, &lane, (generation, index), policy).map(|report| (Some(report), None))
            };
            match outcome {
                Ok((report, registered)) => {
                    loaded.push(Loaded { name: Rc::from(policy.name.as_str()), report, registered });
                }
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(LoadError { problems });
        }
        let retired = CancellationToken::new();
        Ok(Self {
            policies: loaded,
            generation,
            services,
            limits,
            host,
            spoiled: Cell::new(false),
            old_at: Instant::now() + limits.age,
            retired,
            lane,
            sandbox,
        })
    }

    /// The generation of its set of policies.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Index and name of each policy that wants reports.
    pub fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        let wants = |(_, policy): &(usize, &Loaded)| policy.report.is_some();
        self.policies.iter().enumerate().filter(wants).map(|(index, policy)| (index, &*policy.name))
    }

    /// Calls `report(lt)` of the policy with this index. What it raised and wrote is in the effects, and has not taken effect; after a
    /// failure there is nothing of it. Dropping the future ends the call.
    pub async fn run(&self, policy: usize, report: &Arc<LoginReport>) -> Result<Effects, Failure> {
        let loaded = self.policies.get(policy);
        let report_of = loaded.and_then(|loaded| loaded.report.as_ref());
        let (Some(loaded), Some(handler), Some(services)) = (loaded, report_of, self.services.as_ref()) else {
            return Err(Failure::Error(format!("there is no policy number {policy} that wants reports")));
        };
        let call = self.begin(services, &loaded.name, Cause::Report(Arc::clone(report)))?;
        let ended = match self.sandbox.lua.create_userdata(Lt::new(Arc::clone(report))) {
            Ok(lt) => self.drive(policy, handler.call_async::<()>(lt), &call.0).await,
            Err(error) => Ended::Raised(error),
        };
        self.end(&call, ended).map(|(effects, ())| effects)
    }

    pub(super) fn begin(&self, services: &Rc<Services>, policy: &Rc<str>, cause: Cause) -> Result<Over, Failure> {
        if self.retired.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        Ok(Over(Call::new(&self.host, services, policy, cause, self.limits.time)))
    }

    /// What a call has come to.
    pub(super) fn end<R>(&self, call: &Over, ended: Ended<R>) -> Result<(Effects, R), Failure> {
        let effects = call.0.end();
        let unavailable = call.0.dependency.take();
        match ended {
            // Out of time because of what did not answer is not the policy's fault.
            Ended::Failed(failure) if unavailable.is_none() || !matches!(failure, Failure::Time(_)) => Err(failure),
            Ended::Raised(error) if is_memory(&error) => {
                self.spoiled.set(true);
                Err(Failure::Memory)
            }
            _ if unavailable.is_some() => {
                let (dependency, said) = unavailable.unwrap_or_default();
                Err(Failure::Dependency { dependency, said })
            }
            Ended::Failed(failure) => Err(failure),
            Ended::Raised(error) => Err(Failure::Error(text(&error))),
            Ended::Returned(returned) => Ok((effects, returned)),
        }
    }

    pub(super) async fn drive<R>(
        &self,
        policy: usize,
        handler: impl Future<Output = mlua::Result<R>>,
        call: &Rc<Call>,
    ) -> Ended<R> {
        let started = Instant::now();
        let mut handler = pin!(self.guarded(policy, call, started, handler));
        // Most handlers never wait: those need no timer.
        if let Poll::Ready(ended) = poll_fn(|context| Poll::Ready(handler.as_mut().poll(context))).await {
            return ended;
        }
        let left = self.limits.time.saturating_sub(started.elapsed());
        tokio::select! {
            biased;
            ended = &mut handler => ended,
            () = self.retired.cancelled() => Ended::Failed(Failure::Cancelled),
            () = tokio::time::sleep(left) => {
                self.spoiled.set(true);
                Ended::Failed(Failure::Time(self.limits.time))
            }
        }
    }

    /// The handler, with its call in place and the watchdog's eye on it during each poll.
    async fn guarded<R>(
        &self,
        policy: usize,
        call: &Rc<Call>,
        started: Instant,
        handler: impl Future<Output = mlua::Result<R>>,
    ) -> Ended<R> {
        let mut handler = pin!(handler);
        let mut spent = Duration::ZERO;
        poll_fn(|context| {
            let watch = watchdog::Poll {
                set: self.generation,
                policy,
                report: call.id(),
                cpu: self.limits.cpu.saturating_sub(spent),
                wall: self.limits.time.saturating_sub(started.elapsed()),
            };
            let poll = || self.host.during(call, || handler.as_mut().poll(context));
            let (polled, used) = self.lane.watch(&self.sandbox.lua, watch, poll);
            spent += used;
            if spent > self.limits.cpu {
                return Poll::Ready(Ended::Failed(Failure::Cpu(self.limits.cpu)));
            }
            polled.map(|result| match result {
                Ok(returned) => Ended::Returned(returned),
                Err(error) if is_memory(&error) => Ended::Raised(error),
                Err(_) if started.elapsed() > self.limits.time => {
                    self.spoiled.set(true);
                    Ended::Failed(Failure::Time(self.limits.time))
                }
                Err(error) => Ended::Raised(error),
            })
        })
        .await
    }

    /// The machine must not be used for further calls: one ran out of time in it, or its memory is used up.
    pub fn spoiled(&self) -> bool {
        self.spoiled.get()
    }

    /// It is older than `policy.vm_age`: what its policies have left in it is to go. Calls in flight finish in it.
    pub fn is_old(&self) -> bool {
        Instant::now() >= self.old_at
    }

    /// Bytes of Lua memory.
    pub fn used_memory(&self) -> usize {
        self.sandbox.lua.used_memory()
    }

    /// Calls that are in flight, or that left a coroutine behind which is not collected yet.
    pub fn live_calls(&self) -> usize {
        self.host.live()
    }

    /// Ends every call in flight with [`Failure::Cancelled`] when it is polled next; further calls end so at once.
    pub fn retire(&self) {
        self.spoiled.set(true);
        self.retired.cancel();
    }
}

/// Ends the call also where its future is dropped: claims of a call that nobody waits for would be counted for ever.
pub(super) struct Over(pub(super) Rc<Call>);

impl Drop for Over {
    fn drop(&mut self) {
        drop(self.0.end());
    }
}

/// Held by the machine itself, so that one that is kept alive by anything is seen in the metrics.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.vms.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.vms.dec();
    }
}
