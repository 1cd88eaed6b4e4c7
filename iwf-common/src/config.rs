//! What the daemon tells the programs.
#![forbid(unsafe_code)]

use crate::flow::{SessionFlags, SessionKey, SessionValue};
use crate::fragment::{FragmentFlags, FragmentKey, FragmentValue};
use crate::limits;
use crate::nat::Filter;
use crate::port::PortRange;

/// One IPv4 prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Prefix {
    /// Network address, host bits zero.
    pub addr: [u8; 4],
    /// Mask, as [`crate::nat::mask`] makes it.
    pub mask: [u8; 4],
}

impl Prefix {
    /// Whether `addr` is inside.
    #[inline(always)]
    pub const fn contains(&self, addr: [u8; 4]) -> bool {
        u32::from_ne_bytes(addr) & u32::from_ne_bytes(self.mask) == u32::from_ne_bytes(self.addr)
    }
}

/// One IPv6 prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Prefix6 {
    /// Network address, host bits zero.
    pub addr: [u8; 16],
    /// Mask.
    pub mask: [u8; 16],
}

impl Prefix6 {
    /// Whether `addr` is inside.
    #[inline(always)]
    pub const fn contains(&self, addr: [u8; 16]) -> bool {
        u128::from_ne_bytes(addr) & u128::from_ne_bytes(self.mask) == u128::from_ne_bytes(self.addr)
    }
}

/// Idle times, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IdleTimes {
    /// [`limits::UDP_IDLE`] unless configured.
    pub udp: u32,
    /// [`limits::TCP_ESTABLISHED_IDLE`] unless configured.
    pub tcp_established: u32,
    /// [`limits::TCP_TRANSITORY_IDLE`] unless configured.
    pub tcp_transitory: u32,
    /// [`limits::ICMP_IDLE`] unless configured.
    pub icmp: u32,
}

impl IdleTimes {
    /// The defaults at `hz` ticks per second.
    pub const fn defaults(hz: u32) -> Self {
        Self {
            udp: limits::UDP_IDLE.saturating_mul(hz),
            tcp_established: limits::TCP_ESTABLISHED_IDLE.saturating_mul(hz),
            tcp_transitory: limits::TCP_TRANSITORY_IDLE.saturating_mul(hz),
            icmp: limits::ICMP_IDLE.saturating_mul(hz),
        }
    }
}

/// The only entry of CONFIG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Config {
    /// The external address of our NAT; 0.0.0.0: none, nothing is translated and nothing private leaves.
    pub external_addr: [u8; 4],
    /// Which cached next hops are good. Never [`crate::flow::NO_NEXT_HOP`].
    pub next_hop_generation: u32,
    /// The WAN interface; 0: none.
    pub wan: u32,
    /// Ticks per second.
    pub hz: u32,
    /// Ports for outbound flows.
    pub ports: PortRange,
    /// Idle times.
    pub idle: IdleTimes,
    /// [`Filter`] of dynamic mappings.
    pub filter: u8,
    /// [`Filter`] of IPv6 sessions.
    pub filter6: u8,
    /// Largest TCP segment that is let pass in a SYN, IPv4, in octets; 0: as announced.
    pub mss: u16,
    /// [`ConfigFlags`].
    pub flags: u32,
    /// Sessions one LAN host may have.
    pub host_sessions: u32,
    /// Dynamic mappings one LAN host may have.
    pub host_mappings: u32,
    /// IPv6 sessions one station may have.
    pub host_sessions6: u32,
    /// IPv4 sessions there is room for, of all hosts together.
    pub room_sessions: u32,
    /// Mappings there is room for.
    pub room_mappings: u32,
    /// IPv6 sessions there is room for.
    pub room_sessions6: u32,
    /// The device that IPv4 for the Internet is routed to while it goes through the softwire (SOFTWIRE says where that
    /// ends); 0: there is none. Never together with an external address.
    pub softwire: u32,
    /// How many of `lan` are in use.
    pub lan_len: u32,
    /// How many of `lan6` are in use.
    pub lan6_len: u32,
    /// External addresses besides `external_addr`; unused slots, which may be any, are 0.0.0.0.
    pub pool: [[u8; 4]; limits::POOL],
    /// Sources that are translated. Unused ones have an address that no mask yields.
    pub lan: [Prefix; limits::LAN_PREFIXES],
    /// The interface that each of `lan` lies behind, a bridge and not its ports; 0: any.
    pub lan_ifindex: [u32; limits::LAN_PREFIXES],
    /// IPv6 prefixes of the LAN. Unused ones have an address that no mask yields.
    pub lan6: [Prefix6; limits::LAN_PREFIXES],
}

