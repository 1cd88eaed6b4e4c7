//! DHCPv4 as far as it tells PCP servers: DHCPINFORM out, DHCPACK in.
//!
//! Read before editing: RFC 2131 sections 2 and 4.4.3, RFC 2132 section 9, RFC 3396, RFC 7291 section 4.
//!
//! ```text
//!  0 op   1 htype   2 hlen   3 hops     4 xid (4)     8 secs (2)    10 flags (2)
//! 12 ciaddr (4)    16 yiaddr (4)    20 siaddr (4)    24 giaddr (4)    28 chaddr (16)
//! 44 sname (64)   108 file (128)   236 cookie (4)   240 options: code, length, value
//! ```
//!
//! Of the codecs there are none fits: dhcproto has half of a DNS library and the tables of Unicode behind it, knows
//! neither option overload nor the pieces of an option that do not follow each other, and two messages are all that is
//! needed.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Where servers listen.
pub const SERVER_PORT: u16 = 67;
/// RFC 7291 section 4.1.
pub const OPTION_PCP_SERVER: u8 = 158;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// RFC 951: relays may drop what is shorter.
const MIN_LEN: usize = 300;
/// The largest answer that any network passes whole.
const MAX_ANSWER: u16 = 1500;

const PAD: u8 = 0;
const OVERLOAD: u8 = 52;
const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
const PARAMETERS: u8 = 55;
const MAX_SIZE: u8 = 57;
const END: u8 = 255;

const TYPE_ACK: u8 = 5;
const TYPE_INFORM: u8 = 8;

/// The question of a client that has its address already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inform {
    /// Names the exchange.
    pub xid: u32,
    /// Seconds since it began.
    pub secs: u16,
    /// The address of the interface.
    pub address: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

impl Inform {
    /// The UDP payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MIN_LEN);
        out.extend([REQUEST, ETHERNET, 6, 0]);
        out.extend(self.xid.to_be_bytes());
        out.extend(self.secs.to_be_bytes());
        out.extend([0; 2]);
        out.extend(self.address.octets());
        out.extend([0; 12]);
        out.extend(self.mac);
        out.extend([0; 10 + 64 + 128]);
        out.extend(COOKIE);
        out.extend([MESSAGE_TYPE, 1, TYPE_INFORM]);
        out.extend([PARAMETERS, 1, OPTION_PCP_SERVER]);
        let [high, low] = MAX_ANSWER.to_be_bytes();
        out.extend([MAX_SIZE, 2, high, low, END]);
        out.resize(out.len().max(MIN_LEN), PAD);
        out
    }
}

/// What is of interest in the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Names the exchange.
    pub xid: u32,
    /// The client's Ethernet address.
    pub mac: [u8; 6],
    /// Who answers.
    pub server: Option<Ipv4Addr>,
    /// The value of option 158, all its pieces joined.
    pub pcp_servers: Option<Vec<u8>>,
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
    /// Not from a server, or to another kind of hardware.
    #[error("message is no reply to an Ethernet client")]
    NotReply,
    /// BOOTP, or something else.
    #[error("message has no DHCP options")]
    NotDhcp,
    /// Another message of the protocol.
    #[error("message is no DHCPACK")]
    NotAck,
    /// An option reaches beyond its field.
    #[error("option {code} is longer than its field")]
    LongOption {
        /// Its code.
        code: u8,
    },
}

impl Ack {
    /// Reads a UDP payload.
    ///
    /// # Errors
    /// It is no DHCPACK, or an option does not fit where it stands.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let truncated = || DecodeError::Truncated {
            have: payload.len(),
        };
        let (header, rest) = payload.split_first_chunk::<236>().ok_or_else(truncated)?;
        let (cookie, options) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
        let [op, htype, hlen, _, xid @ ..] = header;
        if (*op, *htype, *hlen) != (REPLY, ETHERNET, 6) {
            return Err(DecodeError::NotReply);
        }
        if *cookie != COOKIE {
            return Err(DecodeError::NotDhcp);
        }
        let xid = xid.first_chunk().map_or(0, |xid| u32::from_be_bytes(*xid));
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
        let mac = field(28, 34).first_chunk().copied().unwrap_or_default();

        let mut wanted = Wanted::default();
        wanted.take(options)?;
        // RFC 3396 section 5: the other two fields count as what follows, in this order.
        let overload = wanted.overload.first().copied().unwrap_or(0);
        if overload & 1 != 0 {
            wanted.take(field(108, 236))?;
        }
        if overload & 2 != 0 {
            wanted.take(field(44, 108))?;
        }
        if wanted.message_type != [TYPE_ACK] {
            return Err(DecodeError::NotAck);
        }
        Ok(Self {
            xid,
            mac,
            server: wanted
                .server
                .first_chunk::<4>()
                .map(|addr| Ipv4Addr::from(*addr)),
            pcp_servers: wanted.pcp_servers,
        })
    }
}

