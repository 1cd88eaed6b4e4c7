//! Seeded runs: control points that do as they please over a bad link to a server that restarts, with failures
//! of kernel and store and a daemon that dies between any two effects.
//!
//! `IWF_SIM_RUNS` sets how many runs there are, `IWF_SIM_SEED` picks a single one. A seed that failed becomes a
//! test with its name below.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rand::RngExt;

use super::link::Link;
use super::soap::{add, add_any, delete, get_address, get_generic, get_specific, mapping};
use super::statics::stated;
use super::world::{WAN, World};
use crate::iwf::EffectError;
use crate::mapping::Owner;
use crate::reconcile::run::Run;
use crate::types::Protocol;

/// Runs in a plain `cargo test`.
const RUNS: u64 = 150;
/// The longest lease asked for: outlives the calm.
const LONGEST: u32 = 8000;
/// Steps of one run.
const STEPS: u32 = 60;

#[test]
fn seeded_runs() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    if let Some(seed) = number("IWF_SIM_SEED") {
        return run(seed);
    }
    for seed in 0..number("IWF_SIM_RUNS").unwrap_or(RUNS) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        if outcome.is_err() {
            panic!("seed {seed} failed; repeat it with IWF_SIM_SEED={seed}");
        }
    }
}

/// A lease that ended while its mapping was being changed was due again and again.
#[test]
fn a_lease_that_ends_during_a_change_ends_with_it() {
    run(49_955);
}

/// One run: chaos, then calm, then the end of every lease.
fn run(seed: u64) {
    let mut world = World::new(seed);
    world.traces = std::env::var_os("IWF_SIM_TRACE").is_some();
    let lossless = seed.is_multiple_of(4);
    world.link = Link {
        delay: (1, world.rng.random_range(1..2000)),
        loss: if lossless {
            0
        } else {
            world.rng.random_range(0..40)
        },
        twice: world.rng.random_range(0..30),
        cut: false,
    };
    world.run = Some(Run::default());
    world.server.lifetimes = (120, world.rng.random_range(120..4000));
    let statics = seed % 3 == 1;
    for at in 0..STEPS {
        // The configuration states two of the ports that control points fight for, and is read again twice.
        match at {
            0 | 40 if statics => world.state(&[stated(20, 2005), stated(21, 2011)]),
            20 if statics => world.state(&[stated(22, 2005)]),
            _ => {}
        }
        // External addresses come and go.
        if seed % 5 == 2 {
            let pool = [77, 78].map(|last| Ipv4Addr::new(100, 64, 0, last));
            match at {
                5 | 45 => world.set_pool(&pool),
                25 => world.set_pool(&pool[1..]),
                35 => world.set_pool(&[]),
                _ => {}
            }
        }
        step(&mut world);
        world.link.cut &= !lossless;
        let pause = world.rng.random_range(0..60_000);
        world.run_until(world.now + Duration::from_millis(pause));
        world.reconcile();
    }
    calm(&mut world);
    assert!(world.runs > 3, "{} runs of the reconciler", world.runs);
    // A nonce can be lost with a store that did not take it, with an address, or with the answer to a repetition that
    // overtook the deletion.
    let unstored = world.crashes > 0 && world.store.failures > 0;
    if lossless && !unstored && !world.moved {
        assert_eq!(world.server.foreign_nonces, 0);
    }
    end(&mut world);
}

fn step(world: &mut World) {
    let host = world.rng.random_range(20..24);
    let port = world.rng.random_range(2000..2012);
    let lease = match world.rng.random_range(0..4) {
        0 => LONGEST,
        _ => world.rng.random_range(30..4000),
    };
    match world.rng.random_range(0..100) {
        0..30 => {
            world.call(host, add(host, port, lease));
        }
        30..42 => {
            let internal = world.rng.random_range(2000..2012);
            world.call(host, add_any(host, port, internal, lease));
        }
        42..48 => {
            let internal = world.rng.random_range(2000..2012);
            let call = mapping(
                "AddPortMapping",
                host,
                port,
                internal,
                lease,
                "198.51.100.5",
            );
            world.call(host, call);
        }
        48..66 => {
            world.call(host, delete(port));
        }
        66..72 => {
            world.call(host, get_specific(port));
        }
        72..75 => {
            world.call(host, get_address());
        }
        75..77 => {
            world.call(host, get_generic(0));
        }
        77..79 => {
            world.admin_delete(Protocol::Tcp, port);
        }
        79..83 => {
            world.server.restart(world.now);
            let announcement = world.server.announce(world.now);
            world.answer(announcement);
        }
        83..86 => world.link.cut = !world.link.cut,
        86..90 => {
            let error = [EffectError::Full, EffectError::Failed, EffectError::InUse];
            let error = error[world.rng.random_range(0..3)];
            let call = world.kernel.next_call() + world.rng.random_range(0..4);
            world.kernel.faults.insert(call, error);
        }
        90..93 => {
            let call = world.store.next_call() + world.rng.random_range(0..4);
            world.store.faults.insert(call, EffectError::Full);
        }
        93..96 => world.crash_after = Some(world.rng.random_range(0..12)),
        96..98 => {
            let address = [None, Some(WAN), Some(Ipv4Addr::new(100, 64, 0, 9))];
            let address = address[world.rng.random_range(0..3)];
            world.set_wan(address);
        }
        _ => {
            let taken = (Protocol::Tcp, port);
            world.server.taken.push(taken);
        }
    }
}

