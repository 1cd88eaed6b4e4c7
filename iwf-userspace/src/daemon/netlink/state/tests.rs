//! Scripts of messages as the kernel sends them, and the state they must lead to.

use std::net::IpAddr;

use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol, RouteType,
};

use super::*;

const WAN: u32 = 2;
const BRIDGE: u32 = 3;
const PORT1: u32 = 4;
const PORT2: u32 = 5;
const HOST: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 2];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const HOST_ADDR: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);

#[test]
fn wan_address_and_gateway_follow_link_address_and_route() {
    let mut state = router();
    let now = state.snapshot();
    assert_eq!(now.wan.address, Some(Ipv4Addr::new(100, 64, 0, 2)));
    assert_eq!(now.wan.gateway, Some(GATEWAY));
    assert_eq!(now.wan_ifindex, Some(WAN));

    state.fold(&link(WAN, "wan0", false, None));
    let down = state.snapshot();
    assert_eq!(down.wan, WanState::default());
    assert_eq!(down.external_addr, Some(Ipv4Addr::new(100, 64, 0, 2)));

    state.fold(&link(WAN, "wan0", true, None));
    state.fold(&RouteNetlinkMessage::DelRoute(default_route(GATEWAY, 100)));
    assert_eq!(state.snapshot().wan.gateway, None);
    state.fold(&RouteNetlinkMessage::DelAddress(address(
        WAN,
        [100, 64, 0, 2],
        10,
    )));
    assert_eq!(state.snapshot().wan.address, None);
    assert_eq!(state.snapshot().external_addr, None);
}

#[test]
fn servers_with_ipv6_addresses_see_a_global_address_of_the_wan() {
    let mut state = router();
    for (ifindex, text) in [
        (BRIDGE, "2a0b:1:2:3::1"),
        (WAN, "fe80::1"),
        (WAN, "fd00:1::1"),
    ] {
        let message = address6(ifindex, text, 64);
        state.fold(&RouteNetlinkMessage::NewAddress(message));
    }
    assert_eq!(state.snapshot().wan.address6, None, "PCPC-006");
    assert_eq!(state.snapshot().wan_link_local, "fe80::1".parse().ok());
    let message = address6(WAN, "2a0c:9::2", 64);
    state.fold(&RouteNetlinkMessage::NewAddress(message.clone()));
    let global = "2a0c:9::2".parse().ok();
    assert_eq!(state.snapshot().wan.address6, global);
    state.fold(&RouteNetlinkMessage::DelAddress(message));
    assert_eq!(state.snapshot().wan.address6, None);
}

#[test]
fn the_lans_ipv6_prefixes_are_those_of_its_addresses_and_of_routes_to_it() {
    let mut state = router();
    for (ifindex, text, len) in [
        (BRIDGE, "2a0b:1:2:3::1", 64),
        (BRIDGE, "fd00:1::1", 64),
        (BRIDGE, "fe80::1", 64),
        (WAN, "2a0c:9::2", 64),
    ] {
        state.fold(&RouteNetlinkMessage::NewAddress(address6(
            ifindex, text, len,
        )));
    }
    // A router behind the LAN, and what the kernel adds by itself.
    for (text, len) in [("2a0b:1:2:10::", 60), ("2a0b:1:2:3::", 64), ("fe80::", 64)] {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.kind = RouteType::Unicast;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.destination_prefix_length = len;
        let addr = text.parse().expect("an address");
        route.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet6(addr)),
            RouteAttribute::Oif(BRIDGE),
        ];
        state.fold(&RouteNetlinkMessage::NewRoute(route));
    }
    let prefix = |text: &str, len| (text.parse::<Ipv6Addr>().expect("an address"), len);
    let all = vec![
        prefix("2a0b:1:2:10::", 60),
        prefix("2a0b:1:2:3::", 64),
        prefix("fd00:1::", 64),
    ];
    assert_eq!(state.snapshot().lan6, all);
    state.fold(&RouteNetlinkMessage::DelAddress(address6(
        BRIDGE,
        "fd00:1::1",
        64,
    )));
    assert_eq!(state.snapshot().lan6, all[..2]);
}

