//! Responses and announcements, read in the order of checks of RFC 6887 section 8.3 with the NAT-PMP test first
//! (AMB-31); error replies are built from the request's own octets (section 8.2).

use super::option::{self, PcpOption};
use super::result::ResultCode;
use super::{Body, EncodeError, MAX_LEN, MIN_LEN, R_BIT, VERSION, finish};
use crate::types::{Epoch, Lifetime};

/// What a server's datagram turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// A response, an announcement or a mapping update in our version.
    Response(Response),
    /// The server does not speak our version (RFC 6887 section 9).
    UnsupportedVersion {
        /// The version it offers.
        version: u8,
        /// For how long asking again is pointless; `None` in a short form without that field.
        lifetime: Option<Lifetime>,
        /// Its epoch; `None` in a short form without that field.
        epoch: Option<Epoch>,
    },
    /// The server only speaks NAT-PMP (RFC 6886 section 3.5): the request may be repeated in that protocol.
    NatPmpOnly {
        /// Seconds since its start of epoch; `None` in a short form without that field.
        epoch: Option<Epoch>,
    },
}

/// A response in version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The outcome.
    pub result: ResultCode,
    /// Assigned lifetime of the mapping, or of the error.
    pub lifetime: Lifetime,
    /// The server's clock.
    pub epoch: Epoch,
    /// Opcode and its fields.
    pub body: Body,
    /// In order of appearance. A client ignores those it did not ask for.
    pub options: Vec<PcpOption>,
}

/// Why a datagram from a server is dropped without any effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// Fewer octets than the fields that had to be read.
    #[error("message of {have} octets is truncated")]
    Truncated {
        /// Octets received.
        have: usize,
    },
    /// The R bit is clear.
    #[error("message is a request")]
    IsRequest,
    /// Another version without saying that ours is not supported.
    #[error("version {version} is not supported")]
    Version {
        /// The version of the message.
        version: u8,
    },
    /// Over 1100 octets or not a multiple of 4.
    #[error("message of {have} octets has a length that cannot be")]
    Length {
        /// Octets received.
        have: usize,
    },
    /// A success whose options cannot be read. (In errors they are the request's own and are not looked at.)
    #[error("options of a success are malformed")]
    Options(#[source] option::OptionError),
}

impl ServerMessage {
    /// Reads a datagram from a server. Whether it answers anything is the caller's test.
    pub fn decode(message: &[u8]) -> Result<Self, ResponseError> {
        let have = message.len();
        let (&[version, op, high, low], _) = message
            .split_first_chunk::<4>()
            .ok_or(ResponseError::Truncated { have })?;
        let word = |at: usize| {
            message
                .get(at..)
                .and_then(<[u8]>::first_chunk)
                .map(|octets| u32::from_be_bytes(*octets))
        };
        if version == 0 && [high, low] == [0, 1] {
            return Ok(Self::NatPmpOnly {
                epoch: word(4).map(Epoch),
            });
        }
        if op & R_BIT == 0 {
            return Err(ResponseError::IsRequest);
        }
        let result = ResultCode::from_number(low);
        if result == ResultCode::UnsuppVersion {
            return Ok(Self::UnsupportedVersion {
                version,
                lifetime: word(4).map(Lifetime),
                epoch: word(8).map(Epoch),
            });
        }
        if version != VERSION {
            return Err(ResponseError::Version { version });
        }
        let rest = message
            .get(MIN_LEN..)
            .ok_or(ResponseError::Truncated { have })?;
        if have > MAX_LEN || !have.is_multiple_of(4) {
            return Err(ResponseError::Length { have });
        }
        let (Some(lifetime), Some(epoch)) = (word(4), word(8)) else {
            return Err(ResponseError::Truncated { have });
        };
        let (body, rest) =
            Body::split(op & !R_BIT, 0, rest).ok_or(ResponseError::Truncated { have })?;
        let mut options = Vec::new();
        for option in option::decode_all(rest, option::Unreadable::Kept) {
            match option {
                Ok(option) => options.push(option),
                // RFC 6887 section 7.3: an error returns the request's options whatever their state.
                Err(_) if result != ResultCode::Success => break,
                Err(error) => return Err(ResponseError::Options(error)),
            }
        }
        Ok(Self::Response(Response {
            result,
            lifetime: Lifetime(lifetime),
            epoch: Epoch(epoch),
            body,
            options,
        }))
    }
}

impl Response {
    /// Writes the response: a success with the options that were processed, or the error reply to a request
    /// that could be read in full. For one that could not, see [`error_reply`].
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&[VERSION, self.body.opcode() | R_BIT, 0, self.result.number()]);
        out.extend_from_slice(&self.lifetime.0.to_be_bytes());
        out.extend_from_slice(&self.epoch.0.to_be_bytes());
        out.resize(MIN_LEN, 0);
        self.body.encode(&mut out);
        for option in &self.options {
            option.encode(&mut out);
        }
        finish(out)
    }
}

/// The error reply to a request of our version: a copy of it, cut to 1100 octets and padded to a multiple
/// of 4, with the response fields set (RFC 6887 section 8.2). Options stay, also malformed ones.
pub fn error_reply(
    request: &[u8],
    result: ResultCode,
    lifetime: Lifetime,
    epoch: Epoch,
) -> Vec<u8> {
    let opcode = request.get(1).copied().unwrap_or(0);
    let mut out = vec![VERSION, opcode | R_BIT, 0, result.number()];
    out.extend_from_slice(&lifetime.0.to_be_bytes());
    out.extend_from_slice(&epoch.0.to_be_bytes());
    out.resize(MIN_LEN, 0);
    let rest = request.get(MIN_LEN..).unwrap_or(&[]);
    out.extend_from_slice(rest.get(..MAX_LEN - MIN_LEN).unwrap_or(rest));
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The reply to a request of a version that is not spoken here: always 24 octets (AMB-22). Such a request is
/// not parsed, so the reserved field copies its octets 12 to 23 as far as there are any.
pub fn version_reply(request: &[u8], lifetime: Lifetime, epoch: Epoch) -> Vec<u8> {
    let header = request.get(..MIN_LEN).unwrap_or(request);
    let mut out = error_reply(header, ResultCode::UnsuppVersion, lifetime, epoch);
    for (to, from) in out.iter_mut().zip(header).skip(12) {
        *to = *from;
    }
    out
}
