//! Options (RFC 6887 section 7.3).
//!
//! ```text
//!  0 code   1 reserved   2 length of the data without padding (2)   4 data, zero padding to a multiple of 4
//! ```
//! A code below 128 is mandatory to process, from 128 on optional.

use std::net::{IpAddr, Ipv6Addr};

use super::{Prefix64, addr_from_octets, addr_octets};

/// Option codes.
pub mod code {
    /// RFC 6887 section 13.1.
    pub const THIRD_PARTY: u8 = 1;
    /// RFC 6887 section 13.2.
    pub const PREFER_FAILURE: u8 = 2;
    /// RFC 6887 section 13.3.
    pub const FILTER: u8 = 3;
    /// RFC 7843.
    pub const THIRD_PARTY_ID: u8 = 13;
    /// RFC 7220.
    pub const DESCRIPTION: u8 = 128;
    /// RFC 7225.
    pub const PREFIX64: u8 = 129;
    /// RFC 7753.
    pub const PORT_SET: u8 = 130;
}

/// RFC 7220 section 2: largest DESCRIPTION in octets.
pub const MAX_DESCRIPTION: usize = 1016;
/// RFC 7843 section 4: largest THIRD_PARTY_ID in octets.
pub const MAX_THIRD_PARTY_ID: usize = 1016;

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PcpOption {
    /// The mapping is for this internal address, not for the sender (MAP, PEER).
    ThirdParty(IpAddr),
    /// Fail rather than assign another external endpoint than the suggested one (MAP).
    PreferFailure,
    /// Restricts who may use the mapping (MAP, may be repeated).
    Filter(Filter),
    /// Free text (MAP, PEER).
    Description(String),
    /// Which subscriber a third party is, where its address does not tell (MAP, PEER; only with THIRD_PARTY).
    ThirdPartyId(Vec<u8>),
    /// NAT64 prefix (MAP, ANNOUNCE).
    Prefix64(Prefix64),
    /// Several consecutive ports at once (MAP).
    PortSet(PortSet),
    /// Any other code, or a DESCRIPTION that is not UTF-8 (to be ignored by RFC 7220 section 3). In responses also what
    /// is optional and cannot be read.
    Unknown {
        /// Its code.
        code: u8,
        /// Its data without padding.
        data: Vec<u8>,
    },
}

/// A remote peer prefix (RFC 6887 section 13.3).
///
/// ```text
///  0 reserved   1 prefix length   2 remote port (2)   4 remote address (16)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// As on the wire: IPv4 96 to 128, IPv6 0 to 128. 0 removes all filters.
    pub prefix_len: u8,
    /// 0 for all ports.
    pub remote_port: u16,
    /// Base address of the prefix.
    pub remote_addr: IpAddr,
}

/// Several consecutive ports at once (RFC 7753 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSet {
    /// Number of ports, not 0.
    pub size: u16,
    /// First internal port.
    pub first_internal: u16,
    /// Whether the external ports keep the parity of the internal ones.
    pub parity: bool,
}

/// Why options cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// An option's length runs past the end of the message.
    #[error("option {code} of {len} octets exceeds the message")]
    Overrun {
        /// Option code.
        code: u8,
        /// Its length field.
        len: u16,
    },
    /// The data does not have the layout of that option.
    #[error("option {code} has invalid data")]
    Invalid {
        /// Option code.
        code: u8,
    },
    /// An option that may occur once occurs again.
    #[error("option {code} is repeated")]
    Repeated {
        /// Option code.
        code: u8,
    },
    /// The opcode cannot have this option, or not together with its other fields.
    #[error("option {code} is out of place")]
    Misplaced {
        /// Option code.
        code: u8,
    },
}

impl Filter {
    /// Removes all filters of the mapping; goes in front of those that replace them.
    pub const CLEAR: Self = Self {
        prefix_len: 0,
        remote_port: 0,
        remote_addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };

    /// A filter that lets exactly this address in, from every port.
    pub const fn host(remote_addr: IpAddr) -> Self {
        Self {
            prefix_len: 128,
            remote_port: 0,
            remote_addr,
        }
    }

    /// Whether this filter removes all filters of the mapping.
    pub const fn clears(&self) -> bool {
        self.prefix_len == 0
    }
}

/// Whom a message names by THIRD_PARTY (RFC 6887 section 13.1).
pub fn third_party(options: &[PcpOption]) -> Option<IpAddr> {
    options.iter().find_map(|option| match option {
        PcpOption::ThirdParty(addr) => Some(*addr),
        PcpOption::PreferFailure
        | PcpOption::Filter(_)
        | PcpOption::Description(_)
        | PcpOption::ThirdPartyId(_)
        | PcpOption::Prefix64(_)
        | PcpOption::PortSet(_)
        | PcpOption::Unknown { .. } => None,
    })
}

