//! What servers in the field are known to do, each with what is done about it.

use std::time::Duration;

use super::server::{Scripted, maps};
use super::soap::{add, delete, mapping};
use super::world::World;
use crate::iwf::Notice;
use crate::types::RemotePeer;
use crate::wire::pcp::ResultCode;

/// Lifetimes are clamped to 120 s at least: the mapping ends when its owner said, and so does the lease.
#[test]
fn a_lifetime_that_is_made_longer_does_not_outlive_the_wish() {
    let mut world = World::new(1);
    world.server.lifetimes = (120, 86_400);
    assert_eq!(world.ask(20, add(20, 8080, 60)), Ok(vec![]));
    world.run(59);
    assert_eq!(world.active().len(), 1);
    world.run(2);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.server.alive(world.now).count(), 0, "deleted upstream");
}

/// ... and to a day at most, or whatever else: renewals carry it through.
#[test]
fn a_lifetime_that_is_made_shorter_is_renewed() {
    let mut world = World::new(2);
    world.server.lifetimes = (1, 20);
    assert_eq!(world.ask(20, add(20, 8080, 600)), Ok(vec![]));
    world.run(500);
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.server.alive(world.now).count(), 1);
    let maps = maps(&world.sent);
    let pairs = maps.windows(2).skip(1);
    let gaps = pairs.map(|w| w[1].0.saturating_duration_since(w[0].0));
    assert!(gaps.min().is_some_and(|gap| gap >= Duration::from_secs(4)));
}

/// PREFER_FAILURE on a taken port is answered SUCCESS with another port: given back, and said.
#[test]
fn prefer_failure_that_is_ignored_is_a_conflict_that_is_told() {
    let mut world = World::new(3);
    world.server.ignores_prefer_failure = true;
    world.server.taken.push((crate::types::Protocol::Tcp, 8080));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
    world.run(1);
    assert_eq!(world.server.alive(world.now).count(), 0);
    let told = |n: &&Notice| matches!(n, Notice::GivenBack { .. });
    assert_eq!(world.notices.iter().filter(told).count(), 1);
}

/// FILTER is answered SUCCESS and not enforced: our NAT enforces it whatever the server says.
#[test]
fn a_filter_is_enforced_here_whatever_the_server_does() {
    let mut world = World::new(4);
    let call = mapping("AddPortMapping", 20, 8443, 8443, 3600, "198.51.100.5");
    assert_eq!(world.ask(20, call), Ok(vec![]));
    let remote = RemotePeer::Host([198, 51, 100, 5].into());
    assert_eq!(world.kernel.observe()[0].remote, remote);
}

/// The deletion of nothing is an error: after a restart of the server there is nothing, so the owner's wish is done, and
/// the others' mappings come back without a silence in between.
#[test]
fn deleting_what_the_server_has_lost_is_done() {
    for not_authorized in [false, true] {
        let mut world = World::new(5);
        for port in 2000..2020 {
            assert_eq!(world.ask(20, add(20, port, 3600)), Ok(vec![]));
        }
        world.run(100);
        world.server.refuses_to_delete_nothing = !not_authorized;
        world.server.authorizes_no_deletion_of_nothing = not_authorized;
        world.server.restart(world.now);
        assert_eq!(world.ask(20, delete(2000)), Ok(vec![]), "the first sign");
        world.run(1);
        assert_eq!(world.server.alive(world.now).count(), 19);
        assert_eq!(world.active().len(), 19);
    }
}

/// A wrong nonce is NOT_AUTHORIZED, also for deletions: it is said, and the mapping goes on as it was.
#[test]
fn a_deletion_that_is_refused_leaves_the_mapping() {
    let mut world = World::new(6);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let refusal = Scripted::Error(ResultCode::NotAuthorized, 1800);
    world.server.script.push_back(refusal);
    assert_eq!(world.ask(20, delete(8080)), Err(606));
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(world.active().len(), 0);
}

/// The external address is down: NETWORK_FAILURE, which passes.
#[test]
fn a_network_failure_passes() {
    let mut world = World::new(7);
    let refusal = Scripted::Error(ResultCode::NetworkFailure, 30);
    world.server.script.push_back(refusal);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501), "held");
    world.run(30);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
}

/// A server that needs almost two seconds for each answer is not asked twice.
#[test]
fn a_slow_server_is_waited_for() {
    let mut world = World::new(8);
    for port in 2000..2100 {
        assert_eq!(
            world.ask(
                20 + (port % 4) as u8,
                add(20 + (port % 4) as u8, port, 86_400)
            ),
            Ok(vec![])
        );
    }
    world.link.delay = (900, 900);
    world.server.restart(world.now);
    let before = maps(&world.sent).len();
    world.answer(world.server.announce(world.now));
    world.run(10);
    assert_eq!(world.server.alive(world.now).count(), 100);
    assert_eq!(maps(&world.sent).len() - before, 100);
}
