//! Servers with several addresses, several servers, and servers that are found.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::server::{Server, address, maps};
use super::soap::{add, delete};
use super::world::{WAN, World};
use crate::iwf::{Discovered, Discovery, Input, Mode, Origin, ServerSource, Settings};
use crate::types::Instant;
use crate::wire::pcp::{Body, Request};

/// Another address of the server, farther away, so that it comes second.
fn second() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], 5351))
}

/// Another server.
fn other() -> SocketAddr {
    SocketAddr::from(([100, 64, 0, 77], 5351))
}

fn router() -> SocketAddr {
    SocketAddr::from(([100, 64, 0, 3], 5351))
}

const ANYCAST: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(
    std::net::Ipv4Addr::new(192, 0, 0, 9),
    5351,
));

/// A carrier whose server has two addresses.
fn two_addresses(seed: u64) -> World {
    prepared(seed, |_| {})
}

fn prepared(seed: u64, prepare: impl FnOnce(&mut World)) -> World {
    let settings = Settings {
        servers: vec![ServerSource::Addresses(vec![second(), address()])],
        ..Settings::default()
    };
    build(seed, settings, |world| {
        world.aliases.push(second());
        prepare(world);
    })
}

/// The world as it is before its daemon starts.
fn build(seed: u64, settings: Settings, prepare: impl FnOnce(&mut World)) -> World {
    let mut world = World::with(
        seed,
        Settings {
            servers: Vec::new(),
            ..settings.clone()
        },
    );
    world.settings = settings;
    prepare(&mut world);
    world.crash();
    (world.sent, world.sent_to) = (Vec::new(), Vec::new());
    world.crashes = 0;
    world.crash();
    world
}

/// Times since `start` in seconds at which something was sent to that address.
fn times(world: &World, to: SocketAddr, start: Instant) -> Vec<u64> {
    let sent = world.sent.iter().zip(&world.sent_to);
    sent.filter(|(_, at)| **at == to)
        .map(|((at, _), _)| at.saturating_duration_since(start).as_secs())
        .collect()
}

fn requests(world: &World, to: SocketAddr) -> Vec<&Request> {
    let sent = world.sent.iter().zip(&world.sent_to);
    sent.filter(|(_, at)| **at == to)
        .map(|((_, request), _)| request)
        .collect()
}

fn is_map(request: &&Request) -> bool {
    matches!(request.body, Body::Map(_))
}

#[test]
fn the_nearest_address_is_used_and_only_that_one_is_asked_for_mappings() {
    let mut world = two_addresses(1);
    world.run(5);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(address()), "DISC-020");
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert!(!requests(&world, second()).is_empty(), "AMB-33: greeted");
    assert_eq!(
        requests(&world, second())
            .into_iter()
            .filter(is_map)
            .count(),
        0
    );
    let servers = world.iwf.servers();
    assert_eq!(servers.len(), 2);
    assert!(
        servers
            .iter()
            .all(|row| row.server == 1 && row.origin == Origin::Config)
    );
    assert_eq!((servers[0].address, servers[0].in_use), (address(), true));
}

#[test]
fn a_call_never_waits_for_an_address_that_is_known_to_be_dead() {
    let mut world = prepared(2, |world| {
        world.dead.insert(address());
    });
    world.run(5);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(second()));
    let asked = world.now;
    let id = world.call(20, add(20, 8080, 3600));
    assert_eq!(world.wait_for(id), Ok(vec![]));
    assert_eq!(world.took(id, asked), 0, "AMB-33");
}

