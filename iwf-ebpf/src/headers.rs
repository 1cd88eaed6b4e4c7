//! Headers as they lie in a packet: lengths, and the fields this program knows.

use crate::cursor::{load16, load32, store16, store32};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];

/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// IANA protocol numbers.
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// RFC 792.
pub const ICMP_ECHO_REPLY: u8 = 0;
pub const ICMP_ECHO_REQUEST: u8 = 8;
pub const ICMP_UNREACHABLE: u8 = 3;
pub const ICMP_REDIRECT: u8 = 5;
pub const ICMP_TIME_EXCEEDED: u8 = 11;
pub const ICMP_PARAMETER_PROBLEM: u8 = 12;

/// Where the destination of an Ethernet header is: at its very beginning. Source and EtherType follow.
pub mod ethernet {
    pub const LEN: usize = 14;
    pub const ETHERTYPE: usize = 12;
}

/// RFC 791 section 3.1.
pub mod ipv4 {
    /// Without options.
    pub const LEN: usize = 20;
    /// With all that fit.
    pub const MAX_LEN: usize = 60;
    pub const VERSION_IHL: usize = 0;
    pub const TOTAL_LEN: usize = 2;
    pub const ID: usize = 4;
    pub const FRAGMENT: usize = 6;
    pub const TTL: usize = 8;
    pub const PROTO: usize = 9;
    pub const CHECKSUM: usize = 10;
    pub const SRC: usize = 12;
    pub const DST: usize = 16;
}

/// UDP and TCP have their ports at the same place.
pub mod ports {
    pub const SRC: usize = 0;
    pub const DST: usize = 2;
}

/// RFC 768.
pub mod udp {
    pub const LEN: usize = 8;
    pub const LENGTH: usize = 4;
    pub const CHECKSUM: usize = 6;
}

/// RFC 9293 section 3.1.
pub mod tcp {
    /// Without options.
    pub const LEN: usize = 20;
    /// With all options that fit.
    pub const MAX_LEN: usize = 60;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const CHECKSUM: usize = 16;
}

/// RFC 792. The identifier is a query's.
pub mod icmp {
    pub const LEN: usize = 8;
    pub const KIND: usize = 0;
    pub const CHECKSUM: usize = 2;
    pub const ID: usize = 4;
}

/// A MAC address as two numbers, in network order: compared and copied as such, where an array of six octets
/// is copied octet by octet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac {
    head: u32,
    tail: u16,
}

impl Mac {
    /// From the form that maps have.
    #[inline(always)]
    pub const fn new(octets: &[u8; 6]) -> Self {
        let [a, b, c, d, e, f] = *octets;
        Self {
            head: u32::from_ne_bytes([a, b, c, d]),
            tail: u16::from_ne_bytes([e, f]),
        }
    }

    /// In the form that maps have.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 6] {
        let ([a, b, c, d], [e, f]) = (self.head.to_ne_bytes(), self.tail.to_ne_bytes());
        [a, b, c, d, e, f]
    }

    /// The destination of an Ethernet header.
    ///
    /// # Safety
    /// The header is in bounds.
    #[inline(always)]
    pub unsafe fn destination(header: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let head = unsafe { load32::<0>(header) };
        // SAFETY: the caller's promise.
        let tail = unsafe { load16::<4>(header) };
        Self {
            head: u32::from_ne_bytes(head),
            tail: u16::from_ne_bytes(tail),
        }
    }
}

/// Writes both addresses of an Ethernet header.
///
/// # Safety
/// The header is in bounds, and nothing else points there.
#[inline(always)]
pub unsafe fn set_macs(header: *mut u8, dst: &[u8; 6], src: &[u8; 6]) {
    // SAFETY: the caller's promise, here and below.
    unsafe { store32::<0>(header, [dst[0], dst[1], dst[2], dst[3]]) };
    // SAFETY: see above.
    unsafe { store16::<4>(header, [dst[4], dst[5]]) };
    // SAFETY: see above.
    unsafe { store16::<6>(header, [src[0], src[1]]) };
    // SAFETY: see above.
    unsafe { store32::<8>(header, [src[2], src[3], src[4], src[5]]) };
}
