//! Several external addresses (RFC 4787 REQ-2).

use std::net::Ipv4Addr;

use iwf_common::host::{HostKey, paired};

use super::soap::{add, get_address};
use super::statics::stated;
use super::world::{WAN, World};
use crate::iwf::{ModeSetting, Settings};
use crate::mapping::Mapping;

/// Another address of ours.
const OTHER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 77);
/// And another.
const THIRD: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 78);

fn local(pool: &[Ipv4Addr]) -> World {
    let settings = Settings {
        mode: ModeSetting::Local,
        ..Settings::default()
    };
    let mut world = World::with(1, settings);
    world.set_pool(pool);
    world
}

/// A host that has `addr` where the first one is WAN.
fn host_at(addr: Ipv4Addr, pool: &[Ipv4Addr]) -> u8 {
    let mut slots = [[0; 4]; 7];
    for (slot, addr) in slots.iter_mut().zip(pool) {
        *slot = addr.octets();
    }
    let at = |host: &u8| {
        let key = HostKey::v4([192, 168, 1, *host]);
        paired(&key, WAN.octets(), &slots) == addr.octets()
    };
    (20..200).find(at).expect("a host")
}

fn of(world: &World, host: u8) -> Vec<Mapping> {
    let active = world.active();
    let own = active
        .into_iter()
        .filter(|m| m.internal.addr.octets()[3] == host);
    own.cloned().collect()
}

#[test]
fn hosts_map_at_their_own_address_and_are_told_that_one() {
    let pool = [OTHER];
    let mut world = local(&pool);
    for (addr, port) in [(WAN, 2000), (OTHER, 2001)] {
        let host = host_at(addr, &pool);
        assert_eq!(world.ask(host, get_address()), Ok(vec![addr.to_string()]));
        world.ask(host, add(host, port, 3600)).expect("free");
        world.ask(host, add(host, port + 100, 3600)).expect("free");
        for mapping in of(&world, host) {
            assert_eq!(mapping.nat1.addr, addr);
            assert_eq!(mapping.claim.addr, Some(addr));
        }
    }
    // Those of the configuration are the host's as well.
    let host = host_at(OTHER, &pool);
    world.state(&[stated(host, 8080)]);
    assert_eq!(of(&world, host).len(), 3);
    assert!(of(&world, host).iter().all(|m| m.nat1.addr == OTHER));
    // A port is given out once, whatever address it is at.
    let clash = world.ask(host_at(WAN, &pool), add(host_at(WAN, &pool), 2001, 3600));
    assert_eq!(clash, Err(718));
}

#[test]
fn an_address_that_goes_takes_no_mapping_with_it() {
    let pool = [OTHER, THIRD];
    let mut world = local(&pool);
    let hosts = [WAN, OTHER, THIRD].map(|addr| host_at(addr, &pool));
    for (host, port) in hosts.into_iter().zip([2000, 2001, 2002]) {
        world.ask(host, add(host, port, 3600)).expect("free");
    }
    let before = world.active().len();
    world.set_pool(&[THIRD]);
    assert_eq!(world.active().len(), before);
    let addr = |world: &World, at: usize| of(world, hosts[at])[0].nat1.addr;
    assert_eq!(
        (addr(&world, 0), addr(&world, 2)),
        (WAN, THIRD),
        "those stay"
    );
    let moved = addr(&world, 1);
    assert!([WAN, THIRD].contains(&moved));
    let told = world.ask(hosts[1], get_address());
    assert_eq!(told, Ok(vec![moved.to_string()]));
    let held = world.kernel.observe();
    assert!(
        held.iter().any(
            |entry| entry.external.addr == moved && entry.internal.addr.octets()[3] == hosts[1]
        )
    );
    // What is stored is what is there: a new life finds nothing to move.
    world.crash();
    assert_eq!(addr(&world, 1), moved);
}

/// A host with mappings stays where they are when an address is added, also with new ones.
#[test]
fn an_address_that_comes_moves_no_mapping() {
    let mut world = local(&[]);
    let host = host_at(OTHER, &[OTHER]);
    world.ask(host, add(host, 2000, 3600)).expect("free");
    world.set_pool(&[OTHER]);
    world.ask(host, add(host, 2001, 3600)).expect("free");
    assert!(of(&world, host).iter().all(|m| m.nat1.addr == WAN));
    assert_eq!(world.ask(host, get_address()), Ok(vec![WAN.to_string()]));
}

#[test]
fn a_new_wan_address_moves_only_what_was_at_the_old_one() {
    let pool = [OTHER];
    let mut world = local(&pool);
    let hosts = [WAN, OTHER].map(|addr| host_at(addr, &pool));
    for (host, port) in hosts.into_iter().zip([2000, 2001]) {
        world.ask(host, add(host, port, 3600)).expect("free");
    }
    let generation = of(&world, hosts[1])[0].generation;
    world.set_wan(None);
    world.set_wan(Some(THIRD));
    assert_eq!(of(&world, hosts[1])[0].nat1.addr, OTHER);
    assert_eq!(of(&world, hosts[1])[0].generation, generation);
    let moved = of(&world, hosts[0])[0].nat1.addr;
    assert!([THIRD, OTHER].contains(&moved), "{moved}");
    // The old one in the pool is as good as before.
    world.set_pool(&[OTHER, WAN]);
    assert_eq!(of(&world, hosts[0])[0].nat1.addr, moved);
}

/// A PCP request maps the address that it comes from: the first one.
#[test]
fn a_server_is_asked_for_the_first_address_only() {
    let mut world = World::new(1);
    world.set_pool(&[OTHER]);
    let host = host_at(OTHER, &[OTHER]);
    world.ask(host, add(host, 2000, 3600)).expect("granted");
    assert_eq!(world.only().nat1.addr, WAN);
    assert!(world.sent.iter().all(|(_, request)| request.client == WAN));
    // Where nobody is asked any more, it stays there; and the other way round it has to go there.
    let public = Ipv4Addr::new(11, 22, 33, 44);
    world.set_wan(Some(public));
    assert_eq!(world.only().upstream, None);
    world.ask(host, add(host, 2001, 3600)).expect("free");
    let addresses =
        |world: &World| -> Vec<Ipv4Addr> { of(world, host).iter().map(|m| m.nat1.addr).collect() };
    assert_eq!(
        addresses(&world)[0],
        addresses(&world)[1],
        "one host, one address"
    );
    // What the server still held under the old nonces is over by then.
    world.server.mappings.clear();
    world.set_wan(Some(WAN));
    world.run(60);
    assert_eq!(addresses(&world), [WAN, WAN]);
    assert!(world.active().iter().all(|m| m.upstream.is_some()));
}
