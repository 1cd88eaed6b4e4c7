//! What a refused packet says of itself, and the ICMP errors about it.
//!
//! Read before editing: RFC 792, RFC 1122 section 3.2.2, RFC 1812 section 4.3.2, RFC 4443 sections 2.4 and 3.1.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iwf_common::refusal::Side;

/// IANA protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// RFC 9293 section 3.1.
const TCP_HEADER: usize = 20;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// RFC 1812 section 4.3.2.3: octets of an ICMP datagram, at most.
const MOST4: usize = 576;
/// RFC 4443 section 2.4 (c): the same for ICMPv6, the smallest MTU.
const MOST6: usize = 1280;
const IPV4: usize = 20;
const IPV6: usize = 40;
const ICMP_HEADER: usize = 8;
/// RFC 1812 section 4.3.2.5: internetwork control, routine service.
const TOS: u8 = 0xc0;
const TTL: u8 = 64;

/// RFC 792: destination unreachable.
const UNREACHABLE4: u8 = 3;
const PORT_UNREACHABLE4: u8 = 3;
const PROHIBITED4: u8 = 13;
/// RFC 4443 section 3.1: destination unreachable, communication administratively prohibited.
const UNREACHABLE6: u8 = 1;
const PROHIBITED6: u8 = 1;

/// A TCP connection as a packet from the WAN names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// Who asks.
    pub from: (IpAddr, u16),
    /// Whom.
    pub to: (IpAddr, u16),
}

/// Who an error about an IPv4 packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// Whom the packet was for.
    Addressee,
    /// The router, by the address that the kernel finds.
    Router,
}

/// A refused packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it was met.
    pub side: Side,
    /// Its sender.
    pub from: IpAddr,
    /// Its destination.
    pub to: IpAddr,
    /// If it is the first segment of a connection: which, and its sequence number, the same in every repetition.
    pub syn: Option<(Connection, u32)>,
    /// Its head, as its sender sent it.
    head: Vec<u8>,
}

impl Refused {
    /// Reads the head of a packet. `None`: nobody is told about such a packet (RFC 1122 section 3.2.2), or it cannot be
    /// read.
    pub fn read(side: Side, mut head: Vec<u8>) -> Option<Self> {
        let (from, to, transport) = match head.first()? >> 4 {
            4 => read4(&head)?,
            6 => read6(&head)?,
            _ => return None,
        };
        if !is_host(from) || !is_host(to) || from == to {
            return None;
        }
        let segment = transport.and_then(|at| head.get(at..));
        let syn = segment.and_then(|segment| syn(from, to, segment));
        if side == Side::Forwarded {
            undo_hop(&mut head)?;
        }
        Some(Self {
            side,
            from,
            to,
            syn,
            head,
        })
    }

    /// The error about it: an ICMPv6 message without a checksum, or an IPv4 packet whose source is left to the kernel
    /// where the router speaks.
    pub fn error(&self, speaker: Speaker) -> Vec<u8> {
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let source = match speaker {
                    Speaker::Addressee => to,
                    Speaker::Router => Ipv4Addr::UNSPECIFIED,
                };
                let code = match self.side {
                    Side::Wan => PORT_UNREACHABLE4,
                    Side::Lan | Side::Forwarded => PROHIBITED4,
                };
                error4(source, from, code, &self.head)
            }
            _ => error6(&self.head),
        }
    }
}

/// Addresses, and where the transport header of TCP begins. `None` for what no error is sent about.
fn read4(head: &[u8]) -> Option<(IpAddr, IpAddr, Option<usize>)> {
    let ip: &[u8; IPV4] = head.first_chunk()?;
    let header = usize::from(ip[0] & 15) * 4;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff;
    // RFC 792: the header and 64 bits are quoted.
    if header < IPV4 || fragment != 0 || head.len() < header + 8 {
        return None;
    }
    if ip[9] == ICMP && !matches!(head.get(header), Some(0 | 8)) {
        return None;
    }
    let addr = |at: usize| Some(Ipv4Addr::from(*head.get(at..)?.first_chunk::<4>()?).into());
    Some((addr(12)?, addr(16)?, (ip[9] == TCP).then_some(header)))
}

