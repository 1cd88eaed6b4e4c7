//! What the daemon takes from single rtnetlink messages.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the attribute enums are open and have up to 70 variants"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) carrier: bool,
    pub(super) mac: Option<Mac>,
    pub(super) master: Option<u32>,
    pub(super) bridge: bool,
    pub(super) mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) ifindex: u32,
    pub(super) addr: IpAddr,
    pub(super) prefix_len: u8,
    /// Cannot be used yet: somebody else on the link may have it.
    pub(super) tentative: bool,
}

impl Address {
    /// Whether it is the same address, whatever its state.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.ifindex, self.addr, self.prefix_len) == (other.ifindex, other.addr, other.prefix_len)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) destination: (IpAddr, u8),
    pub(super) metric: u32,
    pub(super) table: u32,
    pub(super) tos: u8,
    pub(super) hops: Vec<(u32, Option<IpAddr>)>,
}

impl Route {
    /// What the kernel replaces by.
    pub(super) fn key(&self) -> (u32, (IpAddr, u8), u8, u32) {
        (self.table, self.destination, self.tos, self.metric)
    }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mac: None,
        master: None,
        bridge: false,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
            LinkAttribute::Address(octets) => link.mac = to_mac(octets),
            LinkAttribute::Controller(ifindex) => {
                link.master = Some(*ifindex).filter(|&index| index != 0);
            }
            LinkAttribute::LinkInfo(infos) => {
                link.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    link
}

/// `None` for another family, an additional address, or one that is not for the world outside the host.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let header = &message.header;
    // In IPv6 the same flag says that the address is a temporary one, whose prefix counts all the same.
    let v6 = header.family == AddressFamily::Inet6;
    let usable = (v6 || header.family == AddressFamily::Inet)
        && (header.scope == AddressScope::Universe || (v6 && header.scope == AddressScope::Link))
        && (v6 || !header.flags.contains(AddressHeaderFlags::Secondary));
    let mut address = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(addr) => address = Some(*addr),
            AddressAttribute::Local(addr) => local = Some(*addr),
            _ => {}
        }
    }
    // On a point-to-point link `Address` is the peer's.
    local.or(address).filter(|_| usable).map(|addr| Address {
        ifindex: header.index,
        addr,
        prefix_len: header.prefix_len.min(if v6 { 128 } else { 32 }),
        tentative: header.flags.contains(AddressHeaderFlags::Tentative)
            && !header.flags.contains(AddressHeaderFlags::Optimistic),
    })
}

/// `None` for what packets are not forwarded by.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    if header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route {
        destination: (unspecified, header.destination_prefix_length),
        metric: 0,
        table: u32::from(header.table),
        tos: header.tos,
        hops: Vec::new(),
    };
    let mut oif = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => {
                route.destination.0 = ip(addr).unwrap_or(unspecified);
            }
            RouteAttribute::Gateway(addr) => gateway = ip(addr),
            RouteAttribute::Oif(ifindex) => oif = Some(*ifindex),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::MultiPath(hops) => {
                route.hops.extend(hops.iter().map(|hop| {
                    let gateway = hop.attributes.iter().find_map(|a| match a {
                        RouteAttribute::Gateway(addr) => ip(addr),
                        _ => None,
                    });
                    (hop.interface_index, gateway)
                }));
            }
            _ => {}
        }
    }
    if let Some(oif) = oif {
        route.hops.push((oif, gateway));
    }
    let main = route.table == u32::from(RouteHeader::RT_TABLE_MAIN);
    main.then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

/// Key and address of a neighbour; no address while it is not resolved.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Option<Mac>)> {
    let mut destination = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => {
                destination = Some(IpAddr::V4(*addr));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => {
                destination = Some(IpAddr::V6(*addr));
            }
            NeighbourAttribute::LinkLayerAddress(octets) => mac = to_mac(octets),
            _ => {}
        }
    }
    let resolved = !matches!(
        message.header.state,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
    );
    destination.map(|addr| ((message.header.ifindex, addr), mac.filter(|_| resolved)))
}

/// Bridge and station of a forwarding entry; `None` for entries of the bridge itself and of groups.
pub(super) fn station(message: &NeighbourMessage) -> Option<(u32, Mac)> {
    let mut mac = None;
    let mut master = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => mac = to_mac(octets),
            NeighbourAttribute::Controller(ifindex) => master = Some(*ifindex),
            _ => {}
        }
    }
    // Entries without a master describe the port's own filter, permanent ones the bridge's own addresses.
    let own = message.header.state == NeighbourState::Permanent;
    let mac = mac.filter(|mac: &Mac| mac[0] & 1 == 0)?;
    master.filter(|_| !own).map(|bridge| (bridge, mac))
}

fn to_mac(octets: &[u8]) -> Option<Mac> {
    octets.try_into().ok()
}
