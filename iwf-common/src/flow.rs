//! Sessions: one flow, one entry per direction, everything a packet of it needs.
#![forbid(unsafe_code)]

use crate::nat::{EndpointKey, MappingKind, MappingValue};
use crate::tcp::Shown;

/// The headers of a packet as it arrives. The identifier of an ICMP query is the port of the side that asked;
/// the other side has port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct SessionKey {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Source port.
    pub src_port: [u8; 2],
    /// Destination port.
    pub dst_port: [u8; 2],
    /// IANA protocol number.
    pub proto: u8,
    /// Zero. Two fields, because the compiler would call a function to clear three octets.
    pub pad: u8,
    /// Zero.
    pub pad_word: u16,
}

impl SessionKey {
    /// The key of a packet.
    #[inline(always)]
    pub const fn new(
        src: [u8; 4],
        src_port: [u8; 2],
        dst: [u8; 4],
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

    /// The source as an endpoint: the internal one of an outbound packet.
    #[inline(always)]
    pub const fn source(&self) -> EndpointKey {
        EndpointKey::new(self.src, self.src_port, self.proto)
    }

    /// The destination as an endpoint: the external one of an inbound packet.
    #[inline(always)]
    pub const fn destination(&self) -> EndpointKey {
        EndpointKey::new(self.dst, self.dst_port, self.proto)
    }
}

/// What to do with a packet of one direction of a session.
///
/// 64 bytes: with the kernel's 48-byte element header and the 16-byte key before it, the value of a
/// preallocated hash element fills exactly one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct SessionValue {
    /// Source address after translation.
    pub src: [u8; 4],
    /// Destination address after translation.
    pub dst: [u8; 4],
    /// Source port after translation.
    pub src_port: [u8; 2],
    /// Destination port after translation.
    pub dst_port: [u8; 2],
    /// What the IPv4 header checksum changes by ([`crate::csum`]), without the TTL.
    pub l3_delta: u16,
    /// What the transport checksum changes by.
    pub l4_delta: u16,
    /// Interface to leave by.
    pub egress: u32,
    /// Generation of the cached next hop; [`NO_NEXT_HOP`] or another than the configured one: look it up again.
    pub next_hop_generation: u32,
    /// Destination MAC address of the frame that leaves.
    pub next_hop_mac: [u8; 6],
    /// Source MAC address of the frame that leaves.
    pub egress_mac: [u8; 6],
    /// Tick of the last packet in this direction.
    pub last_seen: u32,
    /// Tick at which the mapping's lifetime ends and with it this session; 0: never.
    pub deadline: u32,
    /// MAC address the CPE was addressed by. A frame to another one is a stranger's, bridged past us.
    pub router_mac: [u8; 6],
    /// Largest IPv4 packet the egress takes, in octets.
    pub mtu: u16,
    /// [`SessionFlags`].
    pub flags: u8,
    /// TCP flags seen in this direction ([`crate::tcp`]).
    pub tcp: u8,
    /// Octets of the packets of this direction, upper part of 48 bits. The IPv4 packets as they arrived.
    pub octets_high: u16,
    /// The same, lower part.
    pub octets_low: u32,
    /// Packets of this direction; wraps.
    pub packets: u32,
}

impl SessionValue {
    /// Whether `mapping`, which binds the session's two endpoints, is what the session began by. A dynamic mapping
    /// may have taken the place of an explicit one: it lets nobody in whom that had let in.
    #[inline(always)]
    pub const fn is_of(&self, mapping: &MappingValue) -> bool {
        self.flags & SessionFlags::EXPLICIT == 0 || mapping.kind == MappingKind::Explicit as u8
    }

    /// Octets of the packets of this direction.
    #[inline(always)]
    pub const fn octets(&self) -> u64 {
        ((self.octets_high as u64) << 32) | self.octets_low as u64
    }