fn read6(head: &[u8]) -> Option<(IpAddr, IpAddr, Option<usize>)> {
    /// As many as the programs walk.
    const HEADERS: usize = 8;
    let ip: &[u8; IPV6] = head.first_chunk()?;
    let addr = |at: usize| Some(Ipv6Addr::from(*head.get(at..)?.first_chunk::<16>()?).into());
    let (from, to) = (addr(8)?, addr(24)?);
    let (mut next, mut at) = (ip[6], IPV6);
    for _ in 0..=HEADERS {
        match next {
            TCP => return Some((from, to, Some(at))),
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [number, len] = *head.get(at..)?.first_chunk()?;
                next = number;
                at += (usize::from(len) + 1) * 8;
            }
            FRAGMENT => {
                let [number, _, high, low] = *head.get(at..)?.first_chunk()?;
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    return None;
                }
                next = number;
                at += 8;
            }
            // RFC 4443 section 2.4 (e.1) and (e.2): errors and redirects are below 128 or are 137.
            58 if !matches!(head.get(at), Some(128 | 129)) => return None,
            _ => return Some((from, to, None)),
        }
    }
    None
}

fn syn(from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<(Connection, u32)> {
    let tcp: &[u8; TCP_HEADER] = segment.first_chunk()?;
    if tcp[13] & (SYN | ACK | RST | FIN) != SYN {
        return None;
    }
    let connection = Connection {
        from: (from, u16::from_be_bytes([tcp[0], tcp[1]])),
        to: (to, u16::from_be_bytes([tcp[2], tcp[3]])),
    };
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    Some((connection, sequence))
}

/// RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): only addresses that a single host may have.
fn is_host(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            let [first, ..] = addr.octets();
            !(first == 0 || first >= 240 || addr.is_loopback() || addr.is_multicast())
        }
        IpAddr::V6(addr) => {
            let of_link = addr.is_unspecified() || addr.is_unicast_link_local();
            !(of_link || addr.is_loopback() || addr.is_multicast())
        }
    }
}

/// Gives back what the stack has taken from the TTL, so that the sender knows its packet.
fn undo_hop(head: &mut [u8]) -> Option<()> {
    if head.first()? >> 4 == 6 {
        let hops = head.get_mut(7)?;
        *hops = hops.saturating_add(1);
        return Some(());
    }
    let len = usize::from(head.first()? & 15) * 4;
    let header = head.get_mut(..len)?;
    let ttl = header.get_mut(8)?;
    *ttl = ttl.saturating_add(1);
    write_checksum(header, 10)
}

fn error4(source: Ipv4Addr, to: Ipv4Addr, code: u8, about: &[u8]) -> Vec<u8> {
    let quote = quote(about, MOST4 - IPV4 - ICMP_HEADER);
    let total = IPV4 + ICMP_HEADER + quote.len();
    let [high, low] = u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes();
    // Identification and flags are zero: the kernel chooses the first.
    let mut packet = vec![0x45, TOS, high, low, 0, 0, 0, 0, TTL, ICMP, 0, 0];
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend([UNREACHABLE4, code, 0, 0, 0, 0, 0, 0]);
    packet.extend(quote);
    let (header, message) = packet.split_at_mut(IPV4);
    write_checksum(header, 10);
    write_checksum(message, 2);
    packet
}

/// The kernel knows the source address, and with it the checksum.
fn error6(about: &[u8]) -> Vec<u8> {
    let mut message = vec![UNREACHABLE6, PROHIBITED6, 0, 0, 0, 0, 0, 0];
    message.extend(quote(about, MOST6 - IPV6 - ICMP_HEADER));
    message
}

fn quote(about: &[u8], most: usize) -> &[u8] {
    about.get(..most).unwrap_or(about)
}

