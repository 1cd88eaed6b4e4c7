//! Port Control Protocol messages.
//!
//! Read before editing: RFC 6887 sections 7, 11 to 14; RFC 7220 (DESCRIPTION), RFC 7225 (PREFIX64),
//! RFC 7753 (PORT_SET). All integers are big-endian; an address is always 16 octets, IPv4 as `::ffff:a.b.c.d`.
//!
//! ```text
//! request                                  response
//!  0 version = 2                            0 version = 2
//!  1 R = 0, opcode (7 bits)                 1 R = 1, opcode
//!  2 reserved                               2 reserved
//!  3 reserved                               3 result code
//!  4 requested lifetime (4)                 4 lifetime (4)
//!  8 client address (16)                    8 epoch time (4)
//!                                          12 reserved (12)
//! 24 opcode body, options                  24 opcode body, options
//! ```
#![forbid(unsafe_code)]

mod option;
mod prefix64;
mod request;
mod response;
mod result;

pub use option::{
    Filter, MAX_DESCRIPTION, MAX_THIRD_PARTY_ID, OptionError, PcpOption, PortSet, code, third_party,
};
pub use prefix64::Prefix64;
pub use request::{Request, RequestError, RequestHeader};
pub use response::{Response, ResponseError, ServerMessage, error_reply, version_reply};
pub use result::{ResultClass, ResultCode};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{ExternalPort, InternalPort, MappingNonce};

/// RFC 6887 section 7: the version spoken here.
pub const VERSION: u8 = 2;
/// RFC 6887 section 19.1: servers listen on this UDP port and send announcements from it.
pub const SERVER_PORT: u16 = 5351;
/// RFC 6887 section 19.1: clients listen on this UDP port for announcements.
pub const CLIENT_PORT: u16 = 5350;
/// RFC 6887 section 7: octets of the common header, the shortest message.
pub const MIN_LEN: usize = 24;
/// RFC 6887 section 7: largest UDP payload of a message.
pub const MAX_LEN: usize = 1100;
/// RFC 6887 section 11.1: the protocol field's value for "all protocols".
pub const ALL_PROTOCOLS: u8 = 0;

/// Octets of a MAP body.
const MAP_LEN: usize = 36;
/// Octets of a PEER body: a MAP body and the remote peer.
const PEER_LEN: usize = MAP_LEN + 20;
/// Top bit of octet 1: set in responses.
const R_BIT: u8 = 0x80;

/// Opcode numbers (RFC 6887 section 19.2, RFC 7652).
pub mod opcode {
    /// RFC 6887 section 14.1.
    pub const ANNOUNCE: u8 = 0;
    /// RFC 6887 section 11.
    pub const MAP: u8 = 1;
    /// RFC 6887 section 12.
    pub const PEER: u8 = 2;
    /// RFC 7652 section 5.1.
    pub const AUTHENTICATION: u8 = 3;
}

/// What follows the header, without options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing: the message is the header.
    Announce,
    /// A mapping, asked for or granted.
    Map(MapBody),
    /// A mapping towards one remote peer.
    Peer(PeerBody),
    /// Another opcode. Where its options begin is not known, so they are part of `data`.
    Opaque {
        /// Opcode number, 3 to 127.
        opcode: u8,
        /// Octet 3 of a request, which AUTHENTICATION uses; 0 in responses, where it is the result.
        octet3: u8,
        /// Everything after the header.
        data: Vec<u8>,
    },
}

/// The MAP opcode's fields (RFC 6887 section 11.1).
///
/// ```text
/// 24 nonce (12)   36 protocol   37 reserved (3)   40 internal port   42 external port   44 external address (16)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapBody {
    /// Proves ownership of the mapping.
    pub nonce: MappingNonce,
    /// IANA protocol number; [`ALL_PROTOCOLS`] for every one.
    pub protocol: u8,
    /// `None` for all ports.
    pub internal_port: Option<InternalPort>,
    /// Suggested in requests (`None`: no preference), assigned in responses.
    pub external_port: Option<ExternalPort>,
    /// Suggested (all-zeros of the wanted family: no preference) or assigned.
    pub external_addr: IpAddr,
}

/// The PEER opcode's fields (RFC 6887 section 12.1).
///
/// ```text
/// 24 as MAP (36)   60 remote port   62 reserved (2)   64 remote address (16)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerBody {
    /// The fields shared with MAP.
    pub map: MapBody,
    /// Port of the remote peer.
    pub remote_port: u16,
    /// Address of the remote peer.
    pub remote_addr: IpAddr,
}

/// Why a message cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More than [`MAX_LEN`] octets.
    #[error("message of {len} octets exceeds the limit")]
    TooLong {
        /// Octets it would need.
        len: usize,
    },
}