    /// Counts a packet of `len` octets. Two CPUs that count at once may lose one.
    #[inline(always)]
    pub const fn count(&mut self, len: u16) {
        self.packets = self.packets.wrapping_add(1);
        // Without a branch: the verifier follows both sides of each one.
        let octets = self.octets() + len as u64;
        self.octets_low = octets as u32;
        self.octets_high = (octets >> 32) as u16;
    }

    /// The key of the other direction: what the peer's answer looks like when it arrives.
    #[inline(always)]
    pub const fn reverse_key(&self, proto: u8) -> SessionKey {
        SessionKey::new(self.dst, self.dst_port, self.src, self.src_port, proto)
    }

    /// What a TCP connection has shown in this direction.
    #[inline(always)]
    pub const fn shown(&self) -> Shown {
        Shown {
            flags: self.tcp,
            last: self.last_seen,
        }
    }

    /// The internal and the external endpoint of the mapping this direction uses.
    #[inline(always)]
    pub const fn endpoints(&self, key: &SessionKey) -> (EndpointKey, EndpointKey) {
        if self.flags & SessionFlags::INBOUND != 0 {
            (
                EndpointKey::new(self.dst, self.dst_port, key.proto),
                key.destination(),
            )
        } else {
            (
                key.source(),
                EndpointKey::new(self.src, self.src_port, key.proto),
            )
        }
    }
}

/// [`SessionValue::next_hop_generation`] of a session without a cached next hop. Never configured.
pub const NO_NEXT_HOP: u32 = 0;

/// Bits of [`SessionValue::flags`].
pub struct SessionFlags;

impl SessionFlags {
    /// From the WAN. Without it the direction is outbound.
    pub const INBOUND: u8 = 1;
    /// A flow of the CPE itself: inbound packets go to the stack.
    pub const HOST: u8 = 2;
    /// The mapping is an explicit one.
    pub const EXPLICIT: u8 = 4;
    /// Between two LAN hosts by the external address: both ends are translated. Never with [`Self::INBOUND`].
    pub const HAIRPIN: u8 = 8;
    /// Over: packets do not find the session any more, and the entry is removed by a later sweep, when no
    /// packet can hold it.
    pub const ENDED: u8 = 16;
    /// The first packet came from outside: the session goes when its mapping no longer admits the remote host.
    pub const INVITED: u8 = 32;
}

const _: () = assert!(size_of::<SessionKey>() == 16 && align_of::<SessionKey>() == 4);
const _: () = assert!(size_of::<SessionValue>() == 64 && align_of::<SessionValue>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_counted_across_the_words() {
        let mut value = SessionValue {
            octets_low: u32::MAX - 99,
            ..SessionValue::default()
        };
        value.count(100);
        assert_eq!((value.octets(), value.packets), (1 << 32, 1));
        value.count(u16::MAX);
        assert_eq!((value.octets(), value.packets), ((1 << 32) + 65_535, 2));
    }

    #[test]
    fn reverse_of_an_outbound_session_is_addressed_to_its_external_endpoint() {
        let out = SessionValue {
            src: [100, 64, 0, 2],
            dst: [11, 22, 33, 4],
            src_port: [0x13, 0x88],
            dst_port: [0, 53],
            ..Default::default()
        };
        let key = SessionKey::new([192, 168, 1, 10], [0x13, 0x88], out.dst, out.dst_port, 17);
        let reverse = out.reverse_key(17);
        assert_eq!(reverse.destination().addr, [100, 64, 0, 2]);
        assert_eq!(
            reverse.source(),
            EndpointKey::new([11, 22, 33, 4], [0, 53], 17)
        );

        let back = SessionValue {
            src: key.dst,
            dst: key.src,
            src_port: key.dst_port,
            dst_port: key.src_port,
            flags: SessionFlags::INBOUND,
            ..Default::default()
        };
        assert_eq!(back.reverse_key(17), key);
        assert_eq!(back.endpoints(&reverse), out.endpoints(&key));
    }
}
