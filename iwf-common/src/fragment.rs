//! Fragments: what the first one of a datagram leaves behind for those that follow without a transport header.
//!
//! Read before editing: RFC 791 section 3.2, RFC 4787 REQ-14, RFC 1858, RFC 3128, RFC 6864 section 5.3.1.
#![forbid(unsafe_code)]

use crate::csum;
use crate::limits::HELD_OCTETS;

/// What all fragments of one datagram have in common, as they arrive (RFC 791 section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct FragmentKey {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Identification.
    pub id: [u8; 2],
    /// IANA protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// What to do with the later fragments of a datagram: the part of its session that needs no ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct FragmentValue {
    /// Source address after translation.
    pub src: [u8; 4],
    /// Destination address after translation.
    pub dst: [u8; 4],
    /// Identification after translation.
    pub id: [u8; 2],
    /// What the IPv4 header checksum changes by ([`crate::csum`]), without the TTL.
    pub l3_delta: u16,
    /// Interface to leave by.
    pub egress: u32,
    /// Generation of the next hop, as the session had it.
    pub next_hop_generation: u32,
    /// Tick of the first fragment.
    pub tick: u32,
    /// Destination MAC address of the frame that leaves.
    pub next_hop_mac: [u8; 6],
    /// Source MAC address of the frame that leaves.
    pub egress_mac: [u8; 6],
    /// Largest IPv4 packet the egress takes, in octets.
    pub mtu: u16,
    /// [`FragmentFlags`].
    pub flags: u16,
}

/// Bits of [`FragmentValue::flags`].
pub struct FragmentFlags;

impl FragmentFlags {
    /// From the WAN.
    pub const INBOUND: u16 = 1;
    /// The first fragment went by way of the stack: the later ones follow it there.
    pub const STACK: u16 = 2;
    /// The datagram is not translated: nothing but [`FragmentValue::tick`] means anything.
    pub const AS_IS: u16 = 4;
    /// The entry only keeps its identification from being given out again.
    pub const CLAIM: u16 = 8;
    /// From a LAN host to a LAN host by an external address. Also the stack gets it translated.
    pub const HAIRPIN: u16 = 16;
}

/// One record of the FRAGMENTS_HELD ring: a copy of a fragment that came before its first one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct HeldFragment {
    /// Its datagram, if it is IPv4's.
    pub key: FragmentKey,
    /// Tick at which it came.
    pub tick: u32,
    /// Octets of the IP packet.
    pub len: u16,
    /// [`HeldFlags`].
    pub flags: u16,
    /// Identification of an IPv6 fragment.
    pub id6: [u8; 4],
    /// Offset of an IPv6 fragment, in octets.
    pub at6: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub pad_word: u32,
    /// The IP packet, and whatever the ring had behind it.
    pub packet: [u8; HELD_OCTETS],
}

/// Bits of [`HeldFragment::flags`].
pub struct HeldFlags;

impl HeldFlags {
    /// The stack has forwarded it already and taken one from its TTL.
    pub const FORWARDED: u16 = 1;
    /// It is an IPv6 packet.
    pub const IPV6: u16 = 2;
}

/// Why a held fragment cannot be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsendable {
    /// It is no packet of the length it says.
    Malformed,
    /// Its TTL or hop limit is used up.
    TtlExceeded,
    /// It would write over the headers that were judged.
    Overlaps,
}

/// Translates a later fragment as `value` says: addresses, identification, header checksum, and the TTL unless
/// the stack has been there before (`forwarded`). `packet` begins with the IPv4 header.
///
/// # Errors
/// The packet is as it was.
pub fn translate(
    packet: &mut [u8],
    value: &FragmentValue,
    forwarded: bool,
) -> Result<(), Unsendable> {
    let len = packet.len();
    let Some(ip) = packet.first_chunk_mut::<20>() else {
        return Err(Unsendable::Malformed);
    };
    let header_len = usize::from(ip[0] & 15) * 4;
    let total_len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    if ip[0] >> 4 != 4 || header_len < 20 || total_len != len || total_len <= header_len {
        return Err(Unsendable::Malformed);
    }
    let mut delta = value.l3_delta;
    if !forwarded {
        if ip[8] <= 1 {
            return Err(Unsendable::TtlExceeded);
        }
        ip[8] -= 1;
        delta = csum::add(delta, csum::TTL_DELTA);
    }
    let field = csum::apply(u16::from_ne_bytes([ip[10], ip[11]]), delta).to_ne_bytes();
    [ip[4], ip[5]] = value.id;
    [ip[10], ip[11]] = field;
    [ip[12], ip[13], ip[14], ip[15]] = value.src;
    [ip[16], ip[17], ip[18], ip[19]] = value.dst;
    Ok(())
}