impl Body {
    /// The opcode number.
    pub const fn opcode(&self) -> u8 {
        match self {
            Self::Announce => opcode::ANNOUNCE,
            Self::Map(_) => opcode::MAP,
            Self::Peer(_) => opcode::PEER,
            Self::Opaque { opcode, .. } => *opcode & !R_BIT,
        }
    }

    /// Whether a response with this body answers a request with that one: nonce, protocol and internal port, for PEER
    /// also the remote endpoint (RFC 6887 sections 11.4 and 12.4). The external endpoint is the server's answer. For
    /// whom it is stands outside of the body: the address that the packet came to, or THIRD_PARTY.
    pub fn answers(&self, asked: &Self) -> bool {
        let same = |a: &MapBody, b: &MapBody| {
            (a.nonce, a.protocol, a.internal_port) == (b.nonce, b.protocol, b.internal_port)
        };
        match (self, asked) {
            (Self::Announce, Self::Announce) => true,
            (Self::Map(a), Self::Map(b)) => same(a, b),
            (Self::Peer(a), Self::Peer(b)) => {
                same(&a.map, &b.map)
                    && (a.remote_port, a.remote_addr) == (b.remote_port, b.remote_addr)
            }
            (Self::Announce | Self::Map(_) | Self::Peer(_) | Self::Opaque { .. }, _) => false,
        }
    }

    /// Splits what follows the header into body and options. `None`: too short for the opcode.
    fn split(opcode: u8, octet3: u8, rest: &[u8]) -> Option<(Self, &[u8])> {
        match opcode {
            opcode::ANNOUNCE => Some((Self::Announce, rest)),
            opcode::MAP => {
                let (body, options) = rest.split_first_chunk::<MAP_LEN>()?;
                Some((Self::Map(MapBody::decode(body)), options))
            }
            opcode::PEER => {
                let (body, options) = rest.split_first_chunk::<PEER_LEN>()?;
                Some((Self::Peer(PeerBody::decode(body)?), options))
            }
            opcode => Some((
                Self::Opaque {
                    opcode,
                    octet3,
                    data: rest.to_vec(),
                },
                &[],
            )),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Announce => {}
            Self::Map(map) => map.encode(out),
            Self::Peer(peer) => {
                peer.map.encode(out);
                out.extend_from_slice(&peer.remote_port.to_be_bytes());
                out.extend_from_slice(&[0; 2]);
                out.extend_from_slice(&addr_octets(peer.remote_addr));
            }
            Self::Opaque { data, .. } => out.extend_from_slice(data),
        }
    }
}

impl MapBody {
    fn decode(body: &[u8; MAP_LEN]) -> Self {
        let [
            n0,
            n1,
            n2,
            n3,
            n4,
            n5,
            n6,
            n7,
            n8,
            n9,
            n10,
            n11,
            protocol,
            _,
            _,
            _,
            ip0,
            ip1,
            ep0,
            ep1,
            addr @ ..,
        ] = *body;
        Self {
            nonce: MappingNonce([n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11]),
            protocol,
            internal_port: InternalPort::new(u16::from_be_bytes([ip0, ip1])),
            external_port: ExternalPort::new(u16::from_be_bytes([ep0, ep1])),
            external_addr: addr_from_octets(addr),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.nonce.0);
        out.extend_from_slice(&[self.protocol, 0, 0, 0]);
        out.extend_from_slice(
            &self
                .internal_port
                .map_or(0, InternalPort::get)
                .to_be_bytes(),
        );
        out.extend_from_slice(
            &self
                .external_port
                .map_or(0, ExternalPort::get)
                .to_be_bytes(),
        );
        out.extend_from_slice(&addr_octets(self.external_addr));
    }
}

impl PeerBody {
    fn decode(body: &[u8; PEER_LEN]) -> Option<Self> {
        let (map, peer) = body.split_first_chunk::<MAP_LEN>()?;
        let &[rp0, rp1, _, _, ref addr @ ..] = peer.first_chunk::<20>()?;
        Some(Self {
            map: MapBody::decode(map),
            remote_port: u16::from_be_bytes([rp0, rp1]),
            remote_addr: addr_from_octets(*addr),
        })
    }
}

/// The "no preference" address of a family: `::ffff:0:0` or `::` on the wire (RFC 6887 section 11.1).
pub const fn unspecified_like(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// RFC 6887 section 5: IPv4 addresses travel as IPv4-mapped IPv6 addresses.
fn addr_octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn addr_from_octets(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

/// Ends a message: checks the upper limit.
fn finish(out: Vec<u8>) -> Result<Vec<u8>, EncodeError> {
    if out.len() > MAX_LEN {
        return Err(EncodeError::TooLong { len: out.len() });
    }
    Ok(out)
}
