//! UDP in raw sockets: headers off, headers on.
//!
//! ```text
//! 0 source port (2)   2 destination port (2)   4 length (2)   6 checksum (2)
//! ```
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

/// Octets of the header.
const HEADER: usize = 8;
const PROTOCOL: u8 = 17;

/// A datagram with its header. `None`: it is too long, or the addresses are of different families.
pub fn encode(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(HEADER + payload.len()).ok()?;
    let mut out = Vec::with_capacity(usize::from(length));
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend([0; 2]);
    out.extend(payload);
    let mut sum = Sum::default();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            sum.add(&from.octets());
            sum.add(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            sum.add(&from.octets());
            sum.add(&to.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    sum.add(&[0, PROTOCOL]);
    sum.add(&length.to_be_bytes());
    sum.add(&out);
    out.splice(6..8, sum.finish().to_be_bytes());
    Some(out)
}

/// The payload of a datagram to that port. The checksum is not looked at: a datagram of this machine or of a
/// paravirtual device may be without, and says so only to the kernel.
pub fn payload(datagram: &[u8], port: u16) -> Option<&[u8]> {
    let ([_, _, d0, d1, l0, l1, _, _], rest) = datagram.split_first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    let payload = length.checked_sub(HEADER)?;
    (u16::from_be_bytes([*d0, *d1]) == port)
        .then(|| rest.get(..payload))
        .flatten()
}

/// What an IPv4 packet carries, if it is UDP and no fragment of something.
pub fn in_ipv4(packet: &[u8]) -> Option<&[u8]> {
    let [first, _, l0, l1, _, _, f0, f1, _, protocol, ..] = packet else {
        return None;
    };
    let (header, length) = (usize::from(first & 0xf) * 4, u16::from_be_bytes([*l0, *l1]));
    let fragment = u16::from_be_bytes([*f0, *f1]) & 0x3fff != 0;
    let whole = first >> 4 == 4 && header >= 20 && *protocol == PROTOCOL && !fragment;
    whole
        .then(|| packet.get(header..usize::from(length)))
        .flatten()
}

/// The Internet checksum (RFC 1071).
#[derive(Default)]
struct Sum(u32);

impl Sum {
    /// Adds octets, an odd one at the end as if a zero followed.
    fn add(&mut self, octets: &[u8]) {
        let (pairs, odd) = octets.as_chunks::<2>();
        for pair in pairs {
            self.word(u16::from_be_bytes(*pair));
        }
        if let [last] = odd {
            self.word(u16::from_be_bytes([*last, 0]));
        }
    }

    fn word(&mut self, word: u16) {
        self.0 += u32::from(word);
        self.0 = (self.0 & 0xffff) + (self.0 >> 16);
    }

    /// Zero would say that there is none (RFC 768).
    fn finish(self) -> u16 {
        match !(self.0 & 0xffff) & 0xffff {
            0 => 0xffff,
            sum => u16::try_from(sum).unwrap_or(0xffff),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_written_and_read() {
        let (from, to) = ("100.64.0.2:68", "255.255.255.255:67");
        let datagram = encode(from.parse().unwrap(), to.parse().unwrap(), b"abc").unwrap();
        assert_eq!(
            datagram,
            [0, 68, 0, 67, 0, 11, 0xd6, 0xac, b'a', b'b', b'c']
        );
        assert_eq!(payload(&datagram, 67), Some(&b"abc"[..]));
        assert_eq!(payload(&datagram, 68), None);
        for cut in 0..datagram.len() {
            assert_eq!(payload(&datagram[..cut], 67), None, "{cut}");
        }
        let six = encode(from.parse().unwrap(), "[::1]:67".parse().unwrap(), b"");
        assert_eq!(six, None);
    }

    #[test]
    fn what_is_no_whole_udp_packet_is_left_alone() {
        let mut packet = vec![0x46, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0];
        packet.extend([1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 0]);
        packet.extend([0, 67, 0, 68, 0, 12, 0, 0, 9, 9, 9, 9, 0, 0]);
        let datagram = in_ipv4(&packet).unwrap();
        assert_eq!(payload(datagram, 68), Some(&[9, 9, 9, 9][..]));
        for (at, octet) in [(0, 0x66), (0, 0x44), (6, 0x20), (7, 1), (9, 6)] {
            let mut other = packet.clone();
            other[at] = octet;
            assert_eq!(in_ipv4(&other), None, "octet {at}");
        }
        for cut in 0..36 {
            assert_eq!(in_ipv4(&packet[..cut]), None, "{cut}");
        }
    }
}
