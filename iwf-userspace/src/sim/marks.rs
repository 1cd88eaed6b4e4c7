//! What a daemon that dies leaves at servers: nothing that nobody vouches for, and no nonce that is lost.

use std::net::SocketAddr;
use std::time::Duration;

use super::link::Link;
use super::server::{Server, address};
use super::soap::{add, add_any, delete};
use super::world::World;
use crate::iwf::{Discovered, Discovery, Input, Mode, ServerSource, Settings};
use crate::types::Protocol;

/// Longer than any run here: nothing ends by itself.
const DAY: u32 = 86_400;
/// For how long a good server is given to hear of everything.
const SETTLED: u64 = 60;

/// Another server.
fn other() -> SocketAddr {
    SocketAddr::from(([100, 64, 0, 77], 5351))
}

fn named(server: SocketAddr) -> Discovered {
    Discovered {
        aftr: None,
        settled: true,
        dhcp4: vec![vec![server.ip()]],
        dhcp6: Vec::new(),
    }
}

/// A daemon that asks whom DHCP names, and two servers that may be named.
fn two_servers(seed: u64) -> World {
    let settings = Settings {
        servers: Vec::<ServerSource>::new(),
        discovery: Discovery {
            dhcp: true,
            router: false,
            anycast: false,
        },
        ..Settings::default()
    };
    let mut world = World::with(seed, settings);
    world.other = Some((other(), Server::new(world.now - Duration::from_secs(7))));
    name(&mut world, address());
    world
}

fn name(world: &mut World, server: SocketAddr) {
    world.discovered = Some(named(server));
    world.input(Input::Discovered(named(server)));
}

/// Every server holds exactly what active mappings stand on, with their nonces.
fn settled(world: &mut World, what: &str) {
    world.crash_after = None;
    world.run(SETTLED);
    world.reconcile();
    let now = world.now;
    let servers = std::iter::once((address(), &world.server));
    let servers = servers.chain(world.other.iter().map(|(at, server)| (*at, server)));
    let mut held = Vec::new();
    for (at, server) in servers {
        assert_eq!(server.foreign_nonces, 0, "{what}: a nonce was lost");
        held.extend(
            server
                .alive(now)
                .map(|((_, protocol, port), held)| (at, *protocol, *port, held.nonce)),
        );
    }
    let mut wanted: Vec<_> = world
        .active()
        .iter()
        .map(|m| {
            let lease = m.upstream.expect("there is a server");
            (lease.server, m.protocol, m.nat1.port.get(), lease.nonce)
        })
        .collect();
    held.sort_by_key(|(at, protocol, port, _)| (*at, *protocol, *port));
    wanted.sort_by_key(|(at, protocol, port, _)| (*at, *protocol, *port));
    assert_eq!(held, wanted, "{what}: held upstream, and wanted here");
}

