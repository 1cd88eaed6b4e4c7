//! Seeded runs of a month each: bursts of what control points do, long rests in which only leases are renewed, and
//! everything that can go wrong in between.
//!
//! Each seed has kinds of trouble of its own. Where none of them excuses a mapping that is lost, none may be lost.
//! `IWF_SIM_RUNS`, `IWF_SIM_DAYS` and `IWF_SIM_SEED` set how many runs there are, how long each is, and which is the
//! first; `cargo xtask sim` does so. A seed that failed becomes a test with its name below.

#![expect(clippy::print_stdout, reason = "says how much was tried")]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;

use super::link::Link;
use super::nonat::address6;
use super::server::address;
use super::soap::{add, add_any, delete};
use super::world::{WAN, World};
use super::{nonat, random};
use crate::iwf::{EffectError, ModeSetting, ServerSource, Settings};
use crate::reconcile::run::Run;

/// Runs in a plain `cargo test`, and the days of each: without optimization a day takes a quarter of a second.
const RUNS: u64 = 12;
const DAYS: u64 = 10;
/// The longest lease that a control point gets.
const LONGEST: u32 = 604_800;

/// What may happen in a run.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    /// Datagrams are lost, the path is cut for hours.
    loss: bool,
    /// The server loses its state, or answers with another address, or has given ports away.
    server: bool,
    /// Our address changes, the WAN goes down.
    wan: bool,
    /// The daemon is killed between two effects.
    kill: bool,
    /// The power goes, the clock with it or not.
    power: bool,
    /// The store is full, or fails and has stored all the same.
    store: bool,
    /// The kernel's maps are full or refuse.
    kernel: bool,
    /// The wall clock is set.
    clock: bool,
    /// The configuration says now that this NAT translates and now that it does not.
    mode: bool,
}

impl Trouble {
    /// A third of the seeds have only trouble that excuses nothing.
    fn of(seed: u64, world: &mut World) -> Self {
        let mut coin = || world.rng.random_bool(0.5);
        let mut trouble = Self {
            loss: coin(),
            server: coin(),
            wan: coin(),
            kill: coin(),
            power: coin(),
            store: coin(),
            kernel: coin(),
            clock: coin(),
            mode: seed % 4 == 1,
        };
        if seed.is_multiple_of(3) {
            (trouble.loss, trouble.server, trouble.wan) = (false, false, false);
            // A lease whose end was stored by a clock that is wrong has the end that it says.
            trouble.clock &= !trouble.kill && !trouble.power && !trouble.store;
        }
        trouble
    }

    fn excuses(&self) -> bool {
        self.loss
            || self.server
            || self.wan
            || (self.clock && (self.kill || self.power || self.store))
    }
}

