//! Who may map what (architecture, control plane decision 7; SEC-04, SEC-06, SEC-07).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::rules::{Decider, Rules};
use crate::types::prefix::mask4;
use crate::types::{InternalEndpoint, Protocol};

/// Bounds of the mapping table. At a bound new mappings are refused; nothing is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Mappings of all hosts, pending ones included.
    pub mappings: usize,
    /// Mappings of one internal address, pending ones included.
    pub per_host: usize,
    /// Availability probes alive at once per caller (IWF-054).
    pub probes_per_host: usize,
    /// Availability probes alive at once.
    pub probes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mappings: 4096,
            per_host: 128,
            probes_per_host: 4,
            probes: 32,
        }
    }
}

/// Rules for LAN hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Lowest internal and external port (WANIPConnection:2 section 2.5.16: 1024).
    pub min_port: u16,
    /// Whether a host may act for another one.
    pub third_party: ThirdParty,
    /// External ports that this machine or a static forward uses (SEC-07).
    pub reserved: BTreeSet<(Protocol, u16)>,
    /// External ports that programs of this machine use at the moment.
    pub own: BTreeSet<(Protocol, u16)>,
    /// Which device may have which ports.
    pub rules: Rules,
}

/// Whether a host may act for another one (RFC 6970 section 6: by default not).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdParty {
    /// Only for itself.
    Refused,
    /// For every host of its own link, not of another LAN (SEC-05).
    Allowed,
}

/// What a caller may besides what everybody may (WANIPConnection:2 section 2.5.16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rights {
    /// Nothing.
    #[default]
    Public,
    /// It acts for every host of every LAN, with every port.
    Authorized,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its address.
    pub addr: Ipv4Addr,
    /// What it may.
    pub rights: Rights,
    /// Interface of the link that it asks on, if it is known.
    pub link: Option<u32>,
}

impl From<Ipv4Addr> for Party {
    fn from(addr: Ipv4Addr) -> Self {
        Self {
            addr,
            rights: Rights::Public,
            link: None,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_port: 1024,
            third_party: ThirdParty::Refused,
            reserved: BTreeSet::from(PCP_PORTS),
            own: BTreeSet::new(),
            rules: Rules::default(),
        }
    }
}

/// RFC 6887 section 19.1: the ports of PCP itself.
const PCP_PORTS: [(Protocol, u16); 2] = [(Protocol::Udp, 5350), (Protocol::Udp, 5351)];

/// One LAN prefix with this machine's own address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LanPrefix {
    /// This machine's address.
    pub own: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub len: u8,
    /// Index of the interface that it is on.
    pub interface: u32,
}

impl LanPrefix {
    /// Whether `host` is a host of this prefix: not its network or broadcast address, not this machine.
    pub fn has_host(&self, host: Ipv4Addr) -> bool {
        let mask = mask4(self.len);
        let (bits, own) = (u32::from(host), u32::from(self.own));
        let on_edge = self.len < 31 && (bits & !mask == 0 || bits & !mask == !mask);
        bits & mask == own & mask && bits != own && !on_edge
    }
}

/// Why a mapping is refused here, before anybody else is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The caller may not act for that host.
    #[error("for another host (policy.third_party)")]
    OtherHost,
    /// The caller may act for other hosts, but not for one of another LAN.
    #[error("for a host of another LAN (policy.third_party is about one's own)")]
    OtherLink,
    /// The internal address is no host of a LAN.
    #[error("the internal address is no LAN host's")]
    NotLan,
    /// A port below the lowest allowed one.
    #[error("a port below the lowest that may be mapped (policy.min_port)")]
    PortTooLow,
    /// The owner's rules deny it.
    #[error("{0}")]
    Rules(Decider),
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Quota {
    /// What a rule gives each device.
    #[error("the quota of {0}")]
    Rule(Decider),
    /// What any host may have.
    #[error("the host has as many as it may have")]
    Host,
    /// The table's.
    #[error("the table of all hosts is full (limits.explicit_mappings)")]
    Table,
    /// What any host may have of pinholes.
    #[error("the host has as many pinholes as it may have")]
    Pinholes,
    /// So many wishes in a short time.
    #[error("the host asks for more in a short time than is passed on to the server")]
    Pace,
}

impl Policy {
    /// Whether `caller` may map `internal` to `external_port` (`None`: any port).
    pub fn check(
        &self,
        lan: &[LanPrefix],
        caller: impl Into<Party>,
        internal: InternalEndpoint,
        external_port: Option<u16>,
    ) -> Result<(), PolicyError> {
        let caller = caller.into();
        if !is_lan_host(lan, internal.addr) {
            return Err(PolicyError::NotLan);
        }
        if !self.acts_for(lan, caller, internal.addr) {
            return Err(self.not_for(caller.rights));
        }
        let low = |port: u16| port < self.lowest_port(caller.rights);
        if low(internal.port.get()) || external_port.is_some_and(low) {
            return Err(PolicyError::PortTooLow);
        }
        Ok(())
    }

