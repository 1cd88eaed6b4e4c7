//! Folds rtnetlink messages into what the daemon has to know of the network. No sockets here.
//!
//! Read before editing: rtnetlink(7); kernel documentation of the bridge and of switchdev for AF_BRIDGE
//! neighbour messages.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

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
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::daemon::dataplane::{FdbEntry, Port, Role};
use crate::daemon::netstate::{LanAddress, NetState};
use crate::iwf::WanState;

/// Most bridge stations remembered; beyond it those that aged out give way, then new ones are ignored and
/// their traffic takes the stack.
pub(super) const MAX_STATIONS: usize = 4096;
/// Most IPv4 neighbours remembered. One more costs nothing but a needless look at the FIB when it changes.
pub(super) const MAX_NEIGHBOURS: usize = 16_384;

/// The configured interfaces, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// LAN interfaces: bridges, or the ports themselves.
    pub lan: Vec<String>,
    /// The WAN interface.
    pub wan: String,
}

/// The network as far as it was told.
#[derive(Clone, Debug)]
pub(super) struct State {
    interfaces: Interfaces,
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<Address>,
    routes: BTreeSet<Route>,
    neighbours: BTreeMap<(u32, Ipv4Addr), Mac>,
    stations: BTreeMap<(u32, Mac), Station>,
    next_hops: u32,
}

type Mac = [u8; 6];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    up: bool,
    carrier: bool,
    mac: Option<Mac>,
    master: Option<u32>,
    bridge: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    ifindex: u32,
    addr: Ipv4Addr,
    prefix_len: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    destination: (Ipv4Addr, u8),
    metric: u32,
    table: u32,
    tos: u8,
    hops: Vec<(u32, Option<Ipv4Addr>)>,
}

/// Behind which port a station was last seen. `aged` ones were forgotten by the bridge, which learns nothing
/// from frames that XDP forwards: the station is most likely still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Station {
    port: u32,
    aged: bool,
}

impl State {
    /// Knows nothing yet.
    pub(super) fn new(interfaces: Interfaces) -> Self {
        Self {
            interfaces,
            links: BTreeMap::new(),
            addresses: BTreeSet::new(),
            routes: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            stations: BTreeMap::new(),
            next_hops: 0,
        }
    }

