//! What the daemon knows about interfaces and addresses, as the netlink watcher publishes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::daemon::config::FlowRules;
use crate::daemon::dataplane::softwire::Softwire;
use crate::daemon::dataplane::{FdbEntry, PlaneConfig, Port};
use crate::iwf::WanState;
use crate::types::Protocol;
use crate::types::prefix::{in_prefix6, mask4};

/// Interfaces and addresses as they are now. Published whole on every change, so that a reader that
/// was late has missed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// Address and next hop of the WAN; empty while it is down.
    pub wan: WanState,
    /// Index of the WAN interface while it exists.
    pub wan_ifindex: Option<u32>,
    /// Link-local IPv6 address of the WAN interface while it works.
    pub wan_link_local: Option<Ipv6Addr>,
    /// Octets of the largest packet that it takes.
    pub wan_mtu: Option<u32>,
    /// Every IPv4 address of the configured LAN interfaces that are up, in order of (name, address).
    pub lan: Vec<LanAddress>,
    /// IPv4 prefixes behind other routers of the LAN, each with the interface that it is routed to; 0: several.
    pub lan_routes: BTreeMap<(Ipv4Addr, u8), u32>,
    /// The IPv6 addresses by which those interfaces serve hosts: of each the lowest of its link and the lowest of every
    /// other prefix, without those that are being tried for duplicates.
    pub lan6_links: Vec<LanLink>,
    /// Every IPv6 address of this machine.
    pub own6: BTreeSet<Ipv6Addr>,
    /// IPv6 prefixes of the LAN: of its addresses and of what is routed to it, widest first.
    pub lan6: Vec<(Ipv6Addr, u8)>,
    /// Of each of these, narrower ones included, the interface that it is on or routed to; 0: several.
    pub lan6_interfaces: BTreeMap<(Ipv6Addr, u8), u32>,
    /// Address of the WAN interface even while its carrier is lost, so that a short outage ends no session.
    pub external_addr: Option<Ipv4Addr>,
    /// Every IPv4 address of the WAN interface with its prefix length, lowest first, without additional ones of a
    /// prefix.
    pub wan_addresses: Vec<(Ipv4Addr, u8)>,
    /// Devices the packet programs belong on: the WAN, and per LAN interface itself or, of a bridge, its ports.
    pub ports: Vec<Port>,
    /// Stations behind the ports of LAN bridges.
    pub fdb: Vec<FdbEntry>,
    /// Grows whenever a next hop that was resolved before is no longer right.
    pub next_hops: u32,
}

impl NetState {
    /// Whether nothing differs but the ways to stations, on which no mapping depends.
    pub fn is_same_but_for_stations(&self, other: &Self) -> bool {
        let without = |state: &Self| Self {
            fdb: Vec::new(),
            next_hops: 0,
            ..state.clone()
        };
        without(self) == without(other)
    }

    /// Takes the addresses of the configuration for what they are: external ones besides the first. One of the WAN
    /// interface that is not among them is the first, if there is any.
    #[must_use]
    pub fn with_pool(mut self, configured: &[Ipv4Addr]) -> Self {
        let mut own = self.wan_addresses.iter().map(|(addr, _)| *addr);
        let chosen = self.external_addr.filter(|addr| !configured.contains(addr));
        let first = chosen.or_else(|| own.find(|addr| !configured.contains(addr)));
        if let (Some(first), Some(_)) = (first, self.external_addr) {
            self.external_addr = Some(first);
            self.wan.address = self.wan.address.and(Some(first));
        }
        let others = configured.iter().copied();
        self.wan.pool = others
            .filter(|addr| Some(*addr) != self.external_addr)
            .collect();
        self
    }

    /// The LAN prefix that the WAN's own overlaps with, if there is one: the provider has given us an address that the
    /// LAN has as well (RFC 4787 REQ-7).
    pub fn conflict(&self) -> Option<(Ipv4Addr, u8)> {
        let external = self.external_addr?;
        let len = self
            .wan_addresses
            .iter()
            .find(|(addr, _)| *addr == external)
            .map_or(32, |(_, len)| *len);
        let lans = self.lan.iter().map(LanAddress::prefix);
        lans.into_iter().find(|(network, lan_len)| {
            let shorter = len.min(*lan_len);
            masked(*network, shorter) == masked(external, shorter)
        })
    }

    /// Where hosts are served, in a fixed order.
    pub fn served(&self) -> Vec<LanLink> {
        let v4 = self.lan.iter().map(LanLink::from);
        let mut all: Vec<_> = v4.chain(self.lan6_links.iter().cloned()).collect();
        all.sort();
        all
    }