/// On a good link with a good server every table agrees with every other one.
fn calm(world: &mut World) {
    world.crash_after = None;
    world.kernel.faults.clear();
    world.store.faults.clear();
    world.link = Link {
        delay: (5, 50),
        ..Link::default()
    };
    world.set_wan(Some(WAN));
    // Longer than the longest pause between two tries.
    world.run(1400);
    nothing_is_nobodys(world);
    // Longer than any lifetime granted, so that every lease was confirmed or has ended.
    world.run(2700);
    agree(world);
}

/// What a server holds is what a mapping stands on, though the daemon may have died at any moment: what was deleted has
/// gone, and what was asked for in an earlier life and is nobody's too. A store that did not take what it was to remember
/// excuses it, and so does another address of ours, from which nothing of the old one can be deleted.
pub(super) fn nothing_is_nobodys(world: &World) {
    if (world.crashes > 0 && world.store.failures > 0) || world.moved {
        return;
    }
    let mappings = world.active();
    for ((_, protocol, port), held) in world.server.alive(world.now) {
        let wanted = mappings.iter().any(|m| {
            (m.protocol, m.nat1.port.get()) == (*protocol, *port)
                && m.upstream.is_some_and(|lease| lease.nonce == held.nonce)
        });
        assert!(
            wanted,
            "nobody's, and at the server until {:?}: {protocol} {port} at {:?}",
            held.expires, world.now
        );
    }
}

/// Every table has the same mappings, and another one can be had.
pub(super) fn agree(world: &mut World) {
    world.reconcile();
    assert_eq!(
        world.ask(20, add(20, 3000, 600)),
        Ok(vec![]),
        "it works still"
    );
    let now = world.now;
    for mapping in world.active() {
        let lease = mapping.upstream.expect("there is a server");
        let held = world
            .server
            .alive(now)
            .find(|((internal, protocol, port), _)| {
                let host = IpAddr::V4(mapping.internal.addr);
                *protocol == mapping.protocol
                    && *port == mapping.nat1.port.get()
                    && (*internal == host) == mapping.is_untranslated()
            });
        let (_, held) = held.unwrap_or_else(|| panic!("not at the server: {mapping:?}"));
        assert_eq!(Some(held.external), mapping.claim.endpoint());
        assert_eq!(held.nonce, lease.nonce);
        // The grant arrived at most 50 ms after it was given.
        assert!(lease.expires <= held.expires + Duration::from_millis(50));
    }
    let active = world.active().len();
    assert_eq!(
        world.server.alive(now).count(),
        active,
        "nothing else is held"
    );
    assert_eq!(world.kernel.alive(now).len(), active);
}

/// When every lease has ended nothing is left of anything.
fn end(world: &mut World) {
    world.run(LONGEST.into());
    // What the configuration states is there once nobody is in its way, and goes when it is stated no more.
    for stated in world.statics.clone() {
        let taken = world
            .server
            .taken
            .contains(&(stated.protocol, stated.external.get()));
        let held = world.active().into_iter().any(|mapping| {
            mapping.owner == Owner::Configuration
                && (mapping.internal, mapping.claim.port)
                    == (stated.internal, Some(stated.external))
        });
        assert!(held || taken, "not there: {stated:?}");
    }
    world.state(&[]);
    world.run(10);
    nothing_is_left(world);
}

/// Every lease has ended and nothing is stated: no table has anything.
pub(super) fn nothing_is_left(world: &mut World) {
    assert_eq!(world.iwf.mappings().count(), 0);
    assert_eq!(world.kernel.alive(world.now), []);
    assert_eq!(world.server.alive(world.now).count(), 0);
    assert!(world.open.is_empty(), "every call was answered");
    world.crash();
    assert_eq!(world.iwf.mappings().count(), 0, "nor in the store");
}