#[test]
fn a_call_that_meets_a_death_is_answered_by_the_other_address() {
    let mut world = two_addresses(3);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let nonce = maps(&world.server.log)[0].2.nonce;
    world.dead.insert(address());
    let asked = world.now;
    let id = world.call(21, add(21, 8081, 3600));
    assert_eq!(world.wait_for(id), Ok(vec![]));
    assert!(
        (18..=24).contains(&world.took(id, asked)),
        "after three questions"
    );
    assert_eq!(world.iwf.mode(), Mode::Cascaded(second()));
    // The other lease is made sure of there, with its nonce.
    world.run(5);
    let moved = requests(&world, second())
        .into_iter()
        .filter_map(|request| match &request.body {
            Body::Map(map) => Some(map.nonce),
            Body::Announce | Body::Peer(_) | Body::Opaque { .. } => None,
        });
    assert!(moved.into_iter().any(|held| held == nonce), "DISC-024");
    assert_eq!(world.server.foreign_nonces, 0);
    assert_eq!(world.server.alive(world.now).count(), 2);
    for mapping in world.active() {
        assert_eq!(mapping.upstream.map(|lease| lease.server), Some(second()));
    }
    // And it stays there when the first one is back.
    world.dead.clear();
    world.run(3000);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(second()), "DISC-024");
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(world.server.alive(world.now).count(), 1);
}

#[test]
fn four_questions_go_to_an_address_and_then_to_the_next() {
    // Nobody answers anywhere: the order and the times of RFC 7488 section 3 are all there is.
    let mut world = two_addresses(4);
    world.run(10);
    world.dead.extend([address(), second()]);
    let start = world.now;
    let id = world.call(20, add(20, 8080, 3600));
    assert_eq!(world.wait_for(id), Err(501));
    world.run_until(start + Duration::from_secs(800));
    let sent = world.sent.iter().zip(&world.sent_to);
    let asked = |to: SocketAddr, wanted: bool| -> Vec<u64> {
        let maps = sent.clone().filter(|((at, request), went)| {
            let wants = request.lifetime.0 > 0;
            **went == to && *at >= start && is_map(&request) && wants == wanted
        });
        maps.map(|((at, _), _)| at.saturating_duration_since(start).as_secs())
            .collect()
    };
    let first = asked(address(), true);
    assert_eq!(first.len(), 4, "DISC-021: {first:?}");
    for (seconds, around) in first.iter().zip([0, 3, 9, 21_u64]) {
        assert!(seconds.abs_diff(around) <= around / 8 + 1, "{first:?}");
    }
    // Nobody waits for the mapping any more, so what is said after 27 s is that it is not wanted.
    assert_eq!(asked(second(), true), Vec::<u64>::new());
    let given_up = asked(second(), false);
    assert!(
        (42..=48).contains(&given_up[0]),
        "the last wait is over: {given_up:?}"
    );
    let last = times(&world, address(), start).pop();
    assert!(last <= Some(48), "{last:?}");
}

#[test]
fn all_dead_is_asked_again_after_fifteen_minutes() {
    let mut world = prepared(5, |world| {
        world.dead.extend([address(), second()]);
    });
    let start = world.now;
    world.run(880);
    for to in [address(), second()] {
        let seen = times(&world, to, start);
        assert_eq!(seen.len(), 4, "{to}: {seen:?}");
    }
    world.run(120);
    let again = times(&world, address(), start);
    assert_eq!(again.len(), 8, "DISC-023: {again:?}");
    assert!((900..=960).contains(&again[4]), "{again:?}");
    world.dead.clear();
    world.run(900);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(address()));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
}

#[test]
fn a_hard_error_moves_on_at_once() {
    let mut world = two_addresses(6);
    world.run(5);
    world.closed.insert(address());
    let asked = world.now;
    let id = world.call(20, add(20, 8080, 3600));
    assert_eq!(world.wait_for(id), Ok(vec![]), "DISC-021");
    assert_eq!(world.took(id, asked), 0);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(second()));
}