    /// What the data plane has to follow.
    pub fn plane_config(&self, host_ports: Vec<(Protocol, u16)>) -> PlaneConfig {
        let mut lan_prefixes: Vec<_> = self.lan.iter().map(LanAddress::prefix).collect();
        lan_prefixes.sort_unstable();
        lan_prefixes.dedup();
        let mut lan_interfaces = BTreeMap::new();
        for link in &self.lan {
            let known = lan_interfaces.insert(link.prefix(), link.ifindex);
            if known.is_some_and(|known| known != link.ifindex) {
                // On two interfaces at once: nobody can tell where its hosts are.
                lan_interfaces.insert(link.prefix(), 0);
            }
        }
        lan_interfaces.retain(|_, ifindex| *ifindex != 0);
        PlaneConfig {
            external_addr: self.external_addr,
            routed: false,
            pool: self.wan.pool.clone(),
            lan_prefixes,
            lan_interfaces,
            wan_mtu: self.wan_mtu,
            lan6_prefixes: self.lan6.clone(),
            pinholes: Vec::new(),
            host_ports,
            own_ports: BTreeSet::new(),
            ports: self.ports.clone(),
            fdb: self.fdb.clone(),
            rules: FlowRules::default(),
            next_hops: self.next_hops,
            softwire: Softwire::Off,
        }
    }

    /// The same where the provider's device translates. Nobody is hidden behind an address of ours then, so that those
    /// behind other routers of the LAN have to be known as well: what is for them must not pass unjudged.
    pub fn routed_config(&self, host_ports: Vec<(Protocol, u16)>) -> PlaneConfig {
        let mut config = self.plane_config(host_ports);
        config.routed = true;
        for (prefix, ifindex) in &self.lan_routes {
            if config.lan_prefixes.contains(prefix) {
                continue;
            }
            config.lan_prefixes.push(*prefix);
            if *ifindex != 0 {
                config.lan_interfaces.insert(*prefix, *ifindex);
            }
        }
        config
    }
}

/// The first `len` bits of an address.
fn masked(addr: Ipv4Addr, len: u8) -> u32 {
    u32::from(addr) & mask4(len)
}

/// One IPv4 address of a LAN interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LanAddress {
    /// Interface that carries it (the bridge, not its ports).
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The address of this machine.
    pub addr: Ipv4Addr,
    /// Length of the on-link prefix, 0 to 32.
    pub prefix_len: u8,
}

impl LanAddress {
    /// Whether `host` is on this link: in the prefix, and neither its network nor its broadcast address.
    pub fn contains(&self, host: Ipv4Addr) -> bool {
        let mask = mask4(self.prefix_len);
        let (host, own) = (u32::from(host), u32::from(self.addr));
        let edge = self.prefix_len < 31 && (host & !mask == 0 || host & !mask == !mask);
        host & mask == own & mask && !edge
    }

    /// Network address and prefix length.
    pub fn prefix(&self) -> (Ipv4Addr, u8) {
        (
            Ipv4Addr::from(masked(self.addr, self.prefix_len)),
            self.prefix_len,
        )
    }
}

/// An address of this machine on a link of the LAN, of either family: hosts of the link are served there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LanLink {
    /// Interface that carries it (the bridge, not its ports).
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The address of this machine.
    pub addr: IpAddr,
    /// Length of the on-link prefix.
    pub prefix_len: u8,
}

impl From<&LanAddress> for LanLink {
    fn from(lan: &LanAddress) -> Self {
        Self {
            interface: lan.interface.clone(),
            ifindex: lan.ifindex,
            addr: lan.addr.into(),
            prefix_len: lan.prefix_len,
        }
    }
}