    /// Whether `caller` may see and remove a mapping of `owner` at these ports.
    pub fn may_manage(
        &self,
        lan: &[LanPrefix],
        caller: impl Into<Party>,
        owner: InternalEndpoint,
        external_port: u16,
    ) -> bool {
        let caller = caller.into();
        let lowest = self.lowest_port(caller.rights);
        self.acts_for(lan, caller, owner.addr)
            && external_port >= lowest
            && owner.port.get() >= lowest
    }

    /// Whether `caller` may act for the host of that address: itself, others of its link if the owner lets hosts do so,
    /// and everybody if it is authorized.
    fn acts_for(&self, lan: &[LanPrefix], caller: Party, host: Ipv4Addr) -> bool {
        let on_link = |link: u32| {
            let mut prefixes = lan.iter();
            prefixes.any(|prefix| prefix.interface == link && prefix.has_host(host))
        };
        caller.addr == host
            || self.acts_for_others(caller.rights, || caller.link.is_some_and(on_link))
    }

    /// Whether who has these rights may act for another host, which is on the caller's link or not.
    pub fn acts_for_others(&self, rights: Rights, is_on_link: impl FnOnce() -> bool) -> bool {
        match (rights, self.third_party) {
            (Rights::Authorized, ThirdParty::Refused | ThirdParty::Allowed) => true,
            (Rights::Public, ThirdParty::Allowed) => is_on_link(),
            (Rights::Public, ThirdParty::Refused) => false,
        }
    }

    /// Why who has these rights may not act for another host.
    pub fn not_for(&self, rights: Rights) -> PolicyError {
        if self.sees_others(rights) {
            PolicyError::OtherLink
        } else {
            PolicyError::OtherHost
        }
    }

    /// Whether who has these rights may act for any other host at all.
    pub fn sees_others(&self, rights: Rights) -> bool {
        self.acts_for_others(rights, || true)
    }

    /// Lowest port that who has these rights may map.
    pub fn lowest_port(&self, rights: Rights) -> u16 {
        match rights {
            Rights::Public => self.min_port,
            Rights::Authorized => 1,
        }
    }

    /// Whether a program of this machine uses that external port at the moment.
    pub fn is_own(&self, protocol: Protocol, port: u16) -> bool {
        self.own.contains(&(protocol, port))
    }

    /// Whether this machine or a static forward uses that external port.
    pub fn is_reserved(&self, protocol: Protocol, port: u16) -> bool {
        self.reserved.contains(&(protocol, port)) || PCP_PORTS.contains(&(protocol, port))
    }
}

/// Whether an address belongs to a host of one of the LANs, and is no address that cannot be a host's.
pub fn is_lan_host(lan: &[LanPrefix], addr: Ipv4Addr) -> bool {
    let special = addr.is_loopback()
        || addr.is_link_local()
        || addr.is_multicast()
        || addr.is_broadcast()
        || addr.is_unspecified();
    !special
        && lan.iter().any(|prefix| prefix.has_host(addr))
        && lan.iter().all(|prefix| prefix.own != addr)
}