/// RFC 1071 over all of `data`, with the field at `at` counted as zero and written.
fn write_checksum(data: &mut [u8], at: usize) -> Option<()> {
    data.get_mut(at..at + 2)?.fill(0);
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        let high = pair.first().copied().unwrap_or(0);
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([high, low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let field = !u16::try_from(sum).unwrap_or(u16::MAX);
    data.get_mut(at..at + 2)?
        .copy_from_slice(&field.to_be_bytes());
    Some(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const REMOTE: [u8; 4] = [11, 22, 33, 4];
    pub(crate) const WAN: [u8; 4] = [100, 64, 0, 2];
    const HOST: [u8; 4] = [192, 168, 1, 10];

    /// RFC 1071 section 4.1, written without looking at the code above.
    fn is_summed(data: &[u8]) -> bool {
        let mut total = 0u64;
        for (at, octet) in data.iter().enumerate() {
            total += u64::from(*octet) << if at % 2 == 0 { 8 } else { 0 };
        }
        total.is_multiple_of(0xffff) && total != 0
    }

    fn ipv4(src: [u8; 4], dst: [u8; 4], proto: u8, payload: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x45, 0, total[0], total[1], 9, 9, 0x40, 0, 63, proto, 0, 0];
        packet.extend(src);
        packet.extend(dst);
        write_checksum(&mut packet, 10);
        packet.extend(payload);
        packet
    }

    /// The segment as a packet from the WAN.
    pub(crate) fn segment(src: [u8; 4], port: u16, sequence: u32, flags: u8) -> Vec<u8> {
        let mut tcp = Vec::from(port.to_be_bytes());
        tcp.extend(5000u16.to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        ipv4(src, WAN, TCP, &tcp)
    }

    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], next, 60];
        packet.extend("2a00::9".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("2a01::10".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(rest);
        packet
    }

    #[test]
    fn a_remote_host_is_told_by_the_address_it_has_tried() {
        let packet = segment(REMOTE, 80, 7, SYN);
        let refused = Refused::read(Side::Wan, packet.clone()).unwrap();
        let connection = Connection {
            from: (REMOTE.into(), 80),
            to: (WAN.into(), 5000),
        };
        assert_eq!(refused.syn, Some((connection, 7)));
        let error = refused.error(Speaker::Addressee);
        assert_eq!(error[..2], [0x45, 0xc0]);
        assert_eq!(error[2..4], [0, 68]);
        assert_eq!(error[8..10], [64, 1]);
        assert_eq!((&error[12..16], &error[16..20]), (&WAN[..], &REMOTE[..]));
        assert!(is_summed(&error[..20]) && is_summed(&error[20..]));
        assert_eq!(error[20..22], [3, 3]);
        assert_eq!(error[24..28], [0; 4]);
        assert_eq!(error[28..], packet);
        // Of a host with an address of its own the router says it.
        let error = refused.error(Speaker::Router);
        assert_eq!((&error[12..16], &error[16..20]), (&[0; 4][..], &REMOTE[..]));
        assert_eq!(error[20..22], [3, 3]);
    }

    #[test]
    fn a_lan_host_is_told_with_as_much_as_fits() {
        let packet = ipv4(HOST, REMOTE, 17, &[7; 1200]);
        let error = Refused::read(Side::Lan, packet.clone())
            .unwrap()
            .error(Speaker::Router);
        assert_eq!(error.len(), 576);
        assert_eq!(error[2..4], [2, 64]);
        assert_eq!((&error[12..16], &error[16..20]), (&[0; 4][..], &HOST[..]));
        assert_eq!(error[20..22], [3, 13]);
        assert_eq!(error[28..], packet[..548]);
        assert!(is_summed(&error[..20]) && is_summed(&error[20..]));
    }

    #[test]
    fn what_the_stack_has_forwarded_is_quoted_as_it_was_sent() {
        let sent = ipv4(HOST, REMOTE, 17, &[7; 9]);
        let mut forwarded = sent.clone();
        forwarded[8] -= 1;
        write_checksum(&mut forwarded[..20], 10);
        let error = Refused::read(Side::Forwarded, forwarded)
            .unwrap()
            .error(Speaker::Router);
        assert_eq!(error[28..], sent);
        assert!(is_summed(&error[20..]), "an odd number of octets");
    }

    #[test]
    fn icmpv6_quotes_up_to_the_smallest_mtu() {
        let mut tcp = segment(REMOTE, 80, 7, SYN).split_off(20);
        tcp.extend([0; 1300]);
        let packet = ipv6(TCP, &tcp);
        let error = Refused::read(Side::Wan, packet.clone())
            .unwrap()
            .error(Speaker::Router);
        assert_eq!(error[..8], [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(error[8..], packet[..1232]);
    }

    #[test]
    fn a_syn_is_found_behind_extension_headers() {
        let tcp = segment(REMOTE, 80, 7, SYN).split_off(20);
        let first = [&[TCP, 0, 0, 1, 0, 0, 0, 9][..], &tcp].concat();
        let options = [&[FRAGMENT, 0, 1, 4, 0, 0, 0, 0][..], &first].concat();
        let refused = Refused::read(Side::Wan, ipv6(DESTINATION, &options)).unwrap();
        assert!(refused.syn.is_some());
        let later = [&[TCP, 0, 0, 8, 0, 0, 0, 9][..], &tcp].concat();
        assert_eq!(Refused::read(Side::Wan, ipv6(FRAGMENT, &later)), None);
        let endless = [60, 0, 1, 4, 0, 0, 0, 0].repeat(20);
        assert_eq!(Refused::read(Side::Wan, ipv6(DESTINATION, &endless)), None);
    }

    #[test]
    fn nobody_is_told_about_what_must_not_be_answered() {
        let mut later = ipv4(HOST, REMOTE, 17, &[0; 8]);
        later[7] = 3;
        let echo = ipv4(HOST, REMOTE, ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]);
        assert!(Refused::read(Side::Lan, echo).is_some());
        let silent = [
            later,
            ipv4(HOST, REMOTE, ICMP, &[3, 1, 0, 0, 0, 0, 0, 0]),
            ipv4(HOST, REMOTE, 17, &[0; 7]),
            ipv4([224, 0, 0, 1], REMOTE, 17, &[0; 8]),
            ipv4([255; 4], REMOTE, 17, &[0; 8]),
            ipv4([0; 4], REMOTE, 17, &[0; 8]),
            ipv4([127, 0, 0, 1], REMOTE, 17, &[0; 8]),
            ipv4(REMOTE, REMOTE, 17, &[0; 8]),
            ipv4(HOST, [239, 1, 1, 1], 17, &[0; 8]),
            ipv6(58, &[1, 1, 0, 0, 0, 0, 0, 0]),
            ipv6(58, &[137, 0, 0, 0, 0, 0, 0, 0]),
            vec![0x50; 40],
            Vec::new(),
        ];
        for packet in silent {
            assert_eq!(Refused::read(Side::Lan, packet.clone()), None, "{packet:?}");
        }
        for flags in [SYN | ACK, SYN | RST, ACK, RST, 0] {
            let refused = Refused::read(Side::Wan, segment(REMOTE, 80, 7, flags)).unwrap();
            assert_eq!(refused.syn, None);
        }
    }

    /// Whatever comes from the ring, nothing panics.
    #[test]
    fn a_packet_may_end_anywhere() {
        let tcp = segment(REMOTE, 80, 7, SYN);
        let options = [60, 0, 1, 4, 0, 0, 0, 0, TCP, 0, 1, 4, 0, 0, 0, 0];
        for packet in [
            tcp.clone(),
            ipv6(DESTINATION, &[&options[..], &tcp].concat()),
        ] {
            for end in 0..packet.len() {
                for side in [Side::Wan, Side::Forwarded] {
                    if let Some(refused) = Refused::read(side, packet[..end].to_vec()) {
                        assert!(refused.error(Speaker::Router).len() <= MOST6);
                    }
                }
            }
        }
    }
}
