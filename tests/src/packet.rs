//! Frames for program runs: built field by field, and judged by code that shares nothing with what is tested.

/// Octets of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A transport header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// With or without a checksum.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
        /// `false`: the field is 0.
        checksum: bool,
    },
    /// Without options.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Flags octet.
        flags: u8,
    },
    /// A query or its reply.
    Icmp {
        /// Type, for example 8 for an echo request.
        kind: u8,
        /// Identifier.
        id: u16,
    },
    /// An ICMP error. The payload is what it quotes.
    IcmpError {
        /// Type, for example 3 for unreachable.
        kind: u8,
        /// Code.
        code: u8,
        /// The second word: unused, a pointer, an MTU, a length (RFC 4884).
        rest: [u8; 4],
    },
    /// Another protocol with the payload as it is.
    Other(u8),
}

/// An IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// Source MAC address.
    pub src_mac: [u8; 6],
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Time to live.
    pub ttl: u8,
    /// DSCP and ECN octet.
    pub tos: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// IPv4 options, a multiple of 4 octets.
    pub options: Vec<u8>,
    /// Transport header.
    pub transport: Transport,
    /// What follows it.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame with ordinary values in all other fields.
    pub fn new(src: [u8; 4], dst: [u8; 4], transport: Transport) -> Self {
        Self {
            dst_mac: [2, 0, 0, 0, 0, 1],
            src_mac: [2, 0, 0, 0, 0, 2],
            src,
            dst,
            ttl: 64,
            tos: 0x28,
            fragment: 0x4000,
            options: Vec::new(),
            transport,
            payload: b"0123456789abcdef".to_vec(),
        }
    }

    /// A UDP datagram with checksum.
    pub fn udp(src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> Self {
        let ports = (src.1, dst.1);
        Self::new(
            src.0,
            dst.0,
            Transport::Udp {
                ports,
                checksum: true,
            },
        )
    }

    /// A TCP segment.
    pub fn tcp(src: ([u8; 4], u16), dst: ([u8; 4], u16), flags: u8) -> Self {
        let ports = (src.1, dst.1);
        Self::new(src.0, dst.0, Transport::Tcp { ports, flags })
    }

    /// An ICMP message with an identifier.
    pub fn icmp(src: [u8; 4], dst: [u8; 4], kind: u8, id: u16) -> Self {
        Self::new(src, dst, Transport::Icmp { kind, id })
    }

    /// An ICMP error that quotes what is given.
    pub fn icmp_error(src: [u8; 4], dst: [u8; 4], kind: (u8, u8), quote: Vec<u8>) -> Self {
        let transport = Transport::IcmpError {
            kind: kind.0,
            code: kind.1,
            rest: [0; 4],
        };
        Self {
            payload: quote,
            ..Self::new(src, dst, transport)
        }
    }

    /// This packet as an ICMP error quotes it: the IPv4 header and so many octets behind it, or all there are.
    pub fn quoted(&self, octets: usize) -> Vec<u8> {
        let mut quote = self.bytes().split_off(ETHERNET);
        quote.truncate(20 + self.options.len() + octets);
        quote
    }

    /// Changes the source port, or the identifier of an ICMP query.
    pub fn set_src_port(&mut self, port: u16) {
        match &mut self.transport {
            Transport::Udp { ports, .. } | Transport::Tcp { ports, .. } => ports.0 = port,
            Transport::Icmp { id, .. } => *id = port,
            Transport::IcmpError { .. } | Transport::Other(_) => {}
        }
    }

    /// Changes the destination port, or the identifier of an ICMP reply.
    pub fn set_dst_port(&mut self, port: u16) {
        match &mut self.transport {
            Transport::Udp { ports, .. } | Transport::Tcp { ports, .. } => ports.1 = port,
            Transport::Icmp { id, .. } => *id = port,
            Transport::IcmpError { .. } | Transport::Other(_) => {}
        }
    }

    /// The source port, or the identifier of an ICMP query.
    pub fn src_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Udp { ports, .. } | Transport::Tcp { ports, .. } => Some(ports.0),
            Transport::Icmp { id, .. } => Some(id),
            Transport::IcmpError { .. } | Transport::Other(_) => None,
        }
    }

    /// The destination port, or the identifier of an ICMP reply.
    pub fn dst_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Udp { ports, .. } | Transport::Tcp { ports, .. } => Some(ports.1),
            Transport::Icmp { id, .. } => Some(id),
            Transport::IcmpError { .. } | Transport::Other(_) => None,
        }
    }

    /// The frame as octets, with right lengths and checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let segment = self.segment();
        let header_len = 20 + self.options.len();
        let total = u16::try_from(header_len + segment.len()).expect("fits a packet");
        let mut frame = Vec::new();
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        frame.extend([0x08, 0x00]);
        let ihl = u8::try_from(header_len / 4).expect("at most 60 octets");
        let mut ip = vec![0x40 | ihl, self.tos];
        ip.extend(total.to_be_bytes());
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.protocol(), 0, 0]);
        ip.extend(self.src);
        ip.extend(self.dst);
        ip.extend(&self.options);
        let checksum = !sum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(ip);
        frame.extend(segment);
        frame
    }

    /// Reads a frame back.
    ///
    /// # Errors
    /// If a length or a checksum is wrong; the text says which.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let at = |from: usize, len: usize| {
            bytes
                .get(from..from + len)
                .ok_or_else(|| format!("cut short at {from}"))
        };
        let word = |from: usize| at(from, 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        if word(12)? != 0x0800 {
            return Err("not IPv4".to_owned());
        }
        let header_len = usize::from(at(ETHERNET, 1)?[0] & 15) * 4;
        let total = usize::from(word(ETHERNET + 2)?);
        if ETHERNET + total != bytes.len() {
            return Err(format!("length {total} in {} octets", bytes.len()));
        }
        if sum(at(ETHERNET, header_len)?) != 0xffff {
            return Err("IPv4 header checksum".to_owned());
        }
        let array = |from: usize| at(from, 4).map(|b| [b[0], b[1], b[2], b[3]]);
        let mac = |from: usize| at(from, 6).map(|b| [b[0], b[1], b[2], b[3], b[4], b[5]]);
        let (src, dst) = (array(ETHERNET + 12)?, array(ETHERNET + 16)?);
        let l4 = ETHERNET + header_len;
        let segment = &bytes[l4..];
        let protocol = at(ETHERNET + 9, 1)?[0];
        let mut pseudo = Vec::new();
        pseudo.extend(src);
        pseudo.extend(dst);
        pseudo.extend([0, protocol]);
        pseudo.extend(u16::try_from(segment.len()).expect("fits").to_be_bytes());
        pseudo.extend(segment);
        let (transport, len) = match protocol {
            17 => {
                let checksum = word(l4 + 6)? != 0;
                if checksum && sum(&pseudo) != 0xffff {
                    return Err("UDP checksum".to_owned());
                }
                let ports = (word(l4)?, word(l4 + 2)?);
                (Transport::Udp { ports, checksum }, 8)
            }
            6 => {
                if sum(&pseudo) != 0xffff {
                    return Err("TCP checksum".to_owned());
                }
                let ports = (word(l4)?, word(l4 + 2)?);
                let flags = at(l4 + 13, 1)?[0];
                (Transport::Tcp { ports, flags }, 20)
            }
            1 => {
                if sum(segment) != 0xffff {
                    return Err("ICMP checksum".to_owned());
                }
                let kind = at(l4, 1)?[0];
                let transport = match kind {
                    3..=5 | 11 | 12 => Transport::IcmpError {
                        kind,
                        code: at(l4 + 1, 1)?[0],
                        rest: array(l4 + 4)?,
                    },
                    _ => Transport::Icmp {
                        kind,
                        id: word(l4 + 4)?,
                    },
                };
                (transport, 8)
            }
            other => (Transport::Other(other), 0),
        };
        Ok(Self {
            dst_mac: mac(0)?,
            src_mac: mac(6)?,
            src,
            dst,
            ttl: at(ETHERNET + 8, 1)?[0],
            tos: at(ETHERNET + 1, 1)?[0],
            fragment: word(ETHERNET + 6)?,
            options: at(ETHERNET + 20, header_len - 20)?.to_vec(),
            transport,
            payload: at(l4 + len, segment.len() - len)?.to_vec(),
        })
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Udp { .. } => 17,
            Transport::Tcp { .. } => 6,
            Transport::Icmp { .. } | Transport::IcmpError { .. } => 1,
            Transport::Other(number) => number,
        }
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        let field = match self.transport {
            Transport::Udp { ports, checksum } => {
                segment.extend(ports.0.to_be_bytes());
                segment.extend(ports.1.to_be_bytes());
                let len = u16::try_from(8 + self.payload.len()).expect("fits");
                segment.extend(len.to_be_bytes());
                segment.extend([0, 0]);
                checksum.then_some((6, true))
            }
            Transport::Tcp { ports, flags } => {
                segment.extend(ports.0.to_be_bytes());
                segment.extend(ports.1.to_be_bytes());
                segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                Some((16, true))
            }
            Transport::Icmp { kind, id } => {
                segment.extend([kind, 0, 0, 0]);
                segment.extend(id.to_be_bytes());
                segment.extend([0, 1]);
                Some((2, false))
            }
            Transport::IcmpError { kind, code, rest } => {
                segment.extend([kind, code, 0, 0]);
                segment.extend(rest);
                Some((2, false))
            }
            Transport::Other(_) => None,
        };
        segment.extend(&self.payload);
        let Some((offset, with_addresses)) = field else {
            return segment;
        };
        let mut covered = Vec::new();
        if with_addresses {
            covered.extend(self.src);
            covered.extend(self.dst);
            covered.extend([0, self.protocol()]);
            covered.extend(u16::try_from(segment.len()).expect("fits").to_be_bytes());
        }
        covered.extend(&segment);
        let mut checksum = !sum(&covered);
        if self.protocol() == 17 && checksum == 0 {
            checksum = 0xffff;
        }
        segment[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
        segment
    }
}

