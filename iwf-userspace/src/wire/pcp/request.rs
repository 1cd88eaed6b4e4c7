//! Requests, read in the order of checks of RFC 6887 section 8.2.

use std::net::IpAddr;

use super::option::{self, OptionError, PcpOption, code, third_party};
use super::result::ResultCode;
use super::{
    ALL_PROTOCOLS, Body, EncodeError, MAX_LEN, MIN_LEN, R_BIT, VERSION, addr_from_octets,
    addr_octets, finish,
};
use crate::types::Lifetime;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Requested lifetime; 0 deletes.
    pub lifetime: Lifetime,
    /// The client's address as it sees it itself.
    pub client: IpAddr,
    /// Opcode and its fields.
    pub body: Body,
    /// In order of appearance.
    pub options: Vec<PcpOption>,
}

/// The part of a request that the checks before the opcode need (ADDRESS_MISMATCH comes before them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Opcode, 0 to 127.
    pub opcode: u8,
    /// Requested lifetime.
    pub lifetime: Lifetime,
    /// The client's address as it sees it itself.
    pub client: IpAddr,
}

/// Why a request is not carried out. [`RequestError::result`] says what to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Under 2 octets, or under 24 in our version.
    #[error("message of {have} octets is truncated")]
    Truncated {
        /// Octets received.
        have: usize,
    },
    /// The R bit is set.
    #[error("message is a response")]
    IsResponse,
    /// Not version 2.
    #[error("version {version} is not supported")]
    Version {
        /// The version asked for.
        version: u8,
    },
    /// Over 1100 octets, not a multiple of 4, or too short for the opcode.
    #[error("message of {have} octets has a length that cannot be")]
    Length {
        /// Octets received.
        have: usize,
    },
    /// A field contradicts another one.
    #[error("request contradicts itself")]
    Contradiction,
    /// THIRD_PARTY_ID without THIRD_PARTY.
    #[error("whose identifier it is is not said")]
    ThirdPartyMissing,
    /// An opcode not known here.
    #[error("opcode {opcode} is not supported")]
    Opcode {
        /// The opcode asked for.
        opcode: u8,
    },
    /// An option is malformed, repeated or out of place.
    #[error("options are malformed")]
    Options(#[source] OptionError),
}

impl RequestError {
    /// The result to answer with; `None` means silence.
    pub const fn result(&self) -> Option<ResultCode> {
        match self {
            Self::Truncated { .. } | Self::IsResponse => None,
            Self::Version { .. } => Some(ResultCode::UnsuppVersion),
            Self::Length { .. } | Self::Contradiction => Some(ResultCode::MalformedRequest),
            Self::ThirdPartyMissing => Some(ResultCode::ThirdPartyMissingOption),
            Self::Opcode { .. } => Some(ResultCode::UnsuppOpcode),
            Self::Options(_) => Some(ResultCode::MalformedOption),
        }
    }
}

impl RequestHeader {
    /// Reads the header and checks version and length, in the standard's order.
    pub fn decode(message: &[u8]) -> Result<Self, RequestError> {
        let have = message.len();
        let (&[version, op], _) = message
            .split_first_chunk::<2>()
            .ok_or(RequestError::Truncated { have })?;
        if op & R_BIT != 0 {
            return Err(RequestError::IsResponse);
        }
        if version != VERSION {
            return Err(RequestError::Version { version });
        }
        let &[_, _, _, _, l0, l1, l2, l3, ref client @ ..] = message
            .first_chunk::<MIN_LEN>()
            .ok_or(RequestError::Truncated { have })?;
        if have > MAX_LEN || !have.is_multiple_of(4) {
            return Err(RequestError::Length { have });
        }
        Ok(Self {
            opcode: op,
            lifetime: Lifetime(u32::from_be_bytes([l0, l1, l2, l3])),
            client: addr_from_octets(*client),
        })
    }
}

