//! DHCPv6 as far as it tells PCP servers and the AFTR: Information-request out, Reply in.
//!
//! Read before editing: RFC 8415 sections 8, 16.10, 16.12, 18.2.6 and 21; RFC 7291 section 3; RFC 6334 section 3.
//!
//! ```text
//! 0 type   1 transaction id (3)   4 options: code (2), length (2), value
//! ```
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;
use std::time::Duration;

/// Where clients listen.
pub const CLIENT_PORT: u16 = 546;
/// Where servers and relays listen.
pub const SERVER_PORT: u16 = 547;
/// All of them on the link (RFC 8415 section 7.1).
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// RFC 7291 section 3.1.
pub const OPTION_PCP_SERVER: u16 = 86;
/// RFC 6334 section 3.
pub const OPTION_AFTR_NAME: u16 = 64;

const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const ORO: u16 = 6;
const ELAPSED: u16 = 8;
const STATUS: u16 = 13;
const REFRESH: u16 = 32;
const INF_MAX_RT: u16 = 83;

/// RFC 8415 section 11.5: a DUID made of a UUID.
const DUID_UUID: u16 = 4;

/// An instance of option 86 beyond this number is not looked at.
pub const MAX_INSTANCES: usize = 64;

/// The identity of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duid([u8; 18]);

impl Duid {
    /// Of this device.
    pub fn from_uuid(uuid: [u8; 16]) -> Self {
        let mut octets = [0; 18];
        let (kind, id) = octets.split_at_mut(2);
        kind.copy_from_slice(&DUID_UUID.to_be_bytes());
        id.copy_from_slice(&uuid);
        Self(octets)
    }
}

/// The question of a client that wants no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InformationRequest {
    /// Names the exchange; 24 bits.
    pub xid: u32,
    /// Who asks.
    pub duid: Duid,
    /// Time since the exchange began.
    pub elapsed: Duration,
}

impl InformationRequest {
    /// The UDP payload.
    pub fn encode(&self) -> Vec<u8> {
        let [_, xid @ ..] = self.xid.to_be_bytes();
        let mut out = vec![INFORMATION_REQUEST];
        out.extend(xid);
        let mut option = |code: u16, value: &[u8]| {
            out.extend(code.to_be_bytes());
            // No value here is longer than 18 octets.
            out.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
            out.extend(value);
        };
        option(CLIENT_ID, &self.duid.0);
        let wanted = [OPTION_PCP_SERVER, OPTION_AFTR_NAME, REFRESH, INF_MAX_RT];
        option(ORO, wanted.map(u16::to_be_bytes).as_flattened());
        let hundredths = u16::try_from(self.elapsed.as_millis() / 10).unwrap_or(u16::MAX);
        option(ELAPSED, &hundredths.to_be_bytes());
        out
    }
}

/// What is of interest in the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Names the exchange.
    pub xid: u32,
    /// The client that is answered.
    pub client: Vec<u8>,
    /// Value of each instance of option 86, at most [`MAX_INSTANCES`].
    pub pcp_servers: Vec<Vec<u8>>,
    /// Where a DS-Lite tunnel ends.
    pub aftr: Option<String>,
    /// When to ask again, if the server says so.
    pub refresh: Option<Duration>,
    /// The longest wait between two questions, if the server says so.
    pub max_wait: Option<Duration>,
}

/// Why a datagram is no such answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the header.
    #[error("message of {have} octets is truncated")]
    Truncated {
        /// Octets received.
        have: usize,
    },
    /// Another message of the protocol.
    #[error("message is no Reply")]
    NotReply,
    /// An option reaches beyond the message.
    #[error("option {code} is longer than the message")]
    LongOption {
        /// Its code.
        code: u16,
    },
    /// RFC 8415 section 16.10: from nobody.
    #[error("message has no server identifier")]
    NoServer,
    /// The server reports an error.
    #[error("the server reports status {code}")]
    Status {
        /// RFC 8415 section 21.13.
        code: u16,
    },
}

impl Reply {
    /// Reads a UDP payload.
    ///
    /// # Errors
    /// It is no Reply, or reports an error, or an option is cut.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let truncated = DecodeError::Truncated {
            have: payload.len(),
        };
        let (header, mut options) = payload.split_first_chunk::<4>().ok_or(truncated)?;
        let [kind, a, b, c] = *header;
        if kind != REPLY {
            return Err(DecodeError::NotReply);
        }
        let mut reply = Self {
            xid: u32::from_be_bytes([0, a, b, c]),
            ..Self::default()
        };
        let mut has_server = false;
        while !options.is_empty() {
            let (head, rest) = options.split_first_chunk::<4>().ok_or(truncated)?;
            let [c0, c1, l0, l1] = *head;
            let code = u16::from_be_bytes([c0, c1]);
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            let (value, rest) = rest
                .split_at_checked(length)
                .ok_or(DecodeError::LongOption { code })?;
            options = rest;
            let seconds = || {
                let octets = <[u8; 4]>::try_from(value).ok()?;
                Some(Duration::from_secs(u32::from_be_bytes(octets).into()))
            };
            match code {
                CLIENT_ID => value.clone_into(&mut reply.client),
                SERVER_ID => has_server = true,
                STATUS => match value.first_chunk().map(|code| u16::from_be_bytes(*code)) {
                    Some(0) | None => {}
                    Some(code) => return Err(DecodeError::Status { code }),
                },
                OPTION_PCP_SERVER if reply.pcp_servers.len() < MAX_INSTANCES => {
                    reply.pcp_servers.push(value.to_vec());
                }
                // RFC 6334 section 5: more than one instance is an error of the server; the first is taken.
                OPTION_AFTR_NAME if reply.aftr.is_none() => reply.aftr = domain(value),
                REFRESH => reply.refresh = seconds(),
                INF_MAX_RT => {
                    // RFC 8415 section 21.25.
                    let limits = Duration::from_secs(60)..=Duration::from_secs(86_400);
                    reply.max_wait = seconds().filter(|wait| limits.contains(wait));
                }
                _ => {}
            }
        }
        if has_server {
            Ok(reply)
        } else {
            Err(DecodeError::NoServer)
        }
    }

    /// Whether it answers that client.
    pub fn is_for(&self, duid: &Duid) -> bool {
        self.client == duid.0
    }
}