#[test]
fn hosts_are_served_on_the_lowest_ipv6_address_of_each_prefix_that_may_be_used() {
    let mut state = router();
    let mut tentative = address6(BRIDGE, "2a0b:1:2:3::1", 64);
    tentative.header.flags = AddressHeaderFlags::Tentative | AddressHeaderFlags::Permanent;
    state.fold(&RouteNetlinkMessage::NewAddress(tentative));
    for (ifindex, text, len) in [
        (BRIDGE, "2a0b:1:2:3::2", 64),
        (BRIDGE, "2a0b:1:2:3::3", 64),
        (BRIDGE, "fd00:1::9", 128),
        (BRIDGE, "fe80::2", 64),
        (BRIDGE, "fe80::1", 64),
        (WAN, "2a0c:9::2", 64),
        (WAN, "fe80::9", 64),
    ] {
        let message = address6(ifindex, text, len);
        state.fold(&RouteNetlinkMessage::NewAddress(message));
    }
    let served = |state: &State| -> Vec<IpAddr> {
        let links = state.snapshot().lan6_links;
        assert!(links.iter().all(|link| link.ifindex == BRIDGE));
        links.iter().map(|link| link.addr).collect()
    };
    let addr = |text: &str| -> IpAddr { text.parse().expect("an address") };
    assert_eq!(served(&state), [addr("2a0b:1:2:3::2"), addr("fe80::1")]);
    // Nobody else has it.
    let good = address6(BRIDGE, "2a0b:1:2:3::1", 64);
    state.fold(&RouteNetlinkMessage::NewAddress(good.clone()));
    assert_eq!(served(&state), [addr("2a0b:1:2:3::1"), addr("fe80::1")]);
    assert_eq!(state.snapshot().own6.len(), 8);
    state.fold(&RouteNetlinkMessage::DelAddress(good));
    assert_eq!(served(&state), [addr("2a0b:1:2:3::2"), addr("fe80::1")]);
}

#[test]
fn the_better_of_two_default_routes_is_the_gateway() {
    let mut state = router();
    let better = Ipv4Addr::new(100, 64, 0, 7);
    state.fold(&RouteNetlinkMessage::NewRoute(default_route(better, 50)));
    assert_eq!(state.snapshot().wan.gateway, Some(better));
    // A default route by way of another interface says nothing about the WAN.
    let mut elsewhere = default_route(Ipv4Addr::new(10, 0, 0, 1), 1);
    elsewhere
        .attributes
        .retain(|a| !matches!(a, RouteAttribute::Oif(_)));
    elsewhere.attributes.push(RouteAttribute::Oif(99));
    state.fold(&RouteNetlinkMessage::NewRoute(elsewhere));
    assert_eq!(state.snapshot().wan.gateway, Some(better));
}

#[test]
fn on_a_point_to_point_wan_the_own_address_counts() {
    let mut state = State::new(interfaces());
    state.fold(&link(WAN, "wan0", true, None));
    let mut ppp = AddressMessage::default();
    ppp.header.family = AddressFamily::Inet;
    ppp.header.prefix_len = 32;
    ppp.header.index = WAN;
    let own = Ipv4Addr::new(93, 184, 0, 9);
    ppp.attributes = vec![
        AddressAttribute::Address(IpAddr::V4(GATEWAY)),
        AddressAttribute::Local(IpAddr::V4(own)),
    ];
    state.fold(&RouteNetlinkMessage::NewAddress(ppp));
    assert_eq!(state.snapshot().wan.address, Some(own));
}