/// Whether an address can be reached from the Internet as it is: neither private nor shared (RFC 6598), nor
/// of any other block that is not routed globally.
pub fn is_public(addr: Ipv4Addr) -> bool {
    let [a, b, c, _] = addr.octets();
    let shared = a == 100 && (64..128).contains(&b);
    // RFC 6333 section 5.7 (192.0.0.0/29 between B4 and AFTR) and the rest of RFC 6890's 192.0.0.0/24.
    let protocol_assignments = a == 192 && b == 0 && c == 0;
    let benchmark = a == 198 && (b == 18 || b == 19);
    !(addr.is_private()
        || shared
        || protocol_assignments
        || benchmark
        || addr.is_loopback()
        || addr.is_link_local()
        || addr.is_multicast()
        || addr.is_unspecified()
        || a == 0
        || a >= 240)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::InternalPort;

    const LAN: [LanPrefix; 1] = [LanPrefix {
        own: Ipv4Addr::new(192, 168, 1, 1),
        len: 24,
        interface: 2,
    }];

    fn endpoint(last: u8, port: u16) -> InternalEndpoint {
        InternalEndpoint {
            addr: Ipv4Addr::new(192, 168, 1, last),
            port: InternalPort::new(port).expect("not 0"),
        }
    }

    #[test]
    fn only_own_address_and_high_ports() {
        let policy = Policy::default();
        let caller = Ipv4Addr::new(192, 168, 1, 20);
        let check = |internal, external| policy.check(&LAN, caller, internal, external);
        assert_eq!(check(endpoint(20, 1024), Some(1024)), Ok(()));
        assert_eq!(check(endpoint(20, 1024), None), Ok(()));
        assert_eq!(
            check(endpoint(20, 1023), Some(1024)),
            Err(PolicyError::PortTooLow)
        );
        assert_eq!(
            check(endpoint(20, 1024), Some(1023)),
            Err(PolicyError::PortTooLow)
        );
        assert_eq!(
            check(endpoint(21, 8080), Some(8080)),
            Err(PolicyError::OtherHost)
        );
    }

    #[test]
    fn who_is_authorized_acts_for_every_host_and_port_but_not_for_this_machine() {
        let policy = Policy::default();
        let caller = Party {
            addr: Ipv4Addr::new(192, 168, 1, 20),
            rights: Rights::Authorized,
            link: None,
        };
        let check = |internal, external| policy.check(&LAN, caller, internal, external);
        assert_eq!(check(endpoint(21, 22), Some(80)), Ok(()));
        assert_eq!(
            check(endpoint(1, 8080), Some(8080)),
            Err(PolicyError::NotLan)
        );
        assert!(policy.may_manage(&LAN, caller, endpoint(21, 22), 80));
        assert!(!policy.may_manage(&LAN, caller.addr, endpoint(20, 22), 8080));
    }

    #[test]
    fn internal_client_is_a_lan_host_and_not_this_machine() {
        let policy = Policy {
            third_party: ThirdParty::Allowed,
            ..Policy::default()
        };
        let caller = Party {
            link: Some(2),
            ..Ipv4Addr::new(192, 168, 1, 20).into()
        };
        for (last, verdict) in [
            (21, Ok(())),
            (1, Err(PolicyError::NotLan)),
            (0, Err(PolicyError::NotLan)),
            (255, Err(PolicyError::NotLan)),
        ] {
            assert_eq!(
                policy.check(&LAN, caller, endpoint(last, 8080), None),
                verdict
            );
        }
        for addr in [
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "10.0.0.1",
        ] {
            assert!(!is_lan_host(&LAN, addr.parse().expect("address")), "{addr}");
        }
    }

    /// SEC-05: a guest who may speak for other guests does not speak for the hosts of another LAN.
    #[test]
    fn whoever_may_act_for_others_does_so_on_its_own_link_only() {
        let lan = |third: u8, interface| LanPrefix {
            own: Ipv4Addr::new(192, 168, third, 1),
            len: 24,
            interface,
        };
        // The home has two prefixes on its link.
        let lans = [lan(1, 2), lan(7, 2), lan(3, 5)];
        let at = |third: u8| InternalEndpoint {
            addr: Ipv4Addr::new(192, 168, third, 20),
            port: InternalPort::new(8080).expect("not 0"),
        };
        let policy = |third_party| Policy {
            third_party,
            ..Policy::default()
        };
        let guest = |rights, link| Party {
            addr: Ipv4Addr::new(192, 168, 3, 10),
            rights,
            link,
        };
        let (allowed, refused) = (policy(ThirdParty::Allowed), policy(ThirdParty::Refused));
        let public = Rights::Public;
        for (policy, caller, third, verdict) in [
            (&allowed, guest(public, Some(5)), 3, Ok(())),
            (
                &allowed,
                guest(public, Some(5)),
                1,
                Err(PolicyError::OtherLink),
            ),
            (&allowed, guest(public, Some(2)), 7, Ok(())),
            (
                &allowed,
                guest(public, Some(2)),
                3,
                Err(PolicyError::OtherLink),
            ),
            (
                &allowed,
                guest(public, None),
                3,
                Err(PolicyError::OtherLink),
            ),
            (
                &refused,
                guest(public, Some(5)),
                3,
                Err(PolicyError::OtherHost),
            ),
            (
                &refused,
                guest(public, Some(5)),
                1,
                Err(PolicyError::OtherHost),
            ),
            (&refused, guest(Rights::Authorized, Some(5)), 1, Ok(())),
            (
                &allowed,
                guest(public, Some(5)),
                8,
                Err(PolicyError::NotLan),
            ),
        ] {
            let checked = policy.check(&lans, caller, at(third), None);
            assert_eq!(checked, verdict, "{caller:?} for .{third}.");
            if verdict != Err(PolicyError::NotLan) {
                let manages = policy.may_manage(&lans, caller, at(third), 8080);
                assert_eq!(manages, verdict.is_ok(), "{caller:?} at .{third}.");
            }
        }
    }

    #[test]
    fn public_means_reachable_from_the_internet() {
        for (addr, public) in [
            ("11.22.33.1", true),
            ("100.63.255.255", true),
            ("100.64.0.2", false),
            ("100.127.255.255", false),
            ("100.128.0.0", true),
            ("10.0.0.1", false),
            ("172.16.0.1", false),
            ("192.168.0.1", false),
            ("192.0.0.2", false),
            ("198.18.0.1", false),
            ("169.254.0.1", false),
            ("0.0.0.0", false),
            ("240.0.0.1", false),
        ] {
            assert_eq!(is_public(addr.parse().expect("address")), public, "{addr}");
        }
    }
}