/// The fragments of a datagram, each a frame with `most` octets of it at most (a multiple of 8), and their
/// identification.
///
/// # Panics
/// If the datagram is larger than 65,535 octets.
pub fn split(frame: &Frame, most: usize, id: u16) -> Vec<Vec<u8>> {
    let whole = frame.bytes();
    let header_len = 20 + frame.options.len();
    let (head, data) = whole.split_at(ETHERNET + header_len);
    let mut fragments = Vec::new();
    for (index, part) in data.chunks(most).enumerate() {
        let offset = index * most;
        let more = offset + part.len() < data.len();
        let mut bytes = head.to_vec();
        bytes.extend(part);
        let place = u16::try_from(offset / 8).expect("fits a datagram");
        let field = place | if more { 0x2000 } else { 0 };
        let total = u16::try_from(header_len + part.len()).expect("fits a packet");
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        bytes[18..20].copy_from_slice(&id.to_be_bytes());
        bytes[20..22].copy_from_slice(&field.to_be_bytes());
        bytes[24..26].fill(0);
        let checksum = !sum(&bytes[ETHERNET..ETHERNET + header_len]);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        fragments.push(bytes);
    }
    fragments
}

/// One's complement sum, folded (RFC 1071). All ones over what a right checksum covers.
pub fn sum(bytes: &[u8]) -> u16 {
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
    fn frames_read_back() {
        let (a, b) = (([192, 168, 1, 10], 5000), ([11, 22, 33, 4], 53));
        let mut with_options = Frame::udp(a, b);
        with_options.options = vec![1, 1, 1, 0];
        for frame in [
            Frame::udp(a, b),
            Frame::tcp(a, b, 2),
            Frame::icmp(a.0, b.0, 8, 77),
            Frame::icmp_error(b.0, a.0, (3, 4), Frame::udp(a, b).quoted(8)),
            with_options,
        ] {
            assert_eq!(Frame::parse(&frame.bytes()), Ok(frame));
        }
    }

    #[test]
    fn every_flipped_octet_behind_the_mac_addresses_is_noticed_or_seen() {
        let frame = Frame::tcp(([192, 168, 1, 10], 5000), ([11, 22, 33, 4], 53), 2);
        let bytes = frame.bytes();
        for at in 12..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x55;
            assert_ne!(Frame::parse(&bad), Ok(frame.clone()), "octet {at}");
        }
    }
}
