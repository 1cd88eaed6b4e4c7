//! The network every suite and the demonstration run on.
//!
//! ```text
//! lan1 192.168.1.10 ─┐
//!                    ├ br-lan .1 [cpe] wan0 100.64.0.2 ── 100.64.0.1 br0 [cgn] ext0 11.22.33.1 ── .9 inet
//! lan2 192.168.1.11 ─┘          NAT1: iwfd                           NAT2: nftables
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Result;

use crate::netns::{Namespace, Network, veth};

/// Address of lan1.
pub const LAN1: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
/// Address of lan2.
pub const LAN2: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);
/// LAN address of the CPE.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// WAN address of the CPE: NAT1's external address, shared address space.
pub const WAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// The carrier on the subscriber side: next hop and PCP server.
pub const CARRIER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// The carrier's external address. miniupnpd takes no documentation or private network here.
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 1);
/// A remote host on the Internet side.
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 9);

/// Global IPv6 address of lan1, in a lab that has them.
pub const LAN1_6: Ipv6Addr = Ipv6Addr::new(0x2a0b, 1, 2, 3, 0, 0, 0, 0x10);
/// Global IPv6 address of lan2.
pub const LAN2_6: Ipv6Addr = Ipv6Addr::new(0x2a0b, 1, 2, 3, 0, 0, 0, 0x11);
/// Global IPv6 address of the CPE on the LAN.
pub const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0x2a0b, 1, 2, 3, 0, 0, 0, 1);
/// Global IPv6 address of the CPE on the WAN.
pub const WAN_6: Ipv6Addr = Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 2);
/// IPv6 address of the carrier on the subscriber side.
pub const CARRIER_6: Ipv6Addr = Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 1);
/// IPv6 address of the remote host.
pub const REMOTE_6: Ipv6Addr = Ipv6Addr::new(0x2a0d, 7, 0, 0, 0, 0, 0, 9);

/// The bridge of the LAN.
pub const LAN_BRIDGE: &str = "br-lan";
/// The CPE's interface towards the carrier.
pub const WAN_IF: &str = "wan0";
/// The ports of the bridge.
pub const LAN_PORTS: [&str; 2] = ["lan1p", "lan2p"];

/// What makes the carrier a NAT. The chains named after miniupnpd are filled by it; a static binding is
/// needed for nothing.
pub const CARRIER_RULES: &str = "
table inet filter {
  chain miniupnpd { }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname br0 accept
    jump miniupnpd
  }
  chain prerouting_miniupnpd { }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    jump prerouting_miniupnpd
  }
  chain postrouting_miniupnpd { }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    jump postrouting_miniupnpd
    oifname ext0 masquerade
  }
}
";

/// The five hosts, joined and addressed. The carrier translates; nothing else runs yet.
#[derive(Debug)]
pub struct Lab {
    /// A host of the LAN.
    pub lan1: Namespace,
    /// Another host of the LAN.
    pub lan2: Namespace,
    /// The router under test.
    pub cpe: Namespace,
    /// The carrier.
    pub cgn: Namespace,
    /// A host of the Internet.
    pub inet: Namespace,
    network: Network,
}

impl Lab {
    /// Builds the network under a name of this process; it goes when the value drops.
    ///
    /// # Errors
    /// If a privilege or a tool is missing.
    pub fn new() -> Result<Self> {
        Self::build(Network::new()?)
    }

    /// Builds the network under a fixed name.
    ///
    /// # Errors
    /// If there is one of that name, or a privilege or a tool is missing.
    pub fn named(name: &str) -> Result<Self> {
        Self::build(Network::named(name)?)
    }