    /// Folds one message in. Messages that do not concern us change nothing.
    pub(super) fn fold(&mut self, message: &RouteNetlinkMessage) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the enum is open and has 50 variants of other subscriptions"
        )]
        match message {
            RouteNetlinkMessage::NewLink(m) => self.new_link(m),
            RouteNetlinkMessage::DelLink(m) => self.del_link(m),
            RouteNetlinkMessage::NewAddress(m) => {
                if let Some(address) = parse_address(m) {
                    self.addresses.insert(address);
                }
            }
            RouteNetlinkMessage::DelAddress(m) => {
                if let Some(address) = parse_address(m) {
                    self.addresses.remove(&address);
                }
            }
            RouteNetlinkMessage::NewRoute(m) => {
                if let Some(route) = parse_route(m) {
                    // NLM_F_REPLACE sends no deletion of what was replaced: same key, other next hop.
                    let key = route.key();
                    let before = self.routes.len();
                    self.routes
                        .retain(|held| held.key() != key || *held == route);
                    let replaced = self.routes.len() != before;
                    if self.routes.insert(route) || replaced {
                        self.bump();
                    }
                }
            }
            RouteNetlinkMessage::DelRoute(m) => {
                if parse_route(m).is_some_and(|route| self.routes.remove(&route)) {
                    self.bump();
                }
            }
            RouteNetlinkMessage::NewNeighbour(m) if m.header.family == AddressFamily::Bridge => {
                self.new_station(m);
            }
            RouteNetlinkMessage::DelNeighbour(m) if m.header.family == AddressFamily::Bridge => {
                self.age_station(m);
            }
            RouteNetlinkMessage::NewNeighbour(m) => self.new_neighbour(m),
            RouteNetlinkMessage::DelNeighbour(m) => self.del_neighbour(m),
            _ => {}
        }
    }

    /// Replaces everything by a fresh dump, as after lost messages. Next hops count as changed unless every
    /// part they depend on is the same.
    pub(super) fn resync(&mut self, dump: &[RouteNetlinkMessage]) {
        let mut fresh = Self::new(self.interfaces.clone());
        for message in dump {
            fresh.fold(message);
        }
        // The bridge may have forgotten stations that are still there (see `Station`).
        for (&key, station) in &self.stations {
            let stays = fresh.links.get(&station.port).is_some_and(|link| {
                link.carrier && link.master == Some(key.0) && fresh.stations.len() < MAX_STATIONS
            });
            if stays {
                fresh.stations.entry(key).or_insert(Station {
                    port: station.port,
                    aged: true,
                });
            }
        }
        fresh.next_hops = self.next_hops;
        let same = self.links == fresh.links
            && self.routes == fresh.routes
            && self.neighbours == fresh.neighbours
            && self.moved_stations(&fresh).next().is_none();
        *self = fresh;
        if !same {
            self.bump();
        }
    }

    /// What the daemon has to know, in a fixed order.
    pub(super) fn snapshot(&self) -> NetState {
        let wan = self.find(&self.interfaces.wan);
        let external_addr = wan.and_then(|(ifindex, _)| self.primary_address(ifindex));
        let wan_works = wan.is_some_and(|(_, link)| link.up && link.carrier);
        NetState {
            wan: WanState {
                address: external_addr.filter(|_| wan_works),
                gateway: wan
                    .filter(|_| wan_works)
                    .and_then(|(ifindex, _)| self.default_gateway(ifindex)),
            },
            wan_ifindex: wan.map(|(ifindex, _)| ifindex),
            lan: self.lan_addresses(),
            external_addr,
            ports: self.ports(),
            fdb: self
                .stations
                .iter()
                .map(|(&(bridge, mac), station)| FdbEntry {
                    bridge,
                    mac,
                    port: station.port,
                })
                .collect(),
            next_hops: self.next_hops,
        }
    }

    fn bump(&mut self) {
        self.next_hops = self.next_hops.wrapping_add(1);
    }

    fn find(&self, name: &str) -> Option<(u32, &Link)> {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.name == name)
            .map(|(&ifindex, link)| (ifindex, link))
    }

    /// The lowest address of an interface that is not an additional one of its subnet: a fixed choice.
    fn primary_address(&self, ifindex: u32) -> Option<Ipv4Addr> {
        let mut own = self.addresses.iter().filter(|a| a.ifindex == ifindex);
        own.next().map(|a| a.addr)
    }

    fn default_gateway(&self, wan: u32) -> Option<Ipv4Addr> {
        // Ordered by destination, then metric: the first match is the best.
        self.routes
            .iter()
            .filter(|route| route.destination == (Ipv4Addr::UNSPECIFIED, 0))
            .flat_map(|route| &route.hops)
            .find_map(|&(oif, gateway)| gateway.filter(|_| oif == wan))
    }

    fn lan_addresses(&self) -> Vec<LanAddress> {
        let mut lan: Vec<_> = self
            .interfaces
            .lan
            .iter()
            .filter_map(|name| self.find(name).filter(|(_, link)| link.up))
            .flat_map(|(ifindex, link)| {
                let own = self.addresses.iter().filter(move |a| a.ifindex == ifindex);
                own.map(move |a| LanAddress {
                    interface: link.name.clone(),
                    ifindex,
                    addr: a.addr,
                    prefix_len: a.prefix_len,
                })
            })
            .collect();
        lan.sort();
        lan
    }

    fn ports(&self) -> Vec<Port> {
        let port = |ifindex: u32, link: &Link, role| {
            let bridge = link.master.filter(|_| role == Role::Lan);
            let l3 = bridge.and_then(|bridge| self.links.get(&bridge));
            Port {
                ifindex,
                name: link.name.clone(),
                role,
                bridge,
                mac: l3.unwrap_or(link).mac.unwrap_or_default(),
            }
        };
        let mut ports = BTreeSet::new();
        if let Some((ifindex, link)) = self.find(&self.interfaces.wan) {
            ports.insert(port(ifindex, link, Role::Wan));
        }
        for name in &self.interfaces.lan {
            match self.find(name) {
                Some((bridge, link)) if link.bridge => ports.extend(
                    self.links
                        .iter()
                        .filter(|(_, l)| l.master == Some(bridge) && l.name != self.interfaces.wan)
                        .map(|(&ifindex, l)| port(ifindex, l, Role::Lan)),
                ),
                Some((ifindex, link)) => {
                    ports.insert(port(ifindex, link, Role::Lan));
                }
                None => {}
            }
        }
        ports.into_iter().collect()
    }

    fn new_link(&mut self, message: &LinkMessage) {
        // A bridge repeats its ports' messages in its own family, without most attributes.
        if message.header.interface_family == AddressFamily::Bridge {
            return;
        }
        let ifindex = message.header.index;
        let link = parse_link(message);
        let old = self.links.insert(ifindex, link.clone());
        let Some(old) = old else { return };
        let lost = old.carrier && !link.carrier;
        let left = old.master != link.master;
        if lost || left {
            self.stations.retain(|_, station| station.port != ifindex);
        }
        if lost || left || old.mac != link.mac || (old.up && !link.up) {
            self.bump();
        }
    }

    fn del_link(&mut self, message: &LinkMessage) {
        let ifindex = message.header.index;
        // In the bridge's family this only says that the port left its bridge.
        if message.header.interface_family == AddressFamily::Bridge {
            let left = self.links.get_mut(&ifindex).and_then(|l| l.master.take());
            if left.is_some() {
                self.stations.retain(|_, station| station.port != ifindex);
                self.bump();
            }
            return;
        }
        if self.links.remove(&ifindex).is_some() {
            self.addresses.retain(|a| a.ifindex != ifindex);
            self.neighbours.retain(|(link, _), _| *link != ifindex);
            self.stations
                .retain(|(bridge, _), station| *bridge != ifindex && station.port != ifindex);
            self.bump();
        }
    }

    fn new_neighbour(&mut self, message: &NeighbourMessage) {
        let Some((key, mac)) = parse_neighbour(message) else {
            return;
        };
        match mac {
            Some(mac) => {
                let known = self.neighbours.get(&key).copied();
                if known.is_none() && self.neighbours.len() >= MAX_NEIGHBOURS {
                    return;
                }
                self.neighbours.insert(key, mac);
                // A first resolution makes no cached next hop wrong: there was none to cache.
                if known.is_some_and(|known| known != mac) {
                    self.bump();
                }
            }
            None => {
                if self.neighbours.remove(&key).is_some() {
                    self.bump();
                }
            }
        }
    }

    fn del_neighbour(&mut self, message: &NeighbourMessage) {
        if let Some((key, _)) = parse_neighbour(message)
            && self.neighbours.remove(&key).is_some()
        {
            self.bump();
        }
    }

    fn new_station(&mut self, message: &NeighbourMessage) {
        let Some((key, port)) = self.parse_station(message) else {
            return;
        };
        let station = Station { port, aged: false };
        if let Some(known) = self.stations.get_mut(&key) {
            let moved = known.port != port;
            *known = station;
            if moved {
                self.bump();
            }
            return;
        }
        if self.stations.len() >= MAX_STATIONS {
            self.stations.retain(|_, station| !station.aged);
        }
        if self.stations.len() < MAX_STATIONS {
            self.stations.insert(key, station);
        }
    }

    fn age_station(&mut self, message: &NeighbourMessage) {
        if let Some((key, port)) = self.parse_station(message)
            && let Some(station) = self.stations.get_mut(&key)
            && station.port == port
        {
            station.aged = true;
        }
    }

    /// Bridge, station and port of a forwarding entry; `None` for those of the bridge itself.
    fn parse_station(&self, message: &NeighbourMessage) -> Option<((u32, Mac), u32)> {
        let port = message.header.ifindex;
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
        let bridge = master.filter(|_| !own)?;
        let served = self
            .links
            .get(&bridge)
            .is_some_and(|l| self.interfaces.lan.contains(&l.name));
        let mac = mac.filter(|mac| served && mac[0] & 1 == 0)?;
        Some(((bridge, mac), port))
    }

    fn moved_stations<'a>(&'a self, fresh: &'a Self) -> impl Iterator<Item = &'a (u32, Mac)> {
        self.stations.iter().filter_map(|(key, station)| {
            let there = fresh.stations.get(key).map(|s| s.port);
            (there != Some(station.port)).then_some(key)
        })
    }
}