/// PCPC-007.
#[test]
fn another_address_of_the_wan_moves_nothing_while_the_first_is_there() {
    let mut state = router();
    let first = state.snapshot().wan.address.expect("the router's");
    let lower = address(WAN, [10, 0, 0, 7], 24);
    state.fold(&RouteNetlinkMessage::NewAddress(lower.clone()));
    assert_eq!(state.snapshot().wan.address, Some(first));
    let there = [
        link(WAN, "wan0", true, None),
        RouteNetlinkMessage::NewAddress(lower),
        RouteNetlinkMessage::NewAddress(address(WAN, first.octets(), 10)),
    ];
    state.resync(&there);
    assert_eq!(state.snapshot().wan.address, Some(first));
    let gone = address(WAN, first.octets(), 10);
    state.fold(&RouteNetlinkMessage::DelAddress(gone));
    assert_eq!(state.snapshot().wan.address, Some([10, 0, 0, 7].into()));
}

#[test]
fn additional_and_link_local_addresses_do_not_count() {
    let mut state = State::new(interfaces());
    state.fold(&link(WAN, "wan0", true, None));
    let mut second = address(WAN, [100, 64, 0, 1], 10);
    second.header.flags |= AddressHeaderFlags::Secondary;
    let mut local = address(WAN, [169, 254, 0, 1], 16);
    local.header.scope = AddressScope::Link;
    for message in [second, local] {
        state.fold(&RouteNetlinkMessage::NewAddress(message));
    }
    assert_eq!(state.snapshot().external_addr, None);
}

#[test]
fn prefixes_behind_other_routers_of_the_lan_are_known_with_their_interface() {
    let mut state = router();
    let route = |text: &str, len, via: u32| {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.kind = RouteType::Unicast;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.destination_prefix_length = len;
        let addr = text.parse().expect("an address");
        route.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(addr)),
            RouteAttribute::Oif(via),
        ];
        RouteNetlinkMessage::NewRoute(route)
    };
    for (text, len, via) in [
        ("10.5.0.0", 24, BRIDGE),
        ("10.6.0.0", 16, BRIDGE),
        // Around the WAN itself, as wide as the Internet, and by the WAN.
        ("100.0.0.0", 8, BRIDGE),
        ("128.0.0.0", 1, BRIDGE),
        ("10.7.0.0", 16, WAN),
    ] {
        state.fold(&route(text, len, via));
    }
    let prefix = |text: &str, len| (text.parse::<Ipv4Addr>().expect("an address"), len);
    let known = state.snapshot();
    let expected = [
        (prefix("10.5.0.0", 24), BRIDGE),
        (prefix("10.6.0.0", 16), BRIDGE),
    ];
    assert_eq!(known.lan_routes, expected.into());

    let plain = known.plane_config(Vec::new());
    let routed = known.routed_config(Vec::new());
    assert!(routed.routed && !plain.routed);
    let own = plain.lan_prefixes.len();
    assert_eq!(routed.lan_prefixes[..own], plain.lan_prefixes);
    assert_eq!(
        routed.lan_prefixes[own..],
        expected.map(|(prefix, _)| prefix)
    );
    for (prefix, ifindex) in expected {
        assert_eq!(routed.lan_interfaces.get(&prefix), Some(&ifindex));
    }
}

#[test]
fn lan_addresses_name_the_bridge_and_end_with_it() {
    let mut state = router();
    let lan = state.snapshot().lan;
    assert_eq!(lan.len(), 1);
    assert_eq!(
        (lan[0].interface.as_str(), lan[0].ifindex, lan[0].prefix()),
        ("br-lan", BRIDGE, (Ipv4Addr::new(192, 168, 1, 0), 24))
    );
    state.fold(&RouteNetlinkMessage::DelLink(link_message(
        BRIDGE, "br-lan", true, None,
    )));
    assert_eq!(state.snapshot().lan, []);
}