impl LanLink {
    /// Whether `host` can be a host of this link that speaks to this address: of the same family and prefix.
    pub fn contains(&self, host: IpAddr) -> bool {
        match (self.addr, host) {
            (IpAddr::V4(addr), IpAddr::V4(host)) => {
                let lan = LanAddress {
                    interface: String::new(),
                    ifindex: self.ifindex,
                    addr,
                    prefix_len: self.prefix_len,
                };
                lan.contains(host)
            }
            (IpAddr::V6(addr), IpAddr::V6(host)) => in_prefix6(host, addr, self.prefix_len),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_link_has_the_hosts_of_its_prefix() {
        let link = |addr: &str, prefix_len| LanLink {
            interface: "br-lan".to_owned(),
            ifindex: 2,
            addr: addr.parse().expect("an address"),
            prefix_len,
        };
        let host = |addr: &str| -> IpAddr { addr.parse().expect("an address") };
        assert!(link("fe80::1", 64).contains(host("fe80::99")));
        assert!(!link("fe80::1", 64).contains(host("2a0b::99")));
        assert!(link("2a0b::1", 64).contains(host("2a0b::99")));
        assert!(!link("2a0b::1", 64).contains(host("2a0b:0:0:1::99")));
        assert!(!link("2a0b::1", 64).contains(host("192.168.1.9")));
        assert!(!link("192.168.1.1", 24).contains(host("::ffff:192.168.1.9")));
        assert!(link("192.168.1.1", 24).contains(host("192.168.1.9")));
    }

    fn lan(addr: [u8; 4], prefix_len: u8) -> LanAddress {
        LanAddress {
            interface: "br-lan".to_owned(),
            ifindex: 2,
            addr: addr.into(),
            prefix_len,
        }
    }

    #[test]
    fn contains_hosts_of_the_prefix_only() {
        let lan24 = lan([192, 168, 1, 1], 24);
        assert!(lan24.contains([192, 168, 1, 200].into()));
        assert!(!lan24.contains([192, 168, 2, 200].into()));
        assert!(!lan24.contains([192, 168, 1, 0].into()));
        assert!(!lan24.contains([192, 168, 1, 255].into()));
        assert!(lan([10, 0, 0, 0], 31).contains([10, 0, 0, 1].into()));
        assert!(!lan([10, 0, 0, 0], 32).contains([10, 0, 0, 1].into()));
        assert!(lan([10, 0, 0, 1], 0).contains([8, 8, 8, 8].into()));
    }

    fn wan(addresses: &[([u8; 4], u8)]) -> NetState {
        let wan_addresses: Vec<_> = addresses.iter().map(|(a, l)| ((*a).into(), *l)).collect();
        let first = wan_addresses.first().map(|(addr, _)| *addr);
        NetState {
            external_addr: first,
            wan: WanState {
                address: first,
                ..WanState::default()
            },
            wan_addresses,
            ..NetState::default()
        }
    }

    #[test]
    fn the_address_chosen_stays_the_first_one() {
        let mut both = wan(&[([100, 64, 0, 2], 32), ([100, 64, 0, 9], 24)]);
        let chosen = Some([100, 64, 0, 9].into());
        (both.external_addr, both.wan.address) = (chosen, chosen);
        let same = both.with_pool(&[]);
        assert_eq!((same.external_addr, same.wan.address), (chosen, chosen));
    }

    #[test]
    fn the_first_address_is_one_that_is_not_pooled() {
        let pool = [[100, 64, 0, 2].into(), [100, 64, 0, 3].into()];
        let both = wan(&[([100, 64, 0, 2], 32), ([100, 64, 0, 9], 24)]).with_pool(&pool);
        assert_eq!(both.external_addr, Some([100, 64, 0, 9].into()));
        assert_eq!(both.wan.address, both.external_addr);
        assert_eq!(both.wan.pool, pool);
        // No other one is there: the pool has to do.
        let only = wan(&[([100, 64, 0, 2], 32)]).with_pool(&pool);
        assert_eq!(only.external_addr, Some(pool[0]));
        assert_eq!(only.wan.pool, [pool[1]]);
        let none = wan(&[]).with_pool(&pool);
        assert_eq!((none.external_addr, none.wan.address), (None, None));
    }

    #[test]
    fn a_wan_within_the_lan_is_told_and_one_around_it_as_well() {
        let with_lan = |address| NetState {
            lan: vec![lan([192, 168, 1, 1], 24)],
            ..wan(&[address])
        };
        let lan_prefix = Some((Ipv4Addr::new(192, 168, 1, 0), 24));
        for (address, conflict) in [
            (([192, 168, 1, 200], 24), lan_prefix),
            (([192, 168, 1, 200], 32), lan_prefix),
            (([192, 168, 9, 9], 16), lan_prefix),
            (([192, 168, 9, 9], 24), None),
            (([100, 64, 0, 2], 10), None),
        ] {
            assert_eq!(with_lan(address).conflict(), conflict, "{address:?}");
        }
        assert_eq!(
            with_lan(([192, 168, 1, 200], 24)).with_pool(&[]).conflict(),
            lan_prefix
        );
    }

    #[test]
    fn a_prefix_of_two_interfaces_may_come_in_by_any() {
        let mut other = lan([192, 168, 1, 2], 24);
        other.ifindex = 3;
        let state = NetState {
            lan: vec![lan([192, 168, 1, 1], 24), other, lan([10, 0, 0, 1], 8)],
            ..NetState::default()
        };
        let config = state.plane_config(Vec::new());
        let named = BTreeMap::from([((Ipv4Addr::new(10, 0, 0, 0), 8), 2)]);
        assert_eq!(config.lan_interfaces, named);
        assert_eq!(config.lan_prefixes.len(), 2);
    }

    #[test]
    fn prefix_drops_the_host_part() {
        assert_eq!(lan([10, 1, 2, 3], 8).prefix(), ([10, 0, 0, 0].into(), 8));
        assert_eq!(lan([10, 1, 2, 3], 0).prefix(), ([0, 0, 0, 0].into(), 0));
    }
}
