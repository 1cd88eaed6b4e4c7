//! Time scripts: what is sent when.

use std::time::Duration;

use super::server::{Scripted, maps};
use super::soap::{add, add_any};
use super::world::World;
use crate::iwf::Notice;
use crate::types::Instant;
use crate::wire::pcp::{PcpOption, ResultCode};

/// Seconds from `since` of every MAP sent.
fn sent_after(world: &World, since: Instant) -> Vec<f64> {
    maps(&world.sent)
        .into_iter()
        .filter(|(at, ..)| *at >= since)
        .map(|(at, ..)| at.saturating_duration_since(since).as_secs_f64())
        .collect()
}

#[test]
fn an_unanswered_request_is_repeated_after_3_9_and_21_seconds() {
    let mut world = World::new(1);
    world.run(1);
    world.link.cut = true;
    let asked = world.now;
    world.call(20, add(20, 8080, 3600));
    world.run_until(asked + Duration::from_secs(27));
    let sent = sent_after(&world, asked);
    assert_eq!(sent.len(), 4, "{sent:?}");
    assert!(sent[0] == 0.0);
    for gap in 1..4 {
        let before = if gap == 1 {
            1.5
        } else {
            sent[gap - 1] - sent[gap - 2]
        };
        let ratio = (sent[gap] - sent[gap - 1]) / before;
        assert!((1.79..=2.21).contains(&ratio), "{sent:?}");
    }
    let bodies: Vec<_> = maps(&world.sent)
        .into_iter()
        .map(|(_, l, body)| (l, body))
        .collect();
    assert!(bodies.windows(2).all(|w| w[0] == w[1]), "PCPC-021");
}

#[test]
fn nothing_before_the_renewal_and_exactly_one_request_then() {
    let mut world = World::new(2);
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    let granted = world.now;
    let due = world.iwf.poll_timeout().expect("a renewal");
    let after = due.saturating_duration_since(granted).as_secs();
    assert!(
        (43_200..=54_000).contains(&after),
        "half to 5/8 of 24 h: {after}"
    );
    let before = world.sent.len();
    world.run_until(due - Duration::from_millis(1));
    assert_eq!(world.sent.len(), before);
    world.run_until(due);
    assert_eq!(world.sent.len(), before + 1);
    let (_, request) = world.sent.last().expect("the renewal");
    assert_eq!(request.options, [PcpOption::PreferFailure], "IWF-077");
    let (_, lifetime, body) = maps(&world.sent).pop().expect("a MAP");
    assert_eq!(
        u64::from(lifetime.0),
        604_800 - after - 1,
        "what is left, IWF-075"
    );
    assert_eq!(body.external_port.map(|p| p.get()), Some(8080), "PCPC-052");
    assert_eq!(
        body.external_addr,
        std::net::IpAddr::V4(world.server.external)
    );
    world.run(1);
    assert!(matches!(world.notices.last(), Some(Notice::Renewed(_))));
}

#[test]
fn renewals_go_on_until_the_lease_ends_and_no_further() {
    let mut world = World::new(3);
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let made = world.now;
    let generation = world.only().generation;
    world.run_until(made + Duration::from_secs(3599));
    assert_eq!(world.only().lease_left(world.now), 1, "IWF-072");
    let renewals = sent_after(&world, made + Duration::from_millis(1));
    assert!((9..=12).contains(&renewals.len()), "{renewals:?}");
    for (_, lifetime, _) in maps(&world.sent) {
        assert!(lifetime.0 <= 3600);
    }
    let (at, lifetime, _) = maps(&world.sent).pop().expect("the last one");
    let left = (made + Duration::from_secs(3600)).saturating_duration_since(at);
    assert!(u64::from(lifetime.0) <= left.as_secs().max(1), "IWF-075");
    world.run(1);
    assert_eq!(world.active().len(), 0, "gone at the end of the lease");
    assert_eq!(world.kernel.observe(), []);
    assert!(world.notices.contains(&Notice::Removed(generation)));
    world.run(600);
    assert_eq!(world.server.alive(world.now).count(), 0);
}

#[test]
fn the_kernel_entry_ends_with_the_upstream_lease() {
    let mut world = World::new(4);
    world.link.delay = (40, 40);
    world.server.lifetimes = (120, 600);
    let asked = world.now;
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let ends = asked + Duration::from_millis(600_080);
    assert_eq!(world.kernel.observe()[0].expires, Some(ends), "AMB-30");
    world.link.cut = true;
    world.run_until(ends - Duration::from_millis(1));
    assert_eq!(world.active().len(), 1, "IWF-074");
    world.run_until(ends);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.kernel.observe(), []);
}

#[test]
fn unanswered_renewals_come_in_their_windows_and_never_within_4_seconds() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.server.lifetimes = (120, 600);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
        let granted = world.now;
        world.link.cut = true;
        world.run(599);
        let sent = sent_after(&world, granted + Duration::from_millis(1));
        let windows = [
            (300.0, 375.0),
            (450.0, 487.5),
            (525.0, 543.75),
            (562.5, 571.875),
        ];
        for ((from, to), at) in windows.iter().zip(&sent) {
            assert!((*from..=*to).contains(at), "{sent:?}");
        }
        assert!(
            sent.windows(2).all(|w| w[1] - w[0] >= 4.0),
            "PCPC-051: {sent:?}"
        );
    }
}

#[test]
fn a_refused_renewal_is_tried_again_within_what_is_granted() {
    let mut world = World::new(5);
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let refusal = Scripted::Error(ResultCode::NetworkFailure, 30);
    world.server.script.push_back(refusal);
    world.run(590);
    assert_eq!(world.active().len(), 1);
    let ends = world.only().expires();
    assert!(
        ends > world.now + Duration::from_secs(60),
        "renewed by the second try"
    );
}

#[test]
fn an_any_mapping_follows_the_port_it_is_given() {
    let mut world = World::new(6);
    world.server.lifetimes = (120, 600);
    let port = world
        .ask(20, add_any(20, 8080, 8080, 3600))
        .expect("granted");
    assert_eq!(port, ["8080"]);
    for held in world.server.mappings.values_mut() {
        held.external.port = crate::types::ExternalPort::new(30_000).expect("not 0");
    }
    world.run(380);
    let claim = world.only().claim;
    assert_eq!(claim.port.map(|p| p.get()), Some(30_000), "PCPC-054");
}

#[test]
fn an_exact_mapping_that_was_moved_is_removed() {
    let mut world = World::new(7);
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    for held in world.server.mappings.values_mut() {
        held.external.port = crate::types::ExternalPort::new(30_000).expect("not 0");
    }
    world.run(380);
    assert_eq!(world.active().len(), 0, "AMB-16");
    assert_eq!(world.kernel.observe(), []);
}

#[test]
fn an_idle_core_sends_nothing() {
    let mut world = World::new(8);
    world.run(1);
    let before = world.sent.len();
    world.run(1_000_000);
    assert_eq!(world.sent.len(), before);
}