/// Takes one from the hop limit of a later IPv6 fragment unless the stack has been there before (`forwarded`).
/// `offset` is the fragment's, `headers` what its first one had of headers in the fragmentable part.
///
/// # Errors
/// The packet is as it was.
pub fn forward6(
    packet: &mut [u8],
    (offset, headers): (u16, u16),
    forwarded: bool,
) -> Result<(), Unsendable> {
    let len = packet.len();
    let Some(ip) = packet.first_chunk_mut::<40>() else {
        return Err(Unsendable::Malformed);
    };
    let payload = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    if ip[0] >> 4 != 6 || payload + ip.len() != len {
        return Err(Unsendable::Malformed);
    }
    if offset < headers {
        return Err(Unsendable::Overlaps);
    }
    if !forwarded {
        if ip[7] <= 1 {
            return Err(Unsendable::TtlExceeded);
        }
        ip[7] -= 1;
    }
    Ok(())
}

const _: () = assert!(size_of::<FragmentKey>() == 12 && align_of::<FragmentKey>() == 4);
const _: () = assert!(size_of::<FragmentValue>() == 40 && align_of::<FragmentValue>() == 4);
const _: () =
    assert!(size_of::<HeldFragment>() == 32 + HELD_OCTETS && HELD_OCTETS.is_multiple_of(8));

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    /// RFC 1071 section 4.1, written without looking at `csum`.
    fn sum(header: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in header.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    fn fragment() -> Vec<u8> {
        let mut packet = Vec::from([
            0x45, 0, 0, 28, 0x12, 0x34, 0x00, 0xb9, 64, 17, 0, 0, 192, 168, 1, 10, 11, 22, 33, 4,
        ]);
        let field = !sum(&packet);
        packet[10..12].copy_from_slice(&field.to_be_bytes());
        packet.extend(*b"01234567");
        packet
    }

    fn outbound() -> FragmentValue {
        let (src, dst, id) = ([100, 64, 0, 2], [11, 22, 33, 4], [0xab, 0xcd]);
        FragmentValue {
            src,
            dst,
            id,
            l3_delta: csum::add(
                csum::delta32([192, 168, 1, 10], src),
                csum::delta16([0x12, 0x34], id),
            ),
            ..FragmentValue::default()
        }
    }

    #[test]
    fn a_later_fragment_is_translated_like_its_first() {
        for (forwarded, ttl) in [(false, 63), (true, 64)] {
            let mut packet = fragment();
            assert_eq!(translate(&mut packet, &outbound(), forwarded), Ok(()));
            assert_eq!(sum(&packet[..20]), 0xffff);
            assert_eq!(packet[4..6], [0xab, 0xcd]);
            assert_eq!(packet[6..10], [0x00, 0xb9, ttl, 17]);
            assert_eq!(packet[12..20], [100, 64, 0, 2, 11, 22, 33, 4]);
            assert_eq!(packet[20..], *b"01234567");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_left_as_it_was() {
        let mut old = fragment();
        old[8] = 1;
        let mut short = fragment();
        short.pop();
        let mut version = fragment();
        version[0] = 0x65;
        let mut header = fragment();
        header[0] = 0x44;
        let mut empty = fragment();
        empty.truncate(20);
        empty[3] = 20;
        for (packet, error) in [
            (old, Unsendable::TtlExceeded),
            (short, Unsendable::Malformed),
            (version, Unsendable::Malformed),
            (header, Unsendable::Malformed),
            (empty, Unsendable::Malformed),
            (Vec::new(), Unsendable::Malformed),
        ] {
            let mut tried = packet.clone();
            assert_eq!(translate(&mut tried, &outbound(), false), Err(error));
            assert_eq!(tried, packet);
        }
    }

    #[test]
    fn an_ipv6_fragment_loses_one_hop_and_nothing_else() {
        let mut packet = Vec::from([0x60, 0, 0, 0, 0, 8, 44, 64]);
        packet.resize(48, 7);
        let mut sent = packet.clone();
        assert_eq!(forward6(&mut sent, (1448, 8), false), Ok(()));
        assert_eq!((sent[7], packet[7]), (63, 64));
        sent[7] = 64;
        assert_eq!(sent, packet);
        assert_eq!(forward6(&mut sent, (1448, 8), true), Ok(()));
        assert_eq!(sent, packet);
        let overlaps = Err(Unsendable::Overlaps);
        assert_eq!(forward6(&mut sent, (16, 20), false), overlaps);
        assert_eq!(
            forward6(&mut sent[..47], (1448, 8), false),
            Err(Unsendable::Malformed)
        );
        sent[7] = 1;
        assert_eq!(
            forward6(&mut sent, (1448, 8), false),
            Err(Unsendable::TtlExceeded)
        );
        assert_eq!(sent[7], 1);
    }
}