/// A name in the form of RFC 1035 without compression, as text. `None`: it is none, or has other characters than
/// names of hosts have.
fn domain(mut octets: &[u8]) -> Option<String> {
    if octets.len() > 255 {
        return None;
    }
    let mut name = String::new();
    loop {
        let (&length, rest) = octets.split_first()?;
        if length == 0 {
            return (rest.is_empty() && !name.is_empty()).then_some(name);
        }
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        let good = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
        if length > 63 || !label.iter().all(good) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(label).ok()?);
        octets = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XID: u32 = 0x0011_2233;

    fn duid() -> Duid {
        Duid::from_uuid([7; 16])
    }

    fn option(code: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap();
        [&code.to_be_bytes(), &length.to_be_bytes(), value].concat()
    }

    fn answer(more: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![REPLY, 0x11, 0x22, 0x33];
        out.extend(option(CLIENT_ID, &duid().0));
        out.extend(option(SERVER_ID, &[0, 3, 0, 1, 2, 0, 0, 0, 0, 1]));
        out.extend(more.concat());
        out
    }

    #[test]
    fn the_question_asks_for_86_and_64() {
        let request = InformationRequest {
            xid: XID,
            duid: duid(),
            elapsed: Duration::from_millis(1230),
        };
        let mut expected = vec![11, 0x11, 0x22, 0x33, 0, 1, 0, 18, 0, 4];
        expected.extend([7; 16]);
        expected.extend([0, 6, 0, 8, 0, 86, 0, 64, 0, 32, 0, 83]);
        expected.extend([0, 8, 0, 2, 0, 123]);
        assert_eq!(request.encode(), expected);
    }

    #[test]
    fn each_instance_of_86_is_kept_apart() {
        let octets = answer(&[
            option(86, &[1; 32]),
            option(64, b"\x04aftr\x07example\x00"),
            option(86, &[2; 16]),
            option(32, &[0, 0, 0x0e, 0x10]),
            option(83, &[0, 0, 0, 120]),
        ]);
        let reply = Reply::decode(&octets).unwrap();
        assert!(reply.is_for(&duid()));
        assert!(!reply.is_for(&Duid::from_uuid([8; 16])));
        assert_eq!(reply.xid, XID);
        assert_eq!(reply.pcp_servers, [vec![1; 32], vec![2; 16]]);
        assert_eq!(reply.aftr.as_deref(), Some("aftr.example"));
        assert_eq!(reply.refresh, Some(Duration::from_secs(3600)));
        assert_eq!(reply.max_wait, Some(Duration::from_secs(120)));
    }

    /// RFC 6334 section 5.
    #[test]
    fn only_the_first_aftr_counts() {
        let first = option(64, b"\x04aftr\x07example\x00");
        let second = option(64, b"\x05other\x07example\x00");
        let reply = Reply::decode(&answer(&[first, second])).unwrap();
        assert_eq!(reply.aftr.as_deref(), Some("aftr.example"));
    }

    #[test]
    fn instances_are_bounded() {
        let many = vec![option(86, &[1; 16]); MAX_INSTANCES + 9];
        let reply = Reply::decode(&answer(&many)).unwrap();
        assert_eq!(reply.pcp_servers.len(), MAX_INSTANCES);
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        let mut other = answer(&[]);
        other[0] = 2;
        assert_eq!(Reply::decode(&other), Err(DecodeError::NotReply));
        let status = answer(&[option(STATUS, &[0, 1, b'x'])]);
        let error = DecodeError::Status { code: 1 };
        assert_eq!(Reply::decode(&status), Err(error));
        let nobody = [&[REPLY, 0, 0, 0][..], &option(CLIENT_ID, &duid().0)].concat();
        assert_eq!(Reply::decode(&nobody), Err(DecodeError::NoServer));
        let whole = answer(&[option(86, &[1; 16])]);
        let borders = [whole.len(), whole.len() - 20];
        for cut in 0..whole.len() {
            let complete = borders.contains(&cut);
            assert_eq!(Reply::decode(&whole[..cut]).is_ok(), complete, "{cut}");
        }
    }

    #[test]
    fn names_that_are_none_are_not_taken() {
        for bad in [
            &b""[..],
            b"\x00",
            b"\x04aftr",
            b"\x04aftr\x00x",
            b"\x05af r\x00",
            b"\x04a\x1b[m\x00",
            b"\xc0\x0c",
        ] {
            assert_eq!(domain(bad), None, "{bad:?}");
        }
        assert_eq!(domain(&[1; 300]), None);
    }
}