/// Bits of [`Config::flags`].
pub struct ConfigFlags;

impl ConfigFlags {
    /// IPv6 from the WAN is let in only for sessions and pinholes (RFC 6092). Without it all of it passes.
    pub const IPV6_FILTER: u32 = 1;
    /// TCP endpoints of the LAN are open as `filter6` says, like those of UDP. Without it only sessions are.
    pub const IPV6_OPEN_TCP: u32 = 2;
    /// A remote host that sends a SYN to nobody is told so, later (RFC 5382 REQ-4, RFC 6092 REC-34).
    pub const ANSWER_WAN: u32 = 4;
    /// A LAN host is told when its new flow is refused (RFC 5508 REQ-8).
    pub const ANSWER_LAN: u32 = 8;
    /// The provider's device translates: mappings are where their LAN hosts are, and packets keep their addresses.
    pub const ROUTED: u32 = 16;
}

/// A prefix that contains nothing.
pub const NO_PREFIX: Prefix = Prefix {
    addr: [255; 4],
    mask: [0; 4],
};

/// An IPv6 prefix that contains nothing.
pub const NO_PREFIX6: Prefix6 = Prefix6 {
    addr: [255; 16],
    mask: [0; 16],
};

impl Config {
    /// A configuration that translates nothing yet.
    pub const fn empty(hz: u32) -> Self {
        Self {
            external_addr: [0; 4],
            next_hop_generation: 1,
            wan: 0,
            hz,
            ports: PortRange {
                min: crate::port::FIRST_USER_PORT,
                max: u16::MAX,
                hole_min: 1,
                hole_max: 0,
            },
            idle: IdleTimes::defaults(hz),
            filter: Filter::AddressAndPortDependent as u8,
            filter6: Filter::EndpointIndependent as u8,
            mss: 0,
            flags: ConfigFlags::IPV6_FILTER,
            host_sessions: limits::HOST_SESSIONS,
            host_mappings: limits::HOST_MAPPINGS,
            host_sessions6: limits::HOST_SESSIONS6,
            room_sessions: limits::SESSIONS / 2,
            room_mappings: limits::MAPPINGS,
            room_sessions6: limits::SESSIONS6 / 2,
            softwire: 0,
            lan_len: 0,
            lan6_len: 0,
            pool: [[0; 4]; limits::POOL],
            lan: [NO_PREFIX; limits::LAN_PREFIXES],
            lan_ifindex: [0; limits::LAN_PREFIXES],
            lan6: [NO_PREFIX6; limits::LAN_PREFIXES],
        }
    }

    /// Whether `addr` is one of our external addresses.
    #[inline(always)]
    pub fn is_external(&self, addr: [u8; 4]) -> bool {
        let mut found = addr == self.external_addr;
        for pooled in &self.pool {
            found |= addr == *pooled;
        }
        found && addr != [0; 4]
    }

    /// Whether mappings are where their LAN hosts are.
    #[inline(always)]
    pub const fn is_routed(&self) -> bool {
        self.flags & ConfigFlags::ROUTED != 0
    }

    /// Whether flows of LAN hosts have something to stand on.
    #[inline(always)]
    pub fn serves(&self) -> bool {
        (self.external_addr != [0; 4]) | self.is_routed()
    }

