//! NAT Port Mapping Protocol messages.
//!
//! Read before editing: RFC 6886 sections 3.2 to 3.5. All integers are big-endian.
//!
//! ```text
//! address request (2)    0 version = 0   1 op = 0
//! address response (12)  0 version   1 op = 128   2 result (2)   4 epoch (4)   8 external address (4)
//! map request (12)       0 version   1 op = 1 UDP, 2 TCP   2 reserved (2)   4 internal port (2)
//!                        6 suggested external port (2)   8 lifetime (4)
//! map response (16)      0 version   1 op = 129, 130   2 result (2)   4 epoch (4)   8 internal port (2)
//!                       10 external port (2)   12 lifetime (4)
//! bad version (8)        0 version = 0   1 op = 0   2 result = 1 (2)   4 epoch (4)
//! bad opcode             the request with the top bit of octet 1 set and result 5
//! ```
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use crate::types::{Epoch, ExternalPort, InternalPort, Lifetime, Protocol};

/// RFC 6886 section 3.1: the only version.
pub const VERSION: u8 = 0;

const OP_ADDRESS: u8 = 0;
const OP_MAP_UDP: u8 = 1;
const OP_MAP_TCP: u8 = 2;
/// Top bit of octet 1: set in responses.
const R_BIT: u8 = 0x80;

/// The outcome that a gateway reports (RFC 6886 section 3.5). Unknown ones are fatal for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultCode {
    /// 0.
    Success,
    /// 1.
    UnsupportedVersion,
    /// 2: refused by policy, or a manually configured mapping.
    NotAuthorized,
    /// 3: the gateway has no external address.
    NetworkFailure,
    /// 4.
    OutOfResources,
    /// 5.
    UnsupportedOpcode,
    /// Anything else.
    Other(u16),
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Ask for the external address.
    ExternalAddress,
    /// Make, renew or (lifetime 0) delete a mapping.
    Map {
        /// Transport protocol.
        protocol: Protocol,
        /// `None` only to delete all mappings of that protocol.
        internal_port: Option<InternalPort>,
        /// Suggested; `None`: no preference, and always so in deletions.
        external_port: Option<ExternalPort>,
        /// Requested lifetime.
        lifetime: Lifetime,
    },
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too short for its opcode: dropped.
    #[error("message of {have} octets is truncated")]
    Truncated {
        /// Octets received.
        have: usize,
    },
    /// The opcode is that of a response: dropped.
    #[error("message is a response")]
    IsResponse,
    /// Another version: answered by [`Response::UnsupportedVersion`].
    #[error("version {version} is not supported")]
    Version {
        /// The version asked for.
        version: u8,
    },
    /// An unknown opcode: answered by [`opcode_reply`].
    #[error("opcode {opcode} is not supported")]
    Opcode {
        /// The opcode asked for.
        opcode: u8,
    },
}

/// A response or an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The external address; also the form of the announcement on 224.0.0.1:5350.
    ExternalAddress {
        /// The outcome.
        result: ResultCode,
        /// Seconds since the start of epoch.
        epoch: Epoch,
        /// 0.0.0.0 on failure.
        addr: Ipv4Addr,
    },
    /// A mapping.
    Map {
        /// Transport protocol.
        protocol: Protocol,
        /// The outcome.
        result: ResultCode,
        /// Seconds since the start of epoch.
        epoch: Epoch,
        /// The request's.
        internal_port: Option<InternalPort>,
        /// Assigned; `None` after a deletion or on failure.
        external_port: Option<ExternalPort>,
        /// Assigned lifetime.
        lifetime: Lifetime,
    },
    /// The gateway does not speak the version of the request, which may have been a PCP one.
    UnsupportedVersion {
        /// Seconds since the start of epoch.
        epoch: Epoch,
    },
    /// The gateway does not know the opcode of the request.
    UnsupportedOpcode {
        /// The opcode asked for, 0 to 127.
        opcode: u8,
    },
}

/// Why a datagram from a gateway is dropped without any effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// Too short for its opcode.
    #[error("message of {have} octets is truncated")]
    Truncated {
        /// Octets received.
        have: usize,
    },
    /// The opcode is that of a request.
    #[error("message is a request")]
    IsRequest,
    /// Another version (2 is a PCP message).
    #[error("version {version} is not supported")]
    Version {
        /// The version of the message.
        version: u8,
    },
    /// An opcode that was never asked for.
    #[error("opcode {opcode} is not supported")]
    Opcode {
        /// The opcode without the top bit.
        opcode: u8,
    },
}

impl ResultCode {
    /// The code with this number.
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Success,
            1 => Self::UnsupportedVersion,
            2 => Self::NotAuthorized,
            3 => Self::NetworkFailure,
            4 => Self::OutOfResources,
            5 => Self::UnsupportedOpcode,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::Success => 0,
            Self::UnsupportedVersion => 1,
            Self::NotAuthorized => 2,
            Self::NetworkFailure => 3,
            Self::OutOfResources => 4,
            Self::UnsupportedOpcode => 5,
            Self::Other(number) => number,
        }
    }
}

