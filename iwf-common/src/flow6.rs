//! What the IPv6 filter remembers: sessions, open endpoints, pinholes, fragments. Nothing is translated, so a
//! session's value only says where its packets go.
#![forbid(unsafe_code)]

use crate::tcp::Shown;

/// The headers of an IPv6 packet as it arrives. The identifier of an echo request is the port of the side that
/// asked; the other side has port 0. A protocol without ports has 0 for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct SessionKey6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port.
    pub src_port: [u8; 2],
    /// Destination port.
    pub dst_port: [u8; 2],
    /// IANA protocol number of the upper layer.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad_word: u16,
}

impl SessionKey6 {
    /// The key of a packet.
    #[inline(always)]
    pub const fn new(
        src: [u8; 16],
        src_port: [u8; 2],
        dst: [u8; 16],
        dst_port: [u8; 2],
        proto: u8,
    ) -> Self {
        Self {
            src,
            dst,
            src_port,
            dst_port,
            proto,
            pad: 0,
            pad_word: 0,
        }
    }

    /// The key of the other direction.
    #[inline(always)]
    pub const fn reverse(&self) -> Self {
        Self::new(self.dst, self.dst_port, self.src, self.src_port, self.proto)
    }
}

/// Where the packets of one direction of a session go.
///
/// 56 octets: with the kernel's 48-byte element header and the 40-byte key an element has 144, a multiple of 16,
/// and so lies on three cache lines wherever it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct SessionValue6 {
    /// Interface to leave by.
    pub egress: u32,
    /// Generation of the cached next hop, as in [`crate::flow::SessionValue`].
    pub next_hop_generation: u32,
    /// Destination MAC address of the frame that leaves.
    pub next_hop_mac: [u8; 6],
    /// Source MAC address of the frame that leaves.
    pub egress_mac: [u8; 6],
    /// Tick of the last packet in this direction.
    pub last_seen: u32,
    /// Tick at which the pinhole ends that the session began through; 0: none, or it never does.
    pub deadline: u32,
    /// MAC address the CPE was addressed by. A frame to another one is a stranger's, bridged past us.
    pub router_mac: [u8; 6],
    /// Largest IPv6 packet the egress takes, in octets.
    pub mtu: u16,
    /// [`SessionFlags6`].
    pub flags: u8,
    /// TCP flags seen in this direction ([`crate::tcp`]).
    pub tcp: u8,
    /// Octets of the packets of this direction, upper part of 48 bits. IPv6 header included.
    pub octets_high: u16,
    /// The same, lower part.
    pub octets_low: u32,
    /// Packets of this direction; wraps.
    pub packets: u32,
    /// [`PinholeValue::id`] of the pinhole the session began through; 0: none.
    pub pinhole: u16,
    /// Who the session counts for: [`crate::host::HostKey::station`].
    pub station: [u8; 6],
}

impl SessionValue6 {
    /// Octets of the packets of this direction.
    #[inline(always)]
    pub const fn octets(&self) -> u64 {
        ((self.octets_high as u64) << 32) | self.octets_low as u64
    }

    /// What a connection has shown in this direction.
    #[inline(always)]
    pub const fn shown(&self) -> Shown {
        Shown {
            flags: self.tcp,
            last: self.last_seen,
        }
    }
}

/// Bits of [`SessionValue6::flags`].
pub struct SessionFlags6;

impl SessionFlags6 {
    /// From the WAN. Without it the direction is outbound.
    pub const INBOUND: u8 = 1;
    /// A flow of the CPE itself: inbound packets go to the stack.
    pub const HOST: u8 = 2;
    /// Began through a pinhole, and ends with it.
    pub const PINHOLE: u8 = 4;
    /// Over: packets do not find the session any more, and a later sweep removes the entry.
    pub const ENDED: u8 = 16;
}

/// Key of ENDPOINTS6: an internal endpoint that has sent, and to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct EndpointKey6 {
    /// Internal address.
    pub addr: [u8; 16],
    /// The remote address that may answer (address-dependent filtering), or `::` for everybody
    /// (endpoint-independent).
    pub peer: [u8; 16],
    /// Internal port; 0 for a protocol without ports.
    pub port: [u8; 2],
    /// IANA protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad_word: u32,
}

