//! Servers that lose their state, a WAN that changes, a daemon that dies.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::server::{address, maps};
use super::soap::{add, add_any, delete};
use super::world::{WAN, World};
use crate::iwf::{Mode, Notice};
use crate::types::Protocol;
use crate::wire::pcp::PcpOption;

/// A world with mappings of 20 ports from 2000 on.
fn with_mappings(seed: u64) -> World {
    let mut world = World::new(seed);
    for port in 2000..2020 {
        assert_eq!(world.ask(20, add(20, port, 86_400)), Ok(vec![]));
    }
    world
}

#[test]
fn an_announcement_with_a_low_epoch_brings_every_mapping_back() {
    for seed in 0..20 {
        let mut world = with_mappings(seed);
        world.run(1000);
        world.server.restart(world.now);
        let restarted = world.now;
        let before = world.sent.len();
        for _ in 0..10 {
            world.answer(world.server.announce(world.now));
        }
        world.run(7);
        assert_eq!(world.server.alive(world.now).count(), 20);
        let sent = maps(&world.sent[before..]);
        assert_eq!(sent.len(), 20, "PCPC-074: one each");
        assert!(world.notices.contains(&Notice::EpochReset(address())));
        let mut last = restarted;
        for (at, _, body) in sent {
            assert!(at.saturating_duration_since(restarted) <= Duration::from_secs(5));
            assert!(at >= last);
            last = at;
            assert_eq!(
                body.external_addr,
                std::net::IpAddr::V4(world.server.external)
            );
            assert!(body.external_port.is_some());
        }
        assert!(
            world.sent[before..]
                .iter()
                .all(|(_, r)| r.options == [PcpOption::PreferFailure])
        );
        assert_eq!(world.server.foreign_nonces, 0);
        assert_eq!(world.active().len(), 20);
    }
}

#[test]
fn a_plausible_announcement_does_nothing() {
    let mut world = with_mappings(30);
    world.run(1000);
    let before = world.sent.len();
    world.answer(world.server.announce(world.now));
    world.run(10);
    assert_eq!(world.sent.len(), before);
}

#[test]
fn an_epoch_fault_in_any_answer_brings_the_others_back() {
    let mut world = with_mappings(31);
    world.run(1000);
    world.server.restart(world.now);
    assert_eq!(world.ask(20, add(20, 3000, 3600)), Ok(vec![]));
    world.run(5);
    assert_eq!(world.server.alive(world.now).count(), 21, "IWF-085");
}

#[test]
fn what_cannot_come_back_is_removed() {
    let mut world = World::new(32);
    assert_eq!(world.ask(20, add(20, 2000, 86_400)), Ok(vec![]));
    let any = add_any(20, 2001, 2001, 86_400);
    assert_eq!(world.ask(20, any), Ok(vec!["2001".to_owned()]));
    world.run(100);
    world.server.restart(world.now);
    world.server.taken = vec![(Protocol::Tcp, 2000), (Protocol::Tcp, 2001)];
    world.answer(world.server.announce(world.now));
    world.run(10);
    let left = world.only();
    assert_eq!(left.internal.port.get(), 2001, "any port will do for it");
    assert_eq!(left.claim.port.map(|p| p.get()), Some(20_000));
    assert_eq!(world.kernel.alive(world.now).len(), 1);
}

#[test]
fn a_new_external_address_is_accepted_for_the_same_port() {
    let mut world = with_mappings(33);
    world.server.restart(world.now);
    world.server.external = Ipv4Addr::new(11, 22, 33, 99);
    world.answer(world.server.announce(world.now));
    world.run(10);
    assert_eq!(world.active().len(), 20);
    let addr = Some(world.server.external);
    assert!(world.active().iter().all(|m| m.claim.addr == addr));
    assert_eq!(world.iwf.external_address(), addr);
    assert!(world.notices.contains(&Notice::ExternalAddress(addr)));
}

