//! What a subscriber is told, and when: scripts, and a subscriber that follows a month of trouble.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::server::{Scripted, address};
use super::soap::{add, add_any, call, delete, mapping};
use super::world::World;
use crate::iwf::{Input, LinkCounters};
use crate::proto::gena::SendError;
use crate::types::{Instant, Protocol};
use crate::wire::pcp::ResultCode;
use crate::wire::services::{
    LAYER3_FORWARDING, WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION_1, WAN_IP_CONNECTION_2,
};

/// A world whose subscriber has had its first message, and the time from which on others count.
fn subscribed(mut world: World) -> (World, Instant) {
    world.subscribe(&WAN_IP_CONNECTION_2);
    world.run(1);
    let now = world.now;
    (world, now)
}

fn both(count: usize, id: usize) -> String {
    format!("PortMappingNumberOfEntries={count} SystemUpdateID={id}")
}

#[test]
fn the_first_message_has_all_of_it() {
    let mut world = World::new(1);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (world, _) = subscribed(world);
    assert_eq!(
        world.told_since(Instant::from_millis(0)),
        [
            "PossibleConnectionTypes=IP_Routed ConnectionStatus=Connected \
          ExternalIPAddress=11.22.33.1 PortMappingNumberOfEntries=1 SystemUpdateID=1"
        ]
    );
}

#[test]
fn a_mapping_that_comes_goes_or_ends_is_one_message_with_both_numbers() {
    let mut world = World::new(2);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (mut world, since) = subscribed(world);
    assert_eq!(world.ask(20, add(20, 8081, 3600)), Ok(vec![]));
    world.run(1);
    assert_eq!(world.ask(20, add(20, 8082, 600)), Ok(vec![]));
    world.run(1);
    assert_eq!(world.ask(20, delete(8081)), Ok(vec![]));
    assert_eq!(world.ask(20, delete(8081)), Err(714));
    assert_eq!(world.ask(20, add(21, 8080, 600)), Err(606));
    world.run(1);
    let mut told = vec![both(2, 2), both(3, 3), both(2, 4)];
    assert_eq!(world.told_since(since), told);
    // IGD-007: the control point's lease runs out.
    world.run(599);
    told.push(both(1, 5));
    assert_eq!(world.told_since(since), told);
    let id = world.admin_delete(Protocol::Tcp, 8080);
    world.run(1);
    assert_eq!(world.admin_replies[&id], Ok(()));
    told.push(both(0, 6));
    assert_eq!(world.told_since(since), told);
}

#[test]
fn an_overwrite_changes_the_id_only_and_a_failure_nothing() {
    let mut world = World::new(3);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (mut world, since) = subscribed(world);
    assert_eq!(world.ask(20, add(20, 8080, 7200)), Ok(vec![]));
    world.run(1);
    assert_eq!(world.told_since(since), ["SystemUpdateID=2"]);
    let other = mapping("AddPortMapping", 20, 8080, 8081, 3600, "");
    assert_eq!(world.ask(20, other), Ok(vec![]));
    world.run(1);
    assert_eq!(
        world.told_since(since),
        ["SystemUpdateID=2", "SystemUpdateID=3"]
    );
    world
        .server
        .script
        .push_back(Scripted::Error(ResultCode::NoResources, 60));
    assert_eq!(world.ask(20, add(20, 9090, 7200)), Err(728));
    world.store.full = true;
    assert!(world.ask(20, add(20, 9091, 7200)).is_err());
    world.store.full = false;
    world.run(60);
    assert_eq!(world.told_since(since).len(), 2);
}

#[test]
fn version_1_has_no_update_id_and_hears_nothing_of_an_overwrite() {
    let mut world = World::new(4);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.subscribe(&WAN_IP_CONNECTION_1);
    world.run(1);
    let since = world.now;
    assert_eq!(world.ask(20, add(20, 8080, 7200)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 8081, 7200)), Ok(vec![]));
    world.run(1);
    assert_eq!(world.told_since(since), ["PortMappingNumberOfEntries=2"]);
}

#[test]
fn a_range_goes_in_one_message() {
    let mut world = World::local(1);
    for port in 8080..8084 {
        assert_eq!(world.ask(20, add(20, port, 3600)), Ok(vec![]));
    }
    let (mut world, since) = subscribed(world);
    let range = [
        ("NewStartPort", "8080"),
        ("NewEndPort", "8082"),
        ("NewProtocol", "TCP"),
        ("NewManage", "0"),
    ];
    assert_eq!(
        world.ask(20, call("DeletePortMappingRange", &range)),
        Ok(vec![])
    );
    world.run(1);
    assert_eq!(world.told_since(since), [both(1, 5)]);
}