/// The options that matter. Pieces of one code are joined wherever they stand (RFC 3396 section 7).
#[derive(Default)]
struct Wanted {
    overload: Vec<u8>,
    message_type: Vec<u8>,
    server: Vec<u8>,
    pcp_servers: Option<Vec<u8>>,
}

impl Wanted {
    fn take(&mut self, mut field: &[u8]) -> Result<(), DecodeError> {
        while let Some((&code, rest)) = field.split_first() {
            match code {
                PAD => field = rest,
                END => break,
                _ => {
                    let long = DecodeError::LongOption { code };
                    let (&length, rest) = rest.split_first().ok_or(long)?;
                    let (value, rest) = rest.split_at_checked(usize::from(length)).ok_or(long)?;
                    match code {
                        OVERLOAD => self.overload.extend(value),
                        MESSAGE_TYPE => self.message_type.extend(value),
                        SERVER_ID => self.server.extend(value),
                        OPTION_PCP_SERVER => {
                            self.pcp_servers.get_or_insert_default().extend(value);
                        }
                        _ => {}
                    }
                    field = rest;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XID: u32 = 0x1122_3344;
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn answer(options: &[u8], file: &[u8], sname: &[u8]) -> Vec<u8> {
        let mut out = vec![REPLY, ETHERNET, 6, 0];
        out.extend(XID.to_be_bytes());
        out.resize(28, 0);
        out.extend(MAC);
        out.resize(44, 0);
        out.extend(sname);
        out.resize(108, 0);
        out.extend(file);
        out.resize(236, 0);
        out.extend(COOKIE);
        out.extend(options);
        out
    }

    #[test]
    fn an_inform_asks_for_158_and_nothing_that_a_lease_is_made_of() {
        let inform = Inform {
            xid: XID,
            secs: 7,
            address: [100, 64, 0, 2].into(),
            mac: MAC,
        };
        let octets = inform.encode();
        assert_eq!(octets.len(), MIN_LEN);
        assert_eq!(octets[..4], [1, 1, 6, 0]);
        assert_eq!(octets[4..8], XID.to_be_bytes());
        assert_eq!(octets[8..12], [0, 7, 0, 0]);
        assert_eq!(octets[12..16], [100, 64, 0, 2], "ciaddr");
        assert_eq!(octets[28..34], MAC);
        let options = [
            99, 130, 83, 99, 53, 1, 8, 55, 1, 158, 57, 2, 0x05, 0xdc, 255,
        ];
        assert_eq!(octets[236..251], options);
    }

    #[test]
    fn pieces_of_an_option_are_joined_across_fields_and_other_options() {
        let mut options = vec![53, 1, 5, 158, 3, 8, 192, 0, 52, 1, 3];
        options.extend([54, 4, 100, 64, 0, 1, 0, 0, 158, 2, 2, 1, 255]);
        let octets = answer(&options, &[158, 3, 192, 0, 2, 255], &[158, 1, 2]);
        let ack = Ack::decode(&octets).unwrap();
        assert_eq!(ack.xid, XID);
        assert_eq!(ack.mac, MAC);
        assert_eq!(ack.server, Some([100, 64, 0, 1].into()));
        let joined = vec![8, 192, 0, 2, 1, 192, 0, 2, 2];
        assert_eq!(ack.pcp_servers, Some(joined));
    }

    #[test]
    fn fields_that_are_not_overloaded_are_no_options() {
        let octets = answer(&[53, 1, 5, 255], &[158, 1, 1], &[158, 1, 2]);
        assert_eq!(Ack::decode(&octets).unwrap().pcp_servers, None);
    }

    #[test]
    fn what_is_no_ack_to_us_is_refused() {
        let good = answer(&[53, 1, 5, 255], &[], &[]);
        Ack::decode(&good).unwrap();
        for (at, octet, error) in [
            (0, 1, DecodeError::NotReply),
            (1, 6, DecodeError::NotReply),
            (2, 16, DecodeError::NotReply),
            (236, 0, DecodeError::NotDhcp),
            (242, 2, DecodeError::NotAck),
            (242, 6, DecodeError::NotAck),
        ] {
            let mut octets = good.clone();
            octets[at] = octet;
            assert_eq!(Ack::decode(&octets), Err(error), "octet {at}");
        }
        let long = answer(&[53, 1, 5, 158, 200, 1], &[], &[]);
        let error = DecodeError::LongOption { code: 158 };
        assert_eq!(Ack::decode(&long), Err(error));
    }

    #[test]
    fn every_truncation_is_an_error_or_a_whole_answer_without_the_rest() {
        let whole = answer(&[53, 1, 5, 158, 5, 4, 192, 0, 2, 1], &[], &[]);
        for cut in 0..whole.len() {
            let complete = cut == 243;
            assert_eq!(Ack::decode(&whole[..cut]).is_ok(), complete, "{cut}");
        }
    }
}
