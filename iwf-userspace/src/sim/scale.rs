//! Many mappings: what one more costs, and how all of them come back after a restart of the carrier's server.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::server::{Held, address, maps};
use super::soap::{add, delete};
use super::world::{WAN, World, host};
use crate::mapping::policy::Limits;
use crate::mapping::record::{MappingRecord, UpstreamLease};
use crate::mapping::{Owner, Via};
use crate::proto::pcp_client::{PACE_BURST, PACE_INTERVAL};
use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalEndpoint, InternalPort, Lifetime,
    MappingNonce, Protocol, RemotePeer,
};

const FIRST_PORT: u16 = 10_000;
const LEASE: u32 = 86_400;

/// A daemon that starts with so many mappings, which the server has granted for a day, and is at rest.
fn with_many(seed: u64, count: u16) -> World {
    with_many_until(seed, count, LEASE)
}

/// As [`with_many`]; their control points want them for so many seconds only.
fn with_many_until(seed: u64, count: u16, lease: u32) -> World {
    let mut settings = World::new(seed).settings;
    settings.limits = Limits {
        mappings: 20_000,
        per_host: 20_000,
        ..Limits::default()
    };
    let mut world = World::with(seed, settings);
    world.unchecked = true;
    world.run(1);
    let expires = world.now + Lifetime(LEASE).duration();
    let ends = world.now + Lifetime(lease).duration();
    for port in FIRST_PORT..FIRST_PORT + count {
        let external = ExternalEndpoint {
            addr: world.server.external,
            port: ExternalPort::new(port).expect("not 0"),
        };
        let generation = Generation(u32::from(port));
        let nonce = MappingNonce([7; 12]);
        let record = MappingRecord {
            generation,
            protocol: Protocol::Tcp,
            internal: InternalEndpoint {
                addr: host(20),
                port: InternalPort::new(port).expect("not 0"),
            },
            nat1: ExternalEndpoint {
                addr: WAN,
                ..external
            },
            external,
            remote: RemotePeer::Any,
            description: String::new(),
            requested: Lifetime(lease),
            lease_ends: world.wall_at(ends),
            any_port: false,
            owner: Owner::ControlPoint,
            upstream: Some(UpstreamLease {
                server: address(),
                via: Via::Pcp,
                nonce,
                expires: world.wall_at(expires),
                asked: false,
            }),
        };
        world.store.records.insert(generation, record);
        let held = Held {
            nonce,
            external,
            expires,
            filters: Vec::new(),
            released: false,
        };
        let key = (IpAddr::V4(WAN), Protocol::Tcp, port);
        world.server.mappings.insert(key, held);
    }
    world.crash();
    world.run(1000);
    world.check();
    world.link.delay = (10, 20);
    world
}

/// Leases and mappings looked at by one thing each of what happens to a mapping.
fn costs(count: u16) -> [u64; 4] {
    let mut world = with_many(1, count);
    world.server.mappings.clear();
    let mut last = world.iwf.looks();
    let mut since = |world: &World| {
        let before = std::mem::replace(&mut last, world.iwf.looks());
        last - before
    };
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, add(20, 2000, 3600)), Ok(vec![]));
    let made = since(&world);
    // The only one that is due before hours have passed.
    world.run(500);
    let renewed = since(&world);
    assert_eq!(world.ask(20, delete(2000)), Ok(vec![]));
    let deleted = since(&world);
    world.run(500);
    [made, renewed, deleted, since(&world)]
}

#[test]
fn one_more_mapping_costs_with_ten_thousand_what_it_costs_with_ten() {
    let (few, many) = (costs(10), costs(10_000));
    for (few, many) in few.into_iter().zip(many) {
        assert!(
            few.abs_diff(many) <= 4,
            "{few} looks with 10, {many} with 10,000"
        );
    }
    assert!(many[0] > 0 && many[1] > 0, "they are counted: {many:?}");
}

/// The most requests sent in any tenth of a second.
fn busiest(sent: &[Instant]) -> usize {
    let window = Duration::from_millis(100);
    let within = |from: &Instant| {
        let end = *from + window;
        sent.iter().filter(|at| (*from..end).contains(at)).count()
    };
    sent.iter().map(within).max().unwrap_or(0)
}