/// IWF-074.
#[test]
fn a_mapping_whose_renewal_is_refused_stays_to_its_end_and_goes_with_an_event() {
    let mut world = World::new(5);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    world.run(7200);
    let (mut world, since) = subscribed(world);
    let ends = world.only().expires();
    for _ in 0..1000 {
        world
            .server
            .script
            .push_back(Scripted::Error(ResultCode::NotAuthorized, 60));
    }
    world.run_until(ends - Duration::from_secs(1));
    assert_eq!(world.told_since(since), [""; 0]);
    assert_eq!(world.active().len(), 1);
    world.run(3);
    assert_eq!(world.told_since(since), [both(0, 2)]);
}

/// IWF-084, AMB-16: within a second of the answer that says so.
#[test]
fn a_mapping_at_another_address_is_told_with_the_address() {
    let mut world = World::new(6);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    let (mut world, since) = subscribed(world);
    world.server.restart(world.now);
    world.server.external = Ipv4Addr::new(11, 22, 33, 99);
    world.answer(world.server.announce(world.now));
    world.run(10);
    assert_eq!(world.told_since(since), ["ExternalIPAddress=11.22.33.99"]);
}

/// However many mappings move with it, one at a time: their entries are the same as before.
#[test]
fn a_new_address_under_many_mappings_is_told_once() {
    let mut world = World::new(7);
    for port in 2000..2020 {
        assert_eq!(world.ask(20, add(20, port, 86_400)), Ok(vec![]));
    }
    let (mut world, since) = subscribed(world);
    world.server.restart(world.now);
    world.server.external = Ipv4Addr::new(11, 22, 33, 99);
    world.answer(world.server.announce(world.now));
    world.run(20);
    assert_eq!(world.told_since(since), ["ExternalIPAddress=11.22.33.99"]);
}

/// IWF-011, AMB-07: behind a server that has several addresses each control point is told its own mappings', and who has
/// none the newest mapping's; in events all are told that one.
#[test]
fn each_control_point_has_its_own_address_and_all_have_the_same_events() {
    let mut world = World::new(33);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    let (mut world, since) = subscribed(world);
    world.server.external = Ipv4Addr::new(11, 22, 33, 2);
    assert_eq!(world.ask(21, add(21, 8081, 86_400)), Ok(vec![]));
    world.run(1);
    assert_eq!(
        world.told_since(since),
        ["ExternalIPAddress=11.22.33.2".to_owned(), both(2, 2)]
    );
    for (host, address) in [(20, "11.22.33.1"), (21, "11.22.33.2"), (22, "11.22.33.2")] {
        let told = world.ask(host, call("GetExternalIPAddress", &[]));
        assert_eq!(told, Ok(vec![address.to_owned()]), "host {host}");
    }
    // What it is told is where it can be reached, also after its mapping was renewed.
    world.run(86_000);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    let told = world.ask(20, call("GetExternalIPAddress", &[]));
    assert_eq!(told, Ok(vec!["11.22.33.1".to_owned()]));
}

/// AMB-16: an entry that keeps its place under another port is another entry, one that cannot is gone.
#[test]
fn another_port_is_told_by_the_id_and_a_lost_one_by_the_count() {
    let mut world = World::new(32);
    assert_eq!(world.ask(20, add(20, 2000, 86_400)), Ok(vec![]));
    let any = add_any(20, 2001, 2001, 86_400);
    assert_eq!(world.ask(20, any), Ok(vec!["2001".to_owned()]));
    let (mut world, since) = subscribed(world);
    world.server.restart(world.now);
    world.server.taken = vec![(Protocol::Tcp, 2000), (Protocol::Tcp, 2001)];
    world.answer(world.server.announce(world.now));
    world.run(10);
    let mut told = world.told_since(since);
    told.sort();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("PortMappingNumberOfEntries=1 SystemUpdateID="),
        "{told:?}"
    );
    assert!(told[1].starts_with("SystemUpdateID="), "{told:?}");
}