impl Request {
    /// Reads a request as a gateway does. Octets after it are ignored.
    pub fn decode(message: &[u8]) -> Result<Self, RequestError> {
        let have = message.len();
        let truncated = RequestError::Truncated { have };
        let (&[version, op], rest) = message.split_first_chunk::<2>().ok_or(truncated)?;
        if op & R_BIT != 0 {
            return Err(RequestError::IsResponse);
        }
        if version != VERSION {
            return Err(RequestError::Version { version });
        }
        let protocol = match op {
            OP_ADDRESS => return Ok(Self::ExternalAddress),
            OP_MAP_UDP => Protocol::Udp,
            OP_MAP_TCP => Protocol::Tcp,
            opcode => return Err(RequestError::Opcode { opcode }),
        };
        let &[_, _, i0, i1, e0, e1, l0, l1, l2, l3] = rest.first_chunk::<10>().ok_or(truncated)?;
        Ok(Self::Map {
            protocol,
            internal_port: InternalPort::new(u16::from_be_bytes([i0, i1])),
            external_port: ExternalPort::new(u16::from_be_bytes([e0, e1])),
            lifetime: Lifetime(u32::from_be_bytes([l0, l1, l2, l3])),
        })
    }

    /// Writes the request.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::ExternalAddress => vec![VERSION, OP_ADDRESS],
            Self::Map {
                protocol,
                internal_port,
                external_port,
                lifetime,
            } => {
                let mut out = vec![VERSION, map_op(protocol), 0, 0];
                put_ports(&mut out, internal_port, external_port);
                out.extend_from_slice(&lifetime.0.to_be_bytes());
                out
            }
        }
    }
}

impl Response {
    /// Reads a response. The version error is recognized whatever its opcode is, since gateways differ in
    /// what they put there.
    pub fn decode(message: &[u8]) -> Result<Self, ResponseError> {
        let have = message.len();
        let truncated = ResponseError::Truncated { have };
        let (&[version, op, r0, r1], rest) = message.split_first_chunk::<4>().ok_or(truncated)?;
        if version != VERSION {
            return Err(ResponseError::Version { version });
        }
        let result = ResultCode::from_number(u16::from_be_bytes([r0, r1]));
        let word = |at: usize| {
            rest.get(at..)
                .and_then(<[u8]>::first_chunk::<4>)
                .copied()
                .ok_or(truncated)
        };
        if result == ResultCode::UnsupportedVersion {
            return Ok(Self::UnsupportedVersion {
                epoch: Epoch(u32::from_be_bytes(word(0)?)),
            });
        }
        if op & R_BIT == 0 {
            return Err(ResponseError::IsRequest);
        }
        let opcode = op & !R_BIT;
        if result == ResultCode::UnsupportedOpcode {
            return Ok(Self::UnsupportedOpcode { opcode });
        }
        let protocol = match opcode {
            OP_ADDRESS => {
                return Ok(Self::ExternalAddress {
                    result,
                    epoch: Epoch(u32::from_be_bytes(word(0)?)),
                    addr: Ipv4Addr::from(word(4)?),
                });
            }
            OP_MAP_UDP => Protocol::Udp,
            OP_MAP_TCP => Protocol::Tcp,
            opcode => return Err(ResponseError::Opcode { opcode }),
        };
        let [i0, i1, e0, e1] = word(4)?;
        Ok(Self::Map {
            protocol,
            result,
            epoch: Epoch(u32::from_be_bytes(word(0)?)),
            internal_port: InternalPort::new(u16::from_be_bytes([i0, i1])),
            external_port: ExternalPort::new(u16::from_be_bytes([e0, e1])),
            lifetime: Lifetime(u32::from_be_bytes(word(8)?)),
        })
    }

    /// Writes the response.
    pub fn encode(&self) -> Vec<u8> {
        let head = |op: u8, result: ResultCode| {
            let [r0, r1] = result.number().to_be_bytes();
            vec![VERSION, op, r0, r1]
        };
        match *self {
            Self::ExternalAddress {
                result,
                epoch,
                addr,
            } => {
                let mut out = head(OP_ADDRESS | R_BIT, result);
                out.extend_from_slice(&epoch.0.to_be_bytes());
                out.extend_from_slice(&addr.octets());
                out
            }
            Self::Map {
                protocol,
                result,
                epoch,
                internal_port,
                external_port,
                lifetime,
            } => {
                let mut out = head(map_op(protocol) | R_BIT, result);
                out.extend_from_slice(&epoch.0.to_be_bytes());
                put_ports(&mut out, internal_port, external_port);
                out.extend_from_slice(&lifetime.0.to_be_bytes());
                out
            }
            Self::UnsupportedVersion { epoch } => {
                // RFC 6886 section 3.5 draws this one with opcode 0, not 128.
                let mut out = head(OP_ADDRESS, ResultCode::UnsupportedVersion);
                out.extend_from_slice(&epoch.0.to_be_bytes());
                out
            }
            Self::UnsupportedOpcode { opcode } => {
                head(opcode | R_BIT, ResultCode::UnsupportedOpcode)
            }
        }
    }
}

/// The reply to a request with an unknown opcode: the request itself with the top bit and the result set,
/// padded where it is too short to hold the result (RFC 6886 section 3.5).
pub fn opcode_reply(request: &[u8]) -> Vec<u8> {
    let opcode = request.get(1).copied().unwrap_or(0);
    let mut out = Response::UnsupportedOpcode { opcode }.encode();
    out.extend_from_slice(request.get(4..).unwrap_or(&[]));
    out
}

const fn map_op(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Udp => OP_MAP_UDP,
        Protocol::Tcp => OP_MAP_TCP,
    }
}

fn put_ports(out: &mut Vec<u8>, internal: Option<InternalPort>, external: Option<ExternalPort>) {
    out.extend_from_slice(&internal.map_or(0, InternalPort::get).to_be_bytes());
    out.extend_from_slice(&external.map_or(0, ExternalPort::get).to_be_bytes());
}