/// Value of ENDPOINTS6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct EndpointValue6 {
    /// Tick of the last known outbound use.
    pub last_used: u32,
}

/// Key of PINHOLES. A field that [`Self::shape`] calls any is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct PinholeKey {
    /// Internal address; `::` is the CPE itself, at whatever address.
    pub internal: [u8; 16],
    /// Remote address.
    pub remote: [u8; 16],
    /// Internal port.
    pub internal_port: [u8; 2],
    /// Remote port.
    pub remote_port: [u8; 2],
    /// IANA protocol number.
    pub proto: u8,
    /// [`Shape`]: what is any.
    pub shape: u8,
    /// Zero.
    pub pad: u16,
}

/// Bits of [`PinholeKey::shape`]: which fields match anything.
pub struct Shape;

impl Shape {
    /// Every remote address.
    pub const ANY_REMOTE: u8 = 1;
    /// Every remote port.
    pub const ANY_REMOTE_PORT: u8 = 2;
    /// Every internal port.
    pub const ANY_INTERNAL_PORT: u8 = 4;
    /// Every protocol.
    pub const ANY_PROTO: u8 = 8;
    /// How many there are.
    pub const COUNT: u8 = 16;
}

impl PinholeKey {
    /// The key with which a pinhole of `shape` would be there for a packet from the WAN.
    #[inline(always)]
    pub const fn of_inbound(key: &SessionKey6, shape: u8) -> Self {
        let mut pinhole = Self {
            internal: key.dst,
            remote: [0; 16],
            internal_port: [0; 2],
            remote_port: [0; 2],
            proto: 0,
            shape,
            pad: 0,
        };
        if shape & Shape::ANY_REMOTE == 0 {
            pinhole.remote = key.src;
        }
        if shape & Shape::ANY_REMOTE_PORT == 0 {
            pinhole.remote_port = key.src_port;
        }
        if shape & Shape::ANY_INTERNAL_PORT == 0 {
            pinhole.internal_port = key.dst_port;
        }
        if shape & Shape::ANY_PROTO == 0 {
            pinhole.proto = key.proto;
        }
        pinhole
    }
}

/// Value of PINHOLES.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct PinholeValue {
    /// Packets from the WAN of sessions that have ended.
    pub packets: u64,
    /// Their octets.
    pub octets: u64,
    /// Tick at which the pinhole ends; 0: never.
    pub expires: u32,
    /// Which pinhole it is (UniqueID of WANIPv6FirewallControl:1), never 0.
    pub id: u16,
    /// Zero.
    pub pad: u16,
}

impl PinholeValue {
    /// Whether the pinhole's time is over at `now`.
    #[inline(always)]
    pub const fn expired(&self, now: u32) -> bool {
        crate::tick::deadline_passed(now, self.expires)
    }
}

/// Key of FRAGMENTS6 (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FragmentKey6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Identification.
    pub id: [u8; 4],
    /// Zero.
    pub pad: u32,
}

/// Value of FRAGMENTS6: what only the first fragment shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct FragmentValue6 {
    /// Tick of the first fragment.
    pub since: u32,
    /// Source port.
    pub src_port: [u8; 2],
    /// Destination port.
    pub dst_port: [u8; 2],
    /// Octets of the headers in the fragmentable part: no later fragment may reach into them.
    pub headers: u16,
    /// IANA protocol number of the upper layer.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

const _: () = assert!(size_of::<SessionKey6>() == 40 && align_of::<SessionKey6>() == 8);
const _: () = assert!(size_of::<SessionValue6>() == 56 && align_of::<SessionValue6>() == 8);
const _: () = assert!(size_of::<EndpointKey6>() == 40);
const _: () = assert!(size_of::<EndpointValue6>() == 4);
const _: () = assert!(size_of::<PinholeKey>() == 40);
const _: () = assert!(size_of::<PinholeValue>() == 24);
const _: () = assert!(size_of::<FragmentKey6>() == 40);
const _: () = assert!(size_of::<FragmentValue6>() == 12);

