//! Reloads under load: no report is lost, none runs half with one set of policies and half with another, and nothing is left behind.
//!
//! The small form runs with the tests; `tests/trials/reload` runs the full one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use nix::sys::signal::Signal;

use support::driver::Driver;
use support::load::{Load, PATIENCE, POLICY, Rig, repeated, unsettled};
use support::program::{Program, Site};
use support::trial;

/// What the program takes of memory, in MiB.
fn resident(program: &Program) -> f64 {
    program.metric("process_resident_memory_bytes").unwrap() / f64::from(1 << 20)
}

fn reloads(program: &Program, outcome: &str) -> f64 {
    program.metric(&format!("trackalert_reloads_total{{outcome=\"{outcome}\"}}")).unwrap_or_default()
}

/// The virtual machines that there are, those included that nobody can reach any more.
fn machines(program: &Program) -> f64 {
    program.metric("trackalert_vms").unwrap_or_default()
}

/// The same policy with another text; each tenth time a broken one, which must leave the one that runs.
fn reload(site: &Site, program: &Program, time: usize) {
    let broken = time % 10 == 9;
    let text = if broken { "this is no Lua".to_owned() } else { format!("-- {time}\n{POLICY}") };
    site.policy("load", &text);
    let outcome = if broken { "refused" } else { "done" };
    let before = reloads(program, outcome);
    program.signal(Signal::SIGHUP);
    program.wait_until("the reload", PATIENCE, |program| reloads(program, outcome) > before);
}

#[test]
fn reload_that_never_ends_does_not_keep_the_program_from_ending() {
    let site = Site::new("");
    let [old, pipe, begun] = ["old.conf", "pipe", "begun"].map(|name| site.folder.path().join(name));
    std::fs::write(&old, "setReport(function(lt) end)").unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("policy.legacy_config = {old:?}\n{config}")).unwrap();
    let program = site.start();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Nobody will ever write to it.
    let text = format!("io.open({begun:?}, 'w'):close()\nio.open({pipe:?})\nsetReport(function(lt) end)");
    std::fs::write(&old, text).unwrap();
    program.signal(Signal::SIGHUP);
    program.wait_until("the reload to begin", PATIENCE, |_| begun.exists());
    assert_eq!(program.terminate(), Some(0));
}

/// systemd and the kubelet send one signal, and kill after a while.
#[test]
fn start_that_waits_for_a_file_for_ever_ends_at_one_signal() {
    let site = Site::new("detect.drain_timeout = \"1s\"\n");
    let [old, pipe, begun] = ["old.conf", "pipe", "begun"].map(|name| site.folder.path().join(name));
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("policy.legacy_config = {old:?}\n{config}")).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // It is well when it is looked at, before anything is opened. Nobody will ever write to what it reads after that.
    let history = site.folder.path().join("data/history");
    let text = format!(
        "if os.rename({history:?}, {history:?}) then\n\
         io.open({begun:?}, 'w'):close()\n\
         io.open({pipe:?})\n\
         end\n\
         setReport(function(lt) end)"
    );
    std::fs::write(&old, text).unwrap();
    let program = site.start_unasked(site.command());
    program.wait_until("the start to hang", PATIENCE, |_| begun.exists());
    assert_eq!(program.terminate(), Some(0));
    let log = site.log_text();
    assert!(log.contains("asked to end while it starts") && log.contains("a file does not come"), "{log}");
}

#[test]
fn reloads_under_load_lose_nothing_and_leak_nothing() {
    let (total, times) = trial::size((20_000, 20), (600_000, 200));
    let mut rig = Rig::new(Driver::Embedded);
    let site = rig.site("");
    // A share for each reload: sent all at once, the load is over before the reloads where a reload is slow and a report is not.
    let mut load = Load::new(total, 500, times, trial::size(0..=200, 0..=50), &mut rig.random);
    let program = site.start();
    program.wait_until("its machines", PATIENCE, |program| machines(program) > 0.0);
    let at_start = machines(&program);
    let mut in_hand = 0;
    for (time, share) in std::mem::take(&mut load.shares).into_iter().enumerate() {
        let senders = rig.send(&site, share);
        rig.wait_for_work(&program);
        rig.pause(0..=100);
        in_hand += usize::from(unsettled(&program) > 0.0);
        reload(&site, &program, time);
        rig.join(senders);
    }
    rig.everything_handled(&site, &program, &load);
    // The load leaves much in memory, and the first reloads after it another sort: what each leaves for good is seen behind those.
    let at_rest = || {
        (0..times).for_each(|time| reload(&site, &program, time));
        resident(&program)
    };
    let (early, late) = (at_rest(), at_rest());
    program.wait_until("the earlier machines to go", PATIENCE, |program| machines(program) <= at_start);
    let table = [
        ("reloads, and those with reports in hand", format!("{times} and {in_hand}")),
        ("MiB resident after as many reloads at rest, and after twice as many", format!("{early:.0} and {late:.0}")),
        ("reports that came again", repeated(&program).to_string()),
        (
            "machines replaced by a reload",
            program.metric("trackalert_vms_replaced_total{why=\"reload\"}").unwrap().to_string(),
        ),
    ];
    rig.print("reload", &table);
    assert!(in_hand * 2 > times, "nothing was in hand at most of the reloads: this proves little");
    assert_eq!(repeated(&program), 0.0, "a report was handled twice");
    // The machines are counted; this is for all else. An allocator's moods are some 40 MiB, so the full form shows more.
    assert!(late < early + 64.0, "it grows with each reload: {early:.0} to {late:.0} MiB");
    assert_eq!(program.terminate(), Some(0));
}