#[test]
fn programs_belong_on_the_ports_of_a_bridge_and_follow_them() {
    let mut state = router();
    let on = |state: &State| -> Vec<(u32, Role, Option<u32>)> {
        let ports = state.snapshot().ports;
        ports
            .iter()
            .map(|p| (p.ifindex, p.role, p.bridge))
            .collect()
    };
    let port = |ifindex| (ifindex, Role::Lan, Some(BRIDGE));
    assert_eq!(on(&state), [(WAN, Role::Wan, None), port(PORT1)]);
    // Hosts behind a port send to the bridge's address.
    let bridge_mac = state.snapshot().ports[1].mac;
    assert_eq!(bridge_mac, [2, 0, 0, 0, 1, BRIDGE as u8]);

    state.fold(&link(PORT2, "lan2", true, Some(BRIDGE)));
    assert_eq!(
        on(&state),
        [(WAN, Role::Wan, None), port(PORT1), port(PORT2)]
    );

    // The bridge's own family says that the port left, not that the device is gone.
    let mut left = link_message(PORT1, "lan1", true, Some(BRIDGE));
    left.header.interface_family = AddressFamily::Bridge;
    state.fold(&RouteNetlinkMessage::DelLink(left));
    assert_eq!(on(&state), [(WAN, Role::Wan, None), port(PORT2)]);
}

#[test]
fn a_plain_lan_interface_is_its_own_port() {
    let mut state = State::new(Interfaces {
        lan: vec!["lan1".to_owned(), "lan2".to_owned()],
        wan: "wan0".to_owned(),
    });
    state.fold(&link(PORT1, "lan1", true, None));
    let ports = state.snapshot().ports;
    assert_eq!(ports.len(), 1);
    assert_eq!((ports[0].ifindex, ports[0].bridge), (PORT1, None));
}

#[test]
fn a_neighbour_that_flips_its_state_changes_no_next_hop() {
    let mut state = router();
    let known = neighbour(HOST_ADDR, Some(HOST), NeighbourState::Reachable);
    state.fold(&RouteNetlinkMessage::NewNeighbour(known));
    let before = state.snapshot().next_hops;
    for nud in [
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Reachable,
    ] {
        let same = neighbour(HOST_ADDR, Some(HOST), nud);
        state.fold(&RouteNetlinkMessage::NewNeighbour(same));
    }
    assert_eq!(state.snapshot().next_hops, before);
}

#[test]
fn a_neighbour_that_moves_or_fails_changes_next_hops() {
    let mut state = router();
    let mut last = state.snapshot().next_hops;
    let mut expect = |state: &State, grows: bool| {
        let now = state.snapshot().next_hops;
        assert_eq!(now != last, grows);
        last = now;
    };
    let told = |mac, nud| RouteNetlinkMessage::NewNeighbour(neighbour(HOST_ADDR, mac, nud));
    state.fold(&told(Some(HOST), NeighbourState::Reachable));
    expect(&state, false);
    state.fold(&told(Some(OTHER), NeighbourState::Reachable));
    expect(&state, true);
    state.fold(&told(Some(OTHER), NeighbourState::Failed));
    expect(&state, true);
    state.fold(&told(None, NeighbourState::Incomplete));
    expect(&state, false);
    state.fold(&told(Some(OTHER), NeighbourState::Reachable));
    let gone = neighbour(HOST_ADDR, None, NeighbourState::Stale);
    state.fold(&RouteNetlinkMessage::DelNeighbour(gone));
    expect(&state, true);
}

#[test]
fn routes_change_next_hops_once() {
    let mut state = router();
    let before = state.snapshot().next_hops;
    state.fold(&RouteNetlinkMessage::NewRoute(default_route(GATEWAY, 100)));
    assert_eq!(state.snapshot().next_hops, before, "known already");
    let other = Ipv4Addr::new(100, 64, 0, 9);
    state.fold(&RouteNetlinkMessage::NewRoute(default_route(other, 100)));
    assert_eq!(state.snapshot().next_hops, before + 1, "replaced");
    assert_eq!(state.snapshot().wan.gateway, Some(other));
    let mut local = default_route(GATEWAY, 0);
    local.header.kind = RouteType::Local;
    let mut table = default_route(GATEWAY, 0);
    table.header.table = 255;
    for message in [local, table] {
        state.fold(&RouteNetlinkMessage::NewRoute(message));
    }
    assert_eq!(state.snapshot().next_hops, before + 1, "not forwarded by");
}

