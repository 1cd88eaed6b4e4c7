//! The DS-Lite softwire: where it ends, and the way there.
//!
//! Read before editing: RFC 6333 section 5.
#![forbid(unsafe_code)]

/// Octets that the softwire puts before each packet: one IPv6 header.
pub const OVERHEAD: u16 = 40;
/// Hop limit of what goes to the AFTR.
pub const HOP_LIMIT: u8 = 64;
/// The CPE's own address inside (RFC 6333 section 5.7).
pub const B4_ADDR: [u8; 4] = [192, 0, 0, 2];
/// Prefix length of the network that it shares with the AFTR, which is the first host.
pub const B4_PREFIX_LEN: u8 = 29;

/// The only entry of SOFTWIRE. Good while `Config::softwire` is not 0, and not written meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Softwire {
    /// Our end.
    pub local: [u8; 16],
    /// The AFTR.
    pub remote: [u8; 16],
}

/// The only entry of SOFTWIRE_HOP, per CPU: the way to the AFTR as the kernel has told it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct SoftwireHop {
    /// The generation it was asked for under.
    pub generation: u32,
    /// When, in ticks.
    pub asked: u32,
    /// The device.
    pub egress: u32,
    /// Its MAC address.
    pub egress_mac: [u8; 6],
    /// The next hop's.
    pub mac: [u8; 6],
    /// Octets of the largest IPv6 packet that gets to the AFTR.
    pub mtu: u16,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<Softwire>() == 32);
const _: () = assert!(size_of::<SoftwireHop>() == 28);