/// What an address may be used for (RFC 6092 REC-1 to REC-7, RFC 7084 S-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// Packets of it may cross the WAN.
    Global = 0,
    /// Of the link: the stack's business, never forwarded.
    Link = 1,
    /// A group. Never a source.
    Multicast = 2,
    /// Must not be seen outside: unique local, site-local, documentation, mapped and the like.
    Forbidden = 3,
}

/// The scope of an address.
#[inline(always)]
pub const fn scope(addr: &[u8; 16]) -> Scope {
    let first = u32::from_be_bytes([addr[0], addr[1], addr[2], addr[3]]);
    let head = first >> 16;
    if head & 0xe000 == 0x2000 {
        // RFC 3849, RFC 9637 and the ORCHIDs of RFC 4843 and RFC 7343.
        let documentation = first == 0x2001_0db8 || first & 0xffff_f000 == 0x3fff_0000;
        let orchid = first & 0xffff_fff0 == 0x2001_0010 || first & 0xffff_fff0 == 0x2001_0020;
        return if documentation || orchid {
            Scope::Forbidden
        } else {
            Scope::Global
        };
    }
    if head & 0xff00 == 0xff00 {
        return Scope::Multicast;
    }
    if head & 0xffc0 == 0xfe80 {
        return Scope::Link;
    }
    // Unspecified: a host that has no address yet speaks to its link.
    if u128::from_ne_bytes(*addr) == 0 {
        return Scope::Link;
    }
    // 64:ff9b::/96 and 64:ff9b:1::/48: translators may be reached (RFC 6052, RFC 8215).
    if first == 0x0064_ff9b {
        return Scope::Global;
    }
    // Loopback, IPv4-mapped and -compatible, discard-only, unique local, site-local, and the rest of what is not
    // global unicast (RFC 4291 section 2.4).
    Scope::Forbidden
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::Ipv6Addr;

    use super::*;

    #[test]
    fn scopes() {
        for (text, expected) in [
            ("2a00:1450::1", Scope::Global),
            ("2001:470::1", Scope::Global),
            ("2001::1", Scope::Global),
            ("3ffe::1", Scope::Global),
            ("64:ff9b::808:808", Scope::Global),
            ("::", Scope::Link),
            ("fe80::1", Scope::Link),
            ("febf::1", Scope::Link),
            ("ff02::1", Scope::Multicast),
            ("ff0e::1", Scope::Multicast),
            ("::1", Scope::Forbidden),
            ("::11.22.33.44", Scope::Forbidden),
            ("::ffff:11.22.33.44", Scope::Forbidden),
            ("100::1", Scope::Forbidden),
            ("2001:db8::1", Scope::Forbidden),
            ("2001:1f::1", Scope::Forbidden),
            ("2001:2f::1", Scope::Forbidden),
            ("3fff:fff::1", Scope::Forbidden),
            ("fc00::1", Scope::Forbidden),
            ("fd12::1", Scope::Forbidden),
            ("fec0::1", Scope::Forbidden),
        ] {
            let addr: Ipv6Addr = text.parse().expect("an address");
            assert_eq!(scope(&addr.octets()), expected, "{text}");
        }
    }

    #[test]
    fn a_pinhole_is_keyed_by_what_it_names() {
        let key = SessionKey6::new([1; 16], [0, 1], [2; 16], [0, 2], 6);
        let exact = PinholeKey::of_inbound(&key, 0);
        assert_eq!((exact.internal, exact.remote), ([2; 16], [1; 16]));
        assert_eq!((exact.internal_port, exact.remote_port), ([0, 2], [0, 1]));
        let widest = PinholeKey::of_inbound(&key, 15);
        let all = PinholeKey {
            internal: [2; 16],
            shape: 15,
            ..PinholeKey::default()
        };
        assert_eq!(widest, all);
        assert_eq!(key.reverse().reverse(), key);
    }
}
