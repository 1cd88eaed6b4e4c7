//! What the daemon knows about interfaces and addresses, as the netlink watcher publishes it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::daemon::config::FlowRules;
use crate::daemon::dataplane::{FdbEntry, PlaneConfig, Port};
use crate::iwf::WanState;
use crate::types::Protocol;

/// Interfaces and addresses as they are now. Published whole on every change, so that a reader that
/// was late has missed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// Address and next hop of the WAN; empty while it is down.
    pub wan: WanState,
    /// Index of the WAN interface while it exists.
    pub wan_ifindex: Option<u32>,
    /// Octets of the largest packet that it takes.
    pub wan_mtu: Option<u32>,
    /// Every IPv4 address of the configured LAN interfaces that are up, in order of (name, address).
    pub lan: Vec<LanAddress>,
    /// IPv6 prefixes of the LAN: of its addresses and of what is routed to it, widest first.
    pub lan6: Vec<(Ipv6Addr, u8)>,
    /// Address of the WAN interface even while its carrier is lost, so that a short outage ends no session.
    pub external_addr: Option<Ipv4Addr>,
    /// Devices the packet programs belong on: the WAN, and per LAN interface itself or, of a bridge, its ports.
    pub ports: Vec<Port>,
    /// Stations behind the ports of LAN bridges.
    pub fdb: Vec<FdbEntry>,
    /// Grows whenever a next hop that was resolved before is no longer right.
    pub next_hops: u32,
}

impl NetState {
    /// What the data plane has to follow.
    pub fn plane_config(&self, host_ports: Vec<(Protocol, u16)>) -> PlaneConfig {
        let mut lan_prefixes: Vec<_> = self.lan.iter().map(LanAddress::prefix).collect();
        lan_prefixes.sort_unstable();
        lan_prefixes.dedup();
        PlaneConfig {
            external_addr: self.external_addr,
            lan_prefixes,
            wan_mtu: self.wan_mtu,
            lan6_prefixes: self.lan6.clone(),
            pinholes: Vec::new(),
            host_ports,
            own_ports: BTreeSet::new(),
            ports: self.ports.clone(),
            fdb: self.fdb.clone(),
            rules: FlowRules::default(),
            next_hops: self.next_hops,
        }
    }
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
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix_len.min(32)))
            .unwrap_or(0);
        let (host, own) = (u32::from(host), u32::from(self.addr));
        let edge = self.prefix_len < 31 && (host & !mask == 0 || host & !mask == !mask);
        host & mask == own & mask && !edge
    }

    /// Network address and prefix length.
    pub fn prefix(&self) -> (Ipv4Addr, u8) {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix_len.min(32)))
            .unwrap_or(0);
        (Ipv4Addr::from(u32::from(self.addr) & mask), self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn prefix_drops_the_host_part() {
        assert_eq!(lan([10, 1, 2, 3], 8).prefix(), ([10, 0, 0, 0].into(), 8));
        assert_eq!(lan([10, 1, 2, 3], 0).prefix(), ([0, 0, 0, 0].into(), 0));
    }
}