/// AMB-07: another host's mapping moves to the address that is the device's already.
#[test]
fn a_mapping_that_moves_to_the_known_address_has_it_told_again() {
    let mut world = World::new(8);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    world.server.external = Ipv4Addr::new(11, 22, 33, 50);
    assert_eq!(world.ask(21, add(21, 8081, 86_400)), Ok(vec![]));
    world.server.external = Ipv4Addr::new(11, 22, 33, 99);
    assert_eq!(world.ask(22, add(22, 8082, 86_400)), Ok(vec![]));
    let (mut world, since) = subscribed(world);
    let known = world.iwf.external_address();
    assert_eq!(known, Some(world.server.external));
    world.server.restart(world.now);
    world.answer(world.server.announce(world.now));
    world.run(20);
    let told = world.told_since(since);
    assert!(
        told.iter()
            .any(|t| t.contains("ExternalIPAddress=11.22.33.99")),
        "{told:?}"
    );
    assert_eq!(world.iwf.external_address(), known);
}

#[test]
fn a_change_of_the_wan_address_is_one_message() {
    let mut world = World::local(1);
    for port in 8080..8090 {
        assert_eq!(world.ask(20, add(20, port, 3600)), Ok(vec![]));
    }
    let (mut world, since) = subscribed(world);
    world.set_wan(Some(Ipv4Addr::new(100, 64, 0, 77)));
    world.run(10);
    assert_eq!(world.told_since(since), ["ExternalIPAddress=100.64.0.77"]);
}

/// IGD-025: who is told and never asks hears the address all the same.
#[test]
fn the_address_is_found_for_who_only_listens() {
    let mut world = World::new(13);
    world.run(10);
    assert_eq!(
        world
            .iwf
            .variable(&WAN_IP_CONNECTION_2, "ExternalIPAddress", world.now)
            .as_deref(),
        Some("")
    );
    let since = world.now;
    world.subscribe(&WAN_IP_CONNECTION_2);
    world.run(2);
    // It is known before the first message is composed.
    let told = world.told_since(since);
    let first = told.first().map(String::as_str).unwrap_or_default();
    assert!(first.contains("ExternalIPAddress=11.22.33.1"), "{told:?}");
    world.set_wan(Some(Ipv4Addr::new(100, 64, 0, 77)));
    world.run(10);
    let told = world.told_since(since);
    let addresses: Vec<_> = told
        .iter()
        .skip(1)
        .filter_map(|message| message.split("ExternalIPAddress=").nth(1))
        .collect();
    assert_eq!(addresses, ["", "11.22.33.1"], "{told:?}");
    // Once it is known, nothing is asked for again.
    let sent = world.sent.len();
    world.run(3600);
    assert_eq!(world.sent.len(), sent);
}

/// IWF-019: the status follows the server.
#[test]
fn the_connection_is_what_wan_and_server_are() {
    let (mut world, since) = subscribed(World::new(9));
    world.set_wan(None);
    world.run(1);
    assert_eq!(
        world.told_since(since),
        ["ConnectionStatus=Disconnected ExternalIPAddress="]
    );
    world.set_wan(Some(super::world::WAN));
    world.run(10);
    let told = world.told_since(since);
    let again = |message: &&String| message.contains("ConnectionStatus=Connected");
    assert_eq!(told.iter().filter(again).count(), 1, "{told:?}");
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    world.dead.insert(address());
    let asked = world.ask(20, add(20, 8081, 86_400));
    assert!(asked.is_err());
    world.run(600);
    let told = world.told_since(since);
    assert_eq!(
        told.last().map(String::as_str),
        Some("ConnectionStatus=Disconnected"),
        "{told:?}"
    );
}

/// IGD-025: subscribers are told what a call would be answered, also that there is no address.
#[test]
fn an_address_that_is_gone_is_told_as_calls_are_answered() {
    let asked = |world: &mut World| {
        let answer = world.ask(20, call("GetExternalIPAddress", &[]));
        let variable = world
            .iwf
            .variable(&WAN_IP_CONNECTION_2, "ExternalIPAddress", world.now);
        (answer.expect("always"), variable)
    };
    let both = |address: &str| (vec![address.to_owned()], Some(address.to_owned()));
    let (mut world, since) = subscribed(World::local(1));
    let wan = super::world::WAN.to_string();
    assert_eq!(asked(&mut world), both(&wan));
    world.set_wan(None);
    world.run(1);
    assert_eq!(asked(&mut world), both(""));
    assert_eq!(
        world.told_since(since),
        ["ConnectionStatus=Disconnected ExternalIPAddress="]
    );
    let since = world.now;
    world.set_wan(Some(super::world::WAN));
    world.run(1);
    assert_eq!(asked(&mut world), both(&wan));
    assert_eq!(
        world.told_since(since),
        [format!(
            "ConnectionStatus=Connected ExternalIPAddress={wan}"
        )]
    );
}