impl Route {
    /// What the kernel replaces by.
    fn key(&self) -> (u32, (Ipv4Addr, u8), u8, u32) {
        (self.table, self.destination, self.tos, self.metric)
    }
}

fn parse_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mac: None,
        master: None,
        bridge: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
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
fn parse_address(message: &AddressMessage) -> Option<Address> {
    let header = &message.header;
    let usable = header.family == AddressFamily::Inet
        && header.scope == AddressScope::Universe
        && !header.flags.contains(AddressHeaderFlags::Secondary);
    let mut address = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(IpAddr::V4(addr)) => address = Some(*addr),
            AddressAttribute::Local(IpAddr::V4(addr)) => local = Some(*addr),
            _ => {}
        }
    }
    // On a point-to-point link `Address` is the peer's.
    local.or(address).filter(|_| usable).map(|addr| Address {
        ifindex: header.index,
        addr,
        prefix_len: header.prefix_len.min(32),
    })
}

/// `None` for what packets are not forwarded by.
fn parse_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet || header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route {
        destination: (Ipv4Addr::UNSPECIFIED, header.destination_prefix_length),
        metric: 0,
        table: u32::from(header.table),
        tos: header.tos,
        hops: Vec::new(),
    };
    let mut oif = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => route.destination.0 = *addr,
            RouteAttribute::Gateway(RouteAddress::Inet(addr)) => gateway = Some(*addr),
            RouteAttribute::Oif(ifindex) => oif = Some(*ifindex),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::MultiPath(hops) => {
                route.hops.extend(hops.iter().map(|hop| {
                    let gateway = hop.attributes.iter().find_map(|a| match a {
                        RouteAttribute::Gateway(RouteAddress::Inet(addr)) => Some(*addr),
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

/// Key and address of an IPv4 neighbour; no address while it is not resolved.
fn parse_neighbour(message: &NeighbourMessage) -> Option<((u32, Ipv4Addr), Option<Mac>)> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let mut destination = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => {
                destination = Some(*addr);
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

fn to_mac(octets: &[u8]) -> Option<Mac> {
    octets.try_into().ok()
}

#[cfg(test)]
mod tests;
