//! The Lua machines of one worker: which one the next call runs in.
//!
//! Owns their making, their replacement while what is in flight goes on in the old one, and this worker's share of the gauge of their
//! memory. Runs no call, and never decides that one has spoiled its machine.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::worker::panic_text;
use crate::policy::{LoadError, PolicySet, Services, Settings, Vm};

/// The machine of reports that run apart, or why there is none.
pub(super) type Apart = Result<Rc<Vm>, String>;

pub(super) struct Machines {
    services: Services,
    settings: Settings,
    /// Those of the next machine.
    policies: RefCell<PolicySet>,
    /// The machine for the next reports; one that is spoiled stays with those in flight in it.
    current: RefCell<Rc<Vm>>,
    /// Those that wait for reports that run apart.
    idle: RefCell<Vec<Rc<Vm>>>,
    /// Those in which reports run apart.
    apart: RefCell<Vec<Weak<Vm>>>,
    /// What this worker has added to the gauge of Lua memory, and when.
    counted_memory: Cell<(i64, Instant)>,
}

impl Machines {
    pub(super) fn new(policies: PolicySet, services: Services, settings: Settings) -> Result<Self, LoadError> {
        let vm = new_vm(&policies, &services, &settings)?;
        Ok(Self {
            services,
            settings,
            policies: RefCell::new(policies),
            current: RefCell::new(Rc::new(vm)),
            idle: RefCell::default(),
            apart: RefCell::default(),
            counted_memory: Cell::new((0, Instant::now())),
        })
    }

    /// Uses these policies for the next calls.
    pub(super) fn load(&self, policies: PolicySet) {
        *self.policies.borrow_mut() = policies;
        self.idle.borrow_mut().clear();
        self.replace("reload");
    }

    /// The generation of the policies that are in use.
    pub(super) fn generation(&self) -> u64 {
        self.policies.borrow().generation()
    }

    /// The machine for the next call.
    pub(super) fn fit(&self) -> Rc<Vm> {
        let fit = {
            let vm = self.current.borrow();
            if vm.spoiled() {
                Err("spoiled")
            } else if !self.is_of_today(&vm) {
                Err("reload")
            } else if vm.is_old() {
                Err("age")
            } else {
                Ok(())
            }
        };
        if let Err(why) = fit {
            self.replace(why);
        }
        Rc::clone(&self.current.borrow())
    }

    /// A machine for reports that run apart.
    pub(super) fn apart(&self) -> Apart {
        if let Some(idle) = self.idle.borrow_mut().pop() {
            return Ok(idle);
        }
        // The policies were checked before, so an error is the system's want of memory.
        let vm = self.make().map(Rc::new).map_err(|error| error.to_string())?;
        self.apart.borrow_mut().push(Rc::downgrade(&vm));
        Ok(vm)
    }

    /// The last one that runs in a machine apart leaves it for others.
    pub(super) fn give_back(&self, vm: Rc<Vm>) {
        if Rc::strong_count(&vm) == 1 && !vm.spoiled() && !vm.is_old() && self.is_of_today(&vm) {
            self.idle.borrow_mut().push(vm);
        }
    }

    /// Brings this worker's share of the gauge of Lua memory up to date, once a second.
    pub(super) fn count_memory(&self) {
        let (counted, at) = self.counted_memory.get();
        if at.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.apart.borrow_mut().retain(|vm| vm.strong_count() > 0);
        let apart: usize = self.apart.borrow().iter().filter_map(|vm| Some(vm.upgrade()?.used_memory())).sum();
        let used = i64::try_from(apart + self.current.borrow().used_memory()).unwrap_or(i64::MAX);
        self.services.metrics.vm_bytes.add(used - counted);
        self.counted_memory.set((used, Instant::now()));
    }

    /// A new machine for the next calls. One that cannot be made leaves the old one in use: the policies were checked before, so this is
    /// the system's want of memory, and it is tried again at the next report.
    fn replace(&self, why: &'static str) {
        match self.make() {
            Ok(vm) => {
                self.services.metrics.vms_replaced.with_label_values(&[why]).inc();
                *self.current.borrow_mut() = Rc::new(vm);
            }
            Err(error) => tracing::error!(%error, "no new virtual machine; the old one stays in use"),
        }
    }

    fn make(&self) -> Result<Vm, LoadError> {
        new_vm(&self.policies.borrow(), &self.services, &self.settings)
    }

    /// Whether a machine has the policies that are in use.
    fn is_of_today(&self, vm: &Vm) -> bool {
        vm.generation() == self.generation()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.services.metrics.vm_bytes.sub(self.counted_memory.get().0);
    }
}

fn new_vm(policies: &PolicySet, services: &Services, settings: &Settings) -> Result<Vm, LoadError> {
    // A panic here would take the worker's thread with it, and all reports that it was lent would be in hand for ever.
    let made = std::panic::catch_unwind(AssertUnwindSafe(|| Vm::new(policies, services, settings)));
    made.unwrap_or_else(|panic| Err(LoadError::from(std::io::Error::other(panic_text(&*panic)))))
}