impl Request {
    /// Reads a request as a server does. Unknown options are kept: whether to refuse a mandatory one is
    /// the server's decision.
    pub fn decode(message: &[u8]) -> Result<Self, RequestError> {
        let header = RequestHeader::decode(message)?;
        let have = message.len();
        let octet3 = message.get(3).copied().unwrap_or(0);
        let rest = message.get(MIN_LEN..).unwrap_or(&[]);
        let (body, rest) =
            Body::split(header.opcode, octet3, rest).ok_or(RequestError::Length { have })?;
        let mut options: Vec<PcpOption> = Vec::new();
        for option in option::decode_all(rest, option::Unreadable::Refused) {
            let option = option.map_err(RequestError::Options)?;
            let code = option.code();
            let seen = options.iter().any(|o| o.code() == code);
            if seen && !option::repeatable(code) && known(&option) {
                return Err(RequestError::Options(OptionError::Repeated { code }));
            }
            options.push(option);
        }
        let request = Self {
            lifetime: header.lifetime,
            client: header.client,
            body,
            options,
        };
        request.check()?;
        Ok(request)
    }

    /// Refuses opcodes that only pass through this codec: for the server, once ADDRESS_MISMATCH was checked.
    pub const fn known_opcode(&self) -> Result<(), RequestError> {
        match &self.body {
            Body::Announce | Body::Map(_) | Body::Peer(_) => Ok(()),
            Body::Opaque { opcode, .. } => Err(RequestError::Opcode { opcode: *opcode }),
        }
    }

    /// Writes the request.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::with_capacity(128);
        let octet3 = match self.body {
            Body::Opaque { octet3, .. } => octet3,
            Body::Announce | Body::Map(_) | Body::Peer(_) => 0,
        };
        out.extend_from_slice(&[VERSION, self.body.opcode(), 0, octet3]);
        out.extend_from_slice(&self.lifetime.0.to_be_bytes());
        out.extend_from_slice(&addr_octets(self.client));
        self.body.encode(&mut out);
        for option in &self.options {
            option.encode(&mut out);
        }
        finish(out)
    }

    /// The address the mapping is for: THIRD_PARTY's, otherwise the client's own.
    pub fn internal_addr(&self) -> IpAddr {
        third_party(&self.options).unwrap_or(self.client)
    }

    /// Whether the client insists on the suggested external endpoint.
    pub fn prefers_failure(&self) -> bool {
        self.options.contains(&PcpOption::PreferFailure)
    }

    /// What fields say together (RFC 6887 sections 11.3, 12.1, 13.1 to 13.3; RFC 7753 section 4.2).
    fn check(&self) -> Result<(), RequestError> {
        let has = |code| self.options.iter().any(|option| option.code() == code);
        if has(code::THIRD_PARTY_ID) && !has(code::THIRD_PARTY) {
            return Err(RequestError::ThirdPartyMissing);
        }
        match &self.body {
            Body::Announce | Body::Opaque { .. } => Ok(()),
            Body::Map(map) => {
                if map.protocol == ALL_PROTOCOLS && map.internal_port.is_some() {
                    return Err(RequestError::Contradiction);
                }
                for option in &self.options {
                    let misplaced = match option {
                        PcpOption::PreferFailure => {
                            self.lifetime.0 == 0 || map.external_port.is_none()
                        }
                        PcpOption::Filter(_) => self.lifetime.0 == 0,
                        PcpOption::ThirdParty(addr) => {
                            if *addr == self.client {
                                return Err(RequestError::Contradiction);
                            }
                            false
                        }
                        PcpOption::PortSet(_) => self.prefers_failure(),
                        PcpOption::Description(_)
                        | PcpOption::ThirdPartyId(_)
                        | PcpOption::Prefix64(_)
                        | PcpOption::Unknown { .. } => false,
                    };
                    if misplaced {
                        let code = option.code();
                        return Err(RequestError::Options(OptionError::Misplaced { code }));
                    }
                }
                Ok(())
            }
            Body::Peer(peer) => {
                let incomplete = peer.map.protocol == ALL_PROTOCOLS
                    || peer.map.internal_port.is_none()
                    || peer.remote_port == 0;
                let third_party = self.options.contains(&PcpOption::ThirdParty(self.client));
                if incomplete || third_party || self.prefers_failure() {
                    return Err(RequestError::Contradiction);
                }
                Ok(())
            }
        }
    }
}

/// Whether the repetition rule of an option is known here.
fn known(option: &PcpOption) -> bool {
    !matches!(option, PcpOption::Unknown { .. })
}