#[test]
fn a_restart_makes_nothing_anew() {
    let mut world = with_mappings(34);
    world.run(500);
    let (sent, writes) = (maps(&world.sent).len(), world.kernel.writes);
    let before: Vec<_> = world.active().into_iter().cloned().collect();
    world.crash();
    let plan = world.kernel.reconcile(&world.iwf.desired(world.now));
    assert!(plan.is_empty());
    world.run(100);
    assert_eq!(maps(&world.sent).len(), sent);
    assert_eq!(world.kernel.writes, writes);
    for (old, new) in before.iter().zip(world.active()) {
        assert_eq!(
            (old.generation, old.nat1, old.claim),
            (new.generation, new.nat1, new.claim)
        );
        assert_eq!(old.upstream.map(|l| l.nonce), new.upstream.map(|l| l.nonce));
    }
    assert_eq!(
        world.ask(20, delete(2000)),
        Ok(vec![]),
        "its nonce is known"
    );
    assert_eq!(world.server.foreign_nonces, 0);
    assert_eq!(world.ask(20, add(20, 4000, 60)), Ok(vec![]));
    let newest = world.active().into_iter().map(|m| m.generation).max();
    assert!(
        newest > before.iter().map(|m| m.generation).max(),
        "never used again"
    );
}

#[test]
fn a_lapsed_lease_comes_back_after_a_restart() {
    let mut world = World::new(35);
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, add(20, 2000, 86_400)), Ok(vec![]));
    // The daemon is gone for longer than the lease.
    world.now = world.now + Duration::from_secs(3000);
    world.crash();
    world.run(2);
    let back = world.only();
    assert_eq!(back.claim.port.map(|p| p.get()), Some(2000));
    assert_eq!(world.kernel.alive(world.now).len(), 1);
    assert_eq!(world.server.alive(world.now).count(), 1);
    let insists = |options: &[PcpOption]| options == [PcpOption::PreferFailure];
    let asked = world.sent.iter().filter(|(_, r)| insists(&r.options));
    assert_eq!(asked.count(), 2, "once to make it, once to get it back");
}

#[test]
fn a_control_points_lease_that_ended_meanwhile_is_over() {
    let mut world = World::new(36);
    assert_eq!(world.ask(20, add(20, 2000, 600)), Ok(vec![]));
    world.server.lifetimes = (120, 86_400);
    world.now = world.now + Duration::from_secs(700);
    world.crash();
    world.run(2);
    assert_eq!(world.iwf.mappings().count(), 0);
    assert!(world.store.records.is_empty());
    assert_eq!(world.kernel.alive(world.now), []);
}

#[test]
fn a_server_that_restarted_while_the_daemon_was_gone_is_noticed() {
    let mut world = with_mappings(37);
    world.run(1000);
    world.server.restart(world.now);
    world.crash();
    world.run(7);
    assert_eq!(world.server.alive(world.now).count(), 20);
    assert_eq!(world.active().len(), 20);
}

#[test]
fn mappings_outlive_a_wan_that_is_down() {
    let mut world = with_mappings(38);
    let sent = world.sent.len();
    world.set_wan(None);
    assert_eq!(world.iwf.mode(), Mode::Down);
    world.run(100);
    assert_eq!(world.sent.len(), sent, "nothing can be sent");
    assert_eq!(world.active().len(), 20);
    assert_eq!(world.ask(20, add(20, 3000, 3600)), Err(501));
    world.set_wan(Some(WAN));
    world.run(2);
    assert_eq!(
        maps(&world.sent[sent..]).len(),
        0,
        "the leases are still good"
    );
    assert_eq!(world.ask(20, add(20, 3000, 3600)), Ok(vec![]));
}

#[test]
fn mappings_follow_the_wan_address() {
    let mut world = with_mappings(39);
    let addr = Ipv4Addr::new(100, 64, 0, 77);
    // The carrier gives the address, and with it the old mappings, to somebody else.
    world.server.mappings.clear();
    world.set_wan(Some(addr));
    world.run(5);
    assert_eq!(world.active().len(), 20);
    assert!(
        world
            .kernel
            .observe()
            .iter()
            .all(|e| e.external.addr == addr)
    );
    assert_eq!(world.kernel.observe().len(), 20);
    let clients: Vec<_> = world
        .server
        .alive(world.now)
        .map(|(key, _)| key.0)
        .collect();
    assert_eq!(clients, vec![std::net::IpAddr::V4(addr); 20]);
}

