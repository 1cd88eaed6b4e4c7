//! IPv6 frames for program runs: built field by field, and judged by code that shares nothing with what is tested.

use crate::packet::ETHERNET;

/// Octets of the IPv6 header.
pub const IPV6: usize = 40;

/// An upper-layer header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// With a checksum, which IPv6 demands.
    Udp(u16, u16),
    /// Without options.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Flags octet.
        flags: u8,
    },
    /// Type, code and the four octets after the checksum.
    Icmp(u8, u8, [u8; 4]),
    /// Another protocol with the payload as it is.
    Other(u8),
}

/// An IPv6 packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame6 {
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// Source MAC address.
    pub src_mac: [u8; 6],
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class and flow label.
    pub flow: u32,
    /// Extension headers: number and octets, the first of which, the next header, is filled in.
    pub headers: Vec<(u8, Vec<u8>)>,
    /// Upper-layer header.
    pub upper: Upper,
    /// What follows it.
    pub payload: Vec<u8>,
}

impl Frame6 {
    /// A frame with ordinary values in all other fields.
    pub fn new(src: [u8; 16], dst: [u8; 16], upper: Upper) -> Self {
        Self {
            dst_mac: [2, 0, 0, 0, 0, 1],
            src_mac: [2, 0, 0, 0, 0, 2],
            src,
            dst,
            hop_limit: 64,
            flow: 0x0281_2345,
            headers: Vec::new(),
            upper,
            payload: b"0123456789abcdef".to_vec(),
        }
    }

    /// A UDP datagram.
    pub fn udp(src: ([u8; 16], u16), dst: ([u8; 16], u16)) -> Self {
        Self::new(src.0, dst.0, Upper::Udp(src.1, dst.1))
    }

    /// A TCP segment.
    pub fn tcp(src: ([u8; 16], u16), dst: ([u8; 16], u16), flags: u8) -> Self {
        let ports = (src.1, dst.1);
        Self::new(src.0, dst.0, Upper::Tcp { ports, flags })
    }

    /// An echo request (128) or reply (129).
    pub fn echo(src: [u8; 16], dst: [u8; 16], kind: u8, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        Self::new(src, dst, Upper::Icmp(kind, 0, [high, low, 0, 1]))
    }

    /// An ICMPv6 error about `about`.
    pub fn error(src: [u8; 16], dst: [u8; 16], kind: u8, about: &Self) -> Self {
        let mut error = Self::new(src, dst, Upper::Icmp(kind, 0, [0, 0, 5, 0]));
        error.payload = about.bytes().split_off(ETHERNET);
        error
    }

    /// With one more extension header in front of the upper layer; `rest` is all of it but the next header.
    #[must_use]
    pub fn with(mut self, number: u8, rest: &[u8]) -> Self {
        let mut octets = vec![0];
        octets.extend(rest);
        self.headers.push((number, octets));
        self
    }

    /// With options of 8 octets, all padding.
    #[must_use]
    pub fn with_options(self, number: u8) -> Self {
        self.with(number, &[0, 1, 4, 0, 0, 0, 0])
    }

    /// The fragments of the packet, each with at most `size` octets of it (a multiple of 8).
    pub fn fragments(&self, id: u32, size: usize) -> Vec<Self> {
        let whole = self.bytes().split_off(ETHERNET + IPV6);
        let first = self.first_header();
        let count = whole.len().div_ceil(size);
        let piece = |(n, octets): (usize, &[u8])| {
            let word = u16::try_from(n * size).expect("fits") | u16::from(n + 1 != count);
            let mut fragment = vec![first, 0];
            fragment.extend(word.to_be_bytes());
            fragment.extend(id.to_be_bytes());
            fragment.extend(octets);
            Self {
                headers: Vec::new(),
                // Fragment header (RFC 8200 section 4.5), and the piece as it is.
                upper: Upper::Other(44),
                payload: fragment,
                ..self.clone()
            }
        };
        whole.chunks(size).enumerate().map(piece).collect()
    }

