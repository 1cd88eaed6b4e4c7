//! Mappings that the configuration states.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::server::maps;
use super::soap::{add, add_any, call, delete, get_generic, get_specific};
use super::world::{self, World};
use crate::iwf::{ModeSetting, Notice, Settings, StaticProblem};
use crate::mapping::{Owner, StaticMapping};
use crate::proto::igd::Refusal;
use crate::types::{ExternalPort, InternalEndpoint, InternalPort, Protocol, RemotePeer};

/// TCP `external` to port 8000 of 192.168.1.`host`.
pub(super) fn stated(host: u8, external: u16) -> StaticMapping {
    internal(host, external, 8000)
}

fn internal(host: u8, external: u16, port: u16) -> StaticMapping {
    StaticMapping {
        protocol: Protocol::Tcp,
        external: ExternalPort::new(external).expect("not 0"),
        internal: InternalEndpoint {
            addr: world::host(host),
            port: InternalPort::new(port).expect("not 0"),
        },
        remote: RemotePeer::Any,
        description: "camera".to_owned(),
    }
}

#[test]
fn a_static_mapping_is_made_at_once_and_renewed_for_ever() {
    let mut world = World::new(1);
    world.server.lifetimes = (120, 600);
    world.state(&[stated(20, 8080)]);
    world.run(1);
    let made = world.only();
    assert_eq!(made.owner, Owner::Configuration);
    assert_eq!(made.claim.port.map(ExternalPort::get), Some(8080));
    world.run(1_000_000);
    assert_eq!(world.only().generation, made.generation);
    let asked = maps(&world.sent);
    assert!(asked.iter().all(|(_, lifetime, _)| lifetime.0 == 604_800));
    assert!(asked.len() > 1_000_000 / 600);
}

#[test]
fn a_static_mapping_in_local_mode_has_no_end_in_the_kernel() {
    let mut world = World::local(1);
    world.state(&[stated(20, 80)]);
    let entry = world.kernel.observe()[0];
    assert_eq!((entry.external.port.get(), entry.expires), (80, None));
    world.run(10_000_000);
    assert_eq!(world.kernel.observe(), [entry]);
}

/// igd-service sections 3.2 and 3.3: a static forward is another mechanism.
#[test]
fn control_points_see_it_and_cannot_change_it() {
    for mut world in [World::new(1), World::local(1)] {
        world.state(&[stated(20, 8080)]);
        world.run(1);
        let before = world.only();
        for host in [20, 21] {
            assert_eq!(world.ask(host, delete(8080)), Err(606));
            assert_eq!(world.ask(host, add(host, 8080, 3600)), Err(729));
        }
        let any = world.ask(20, add_any(20, 8080, 8000, 3600));
        let port: u16 = any.expect("another port")[0].parse().expect("a port");
        assert_ne!(port, 8080);
        assert_eq!(world.ask(20, delete(port)), Ok(vec![]));
        let shown = ["8000", "192.168.1.20", "1", "camera", "0"];
        let specific = world.ask(20, get_specific(8080)).expect("listed");
        assert_eq!(specific, shown);
        let generic = world.ask(20, get_generic(0)).expect("listed");
        assert_eq!(generic[3..], shown);
        assert_eq!(world.ask(21, get_generic(0)), Err(713));
        assert_eq!(world.only(), before);
        let refused = world.admin_delete(Protocol::Tcp, 8080);
        let why = world.admin_replies[&refused].clone();
        assert!(why.is_err_and(|why| why.contains("configuration")));
    }
}

#[test]
fn a_crash_brings_it_back_under_the_same_name_and_nonce() {
    let mut world = World::new(1);
    world.state(&[stated(20, 8080)]);
    world.run(1);
    let before = world.only();
    world.crash();
    world.run(1);
    assert_eq!(world.only(), before);
    assert_eq!(maps(&world.sent).len(), 1, "nothing was asked for again");
    world.server.restart(world.now + Duration::from_secs(5));
    world.run(100_000);
    assert_eq!(world.only().generation, before.generation);
    assert_eq!(world.server.foreign_nonces, 0);
}