/// WCIC-001.
#[test]
fn the_link_is_told_when_it_goes() {
    let mut world = World::new(10);
    let link = |carrier| {
        Input::Link(LinkCounters {
            carrier,
            ..LinkCounters::default()
        })
    };
    world.input(link(true));
    world.subscribe(&WAN_COMMON_INTERFACE_CONFIG);
    world.run(1);
    world.input(link(false));
    world.run(1);
    world.input(link(true));
    world.run(1);
    assert_eq!(
        world.told_since(Instant::from_millis(0)),
        [
            "PhysicalLinkStatus=Up",
            "PhysicalLinkStatus=Down",
            "PhysicalLinkStatus=Up"
        ]
    );
}

#[test]
fn the_default_connection_is_told_and_stays() {
    let mut world = World::local(1);
    world.subscribe(&LAYER3_FORWARDING);
    world.run(1);
    assert_eq!(world.ask(20, add(20, 8080, 60)), Ok(vec![]));
    world.run(100);
    let service = &world.settings.default_connection_service;
    assert_eq!(
        world.told_since(Instant::from_millis(0)),
        [format!("DefaultConnectionService={service}")]
    );
}

/// IGD-023: a new life goes on from where the old one was, and knows of what has ended meanwhile.
#[test]
fn the_update_id_outlives_the_daemon() {
    let mut world = World::local(1);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 8081, 7200)), Ok(vec![]));
    let (mut world, _) = subscribed(world);
    let crashed = world.now;
    world.crash();
    world.run(1);
    let told = world.told_since(crashed);
    assert_eq!(told.len(), 1, "a subscription of its own: {told:?}");
    assert!(told[0].ends_with(&both(2, 2)), "{told:?}");
    world.down_for(Duration::from_secs(3600));
    world.run(1);
    let told = world.told_since(crashed);
    assert!(told[1].ends_with(&both(1, 3)), "{told:?}");
}

/// A subscriber that answers nothing costs nobody anything, and is told the newest state when it answers.
#[test]
fn a_subscriber_that_was_deaf_hears_the_newest_state() {
    let (mut world, since) = subscribed(World::local(1));
    let subscriber = world.subscriber.as_mut().expect("there");
    subscriber.fate = Some(Err(SendError::Unreachable));
    for port in 8080..8100 {
        assert_eq!(world.ask(20, add(20, port, 3600)), Ok(vec![]));
        world.run(1);
    }
    assert_eq!(world.told_since(since), [""; 0]);
    world.subscriber.as_mut().expect("there").fate = Some(Ok(()));
    world.renew_subscription();
    world.run(1);
    assert_eq!(world.told_since(since), [both(20, 20)]);
}

/// Whatever happens to server, link, kernel, store and daemon: whoever is told everything knows everything, by numbers
/// without a gap and an id that never goes back. The subscriber checks it after each step.
#[test]
fn a_subscriber_follows_through_trouble() {
    use rand::RngExt;
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.keeps_sent = false;
        world.subscribe(&WAN_IP_CONNECTION_2);
        for _ in 0..60 {
            let port = world.rng.random_range(2000..2006);
            match world.rng.random_range(0..14) {
                0..4 => {
                    world.call(20, add(20, port, 600));
                }
                4 => {
                    world.call(20, add_any(20, port, port, 86_400));
                }
                5..7 => {
                    world.call(20, delete(port));
                }
                7 => world.server.restart(world.now),
                8 => world.server.external = Ipv4Addr::new(11, 22, 33, world.rng.random()),
                9 => world.link.cut = !world.link.cut,
                10 => world.crash_after = Some(world.rng.random_range(0..6)),
                11 => {
                    let up = world.wan.address.is_some();
                    world.set_wan((!up).then_some(super::world::WAN));
                }
                12 => {
                    let fate = world.rng.random_bool(0.5);
                    let fate = if fate { Ok(()) } else { Err(SendError::Silent) };
                    world.subscriber.as_mut().expect("there").fate = Some(fate);
                }
                _ => {
                    world.call(20, call("GetStatusInfo", &[]));
                }
            }
            let pause = world.rng.random_range(0..20_000);
            world.run_until(world.now + Duration::from_millis(pause));
            world.renew_subscription();
        }
        world.subscriber.as_mut().expect("there").fate = Some(Ok(()));
        world.link.cut = false;
        world.run(120);
        world.renew_subscription();
        world.run(1);
        let subscriber = world.subscriber.as_ref().expect("there");
        let count = subscriber.known.get("PortMappingNumberOfEntries");
        let active = world.active().len().to_string();
        assert_eq!(count, Some(&active), "seed {seed}");
    }
}