/// More than that nobody sends in a tenth of a second unless somebody waits for it.
fn allowed() -> usize {
    let paced = Duration::from_millis(100).as_millis() / PACE_INTERVAL.as_millis();
    usize::try_from(paced).expect("few") + PACE_BURST as usize + 1
}

#[test]
fn a_thousand_mappings_are_back_within_five_seconds_of_the_first_sign() {
    for seed in 0..6 {
        let mut world = with_many(seed, 1000);
        let (writes, removals) = (world.kernel.writes, world.kernel.removals);
        world.server.restart(world.now);
        let restarted = world.now;
        world.server.lifetimes = (120, 600);
        let before = world.sent.len();
        if seed % 2 == 0 {
            world.answer(world.server.announce(world.now));
        } else {
            // Whoever asks the server anything learns it as well.
            assert_eq!(world.ask(20, add(20, 2000, 600)), Ok(vec![]));
        }
        // Somebody wants a mapping in the midst of it, and does not wait for the others.
        world.run_until(restarted + Duration::from_millis(2500));
        let asked = world.now;
        let id = world.call(20, add(20, 3000, 600));
        assert_eq!(world.wait_for(id), Ok(vec![]));
        assert!(world.took(id, asked) < 1);
        let first_sign = restarted + Duration::from_millis(10);
        world.run_until(first_sign + Duration::from_secs(5));
        world.check();

        let after_restart = restarted + Duration::from_secs(700);
        let confirmed =
            |m: &&crate::mapping::Mapping| m.upstream.is_some_and(|l| l.expires < after_restart);
        assert_eq!(
            world.active().iter().filter(|m| confirmed(m)).count(),
            world.active().len()
        );
        assert_eq!(world.active().len(), 1002 - usize::from(seed % 2 == 0));
        assert_eq!(world.server.alive(world.now).count(), world.active().len());
        let asked_again = maps(&world.sent[before..]);
        let old: Vec<_> = asked_again
            .iter()
            .filter(|(.., body)| body.internal_port.is_some_and(|p| p.get() >= FIRST_PORT))
            .map(|(at, ..)| *at)
            .collect();
        assert_eq!(old.len(), 1000, "once each");
        assert!(
            busiest(&old) <= allowed(),
            "{} of {}",
            busiest(&old),
            allowed()
        );
        // The kernel's entries only live longer: no session of theirs notices.
        assert_eq!(world.kernel.removals, removals);
        let made = world.active().len() - 1000;
        assert_eq!(world.kernel.writes - writes, 1000 + made as u64);
    }
}

#[test]
fn over_a_bad_path_they_come_back_as_well() {
    let mut world = with_many(11, 1000);
    (world.link.loss, world.link.twice) = (20, 20);
    world.server.restart(world.now);
    for _ in 0..20 {
        world.answer(world.server.announce(world.now));
    }
    let before = world.sent.len();
    world.run(120);
    world.check();
    assert_eq!(world.active().len(), 1000);
    assert_eq!(world.server.alive(world.now).count(), 1000);
    let sent: Vec<_> = world.sent[before..].iter().map(|(at, _)| *at).collect();
    assert!(busiest(&sent) <= allowed());
}

#[test]
fn a_thousand_deletions_are_no_burst() {
    let mut world = with_many_until(12, 1000, 2000);
    let before = world.sent.len();
    world.run(990);
    assert_eq!(world.active().len(), 1000);
    // The leases of their control points end in the same moment.
    world.run(20);
    assert_eq!(world.active().len(), 0);
    let sent: Vec<_> = world.sent[before..].iter().map(|(at, _)| *at).collect();
    assert_eq!(sent.len(), 1000);
    assert_eq!(world.server.alive(world.now).count(), 0);
    assert!(busiest(&sent) <= allowed());
}

#[test]
fn after_a_long_silence_nobody_waits_for_the_next_try() {
    let mut world = World::new(13);
    for port in 2000..2010 {
        assert_eq!(world.ask(20, add(20, port, 86_400)), Ok(vec![]));
    }
    world.link.cut = true;
    // What was granted was for the old address, so it has to be asked for again, and nobody answers.
    world.server.mappings.clear();
    world.set_wan(Some(Ipv4Addr::new(100, 64, 0, 9)));
    world.run(3000);
    world.link.cut = false;
    assert_eq!(world.ask(20, add(20, 3000, 600)), Ok(vec![]));
    world.run(1);
    assert_eq!(world.server.alive(world.now).count(), 11);
}