#[test]
fn what_an_abandoned_address_says_too_late_does_not_count() {
    let mut world = two_addresses(7);
    world.run(5);
    world.dead.insert(address());
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.run(100);
    let request = world
        .sent
        .iter()
        .zip(&world.sent_to)
        .find(|((_, request), to)| **to == address() && is_map(&request))
        .map(|((_, request), _)| request.clone())
        .expect("it was asked first");
    let payload = request.encode().expect("short");
    let late = world.server.receive(world.now, WAN.into(), &payload);
    let before = world.iwf.ignored_upstream().unmatched;
    world.answer_from(address(), late.expect("an answer"));
    let announce = world.server.announce(world.now);
    world.answer_from(address(), announce);
    world.run(1);
    assert_eq!(
        world.iwf.ignored_upstream().unmatched,
        before + 2,
        "DISC-022"
    );
    assert_eq!(world.iwf.mode(), Mode::Cascaded(second()));
    assert_eq!(world.active().len(), 1);
}

#[test]
fn unanswered_renewals_find_the_other_address() {
    let mut world = two_addresses(8);
    world.server.lifetimes = (120, 3600);
    assert_eq!(world.ask(20, add(20, 8080, 7200)), Ok(vec![]));
    world.dead.insert(address());
    // Nobody calls; the lease must not be lost.
    world.run(7000);
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(second()));
    assert_eq!(world.server.foreign_nonces, 0);
}

#[test]
fn a_restart_stays_where_the_leases_are() {
    let mut world = two_addresses(9);
    world.run(5);
    world.closed.insert(address());
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.closed.clear();
    world.crash();
    world.run(10);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(second()));
    world.run(4000);
    assert_eq!(world.server.foreign_nonces, 0);
}

/// A router that looks for servers; the default router answers as well.
fn looking(seed: u64, prepare: impl FnOnce(&mut World)) -> World {
    let settings = Settings {
        servers: Vec::new(),
        discovery: Discovery {
            dhcp: true,
            router: true,
            anycast: true,
        },
        ..Settings::default()
    };
    build(seed, settings, |world| {
        world.wan.gateway = Some([100, 64, 0, 3].into());
        world.aliases.push(router());
        prepare(world);
    })
}

fn named(dhcp4: &[&[SocketAddr]], dhcp6: &[&[SocketAddr]]) -> Discovered {
    let lists = |lists: &[&[SocketAddr]]| {
        let addresses = |list: &&[SocketAddr]| list.iter().map(SocketAddr::ip).collect();
        lists.iter().map(addresses).collect()
    };
    Discovered {
        aftr: None,
        settled: true,
        dhcp4: lists(dhcp4),
        dhcp6: lists(dhcp6),
    }
}

#[test]
fn nobody_is_asked_before_dhcp_has_spoken_and_calls_wait_for_it() {
    let mut world = looking(10, |_| {});
    let id = world.call(20, add(20, 8080, 3600));
    world.run(4);
    assert_eq!(world.sent_to, []);
    assert!(!world.replies.contains_key(&id));
    world.input(Input::Discovered(named(&[&[address()]], &[])));
    assert_eq!(world.wait_for(id), Ok(vec![]));
    world.run(10_000);
    let asked: BTreeSet<_> = world.sent_to.iter().copied().collect();
    assert_eq!(asked, BTreeSet::from([address()]), "PCPC-001");
    assert_eq!(world.iwf.servers()[0].origin, Origin::Dhcp4);
}

#[test]
fn without_the_option_the_default_router_is_asked_and_nobody_else() {
    let mut world = looking(11, |world| world.discovered = Some(named(&[], &[])));
    world.run(100);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(router()));
    let asked: BTreeSet<_> = world.sent_to.iter().copied().collect();
    assert_eq!(asked, BTreeSet::from([router()]), "PCPC-001");
    // The option comes: the mappings go to the server that it names, with nonces of their own.
    assert_eq!(world.ask(20, add(20, 8080, 36_000)), Ok(vec![]));
    world.other = Some((other(), Server::new(world.now - Duration::from_secs(7))));
    world.input(Input::Discovered(named(&[&[other()]], &[])));
    let before = maps(&world.server.log)[0].2.nonce;
    world.run(10);
    let there = &world.other.as_ref().expect("just made").1;
    let map = maps(&there.log)[0].2;
    assert_ne!(map.nonce, before, "DISC-025");
    assert_eq!(there.alive(world.now).count(), 1);
    assert_eq!(world.server.alive(world.now).count(), 0, "deleted there");
    let at = world.sent.len();
    world.run(40_000);
    let later: BTreeSet<_> = world.sent_to[at..].iter().copied().collect();
    assert!(!later.contains(&router()), "no packet to the old one");
}