#[test]
fn a_reload_changes_only_what_differs() {
    let mut world = World::new(1);
    world.state(&[stated(20, 8080), stated(21, 8081)]);
    world.run(1);
    let kept = world.active()[0].generation;
    let sent = world.sent.len();
    let mut renamed = stated(20, 8080);
    renamed.description = "door".to_owned();
    world.state(&[renamed.clone(), stated(21, 8081)]);
    world.run(1);
    assert_eq!(
        world.sent.len(),
        sent,
        "a text is nobody's business upstream"
    );
    assert_eq!(world.store.records[&kept].description, "door");
    world.state(&[renamed, internal(22, 8081, 9000)]);
    world.run(5);
    assert_eq!(world.active()[0].generation, kept);
    assert_eq!(
        world.active()[1].internal,
        internal(22, 8081, 9000).internal
    );
    assert_eq!(world.server.alive(world.now).count(), 2);
    world.state(&[]);
    world.run(5);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.kernel.observe(), []);
    assert!(world.store.records.is_empty());
    assert_eq!(world.server.alive(world.now).count(), 0);
}

#[test]
fn one_that_went_from_the_configuration_while_nobody_ran_goes_at_the_start() {
    let mut world = World::new(1);
    world.state(&[stated(20, 8080)]);
    world.run(1);
    world.statics.clear();
    world.crash();
    world.run(5);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.server.alive(world.now).count(), 0);
}

#[test]
fn a_port_taken_upstream_is_tried_again_until_it_is_free() {
    let mut world = World::new(1);
    world.server.taken = vec![(Protocol::Tcp, 8080)];
    world.state(&[stated(20, 8080)]);
    world.run(1000);
    assert_eq!(world.active().len(), 0);
    let asked = maps(&world.sent).len();
    assert!((5..30).contains(&asked), "{asked} requests");
    let told = world
        .notices
        .iter()
        .filter(|notice| matches!(notice, Notice::StaticWaits { .. }))
        .count();
    assert_eq!(told, 1, "said once, not with every attempt");
    assert!(world.iwf.waiting_statics().all(|w| w.problem.is_some()));
    assert_eq!(world.iwf.waiting_statics().count(), 1);
    world.server.taken.clear();
    world.run(1000);
    assert_eq!(world.only().owner, Owner::Configuration);
    assert_eq!(world.iwf.waiting_statics().count(), 0);
}

#[test]
fn a_silent_server_and_a_wan_that_is_down_are_waited_for() {
    let mut world = World::new(1);
    world.link.cut = true;
    world.state(&[stated(20, 8080)]);
    world.run(300);
    assert_eq!(world.active().len(), 0);
    let problem = world.iwf.waiting_statics().next().and_then(|w| w.problem);
    assert_eq!(problem, Some(StaticProblem::Refused(Refusal::Unreachable)));
    world.set_wan(None);
    world.run(300);
    world.link.cut = false;
    world.set_wan(Some(world::WAN));
    world.run(5);
    assert_eq!(world.only().owner, Owner::Configuration);
}

#[test]
fn a_lost_lease_is_asked_for_again() {
    let mut world = World::new(1);
    world.server.lifetimes = (120, 600);
    world.state(&[stated(20, 8080)]);
    world.run(1);
    world.link.cut = true;
    world.run(700);
    assert_eq!(world.active().len(), 0, "no entry outlives its lease");
    assert_eq!(world.kernel.observe(), []);
    world.link.cut = false;
    world.run(200);
    assert_eq!(world.only().owner, Owner::Configuration);
}

#[test]
fn a_host_of_no_lan_is_not_mapped() {
    let mut world = World::local(1);
    let mut elsewhere = stated(20, 8080);
    elsewhere.internal.addr = Ipv4Addr::new(10, 0, 0, 2);
    world.state(&[elsewhere]);
    assert_eq!(world.active().len(), 0);
    let problem = world.iwf.waiting_statics().next().and_then(|w| w.problem);
    assert_eq!(problem, Some(StaticProblem::NotLan));
}

#[test]
fn a_port_a_control_point_has_is_waited_for_and_not_prolonged() {
    let mut world = World::local(1);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.state(&[stated(21, 8080)]);
    assert_eq!(world.only().owner, Owner::ControlPoint);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729));
    let status = call("GetStatusInfo", &[]);
    assert!(world.ask(20, status).is_ok());
    assert_eq!(
        world.ask(20, delete(8080)),
        Ok(vec![]),
        "its own it may delete"
    );
    world.run(130);
    assert_eq!(world.only().owner, Owner::Configuration);
}

#[test]
fn quotas_of_hosts_do_not_count_it() {
    let mut settings = Settings {
        mode: ModeSetting::Local,
        ..Settings::default()
    };
    settings.limits.per_host = 1;
    let mut world = World::with(1, settings);
    world.state(&[stated(20, 8080), stated(20, 8081)]);
    assert_eq!(world.active().len(), 2);
    assert_eq!(world.ask(20, add(20, 9000, 3600)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 9001, 3600)), Err(728));
}