    /// Whether there are external addresses besides the first.
    #[inline(always)]
    pub const fn has_pool(&self) -> bool {
        let mut any = 0;
        let mut slot = 0;
        while slot < limits::POOL {
            any |= u32::from_ne_bytes(self.pool[slot]);
            slot += 1;
        }
        any != 0
    }

    /// Whether a mapping of `internal` may be at `external`: at one of our addresses, or with a routed LAN where it is
    /// by itself. What the CPE has of its own is both.
    #[inline(always)]
    pub fn admits(&self, internal: [u8; 4], external: [u8; 4]) -> bool {
        let own = self.is_external(external);
        if self.is_routed() {
            (internal == external) & (own | self.in_lan(external))
        } else {
            own
        }
    }

    /// Whether a session may go on: the external address that it stands on is one where it may be, and its remote end is
    /// one of ours exactly if it turns back to the LAN.
    #[inline(always)]
    pub fn owns(&self, key: &SessionKey, value: &SessionValue) -> bool {
        self.owns_ends(&Ends::of(key, value))
    }

    /// The same of a datagram that comes in fragments and is translated.
    #[inline(always)]
    pub fn owns_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        self.owns_ends(&Ends::of_fragment(key, value))
    }

    /// The same of the addresses themselves.
    #[inline(always)]
    pub fn owns_ends(&self, ends: &Ends) -> bool {
        self.admits(ends.internal, ends.external)
            & (self.is_external(ends.remote) == ends.turns_back)
    }

    /// Whether `addr` is in an IPv6 prefix of the LAN.
    #[inline(always)]
    pub fn in_lan6(&self, addr: [u8; 16]) -> bool {
        let mut found = false;
        for prefix in &self.lan6 {
            found |= prefix.contains(addr);
        }
        found
    }

    /// Whether `addr` is a LAN host's.
    #[inline(always)]
    pub fn in_lan(&self, addr: [u8; 4]) -> bool {
        // Every slot is compared: no branch on a length, and unused slots contain nothing.
        let mut found = false;
        for prefix in &self.lan {
            found |= prefix.contains(addr);
        }
        found
    }

    /// Whether `addr` is that of a LAN host behind the interface `ifindex`.
    #[inline(always)]
    pub fn in_lan_at(&self, addr: [u8; 4], ifindex: u32) -> bool {
        // Left at once: older verifiers would follow every combination of what was found so far.
        for (prefix, at) in self.lan.iter().zip(&self.lan_ifindex) {
            if prefix.contains(addr) && (*at == ifindex || *at == 0) {
                return true;
            }
        }
        false
    }
}

/// The addresses outside that a session or a datagram stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The LAN host's, or our own.
    pub internal: [u8; 4],
    /// Ours.
    pub external: [u8; 4],
    /// The other end's.
    pub remote: [u8; 4],
    /// Whether that is one of ours as well.
    pub turns_back: bool,
}

impl Ends {
    /// Those of a session.
    #[inline(always)]
    pub const fn of(key: &SessionKey, value: &SessionValue) -> Self {
        let turns_back = value.flags & SessionFlags::HAIRPIN != 0;
        if value.flags & SessionFlags::INBOUND != 0 {
            Self::new(value.dst, key.dst, key.src, turns_back)
        } else {
            Self::new(key.src, value.src, key.dst, turns_back)
        }
    }

    /// Those of a datagram that comes in fragments.
    #[inline(always)]
    pub const fn of_fragment(key: &FragmentKey, value: &FragmentValue) -> Self {
        let turns_back = value.flags & FragmentFlags::HAIRPIN != 0;
        if value.flags & FragmentFlags::INBOUND != 0 {
            Self::new(value.dst, key.dst, key.src, turns_back)
        } else {
            Self::new(key.src, value.src, key.dst, turns_back)
        }
    }

