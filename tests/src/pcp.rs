//! A second, independent reading of the PCP wire format (RFC 6887 section 7 and 11.1): enough to ask a
//! server and to play one. It shares nothing with the codec under test.
//!
//! ```text
//! 0        2|R|opcode  reserved / result   4 lifetime
//! 8        client address (request)        8 epoch (response)
//! 24       nonce (12)  36 protocol  40 internal port  42 external port  44 external address (16)
//! 60       options
//! ```
#![expect(
    clippy::disallowed_types,
    reason = "the harness talks to real programs over sockets"
)]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;
use crate::wait;

/// RFC 6887 section 19.1: port of PCP servers.
pub const SERVER_PORT: u16 = 5351;
/// RFC 6887 section 19.1: where clients listen for announcements.
pub const ANNOUNCEMENTS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), 5350);
/// RFC 6887 section 7: largest message.
pub const MAX_LEN: usize = 1100;

/// Result codes of RFC 6887 section 7.4 that the scripts use.
pub mod result {
    /// Granted.
    pub const SUCCESS: u8 = 0;
    /// Refused by policy.
    pub const NOT_AUTHORIZED: u8 = 2;
    /// The device has no link or address.
    pub const NETWORK_FAILURE: u8 = 7;
    /// Nothing left to assign.
    pub const NO_RESOURCES: u8 = 8;
    /// This client has too many mappings.
    pub const USER_EX_QUOTA: u8 = 10;
    /// The suggested external endpoint cannot be had.
    pub const CANNOT_PROVIDE_EXTERNAL: u8 = 11;
}

/// Opcode of a message, without the response bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// RFC 6887 section 14.1.
    Announce,
    /// RFC 6887 section 11.
    Map,
    /// Anything else.
    Other(u8),
}

impl Opcode {
    fn number(self) -> u8 {
        match self {
            Self::Announce => 0,
            Self::Map => 1,
            Self::Other(number) => number,
        }
    }
}

/// The MAP opcode's own fields, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// Proof of ownership.
    pub nonce: [u8; 12],
    /// IANA number.
    pub protocol: u8,
    /// Port of the client, which for iwf is its NAT1 port.
    pub internal_port: u16,
    /// Suggested or assigned port.
    pub external_port: u16,
    /// Suggested or assigned address.
    pub external_addr: Ipv4Addr,
}

/// A request as a server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub opcode: Opcode,
    /// Requested lifetime in seconds; 0 deletes.
    pub lifetime: u32,
    /// The address the client believes to have.
    pub client: Ipv4Addr,
    /// Present for MAP.
    pub map: Option<Map>,
    /// Codes of the options that follow.
    pub options: Vec<u8>,
}

/// A response as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// What was asked.
    pub opcode: Opcode,
    /// RFC 6887 section 7.4.
    pub result: u8,
    /// Assigned lifetime, or how long the error holds, in seconds.
    pub lifetime: u32,
    /// Age of the server's state in seconds.
    pub epoch: u32,
    /// Present for MAP.
    pub map: Option<Map>,
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..at + N)
        .and_then(|slice| slice.try_into().ok())
        .with_context(|| format!("{} octets, need {}", bytes.len(), at + N))
}

fn mapped(addr: Ipv4Addr) -> [u8; 16] {
    addr.to_ipv6_mapped().octets()
}

fn unmapped(octets: [u8; 16]) -> Result<Ipv4Addr> {
    std::net::Ipv6Addr::from(octets)
        .to_ipv4_mapped()
        .context("not an IPv4-mapped address")
}

fn opcode(byte: u8) -> Opcode {
    match byte & 0x7f {
        0 => Opcode::Announce,
        1 => Opcode::Map,
        other => Opcode::Other(other),
    }
}

impl Map {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.nonce);
        out.extend([self.protocol, 0, 0, 0]);
        out.extend(self.internal_port.to_be_bytes());
        out.extend(self.external_port.to_be_bytes());
        out.extend(mapped(self.external_addr));
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Self {
            nonce: take(bytes, 24)?,
            protocol: take::<1>(bytes, 36)?[0],
            internal_port: u16::from_be_bytes(take(bytes, 40)?),
            external_port: u16::from_be_bytes(take(bytes, 42)?),
            external_addr: unmapped(take(bytes, 44)?)?,
        })
    }
}

impl Request {
    /// An ANNOUNCE request from that address: a server answers it with its epoch.
    pub fn announce(client: Ipv4Addr) -> Self {
        Self {
            opcode: Opcode::Announce,
            lifetime: 0,
            client,
            map: None,
            options: Vec::new(),
        }
    }