#[test]
fn multipath_routes_have_a_gateway_too() {
    let mut state = State::new(interfaces());
    state.fold(&link(WAN, "wan0", true, None));
    let mut route = default_route(GATEWAY, 0);
    route.attributes.clear();
    let mut hop = RouteNextHop::default();
    hop.interface_index = WAN;
    hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY))];
    route.attributes.push(RouteAttribute::MultiPath(vec![hop]));
    state.fold(&RouteNetlinkMessage::NewRoute(route));
    assert_eq!(state.snapshot().wan.gateway, Some(GATEWAY));
}

#[test]
fn stations_are_kept_when_they_age_and_dropped_with_their_port() {
    let mut state = router();
    state.fold(&link(PORT2, "lan2", true, Some(BRIDGE)));
    state.fold(&station(PORT1, HOST));
    let entry = |port| FdbEntry {
        bridge: BRIDGE,
        mac: HOST,
        port,
    };
    assert_eq!(state.snapshot().fdb, [entry(PORT1)]);

    let before = state.snapshot().next_hops;
    let RouteNetlinkMessage::NewNeighbour(aged) = station(PORT1, HOST) else {
        unreachable!("made above")
    };
    state.fold(&RouteNetlinkMessage::DelNeighbour(aged));
    assert_eq!(state.snapshot().fdb, [entry(PORT1)], "aged");
    assert_eq!(state.snapshot().next_hops, before);

    state.fold(&station(PORT2, HOST));
    assert_eq!(state.snapshot().fdb, [entry(PORT2)], "moved");
    assert_eq!(state.snapshot().next_hops, before + 1);

    state.fold(&link(PORT2, "lan2", false, Some(BRIDGE)));
    assert_eq!(state.snapshot().fdb, [], "unplugged");
}

#[test]
fn entries_that_are_no_stations_are_ignored() {
    let mut state = router();
    let RouteNetlinkMessage::NewNeighbour(good) = station(PORT1, HOST) else {
        unreachable!("made above")
    };
    let mut own = good.clone();
    own.header.state = NeighbourState::Permanent;
    let mut masterless = good.clone();
    masterless.attributes.pop();
    let mut multicast = good.clone();
    multicast.attributes[0] = NeighbourAttribute::LinkLayerAddress(vec![1, 0, 0x5e, 0, 0, 1]);
    let mut short = good.clone();
    short.attributes[0] = NeighbourAttribute::LinkLayerAddress(vec![2, 0]);
    let mut foreign = good;
    foreign.attributes[1] = NeighbourAttribute::Controller(77);
    for message in [own, masterless, multicast, short, foreign] {
        state.fold(&RouteNetlinkMessage::NewNeighbour(message));
    }
    assert_eq!(state.snapshot().fdb, []);
}

#[test]
fn stations_are_bounded_and_the_aged_give_way() {
    let mut state = router();
    let mac = |n: usize| [2, 1, 0, 0, (n >> 8) as u8, n as u8];
    for n in 0..MAX_STATIONS + 1 {
        state.fold(&station(PORT1, mac(n)));
    }
    assert_eq!(state.snapshot().fdb.len(), MAX_STATIONS);
    let RouteNetlinkMessage::NewNeighbour(aged) = station(PORT1, mac(0)) else {
        unreachable!("made above")
    };
    state.fold(&RouteNetlinkMessage::DelNeighbour(aged));
    state.fold(&station(PORT1, HOST));
    let fdb = state.snapshot().fdb;
    assert_eq!(fdb.len(), MAX_STATIONS);
    assert!(fdb.iter().any(|entry| entry.mac == HOST));
    assert!(!fdb.iter().any(|entry| entry.mac == mac(0)));
}