    #[inline(always)]
    const fn new(internal: [u8; 4], external: [u8; 4], remote: [u8; 4], turns_back: bool) -> Self {
        Self {
            internal,
            external,
            remote,
            turns_back,
        }
    }
}

/// Which side of the CPE an interface is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// A LAN port.
    Lan = 1,
    /// The WAN port.
    Wan = 2,
}

/// Value of IFACES.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct IfaceValue {
    /// [`Role`].
    pub role: u32,
    /// The interface that holds the addresses: the bridge for a bridge port, else the interface itself.
    pub l3: u32,
    /// The MAC address that `l3` is reached by.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

/// Key of BRIDGE_FDB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct FdbKey {
    /// The bridge.
    pub bridge: u32,
    /// A station's MAC address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Prefix>() == 8);
const _: () = assert!(size_of::<IdleTimes>() == 16);
const _: () = assert!(size_of::<Config>() == 464 && align_of::<Config>() == 8);
const _: () = assert!(size_of::<IfaceValue>() == 16);
const _: () = assert!(size_of::<FdbKey>() == 12);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::mask;

    #[test]
    fn empty_configuration_has_no_lan() {
        let config = Config::empty(250);
        for addr in [[0; 4], [255; 4], [192, 168, 1, 1]] {
            assert!(!config.in_lan(addr));
        }
        assert_eq!(config.idle.udp, 75_000);
    }

    /// A session or fragment is good while what it stands on is ours, and no longer.
    #[test]
    fn what_stands_on_an_address_goes_with_it() {
        const A: [u8; 4] = [100, 64, 0, 2];
        const B: [u8; 4] = [100, 64, 0, 3];
        const HOST: [u8; 4] = [192, 168, 1, 10];
        const REMOTE: [u8; 4] = [11, 22, 33, 4];
        let with = |first, pooled| {
            let mut config = Config::empty(250);
            config.external_addr = first;
            config.pool[3] = pooled;
            config
        };
        let none = [0; 4];
        let cases = [
            // Flags, source and destination as they arrive, source after translation.
            (0, 0, HOST, REMOTE, A),
            (
                SessionFlags::INBOUND,
                FragmentFlags::INBOUND,
                REMOTE,
                A,
                REMOTE,
            ),
            (SessionFlags::HAIRPIN, FragmentFlags::HAIRPIN, HOST, B, A),
        ];
        for (flags, fragment, src, dst, new_src) in cases {
            let key = SessionKey::new(src, [0; 2], dst, [0; 2], 17);
            let value = SessionValue {
                src: new_src,
                flags,
                ..SessionValue::default()
            };
            let datagram = FragmentKey {
                src,
                dst,
                ..FragmentKey::default()
            };
            let later = FragmentValue {
                src: new_src,
                flags: fragment,
                ..FragmentValue::default()
            };
            let turns = flags & SessionFlags::HAIRPIN != 0;
            for (config, good) in [
                (with(A, B), true),
                (with(B, A), true),
                (with(A, none), !turns),
                (with(B, none), false),
                (with(none, none), false),
                // The remote end has become ours.
                (with(A, REMOTE), false),
            ] {
                assert_eq!(config.owns(&key, &value), good, "{flags} {config:?}");
                assert_eq!(config.owns_fragment(&datagram, &later), good);
            }
        }
    }

    #[test]
    fn any_slot_counts() {
        let mut config = Config::empty(250);
        config.lan[7] = Prefix {
            addr: [192, 168, 1, 0],
            mask: mask(24),
        };
        assert!(config.in_lan([192, 168, 1, 77]));
        assert!(!config.in_lan([192, 168, 2, 77]));
        assert!(config.in_lan_at([192, 168, 1, 77], 9), "any interface");
        config.lan_ifindex[7] = 4;
        assert!(config.in_lan_at([192, 168, 1, 77], 4));
        assert!(!config.in_lan_at([192, 168, 1, 77], 9));
    }
}