    /// A MAP request from that address.
    pub fn map(client: Ipv4Addr, lifetime: u32, map: Map) -> Self {
        Self {
            opcode: Opcode::Map,
            lifetime,
            client,
            map: Some(map),
            options: Vec::new(),
        }
    }

    /// The octets. Options are not encoded.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![2, self.opcode.number(), 0, 0];
        out.extend(self.lifetime.to_be_bytes());
        out.extend(mapped(self.client));
        if let Some(map) = &self.map {
            map.encode(&mut out);
        }
        out
    }

    /// Reads a request.
    ///
    /// # Errors
    /// If it is not a version 2 request, or cut short.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let [version, code, ..] = take::<4>(bytes, 0)?;
        ensure!(version == 2, "version {version}");
        ensure!(code & 0x80 == 0, "a response");
        let opcode = opcode(code);
        let map = match opcode {
            Opcode::Map => Some(Map::decode(bytes)?),
            Opcode::Announce | Opcode::Other(_) => None,
        };
        let mut at = if map.is_some() { 60 } else { 24 };
        let mut options = Vec::new();
        while bytes.len() > at {
            let [code, _, high, low] = take::<4>(bytes, at)?;
            options.push(code);
            let len = usize::from(u16::from_be_bytes([high, low]));
            at += 4 + len.next_multiple_of(4);
        }
        Ok(Self {
            opcode,
            lifetime: u32::from_be_bytes(take(bytes, 4)?),
            client: unmapped(take(bytes, 8)?)?,
            map,
            options,
        })
    }
}

impl Response {
    /// The octets.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![2, self.opcode.number() | 0x80, 0, self.result];
        out.extend(self.lifetime.to_be_bytes());
        out.extend(self.epoch.to_be_bytes());
        out.extend([0; 12]);
        if let Some(map) = &self.map {
            map.encode(&mut out);
        }
        out
    }

    /// Reads a response.
    ///
    /// # Errors
    /// If it is not a version 2 response, or cut short.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let [version, code, _, result] = take::<4>(bytes, 0)?;
        ensure!(version == 2, "version {version}");
        ensure!(code & 0x80 != 0, "a request");
        let opcode = opcode(code);
        Ok(Self {
            opcode,
            result,
            lifetime: u32::from_be_bytes(take(bytes, 4)?),
            epoch: u32::from_be_bytes(take(bytes, 8)?),
            map: match opcode {
                Opcode::Map => Some(Map::decode(bytes)?),
                Opcode::Announce | Opcode::Other(_) => None,
            },
        })
    }
}

/// Sends a request from a host until `server` answers.
///
/// # Errors
/// If it does not within `within`, or the answer cannot be read.
pub fn ask(
    host: &Namespace,
    server: Ipv4Addr,
    request: &Request,
    within: Duration,
) -> Result<Response> {
    let source = SocketAddrV4::new(request.client, 0);
    let socket = host.within(|| UdpSocket::bind(source))??;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let octets = request.encode();
    let what = format!("a PCP answer from {server}");
    wait::until_ok(&what, within, || {
        socket.send_to(&octets, (server, SERVER_PORT))?;
        let mut buf = [0; MAX_LEN];
        let (len, _) = socket.recv_from(&mut buf)?;
        Response::decode(&buf[..len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: Map = Map {
        nonce: [7; 12],
        protocol: 17,
        internal_port: 40000,
        external_port: 5000,
        external_addr: Ipv4Addr::new(11, 22, 33, 1),
    };

    #[test]
    fn messages_survive_a_round_trip() {
        let request = Request::map(Ipv4Addr::new(100, 64, 0, 2), 3600, MAP);
        assert_eq!(request.encode().len(), 60);
        assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        let response = Response {
            opcode: Opcode::Map,
            result: result::NO_RESOURCES,
            lifetime: 30,
            epoch: 9,
            map: Some(MAP),
        };
        assert_eq!(Response::decode(&response.encode()).unwrap(), response);
    }

    #[test]
    fn options_are_listed_by_code() {
        let mut octets = Request::map(Ipv4Addr::new(100, 64, 0, 2), 3600, MAP).encode();
        octets.extend([2, 0, 0, 0]);
        assert_eq!(Request::decode(&octets).unwrap().options, [2]);
        octets.truncate(62);
        assert!(Request::decode(&octets).is_err());
    }
}