#[test]
fn months() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    let days = number("IWF_SIM_DAYS").unwrap_or(DAYS);
    let first: Option<u64> = number("IWF_SIM_SEED");
    let runs = number("IWF_SIM_RUNS").unwrap_or(if first.is_some() { 1 } else { RUNS });
    let first = first.unwrap_or(0);
    let next = AtomicU64::new(first);
    let failed = std::sync::Mutex::new(Vec::new());
    let kept = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + runs {
                        break;
                    }
                    match std::panic::catch_unwind(|| run(seed, days)) {
                        Ok(promises) => {
                            kept.fetch_add(promises, Ordering::Relaxed);
                        }
                        Err(_) => {
                            println!("seed {seed} failed");
                            failed.lock().expect("no panic").push(seed);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(
        failed.is_empty(),
        "seeds that failed: {failed:?}; repeat one with IWF_SIM_SEED"
    );
    let kept = kept.into_inner();
    println!("{runs} runs of {days} days, {kept} promises kept to their end");
    assert!(kept > 0, "nothing was promised");
}

/// One run; returns how many promises were kept to their end.
fn run(seed: u64, days: u64) -> u64 {
    let mut world = prepared(seed);
    world.run = Some(Run::default());
    (world.keeps_sent, world.server.keeps_log) = (false, false);
    world.traces = std::env::var_os("IWF_SIM_TRACE").is_some();
    let trouble = Trouble::of(seed, &mut world);
    world.trace(|| format!("{trouble:?}"));
    world.oracle.is_on = true;
    world.oracle.is_strict = !trouble.excuses();
    world.link = Link {
        delay: (1, world.rng.random_range(1..2000)),
        loss: if trouble.loss {
            world.rng.random_range(0..40)
        } else {
            0
        },
        twice: world.rng.random_range(0..30),
        cut: false,
    };
    let longest = [600, 3600, 7200, 86_400][world.rng.random_range(0..4)];
    world.server.lifetimes = (120, longest);
    let end = world.now + Duration::from_secs(days * 86_400);
    while world.now < end {
        burst(&mut world, trouble);
        rest(&mut world, trouble);
    }
    calm(&mut world);
    world.oracle.kept
}

/// A third of the worlds have no NAT here, or only at times: half of those ask the server over IPv6.
fn prepared(seed: u64) -> World {
    let over_ipv6 = seed % 8 >= 4;
    let mode = match seed % 4 {
        1 | 2 => ModeSetting::NoNat,
        _ => return World::new(seed),
    };
    let both = [Some(address()), Some(address6()).filter(|_| over_ipv6)];
    let settings = Settings {
        mode,
        third_party: true,
        servers: vec![ServerSource::Addresses(
            both.into_iter().flatten().collect(),
        )],
        ..Settings::default()
    };
    nonat::world(seed, settings)
}

/// Some minutes of wishes and trouble.
fn burst(world: &mut World, trouble: Trouble) {
    for _ in 0..world.rng.random_range(1..12) {
        if world.rng.random_bool(0.7) {
            wish(world);
        } else {
            happen(world, trouble);
        }
        let pause = world.rng.random_range(0..60_000);
        pass(world, Duration::from_millis(pause));
    }
}

/// Hours in which nobody wants anything. What is broken is mended at their beginning or at their end.
fn rest(world: &mut World, trouble: Trouble) {
    if world.rng.random_bool(0.7) {
        mend(world);
    }
    let hours = world.rng.random_range(1..14);
    for _ in 0..hours {
        pass(world, Duration::from_secs(3600));
    }
    mend(world);
    if trouble.power && world.rng.random_bool(0.1) {
        let down = world.rng.random_range(10..4000);
        let clock_is_kept = !trouble.clock || world.rng.random_bool(0.5);
        world.power_cut(Duration::from_secs(down), clock_is_kept);
        pass(world, Duration::from_secs(20));
        world.set_clock(0);
    }
}

/// Time passes; the sweep and the reconciler run as they do.
fn pass(world: &mut World, time: Duration) {
    world.run_until(world.now + time);
    world.kernel.sweep(world.now);
    world.reconcile();
    let (now, moved) = (world.now, world.moved);
    world.oracle.note(world.iwf.mappings(), now, moved);
    world.replies.clear();
    world.admin_replies.clear();
}

fn mend(world: &mut World) {
    world.link.cut = false;
    world.store.full = false;
    world.store.stores_what_fails = false;
    world.kernel.capacity = None;
    world.kernel.faults.clear();
    world.store.faults.clear();
    // As a second after each failure.
    world.reconcile();
    if world.wan.address != Some(WAN) {
        world.set_wan(Some(WAN));
    }
}

fn wish(world: &mut World) {
    let host = world.rng.random_range(20..24);
    let port = world.rng.random_range(2000..2012);
    let lease = match world.rng.random_range(0..12) {
        0 => LONGEST,
        1..4 => 86_400,
        _ => world.rng.random_range(30..8000),
    };
    match world.rng.random_range(0..10) {
        0..5 => {
            world.call(host, add(host, port, lease));
        }
        5..7 => {
            // Without a NAT an endpoint has one external port, and another endpoint takes over only when it is gone.
            let (wanted, internal) = match world.settings.third_party {
                // Apart from the ports of the last question.
                true => (port + 2000, port + 100),
                false => (port, world.rng.random_range(2000..2012)),
            };
            world.call(host, add_any(host, wanted, internal, lease));
        }
        _ => {
            world.call(host, delete(port));
        }
    }
}

fn happen(world: &mut World, trouble: Trouble) {
    let what = world.rng.random_range(0..10);
    world.trace(|| format!("trouble {what}"));
    match what {
        0 if trouble.loss => world.link.cut = true,
        1 if trouble.server => {
            world.server.restart(world.now);
            if world.rng.random_bool(0.3) {
                let last = world.rng.random_range(1..200);
                world.server.external = Ipv4Addr::new(11, 22, 33, last);
            }
            if world.rng.random_bool(0.7) {
                let announcement = world.server.announce(world.now);
                world.answer(announcement);
            }
        }
        2 if trouble.wan => {
            let address = [None, Some(WAN), Some(Ipv4Addr::new(100, 64, 0, 9))];
            let address = address[world.rng.random_range(0..3)];
            world.set_wan(address);
        }
        3 if trouble.kill => world.crash_after = Some(world.rng.random_range(0..12)),
        4 if trouble.power => {
            let down = world.rng.random_range(1..600);
            world.power_cut(Duration::from_secs(down), true);
        }
        5 if trouble.store => {
            world.store.full = true;
            world.store.stores_what_fails = world.rng.random_bool(0.5);
        }
        6 if trouble.store => {
            let call = world.store.next_call() + world.rng.random_range(0..4);
            world.store.faults.insert(call, EffectError::Failed);
        }
        7 if trouble.kernel => {
            if world.rng.random_bool(0.5) {
                world.kernel.capacity = Some(world.kernel.observe().len());
            }
            let error = [EffectError::Full, EffectError::Failed, EffectError::InUse];
            let error = error[world.rng.random_range(0..3)];
            let call = world.kernel.next_call() + world.rng.random_range(0..4);
            world.kernel.faults.insert(call, error);
        }
        8 if trouble.clock => {
            let error = world.rng.random_range(-40_000_000..40_000_000);
            world.set_clock(error);
        }
        9 if trouble.mode => {
            let mode = [ModeSetting::NoNat, ModeSetting::Cascaded];
            let mode = mode[world.rng.random_range(0..2)];
            world.set_mode(mode);
        }
        _ => {}
    }
}

/// On a good link with a good server every table agrees with every other one; then every lease ends.
fn calm(world: &mut World) {
    world.crash_after = None;
    world.link = Link {
        delay: (5, 50),
        ..Link::default()
    };
    mend(world);
    world.set_clock(0);
    // Longer than the longest pause between two tries.
    world.run(1400);
    random::nothing_is_nobodys(world);
    // Longer than any lifetime granted, so that every lease was confirmed or has ended.
    world.run(88_600);
    random::agree(world);
    world.run(LONGEST.into());
    random::nothing_is_left(world);
}
