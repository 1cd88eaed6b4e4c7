//! Headers as they lie in a packet.

use crate::cursor::Wire;

/// Octets of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];

/// IANA protocol numbers.
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// RFC 792.
pub const ICMP_ECHO_REPLY: u8 = 0;
pub const ICMP_ECHO_REQUEST: u8 = 8;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ethernet {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub ethertype: [u8; 2],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: [u8; 2],
    pub id: [u8; 2],
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub proto: u8,
    pub checksum: [u8; 2],
    pub src: [u8; 4],
    pub dst: [u8; 4],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Udp {
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
    pub len: [u8; 2],
    pub checksum: [u8; 2],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tcp {
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
    pub seq: [u8; 4],
    pub ack: [u8; 4],
    pub offset: u8,
    pub flags: u8,
    pub window: [u8; 2],
    pub checksum: [u8; 2],
    pub urgent: [u8; 2],
}

/// The header of queries. Errors have the same first four octets.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: [u8; 2],
    pub id: [u8; 2],
    pub seq: [u8; 2],
}

// SAFETY: `repr(C)` and nothing but octets, as for all below.
unsafe impl Wire for Ethernet {}
// SAFETY: see above.
unsafe impl Wire for Ipv4 {}
// SAFETY: see above.
unsafe impl Wire for Udp {}
// SAFETY: see above.
unsafe impl Wire for Tcp {}
// SAFETY: see above.
unsafe impl Wire for Icmp {}

const _: () = assert!(size_of::<Ethernet>() == ETHERNET_LEN);
const _: () = assert!(size_of::<Ipv4>() == 20 && size_of::<Tcp>() == 20);
const _: () = assert!(size_of::<Udp>() == 8 && size_of::<Icmp>() == 8);