#[test]
fn a_resync_finds_the_same_state_and_changes_nothing() {
    let mut state = router();
    let before = state.snapshot();
    state.resync(&dump());
    assert_eq!(state.snapshot(), before);

    let mut moved = dump();
    moved.push(RouteNetlinkMessage::NewRoute(default_route(
        Ipv4Addr::new(100, 64, 0, 9),
        100,
    )));
    state.resync(&moved);
    assert_ne!(state.snapshot().next_hops, before.next_hops);
    assert_ne!(state.snapshot().wan.gateway, before.wan.gateway);
}

#[test]
fn a_resync_forgets_what_is_gone_and_keeps_silent_stations() {
    let mut state = router();
    state.fold(&station(PORT1, HOST));
    state.resync(&dump());
    assert_eq!(state.snapshot().fdb.len(), 1);
    let without_port: Vec<_> = dump()
        .into_iter()
        .filter(|m| !matches!(m, RouteNetlinkMessage::NewLink(l) if l.header.index == PORT1))
        .collect();
    state.resync(&without_port);
    assert_eq!(state.snapshot().fdb, []);
    assert_eq!(state.snapshot().ports.len(), 1);
}

fn interfaces() -> Interfaces {
    Interfaces {
        lan: vec!["br-lan".to_owned()],
        wan: "wan0".to_owned(),
    }
}

/// A router with a WAN, a bridge with one port, addresses and a default route.
fn router() -> State {
    let mut state = State::new(interfaces());
    state.resync(&dump());
    state
}

fn dump() -> Vec<RouteNetlinkMessage> {
    let mut bridge = link_message(BRIDGE, "br-lan", true, None);
    bridge
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
            InfoKind::Bridge,
        )]));
    vec![
        link(WAN, "wan0", true, None),
        RouteNetlinkMessage::NewLink(bridge),
        link(PORT1, "lan1", true, Some(BRIDGE)),
        RouteNetlinkMessage::NewAddress(address(WAN, [100, 64, 0, 2], 10)),
        RouteNetlinkMessage::NewAddress(address(BRIDGE, [192, 168, 1, 1], 24)),
        RouteNetlinkMessage::NewRoute(default_route(GATEWAY, 100)),
    ]
}

fn link(ifindex: u32, name: &str, carrier: bool, master: Option<u32>) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(link_message(ifindex, name, carrier, master))
}

fn link_message(ifindex: u32, name: &str, carrier: bool, master: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up;
    if carrier {
        message.header.flags |= LinkFlags::LowerUp | LinkFlags::Running;
    }
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 1, ifindex as u8]),
    ];
    message
        .attributes
        .extend(master.map(LinkAttribute::Controller));
    message
}

fn address(ifindex: u32, addr: [u8; 4], prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.index = ifindex;
    message.header.flags = AddressHeaderFlags::Permanent;
    message.attributes = vec![
        AddressAttribute::Address(IpAddr::V4(addr.into())),
        AddressAttribute::Local(IpAddr::V4(addr.into())),
    ];
    message
}

fn address6(ifindex: u32, text: &str, len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.index = ifindex;
    message.header.prefix_len = len;
    let addr: IpAddr = text.parse().expect("an address");
    message.header.scope = match addr {
        IpAddr::V6(addr) if addr.is_unicast_link_local() => AddressScope::Link,
        IpAddr::V4(_) | IpAddr::V6(_) => AddressScope::Universe,
    };
    message.attributes = vec![AddressAttribute::Address(addr)];
    message
}

fn default_route(gateway: Ipv4Addr, metric: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::Dhcp;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        RouteAttribute::Oif(WAN),
        RouteAttribute::Priority(metric),
    ];
    message
}

fn neighbour(addr: Ipv4Addr, mac: Option<Mac>, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = BRIDGE;
    message.header.state = state;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(
        addr,
    ))];
    message
        .attributes
        .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

fn station(port: u32, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Reachable;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        NeighbourAttribute::Controller(BRIDGE),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}