impl PcpOption {
    /// Its code.
    pub const fn code(&self) -> u8 {
        match self {
            Self::ThirdParty(_) => code::THIRD_PARTY,
            Self::PreferFailure => code::PREFER_FAILURE,
            Self::Filter(_) => code::FILTER,
            Self::Description(_) => code::DESCRIPTION,
            Self::ThirdPartyId(_) => code::THIRD_PARTY_ID,
            Self::Prefix64(_) => code::PREFIX64,
            Self::PortSet(_) => code::PORT_SET,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Whether a server that cannot process it has to refuse the request.
    pub const fn is_mandatory(&self) -> bool {
        self.code() < OPTIONAL
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::ThirdParty(addr) => put(out, code::THIRD_PARTY, &addr_octets(*addr)),
            Self::PreferFailure => put(out, code::PREFER_FAILURE, &[]),
            Self::Filter(filter) => {
                let mut data = vec![0, filter.prefix_len];
                data.extend_from_slice(&filter.remote_port.to_be_bytes());
                data.extend_from_slice(&addr_octets(filter.remote_addr));
                put(out, code::FILTER, &data);
            }
            Self::Description(text) => put(out, code::DESCRIPTION, text.as_bytes()),
            Self::ThirdPartyId(id) => put(out, code::THIRD_PARTY_ID, id),
            Self::Prefix64(prefix) => put(out, code::PREFIX64, &prefix.encode()),
            Self::PortSet(set) => {
                let mut data = set.size.to_be_bytes().to_vec();
                data.extend_from_slice(&set.first_internal.to_be_bytes());
                data.push(u8::from(set.parity));
                put(out, code::PORT_SET, &data);
            }
            Self::Unknown { code, data } => put(out, *code, data),
        }
    }

    fn decode(code: u8, data: &[u8]) -> Result<Self, OptionError> {
        let invalid = OptionError::Invalid { code };
        match code {
            code::THIRD_PARTY => {
                let addr: [u8; 16] = data.try_into().map_err(|_| invalid)?;
                Ok(Self::ThirdParty(addr_from_octets(addr)))
            }
            code::PREFER_FAILURE if data.is_empty() => Ok(Self::PreferFailure),
            code::PREFER_FAILURE => Err(invalid),
            code::FILTER => {
                let [_, prefix_len, p0, p1, addr @ ..]: [u8; 20] =
                    data.try_into().map_err(|_| invalid)?;
                let remote_addr = addr_from_octets(addr);
                // A prefix of 0 removes all filters whatever the address says; an IPv4 prefix counts the 96
                // fixed bits in front of it.
                let shortest = if remote_addr.is_ipv4() { 96 } else { 0 };
                if prefix_len > 128 || (prefix_len != 0 && prefix_len < shortest) {
                    return Err(invalid);
                }
                Ok(Self::Filter(Filter {
                    prefix_len,
                    remote_port: u16::from_be_bytes([p0, p1]),
                    remote_addr,
                }))
            }
            code::DESCRIPTION if data.len() > MAX_DESCRIPTION => Err(invalid),
            code::DESCRIPTION => Ok(match std::str::from_utf8(data) {
                Ok(text) => Self::Description(text.to_owned()),
                Err(_) => Self::Unknown {
                    code,
                    data: data.to_vec(),
                },
            }),
            code::THIRD_PARTY_ID if data.len() > MAX_THIRD_PARTY_ID => Err(invalid),
            code::THIRD_PARTY_ID => Ok(Self::ThirdPartyId(data.to_vec())),
            code::PREFIX64 => Prefix64::decode(data).map(Self::Prefix64).ok_or(invalid),
            code::PORT_SET => {
                let [s0, s1, f0, f1, flags]: [u8; 5] = data.try_into().map_err(|_| invalid)?;
                let size = u16::from_be_bytes([s0, s1]);
                if size == 0 {
                    return Err(invalid);
                }
                Ok(Self::PortSet(PortSet {
                    size,
                    first_internal: u16::from_be_bytes([f0, f1]),
                    parity: flags & 1 == 1,
                }))
            }
            code => Ok(Self::Unknown {
                code,
                data: data.to_vec(),
            }),
        }
    }
}

/// Whether a request may carry more than one option of this code.
pub(super) const fn repeatable(code: u8) -> bool {
    matches!(code, code::FILTER)
}

/// What becomes of an option that a receiver may skip and that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The message is malformed.
    Refused,
    /// It is kept as it is, so that a response is not lost for what nobody has asked for.
    Kept,
}

/// RFC 6887 section 7.3: codes from here on are optional to process.
const OPTIONAL: u8 = 128;

/// Reads the options one by one; ends after the first error, since what follows it has no known start.
pub(super) fn decode_all(
    mut rest: &[u8],
    unreadable: Unreadable,
) -> impl Iterator<Item = Result<PcpOption, OptionError>> + '_ {
    std::iter::from_fn(move || {
        let (&[code, _, l0, l1], after) = rest.split_first_chunk::<4>()?;
        let len = u16::from_be_bytes([l0, l1]);
        let padded = usize::from(len).next_multiple_of(4);
        let Some((data, next)) = after.split_at_checked(padded) else {
            rest = &[];
            return Some(Err(OptionError::Overrun { code, len }));
        };
        rest = next;
        let data = data.get(..usize::from(len)).unwrap_or(data);
        let option = PcpOption::decode(code, data);
        let keep = unreadable == Unreadable::Kept && code >= OPTIONAL && option.is_err();
        if keep {
            let data = data.to_vec();
            return Some(Ok(PcpOption::Unknown { code, data }));
        }
        Some(option)
    })
}

fn put(out: &mut Vec<u8>, code: u8, data: &[u8]) {
    // A length over 65535 cannot be expressed; such a message is over the limit of 1100 octets anyway and
    // is refused there, so that the saturated field never leaves.
    let len = u16::try_from(data.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&[code, 0]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}