    /// Takes over the network of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn adopt(name: &str) -> Result<Self> {
        Ok(Self::handles(Network::adopt(name)?))
    }

    fn handles(network: Network) -> Self {
        Self {
            lan1: network.existing("lan1"),
            lan2: network.existing("lan2"),
            cpe: network.existing("cpe"),
            cgn: network.existing("cgn"),
            inet: network.existing("inet"),
            network,
        }
    }

    fn build(network: Network) -> Result<Self> {
        for host in ["lan1", "lan2", "cpe", "cgn", "inet"] {
            network.namespace(host)?;
        }
        let lab = Self::handles(network);
        for router in [&lab.cpe, &lab.cgn] {
            router.sysctl("net/ipv4/ip_forward", "1")?;
        }
        for host in lab.hosts() {
            host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
            host.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        }

        lab.cpe.ip(&format!(
            "link add {LAN_BRIDGE} type bridge forward_delay 0"
        ))?;
        lab.cpe.address(LAN_BRIDGE, GATEWAY, 24)?;
        let hosts = [(&lab.lan1, LAN1), (&lab.lan2, LAN2)];
        for ((host, address), port) in hosts.into_iter().zip(LAN_PORTS) {
            join_lan(&lab.cpe, host, port, address)?;
        }

        veth((&lab.cpe, WAN_IF), (&lab.cgn, "br0"))?;
        lab.cpe.address(WAN_IF, WAN, 24)?;
        lab.cgn.address("br0", CARRIER, 24)?;
        lab.cpe.ip(&format!("route add default via {CARRIER}"))?;

        veth((&lab.cgn, "ext0"), (&lab.inet, "eth0"))?;
        lab.cgn.address("ext0", EXTERNAL, 24)?;
        lab.inet.address("eth0", REMOTE, 24)?;

        // As the LAN's: an end that faces the CPE sends whole checksums towards its XDP programs, and is able to receive
        // what these redirect.
        lab.cgn.checksums_on_wire("br0")?;
        lab.cgn.receive_redirected("br0")?;
        lab.inet.checksums_on_wire("eth0")?;

        let rules = lab.dir().join("carrier.nft");
        std::fs::write(&rules, CARRIER_RULES)?;
        lab.cgn.must(&["nft", "-f", &rules.display().to_string()])?;
        Ok(lab)
    }

    /// The same with IPv6 besides: the carrier routes a prefix to the CPE and filters nothing.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_ipv6() -> Result<Self> {
        let lab = Self::new()?;
        for host in lab.hosts() {
            host.sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
            host.sysctl("net/ipv6/conf/default/disable_ipv6", "0")?;
        }
        for router in [&lab.cpe, &lab.cgn] {
            router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        lab.cgn.must(&["nft", "flush", "ruleset"])?;
        for (host, interface, address) in [
            (&lab.lan1, "eth0", LAN1_6),
            (&lab.lan2, "eth0", LAN2_6),
            (&lab.cpe, LAN_BRIDGE, GATEWAY_6),
            (&lab.cpe, WAN_IF, WAN_6),
            (&lab.cgn, "br0", CARRIER_6),
            (&lab.cgn, "ext0", Ipv6Addr::new(0x2a0d, 7, 0, 0, 0, 0, 0, 1)),
            (&lab.inet, "eth0", REMOTE_6),
        ] {
            host.ip(&format!("address add {address}/64 dev {interface} nodad"))?;
        }
        for (host, route) in [
            (&lab.lan1, format!("default via {GATEWAY_6}")),
            (&lab.lan2, format!("default via {GATEWAY_6}")),
            (&lab.cpe, format!("default via {CARRIER_6}")),
            (&lab.cgn, format!("2a0b:1:2::/48 via {WAN_6}")),
            (&lab.inet, "default via 2a0d:7::1".to_owned()),
        ] {
            host.ip(&format!("-6 route add {route}"))?;
        }
        Ok(lab)
    }

    /// Every host, LAN first.
    pub fn hosts(&self) -> [&Namespace; 5] {
        [&self.lan1, &self.lan2, &self.cpe, &self.cgn, &self.inet]
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> Option<&Namespace> {
        self.hosts().into_iter().find(|host| host.host() == name)
    }

    /// One more host, joined to the CPE by a veth pair: `eth0` there, `interface` at the CPE, both addressed from the
    /// same /24 and up, the CPE its default router.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn joined_to_cpe(
        &self,
        host: &str,
        interface: &str,
        (own, cpe): (Ipv4Addr, Ipv4Addr),
    ) -> Result<Namespace> {
        let namespace = self.network.namespace(host)?;
        veth((&namespace, "eth0"), (&self.cpe, interface))?;
        namespace.address("eth0", own, 24)?;
        self.cpe.address(interface, cpe, 24)?;
        namespace.ip(&format!("route add default via {cpe}"))?;
        namespace.checksums_on_wire("eth0")?;
        Ok(namespace)
    }

    /// One more host of the LAN, behind a port of the bridge of this name.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn one_more_on_the_lan(
        &self,
        host: &str,
        port: &str,
        address: Ipv4Addr,
    ) -> Result<Namespace> {
        let namespace = self.network.namespace(host)?;
        join_lan(&self.cpe, &namespace, port, address)?;
        Ok(namespace)
    }

    /// The private directory of this run.
    pub fn dir(&self) -> PathBuf {
        self.network.dir().to_owned()
    }

    /// Leaves the network up when this value drops.
    pub fn keep(mut self) {
        self.network.keep();
    }
}

/// Joins a host to the bridge by a port of that name. Its end sends whole checksums and receives what is redirected.
fn join_lan(cpe: &Namespace, host: &Namespace, port: &str, address: Ipv4Addr) -> Result<()> {
    veth((host, "eth0"), (cpe, port))?;
    cpe.ip(&format!("link set {port} master {LAN_BRIDGE} up"))?;
    host.address("eth0", address, 24)?;
    host.ip(&format!("route add default via {GATEWAY}"))?;
    host.checksums_on_wire("eth0")?;
    host.receive_redirected("eth0")
}