/// The daemon dies before each effect of `script` in turn, until a run is over before it would.
fn dies_everywhere(
    new: impl Fn() -> World,
    script: impl Fn(&mut World),
    after: impl Fn(&mut World, &str),
) {
    let mut deaths = 0;
    for effects in 0.. {
        let mut world = new();
        world.link = Link {
            delay: (5, 20),
            ..Link::default()
        };
        world.run(5);
        (world.oracle.is_on, world.oracle.is_strict) = (true, true);
        world.crash_after = Some(effects);
        script(&mut world);
        let died = world.crash_after.is_none();
        let what = format!("dies after {effects} effects");
        after(&mut world, &what);
        if !died {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 10, "{deaths} places are tried");
}

#[test]
fn an_add_that_nobody_remembers_is_ended() {
    dies_everywhere(
        || World::new(1),
        |world| {
            world.call(20, add(20, 2001, DAY));
            world.call(21, add_any(21, 2002, 2002, DAY));
            world.run(2);
        },
        settled,
    );
}

#[test]
fn an_add_that_is_repeated_has_its_nonce() {
    dies_everywhere(
        || World::new(2),
        |world| {
            world.call(20, add(20, 2001, DAY));
            world.run(2);
        },
        |world, what| {
            world.crash_after = None;
            assert_eq!(world.ask(20, add(20, 2001, DAY)), Ok(vec![]), "{what}");
            settled(world, what);
        },
    );
}

#[test]
fn what_was_deleted_does_not_stay_upstream() {
    dies_everywhere(
        || {
            let mut world = World::new(3);
            world.run(1);
            assert_eq!(world.ask(20, add(20, 2001, DAY)), Ok(vec![]));
            assert_eq!(world.ask(20, add(20, 2002, DAY)), Ok(vec![]));
            world
        },
        |world| {
            world.call(20, delete(2001));
            world.run(2);
            world.admin_delete(Protocol::Tcp, 2002);
            world.run(2);
        },
        settled,
    );
}

/// The server does not answer in time; the owner's word counts all the same, and the server hears of it later.
#[test]
fn what_was_deleted_while_the_server_was_silent_does_not_stay() {
    dies_everywhere(
        || {
            let mut world = World::new(4);
            world.run(1);
            assert_eq!(world.ask(20, add(20, 2001, DAY)), Ok(vec![]));
            world
        },
        |world| {
            world.link.cut = true;
            let id = world.admin_delete(Protocol::Tcp, 2001);
            world.run(40);
            if let Some(told) = world.admin_replies.get(&id) {
                assert_eq!(*told, Ok(()));
                // The plug is pulled now, not between two effects.
                world.crash();
            }
            world.link.cut = false;
        },
        |world, what| {
            world.crash_after = None;
            world.run(600);
            settled(world, what);
        },
    );
}

/// A lease ends here, and the server, which gives more than it is asked for, is told.
#[test]
fn what_has_ended_here_ends_upstream() {
    dies_everywhere(
        || {
            let mut world = World::new(5);
            world.server.lifetimes = (DAY, DAY);
            world.run(1);
            assert_eq!(world.ask(20, add(20, 2001, 300)), Ok(vec![]));
            assert_eq!(world.ask(20, add(20, 2002, 301)), Ok(vec![]));
            world
        },
        |world| world.run(320),
        settled,
    );
}

#[test]
fn a_lease_that_moves_is_at_one_server() {
    dies_everywhere(
        || {
            let mut world = two_servers(6);
            world.run(1);
            assert_eq!(world.ask(20, add(20, 2001, DAY)), Ok(vec![]));
            assert_eq!(world.ask(21, add(21, 2002, DAY)), Ok(vec![]));
            world
        },
        |world| {
            name(world, other());
            world.run(4);
        },
        |world, what| {
            world.crash_after = None;
            assert_eq!(world.iwf.mode(), Mode::Cascaded(other()), "{what}");
            assert_eq!(world.active().len(), 2, "{what}");
            settled(world, what);
            assert_eq!(world.server.alive(world.now).count(), 0, "{what}");
        },
    );
}

/// The old server is named again before the daemon starts anew.
#[test]
fn a_lease_that_moves_back_is_not_believed_to_be_there_still() {
    dies_everywhere(
        || {
            let mut world = two_servers(7);
            world.run(1);
            assert_eq!(world.ask(20, add(20, 2001, DAY)), Ok(vec![]));
            world
        },
        |world| {
            name(world, other());
            world.run(4);
        },
        |world, what| {
            world.crash_after = None;
            name(world, address());
            world.crash();
            settled(world, what);
            assert_eq!(world.active().len(), 1, "{what}");
        },
    );
}

/// What docs/operating.md says of flash.
#[test]
fn the_life_of_a_mapping_costs_four_commits() {
    let mut world = World::new(8);
    world.run(1);
    // The first grant of a server brings its clock along.
    assert_eq!(world.ask(20, add(20, 2000, DAY)), Ok(vec![]));
    let before = world.store.next_call();
    assert_eq!(world.ask(20, add(20, 2001, DAY)), Ok(vec![]));
    assert_eq!(world.store.next_call() - before, 2);
    world.run(20_000);
    assert_eq!(world.ask(20, delete(2001)), Ok(vec![]));
    world.run(600);
    assert_eq!(world.store.next_call() - before, 4);
    assert!(world.store.marks.is_empty(), "nor is a mark left");
}

/// What has been forgotten goes with whatever is stored next; no more are written than may be.
#[test]
fn marks_do_not_pile_up() {
    let mut world = World::new(9);
    world.run(1);
    for round in 0..5 {
        for port in 2000..2020 {
            world.call(20, add(20, port, 600));
        }
        world.run(1200);
        assert!(world.store.marks.len() <= 20, "round {round}");
        assert_eq!(world.iwf.marks(), world.store.marks.len());
    }
    world.run(1200);
    assert_eq!(world.ask(20, add(20, 3000, DAY)), Ok(vec![]));
    assert_eq!(world.store.marks.len(), 0);
}

/// Seed 1587 of the months: a lease is made longer, and the daemon dies before the store has heard of it. The next life knows
/// the shorter one, and that the server may have been asked for more.
#[test]
fn what_was_made_longer_and_not_stored_ends_with_what_was() {
    for effects in 0..12 {
        let mut world = World::new(31);
        assert_eq!(world.ask(20, add(20, 8080, 600)), Ok(vec![]));
        world.crash_after = Some(effects);
        world.call(20, add(20, 8080, 7200));
        world.run(700);
        super::random::nothing_is_nobodys(&world);
    }
}