    /// The frame as octets, with right lengths and checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let segment = self.segment();
        let chain: usize = self.headers.iter().map(|(_, octets)| octets.len()).sum();
        let mut frame = Vec::new();
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        frame.extend([0x86, 0xdd]);
        frame.extend((6 << 28 | self.flow).to_be_bytes());
        let len = u16::try_from(chain + segment.len()).expect("fits a packet");
        frame.extend(len.to_be_bytes());
        frame.extend([self.first_header(), self.hop_limit]);
        frame.extend(self.src);
        frame.extend(self.dst);
        for (n, (_, octets)) in self.headers.iter().enumerate() {
            let next = self.headers.get(n + 1);
            frame.push(next.map_or(self.number(), |(number, _)| *number));
            frame.extend(&octets[1..]);
        }
        frame.extend(segment);
        frame
    }

    /// What is wrong with a frame: its lengths, or the checksum of a UDP datagram, TCP segment or ICMPv6 message
    /// without extension headers.
    ///
    /// # Errors
    /// The text says what.
    pub fn check(bytes: &[u8]) -> Result<(), String> {
        let ip = bytes.get(ETHERNET..).ok_or("cut short")?;
        let header: &[u8; IPV6] = ip.first_chunk().ok_or("no IPv6 header")?;
        if header[0] >> 4 != 6 || bytes[12..14] != [0x86, 0xdd] {
            return Err("not IPv6".to_owned());
        }
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let segment = &ip[IPV6..];
        if segment.len() != len {
            return Err(format!("length {len} in {} octets", segment.len()));
        }
        let mut covered = header[8..40].to_vec();
        covered.extend(u32::try_from(len).expect("fits").to_be_bytes());
        covered.extend([0, 0, 0, header[6]]);
        covered.extend(segment);
        match header[6] {
            6 | 17 | 58 if sum(&covered) != 0xffff => Err("checksum".to_owned()),
            _ => Ok(()),
        }
    }

    fn number(&self) -> u8 {
        match self.upper {
            Upper::Udp(..) => 17,
            Upper::Tcp { .. } => 6,
            Upper::Icmp(..) => 58,
            Upper::Other(number) => number,
        }
    }

    fn first_header(&self) -> u8 {
        self.headers
            .first()
            .map_or(self.number(), |(number, _)| *number)
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        let field = match self.upper {
            Upper::Udp(from, to) => {
                let len = u16::try_from(8 + self.payload.len()).expect("fits");
                for word in [from, to, len, 0] {
                    segment.extend(word.to_be_bytes());
                }
                6
            }
            Upper::Tcp { ports, flags } => {
                segment.extend(ports.0.to_be_bytes());
                segment.extend(ports.1.to_be_bytes());
                segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                16
            }
            Upper::Icmp(kind, code, rest) => {
                segment.extend([kind, code, 0, 0]);
                segment.extend(rest);
                2
            }
            Upper::Other(_) => return self.payload.clone(),
        };
        segment.extend(&self.payload);
        let mut covered = self.src.to_vec();
        covered.extend(self.dst);
        covered.extend(u32::try_from(segment.len()).expect("fits").to_be_bytes());
        covered.extend([0, 0, 0, self.number()]);
        covered.extend(&segment);
        let checksum = match !sum(&covered) {
            0 => 0xffff,
            checksum => checksum,
        };
        segment[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        segment
    }
}

/// One's complement sum, folded (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u64;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        total += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).expect("folded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_good_and_every_flipped_octet_of_a_segment_is_noticed() {
        let (a, b) = (([1; 16], 5000), ([2; 16], 53));
        for frame in [
            Frame6::udp(a, b),
            Frame6::tcp(a, b, 2),
            Frame6::echo(a.0, b.0, 128, 7),
        ] {
            let bytes = frame.bytes();
            assert_eq!(Frame6::check(&bytes), Ok(()));
            for at in ETHERNET + IPV6..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 0x55;
                assert!(Frame6::check(&bad).is_err(), "octet {at}");
            }
        }
    }

    #[test]
    fn fragments_put_together_are_the_packet() {
        let frame = Frame6::udp(([1; 16], 5000), ([2; 16], 53));
        let pieces = frame.fragments(7, 16);
        assert_eq!(pieces.len(), 2);
        let whole: Vec<u8> = pieces
            .iter()
            .flat_map(|p| p.payload[8..].to_vec())
            .collect();
        assert_eq!(whole, frame.bytes()[ETHERNET + IPV6..]);
        assert_eq!(pieces[0].payload[..4], [17, 0, 0, 1]);
        assert_eq!(pieces[1].payload[..4], [17, 0, 0, 16]);
    }
}