#[test]
fn all_servers_are_greeted_and_the_first_that_answers_has_the_mappings() {
    let mut world = looking(12, |world| {
        world.discovered = Some(named(&[&[address()], &[other()]], &[]));
        world.dead.insert(address());
        world.other = Some((other(), Server::new(world.now)));
    });
    world.run(1);
    let greeted: BTreeSet<_> = world.sent_to.iter().copied().collect();
    assert_eq!(greeted, BTreeSet::from([address(), other()]), "DISC-025");
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(
        requests(&world, address())
            .into_iter()
            .filter(is_map)
            .count(),
        0
    );
    // The preferred one comes up: what comes next is its own, what there is stays.
    world.dead.clear();
    world.run(1000);
    assert_eq!(world.ask(21, add(21, 8081, 3600)), Ok(vec![]));
    let there = &world.other.as_ref().expect("made").1;
    assert_eq!(there.alive(world.now).count(), 1, "DISC-026");
    assert_eq!(world.server.alive(world.now).count(), 1);
}

#[test]
fn addresses_of_our_own_and_of_the_lan_are_not_asked() {
    let ours = SocketAddr::from((WAN, 5351));
    let lan = SocketAddr::from(([192, 168, 1, 20], 5351));
    let mut world = looking(13, |world| {
        world.discovered = Some(named(&[&[ours, lan, address()]], &[&[lan]]));
    });
    world.run(10);
    let asked: BTreeSet<_> = world.sent_to.iter().copied().collect();
    assert_eq!(asked, BTreeSet::from([address()]), "DISC-004");
}

#[test]
fn addresses_are_bounded() {
    let many: Vec<Vec<SocketAddr>> = (0..8)
        .map(|n| {
            (0..4)
                .map(|m| ([100, 64, 1 + n, 1 + m], 5351).into())
                .collect()
        })
        .collect();
    let lists: Vec<_> = many.iter().map(Vec::as_slice).collect();
    let mut world = looking(18, |world| {
        world.discovered = Some(named(&lists, &[]));
        world.dead.extend(many.iter().flatten().copied());
    });
    world.run(5000);
    let asked: BTreeSet<_> = world.sent_to.iter().copied().collect();
    assert_eq!(asked.len(), crate::iwf::MAX_ASKED);
}

#[test]
fn anycast_is_greeted_when_the_router_is_silent_and_asked_when_it_answers() {
    let mut world = looking(14, |world| {
        world.discovered = Some(named(&[], &[]));
        world.dead.insert(router());
        world.aliases.push(ANYCAST);
    });
    world.run(15);
    assert_eq!(
        requests(&world, ANYCAST),
        Vec::<&Request>::new(),
        "it comes last"
    );
    world.run(15);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(ANYCAST), "DISC-030");
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let first = requests(&world, ANYCAST).remove(0);
    assert_eq!(first.body, Body::Announce, "DISC-031");

    // Another box answers there from now on: its clock is another, so everything is asked for again.
    world.server.restart(world.now);
    world.run(4000);
    assert_eq!(world.server.foreign_nonces, 0);

    // Silence there costs no LAN host's data.
    let mut world = looking(15, |world| {
        world.discovered = Some(named(&[], &[]));
        world.dead.extend([router(), ANYCAST]);
    });
    world.run(30);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729));
    world.run(3000);
    assert!(!requests(&world, ANYCAST).is_empty());
    assert_eq!(
        requests(&world, ANYCAST).into_iter().filter(is_map).count(),
        0
    );
}

