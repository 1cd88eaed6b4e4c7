//! Folds rtnetlink messages into what the daemon has to know of the network. No sockets here.
//!
//! Read before editing: rtnetlink(7); kernel documentation of the bridge and of switchdev for AF_BRIDGE
//! neighbour messages.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::daemon::dataplane::{FdbEntry, Port, Role};
use crate::daemon::netstate::{LanAddress, LanLink, NetState};
use crate::iwf::WanState;
use crate::types::prefix::{mask4, mask6};
use parse::{Address, Link, Mac, Route};

mod parse;

/// Most bridge stations remembered; beyond it those that aged out give way, then new ones are ignored and
/// their traffic takes the stack.
pub(super) const MAX_STATIONS: usize = 4096;
/// Most neighbours remembered. One more costs nothing but a needless look at the FIB when it changes.
pub(super) const MAX_NEIGHBOURS: usize = 16_384;

/// Most IPv6 addresses of one LAN interface that hosts are served on.
const MAX_LINKS6: usize = 8;

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
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
    stations: BTreeMap<(u32, Mac), Station>,
    next_hops: u32,
    /// The WAN's address that was chosen, as long as it is there.
    chosen: Option<Ipv4Addr>,
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
            chosen: None,
        }
    }

    /// Folds one message in. Messages that do not concern us change nothing.
    pub(super) fn fold(&mut self, message: &RouteNetlinkMessage) {
        self.fold_in(message);
        self.choose();
    }

    /// Chooses an address of the WAN if the one chosen before has gone.
    fn choose(&mut self) {
        let wan = self.find(&self.interfaces.wan);
        self.chosen = wan.and_then(|(ifindex, _)| self.primary_address(ifindex));
    }

    fn fold_in(&mut self, message: &RouteNetlinkMessage) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the enum is open and has 50 variants of other subscriptions"
        )]
        match message {
            RouteNetlinkMessage::NewLink(m) => self.new_link(m),
            RouteNetlinkMessage::DelLink(m) => self.del_link(m),
            RouteNetlinkMessage::NewAddress(m) => {
                if let Some(address) = parse::address(m) {
                    self.addresses.retain(|held| !held.is_same(&address));
                    self.addresses.insert(address);
                }
            }
            RouteNetlinkMessage::DelAddress(m) => {
                if let Some(address) = parse::address(m) {
                    self.addresses.retain(|held| !held.is_same(&address));
                }
            }
            RouteNetlinkMessage::NewRoute(m) => {
                if let Some(route) = parse::route(m) {
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
                let gone = parse::route(m).is_some_and(|route| self.routes.remove(&route));
                if gone {
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
            fresh.fold_in(message);
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
        fresh.chosen = self.chosen;
        fresh.choose();
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
                pool: Vec::new(),
                address6: wan
                    .filter(|_| wan_works)
                    .and_then(|(ifindex, _)| self.global_address6(ifindex)),
                gateway6: wan
                    .filter(|_| wan_works)
                    .and_then(|(ifindex, _)| self.default_gateway6(ifindex)),
            },
            wan_ifindex: wan.map(|(ifindex, _)| ifindex),
            wan_link_local: wan
                .filter(|_| wan_works)
                .and_then(|(ifindex, _)| self.link_local(ifindex)),
            wan_mtu: wan.and_then(|(_, link)| link.mtu),
            lan: self.lan_addresses(),
            lan_routes: self.lan_routes(),
            lan6_links: self.lan6_links(),
            own6: self.own6(),
            lan6: widest(&self.lan6_interfaces()),
            lan6_interfaces: self.lan6_interfaces(),
            external_addr,
            wan_addresses: wan.map_or_else(Vec::new, |(ifindex, _)| self.own_addresses(ifindex)),
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

    /// The address chosen before, as long as it is there: another one beside it is no reason to move what stands on it
    /// (RFC 6887 section 11.5). Else the lowest that is not an additional one of its subnet: a fixed choice.
    fn primary_address(&self, ifindex: u32) -> Option<Ipv4Addr> {
        let own = self.own_addresses(ifindex);
        let mut addresses = own.iter().map(|(addr, _)| *addr);
        let lowest = addresses.clone().next();
        addresses.find(|addr| self.chosen == Some(*addr)).or(lowest)
    }

    /// Those addresses, lowest first.
    fn own_addresses(&self, ifindex: u32) -> Vec<(Ipv4Addr, u8)> {
        let own = self.addresses.iter().filter(|a| a.ifindex == ifindex);
        own.filter_map(|a| match a.addr {
            IpAddr::V4(addr) => Some((addr, a.prefix_len)),
            IpAddr::V6(_) => None,
        })
        .collect()
    }

    /// The lowest global IPv6 address of an interface. Unique local ones lead nowhere (RFC 6887 section 8.4).
    fn global_address6(&self, ifindex: u32) -> Option<Ipv6Addr> {
        let own = self.addresses.iter().filter(|a| a.ifindex == ifindex);
        own.filter_map(|a| match a.addr {
            IpAddr::V6(addr) if addr.segments()[0] & 0xe000 == 0x2000 => Some(addr),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        })
        .min()
    }

    /// The lowest link-local IPv6 address of an interface.
    fn link_local(&self, ifindex: u32) -> Option<Ipv6Addr> {
        let own = self.addresses.iter().filter(|a| a.ifindex == ifindex);
        own.filter_map(|a| match a.addr {
            IpAddr::V6(addr) if addr.is_unicast_link_local() => Some(addr),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        })
        .min()
    }

    fn default_gateway(&self, wan: u32) -> Option<Ipv4Addr> {
        // Ordered by destination, then metric: the first match is the best.
        self.routes
            .iter()
            .filter(|route| route.destination == (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
            .flat_map(|route| &route.hops)
            .find_map(|&(oif, gateway)| match gateway {
                Some(IpAddr::V4(addr)) if oif == wan => Some(addr),
                _ => None,
            })
    }

    /// Next hop of the IPv6 default route.
    fn default_gateway6(&self, wan: u32) -> Option<Ipv6Addr> {
        self.routes
            .iter()
            .filter(|route| route.destination == (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0))
            .flat_map(|route| &route.hops)
            .find_map(|&(oif, gateway)| match gateway {
                Some(IpAddr::V6(addr)) if oif == wan => Some(addr),
                _ => None,
            })
    }

    /// IPv4 prefixes that are routed to the LAN interfaces, without those that the WAN is in or that stand for the Internet:
    /// a default route by way of the LAN, or a part of it, names nobody.
    fn lan_routes(&self) -> BTreeMap<(Ipv4Addr, u8), u32> {
        let lan: BTreeSet<u32> = self.lan_indices();
        let wan = self.find(&self.interfaces.wan);
        let outside: Vec<Ipv4Addr> = wan
            .map(|(ifindex, _)| {
                let own = self.own_addresses(ifindex).into_iter();
                let own = own.map(|(addr, _)| addr);
                own.chain(self.default_gateway(ifindex)).collect()
            })
            .unwrap_or_default();
        let mut found = BTreeMap::new();
        for route in &self.routes {
            let (IpAddr::V4(addr), len) = route.destination else {
                continue;
            };
            let around = |of: &Ipv4Addr| network4(*of, len) == addr;
            if len < WIDEST || outside.iter().any(around) || addr.is_multicast() {
                continue;
            }
            let hops = route.hops.iter().map(|(oif, _)| *oif);
            for ifindex in hops.filter(|oif| lan.contains(oif)) {
                let known = *found.entry((addr, len)).or_insert(ifindex);
                if known != ifindex {
                    found.insert((addr, len), 0);
                }
            }
        }
        found
    }

    /// The LAN interfaces that there are.
    fn lan_indices(&self) -> BTreeSet<u32> {
        let names = self.interfaces.lan.iter();
        let links = names.filter_map(|name| self.find(name));
        links.map(|(ifindex, _)| ifindex).collect()
    }

    /// IPv6 prefixes that lie behind the LAN interfaces, with the interface or 0 if there are several: of their
    /// addresses, and of what is routed to them, such as a part of the delegated prefix that another router of the LAN
    /// has.
    fn lan6_interfaces(&self) -> BTreeMap<(Ipv6Addr, u8), u32> {
        let lan = self.lan_indices();
        let addresses = self
            .addresses
            .iter()
            .map(|a| (a.ifindex, (a.addr, a.prefix_len)));
        let routes = self.routes.iter().flat_map(|route| {
            let hops = route.hops.iter();
            hops.map(|(oif, _)| (*oif, route.destination))
        });
        let mut interfaces = BTreeMap::new();
        for (ifindex, (addr, len)) in addresses.chain(routes) {
            // The link's own and groups are never forwarded; a default route by way of the LAN names nobody.
            let IpAddr::V6(addr) = addr else { continue };
            let names_hosts = len > 0 && !addr.is_unicast_link_local() && !addr.is_multicast();
            if !names_hosts || !lan.contains(&ifindex) {
                continue;
            }
            let known = interfaces.entry((network6(addr, len), len));
            known
                .and_modify(|known| {
                    if *known != ifindex {
                        *known = 0;
                    }
                })
                .or_insert(ifindex);
        }
        interfaces
    }

    fn lan_addresses(&self) -> Vec<LanAddress> {
        let mut lan: Vec<_> = self
            .interfaces
            .lan
            .iter()
            .filter_map(|name| self.find(name).filter(|(_, link)| link.up))
            .flat_map(|(ifindex, link)| {
                let own = self.addresses.iter().filter(move |a| a.ifindex == ifindex);
                own.filter_map(move |a| match a.addr {
                    IpAddr::V4(addr) => Some(LanAddress {
                        interface: link.name.clone(),
                        ifindex,
                        addr,
                        prefix_len: a.prefix_len,
                    }),
                    IpAddr::V6(_) => None,
                })
            })
            .collect();
        lan.sort();
        lan
    }

    fn own6(&self) -> BTreeSet<Ipv6Addr> {
        let all = self.addresses.iter();
        all.filter_map(|a| match a.addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        })
        .collect()
    }

    /// In the order of [`LanLink`].
    fn lan6_links(&self) -> Vec<LanLink> {
        let mut links: Vec<LanLink> = Vec::new();
        for name in &self.interfaces.lan {
            let Some((ifindex, link)) = self.find(name).filter(|(_, link)| link.up) else {
                continue;
            };
            let first = links.len();
            // Lowest first, so that the lowest of a prefix is taken.
            let own = self.addresses.iter().filter(|a| a.ifindex == ifindex);
            for address in own {
                let IpAddr::V6(addr) = address.addr else {
                    continue;
                };
                // No host shares a prefix of one address.
                if address.tentative || address.prefix_len == 128 || addr.is_multicast() {
                    continue;
                }
                let here = links.get(first..).unwrap_or_default();
                let known = here.iter().any(|held| {
                    held.prefix_len <= address.prefix_len && held.contains(address.addr)
                });
                if !known && here.len() < MAX_LINKS6 {
                    links.push(LanLink {
                        interface: link.name.clone(),
                        ifindex,
                        addr: address.addr,
                        prefix_len: address.prefix_len,
                    });
                }
            }
        }
        links.sort();
        links
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
        let link = parse::link(message);
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
        let Some((key, mac)) = parse::neighbour(message) else {
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
        if let Some((key, _)) = parse::neighbour(message)
            && self.neighbours.remove(&key).is_some()
        {
            self.bump();
        }
    }

    fn new_station(&mut self, message: &NeighbourMessage) {
        let Some((key, port)) = self.station_of(message) else {
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
        if let Some((key, port)) = self.station_of(message)
            && let Some(station) = self.stations.get_mut(&key)
            && station.port == port
        {
            station.aged = true;
        }
    }

    /// Bridge, station and port of a forwarding entry; `None` if the bridge is not on the LAN.
    fn station_of(&self, message: &NeighbourMessage) -> Option<((u32, Mac), u32)> {
        let (bridge, mac) = parse::station(message)?;
        let served = self
            .links
            .get(&bridge)
            .is_some_and(|l| self.interfaces.lan.contains(&l.name));
        served.then_some(((bridge, mac), message.header.ifindex))
    }

    fn moved_stations<'a>(&'a self, fresh: &'a Self) -> impl Iterator<Item = &'a (u32, Mac)> {
        self.stations.iter().filter_map(|(key, station)| {
            let there = fresh.stations.get(key).map(|s| s.port);
            (there != Some(station.port)).then_some(key)
        })
    }
}

/// Who routes more than that to one place means everybody.
const WIDEST: u8 = 8;

fn network4(addr: Ipv4Addr, len: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(addr) & mask4(len))
}

/// Those that are in none of the others, widest first.
fn widest(prefixes: &BTreeMap<(Ipv6Addr, u8), u32>) -> Vec<(Ipv6Addr, u8)> {
    let mut all: Vec<_> = prefixes.keys().copied().collect();
    all.sort_by_key(|(addr, len)| (*len, *addr));
    let mut kept: Vec<(Ipv6Addr, u8)> = Vec::new();
    for (addr, len) in all {
        if !kept.iter().any(|(wide, at)| network6(addr, *at) == *wide) {
            kept.push((addr, len));
        }
    }
    kept
}

fn network6(addr: Ipv6Addr, len: u8) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(addr) & mask6(len))
}

#[cfg(test)]
mod tests;