#[test]
fn ports_the_old_address_still_holds_are_lost_honestly() {
    let mut world = with_mappings(40);
    world.set_wan(Some(Ipv4Addr::new(100, 64, 0, 77)));
    world.run(5);
    assert_eq!(world.active().len(), 0, "they are not ours to have");
    assert_eq!(world.kernel.alive(world.now), []);
}

#[test]
fn a_change_of_mode_loses_no_mapping() {
    let mut world = with_mappings(41);
    let public = Ipv4Addr::new(11, 22, 33, 44);
    world.set_wan(Some(public));
    assert_eq!(world.iwf.mode(), Mode::Local);
    assert_eq!(world.active().len(), 20);
    assert!(world.active().iter().all(|m| m.upstream.is_none()));
    assert!(world.active().iter().all(|m| m.claim.addr == Some(public)));
    world.run(10);
    world.server.mappings.clear();
    world.set_wan(Some(WAN));
    world.run(10);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(address()));
    assert_eq!(world.active().len(), 20);
    assert!(world.active().iter().all(|m| m.upstream.is_some()));
    assert_eq!(world.server.alive(world.now).count(), 20);
}

/// What a renewal of a short lease moves is in the kernel's entry, where a dying daemon leaves it.
#[test]
fn renewals_of_short_leases_are_not_stored_and_not_lost() {
    let mut world = World::new(42);
    world.server.lifetimes = (120, 3600);
    for port in 2000..2020 {
        assert_eq!(world.ask(20, add(20, port, 604_800)), Ok(vec![]));
    }
    let (stored, asked) = (world.store.changes, maps(&world.sent).len());
    world.run(86_400);
    assert!(maps(&world.sent).len() > asked + 20 * 24);
    assert_eq!(world.store.changes, stored, "nothing written in a day");

    let held = world.kernel.observe();
    let (sent, writes) = (world.sent.len(), world.kernel.writes);
    world.crash();
    assert_eq!(world.kernel.observe(), held, "not one entry is changed");
    assert_eq!(world.kernel.writes, writes);
    world.run(10);
    assert_eq!(
        maps(&world.sent[sent..]).len(),
        0,
        "the leases are still good"
    );
}

/// AMB-02: when the power was gone nothing proves that a lease is still good, and its nonce gets it back.
#[test]
fn after_a_power_cut_every_mapping_is_asked_for_with_its_nonce() {
    for clock_is_kept in [true, false] {
        let mut world = World::new(43);
        world.server.lifetimes = (120, 3600);
        for port in 2000..2020 {
            assert_eq!(world.ask(20, add(20, port, 604_800)), Ok(vec![]));
        }
        world.run(40_000);
        let nonces = |world: &World| -> Vec<_> {
            let lease = |m: &crate::mapping::Mapping| m.upstream.map(|lease| lease.nonce);
            world.active().into_iter().map(lease).collect()
        };
        let before = nonces(&world);
        let sent = world.sent.len();
        world.power_cut(Duration::from_secs(120), clock_is_kept);
        assert_eq!(world.kernel.observe(), [], "not before the server says so");
        world.run(5);
        assert_eq!(maps(&world.sent[sent..]).len(), 20);
        assert_eq!(nonces(&world), before);
        assert_eq!(world.kernel.alive(world.now).len(), 20);
        assert_eq!(world.server.foreign_nonces, 0);
        world.set_clock(0);
        world.run(7200);
        assert_eq!(world.active().len(), 20);
    }
}

/// The clock of a router without a battery says 1970 when it starts, and a lease that it was stored with is no lease
/// that was promised for another fifty years.
#[test]
fn a_lease_is_not_believed_by_a_clock_that_was_not_set() {
    let mut world = World::new(44);
    world.server.lifetimes = (120, 86_400);
    assert_eq!(world.ask(20, add(20, 2000, 604_800)), Ok(vec![]));
    world.run(100);
    let sent = world.sent.len();
    world.power_cut(Duration::from_secs(100_000), false);
    world.run(5);
    assert_eq!(maps(&world.sent[sent..]).len(), 1);
    assert_eq!(world.server.alive(world.now).count(), 1);
    let lease = world.only().upstream.expect("there is a server");
    let held = world.server.alive(world.now).next().expect("one").1.expires;
    assert!(lease.expires <= held + Duration::from_secs(2));
}