#[test]
fn the_anycast_server_may_become_another_one() {
    let mut world = looking(16, |world| {
        world.discovered = Some(named(&[], &[]));
        world.dead.insert(router());
        world.aliases.push(ANYCAST);
    });
    world.run(30);
    assert_eq!(world.ask(20, add(20, 8080, 36_000)), Ok(vec![]));
    assert_eq!(world.ask(21, add(21, 8081, 36_000)), Ok(vec![]));
    world.server.restart(world.now);
    assert_eq!(world.server.alive(world.now).count(), 0);
    let announce = world.server.announce(world.now);
    world.answer_from(ANYCAST, announce);
    world.run(30);
    assert_eq!(world.server.alive(world.now).count(), 2, "DISC-032");
}

#[test]
fn a_configured_server_is_the_only_one_whatever_the_network_says() {
    let settings = Settings {
        servers: vec![ServerSource::Address(address())],
        discovery: Discovery {
            dhcp: true,
            router: true,
            anycast: true,
        },
        ..Settings::default()
    };
    let mut world = build(17, settings, |world| {
        world.discovered = Some(named(&[&[other()]], &[]));
        world.dead.insert(address());
    });
    world.run(5000);
    let asked: BTreeSet<_> = world.sent_to.iter().copied().collect();
    assert_eq!(asked, BTreeSet::from([address()]), "PCPC-001, RFC 7723");
}

/// Addresses die and come back, the network names others, the WAN flaps and the daemon crashes, at random. The world
/// checks every step; in the end everything that is promised has to be at the server.
#[test]
fn seeded_runs() {
    use rand::RngExt;

    for seed in 0..60 {
        let mut world = looking(seed, |world| {
            world.aliases.push(second());
            world.dead.insert(ANYCAST);
            world.discovered = Some(named(&[&[second(), address()]], &[]));
        });
        // A crash between two servers is mended by the next renewal.
        world.server.lifetimes = (120, 600);
        world.run(5);
        let places = [address(), second(), router()];
        for _ in 0..60 {
            let at = places[world.rng.random_range(0..3)];
            let host = world.rng.random_range(20..24);
            let port = world.rng.random_range(8000..8012);
            match world.rng.random_range(0..10) {
                0 => drop(world.dead.insert(at)),
                1 => drop(world.closed.insert(at)),
                2 => (world.dead, world.closed) = (BTreeSet::from([ANYCAST]), BTreeSet::new()),
                3 => {
                    let lists: [&[&[SocketAddr]]; 4] = [
                        &[&[second(), address()]],
                        &[&[address()], &[second()]],
                        &[&[second()]],
                        &[],
                    ];
                    let list = lists[world.rng.random_range(0..4)];
                    world.discovered = Some(named(list, &[]));
                    world.input(Input::Discovered(named(list, &[])));
                }
                4 => {
                    world.set_wan(None);
                    world.run(3);
                    world.set_wan(Some(WAN));
                }
                5 => world.crash(),
                6 => drop(world.call(host, delete(port))),
                _ => drop(world.call(host, add(host, port, 7200))),
            }
            let wait = [0, 1, 10, 50, 1000][world.rng.random_range(0..5)];
            world.run(wait);
        }
        // One box behind all addresses, so what has been at one of them is at it.
        (world.dead, world.closed) = (BTreeSet::from([ANYCAST]), BTreeSet::new());
        world.discovered = Some(named(&[&[address(), second()]], &[]));
        world.input(Input::Discovered(named(&[&[address(), second()]], &[])));
        world.run(3000);
        let asked = world.now;
        let id = world.call(29, add(29, 8999, 7200));
        assert_eq!(world.wait_for(id), Ok(vec![]), "seed {seed}");
        assert_eq!(world.took(id, asked), 0, "seed {seed}");
        let held = world.server.alive(world.now).count();
        assert_eq!(held, world.active().len(), "seed {seed}");
    }
}
