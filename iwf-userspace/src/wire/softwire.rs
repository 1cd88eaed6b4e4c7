//! IPv4 packets that go into the DS-Lite softwire or have come out of it.
//!
//! Read before editing: RFC 6333 sections 5 and 7, RFC 791 section 3.1, RFC 9293 section 3.7.1.
//!
//! The packet programs judge what takes the short way by the same rules; here is what they leave to the daemon.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

/// The CPE's own address inside (RFC 6333 section 5.7).
pub const B4: Ipv4Addr = Ipv4Addr::from_octets(iwf_common::softwire::B4_ADDR);

/// Octets of an IPv4 header without options.
const HEADER: usize = 20;
/// Octets of a TCP header without options.
const TCP_HEADER: usize = 20;
const TCP: u8 = 6;
/// RFC 9293 section 3.1.
const SYN: u8 = 2;
/// Loose and strict source route.
const SOURCE_ROUTES: [u8; 2] = [131, 137];
/// Options of one octet.
const END: u8 = 0;
const NOP: u8 = 1;
/// RFC 9293 section 3.2: the kind, and the length with it.
const MSS: (u8, usize) = (2, 4);

/// Whom the packets are of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Prefixes of the LAN as (network, prefix length).
    pub lan: Vec<(Ipv4Addr, u8)>,
    /// The CPE's addresses in them.
    pub own: Vec<Ipv4Addr>,
    /// Octets of the largest TCP segment that a SYN may announce; 0: as announced.
    pub mss: u16,
}

/// Why a packet does not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No IPv4, or its header contradicts itself.
    #[error("no whole IPv4 packet")]
    Malformed,
    /// With a source route.
    #[error("a source route")]
    SourceRoute,
    /// The source is not one that comes from this side.
    #[error("the source does not belong to its side")]
    Source,
    /// The destination is not one that is reached through the softwire.
    #[error("the destination is not on the other side")]
    Destination,
}

impl Inside {
    /// Judges a packet of the kernel that is for the AFTR, and lowers what a SYN announces. Returns its octets: what is
    /// behind them is none of it.
    ///
    /// # Errors
    /// It must not go out.
    pub fn outbound(&self, packet: &mut [u8]) -> Result<usize, Refused> {
        let len = check(packet)?;
        let (src, dst) = addresses(packet).ok_or(Refused::Malformed)?;
        if src != B4 && !self.has(src) {
            return Err(Refused::Source);
        }
        if !is_unicast(dst) || dst == B4 || self.has(dst) {
            return Err(Refused::Destination);
        }
        self.clamp(packet, len);
        Ok(len)
    }

    /// Judges a packet of the AFTR, as [`Self::outbound`].
    ///
    /// # Errors
    /// It must not come in.
    pub fn inbound(&self, packet: &mut [u8]) -> Result<usize, Refused> {
        let len = check(packet)?;
        let (src, dst) = addresses(packet).ok_or(Refused::Malformed)?;
        if !is_unicast(src) || src == B4 || self.has(src) {
            return Err(Refused::Source);
        }
        if dst != B4 && (!self.has(dst) || self.own.contains(&dst)) {
            return Err(Refused::Destination);
        }
        self.clamp(packet, len);
        Ok(len)
    }

    fn has(&self, addr: Ipv4Addr) -> bool {
        self.lan.iter().any(|(network, len)| {
            let mask = u32::MAX
                .checked_shl(32 - u32::from((*len).min(32)))
                .unwrap_or(0);
            u32::from(addr) & mask == u32::from(*network) & mask
        })
    }

    /// Lowers the maximum segment size that the whole SYN of `len` octets announces.
    fn clamp(&self, packet: &mut [u8], len: usize) {
        if self.mss != 0 {
            let packet = packet.get_mut(..len).unwrap_or_default();
            clamp(packet, self.mss).unwrap_or_default();
        }
    }
}

/// Cuts a TCP segment that the kernel has put together of several ones (GRO) into such that fit `most` octets, with
/// all that is counted counted anew. Any other packet, and one that fits, stays whole.
pub fn segments(packet: &[u8], most: usize) -> Vec<Vec<u8>> {
    cut(packet, most).unwrap_or_else(|| vec![packet.to_vec()])
}

/// RFC 9293 section 3.1: what belongs to the last segment only, and RFC 3168 section 6.1.2: to the first.
const LAST_ONLY: u8 = 0x08 | 0x01;
const FIRST_ONLY: u8 = 0x80;

/// Nothing if there is nothing to cut.
fn cut(packet: &[u8], most: usize) -> Option<Vec<Vec<u8>>> {
    let header_len = header_len(packet)?;
    if packet.len() <= most || *packet.get(9)? != TCP || word(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let tcp_len = usize::from(*packet.get(header_len + 12)? >> 4) * 4;
    if header_len < HEADER || tcp_len < TCP_HEADER {
        return None;
    }
    let (headers, payload) = packet.split_at_checked(header_len + tcp_len)?;
    let size = most.checked_sub(headers.len()).filter(|size| *size > 0)?;
    let flags = *headers.get(header_len + 13)?;
    let first: u32 = u32::from_be_bytes(*headers.get(header_len + 4..)?.first_chunk()?);
    let identification = word(headers, 4)?;
    let pieces = payload.chunks(size);
    let count = pieces.len();
    let piece = |(n, payload): (usize, &[u8])| {
        let mut piece = [headers, payload].concat();
        let len = u16::try_from(piece.len()).ok()?;
        set_word(&mut piece, 2, len)?;
        let n16 = u16::try_from(n).ok()?;
        set_word(&mut piece, 4, identification.wrapping_add(n16))?;
        set_word(&mut piece, 10, 0)?;
        let checksum = !sum(piece.get(..header_len)?);
        set_word(&mut piece, 10, checksum)?;
        let sequence = first.wrapping_add(u32::try_from(n.checked_mul(size)?).ok()?);
        *piece.get_mut(header_len + 4..)?.first_chunk_mut()? = sequence.to_be_bytes();
        let mut kept = u8::MAX;
        if n > 0 {
            kept &= !FIRST_ONLY;
        }
        if n + 1 < count {
            kept &= !LAST_ONLY;
        }
        *piece.get_mut(header_len + 13)? = flags & kept;
        set_word(&mut piece, header_len + 16, 0)?;
        let covered = tcp_sum(&piece, header_len)?;
        set_word(&mut piece, header_len + 16, !covered)?;
        Some(piece)
    };
    pieces.enumerate().map(piece).collect()
}

/// The sum that the checksum of TCP covers (RFC 9293 section 3.1).
fn tcp_sum(packet: &[u8], header_len: usize) -> Option<u16> {
    let segment = packet.get(header_len..)?;
    let addresses = sum(packet.get(12..20)?);
    let len = u16::try_from(segment.len()).ok()?;
    let pseudo = add(add(addresses, u16::from(TCP)), len);
    Some(add(pseudo, sum(segment)))
}

/// Octets of the packet, if the header is in order.
fn check(packet: &[u8]) -> Result<usize, Refused> {
    let header_len = header_len(packet).ok_or(Refused::Malformed)?;
    let len = word(packet, 2).ok_or(Refused::Malformed)?;
    let header = packet.get(..header_len).ok_or(Refused::Malformed)?;
    let options = header.get(HEADER..).ok_or(Refused::Malformed)?;
    let len = usize::from(len);
    if len < header_len || len > packet.len() || sum(header) != u16::MAX {
        return Err(Refused::Malformed);
    }
    if has_source_route(options).ok_or(Refused::Malformed)? {
        return Err(Refused::SourceRoute);
    }
    Ok(len)
}

/// Octets of the header; nothing if it is none of IPv4.
fn header_len(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    (first >> 4 == 4).then_some(usize::from(first & 15) * 4)
}

fn addresses(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let src: [u8; 4] = *packet.get(12..)?.first_chunk()?;
    let dst: [u8; 4] = *packet.get(16..)?.first_chunk()?;
    Some((src.into(), dst.into()))
}

/// Neither a group's, nor everybody's, nor nobody's.
const fn is_unicast(addr: Ipv4Addr) -> bool {
    let [first, ..] = addr.octets();
    first != 0 && first != 127 && first < 224
}

/// Nothing if the options contradict their lengths.
fn has_source_route(options: &[u8]) -> Option<bool> {
    let mut rest = options;
    let mut found = false;
    while let Some((&kind, after)) = rest.split_first() {
        rest = match kind {
            END => break,
            NOP => after,
            _ => {
                let len = usize::from(*after.first()?);
                found |= SOURCE_ROUTES.contains(&kind);
                rest.get(len..).filter(|_| len >= 2)?
            }
        };
    }
    Some(found)
}

/// Nothing if the packet is no SYN with such an option, or announces less anyway.
fn clamp(packet: &mut [u8], most: u16) -> Option<()> {
    let header_len = header_len(packet)?;
    let fragment = word(packet, 6)? & 0x3fff;
    if *packet.get(9)? != TCP || fragment != 0 {
        return None;
    }
    let tcp = packet.get_mut(header_len..)?;
    let tcp_len = usize::from(*tcp.get(12)? >> 4) * 4;
    if *tcp.get(13)? & SYN == 0 {
        return None;
    }
    let options = tcp.get(TCP_HEADER..tcp_len)?;
    let at = TCP_HEADER + find_mss(options)? + 2;
    let old = word(tcp, at)?;
    if old <= most {
        return None;
    }
    let checksum = word(tcp, 16)?;
    // The field may lie across two words of the checksum: then it counts with its octets swapped.
    let counted = |value: u16| {
        if at.is_multiple_of(2) {
            value
        } else {
            value.swap_bytes()
        }
    };
    let new = !add(add(!checksum, !counted(old)), counted(most));
    set_word(tcp, 16, new)?;
    set_word(tcp, at, most)
}

/// Where in the options of TCP the maximum segment size is.
fn find_mss(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            END => return None,
            NOP => at += 1,
            kind => {
                let len = usize::from(*options.get(at + 1)?);
                if (kind, len) == MSS {
                    return Some(at);
                }
                at += if len >= 2 { len } else { return None };
            }
        }
    }
}

fn word(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*octets.get(at..)?.first_chunk()?))
}

fn set_word(octets: &mut [u8], at: usize, value: u16) -> Option<()> {
    *octets.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

/// RFC 1071: addition with the carry coming round.
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u16)
}

/// All ones if the checksum is right.
fn sum(octets: &[u8]) -> u16 {
    let (words, rest) = octets.as_chunks::<2>();
    let sum = words
        .iter()
        .fold(0, |sum, word| add(sum, u16::from_be_bytes(*word)));
    rest.iter()
        .fold(sum, |sum, octet| add(sum, u16::from_be_bytes([*octet, 0])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [u8; 4] = [192, 168, 1, 10];
    const OWN: [u8; 4] = [192, 168, 1, 1];
    const REMOTE: [u8; 4] = [11, 22, 33, 4];

    fn inside() -> Inside {
        Inside {
            lan: vec![(Ipv4Addr::new(192, 168, 1, 0), 24)],
            own: vec![OWN.into()],
            mss: 1420,
        }
    }

    /// An IPv4 packet with these options and this payload.
    fn packet(src: [u8; 4], dst: [u8; 4], proto: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = HEADER + options.len();
        let len = u16::try_from(header + payload.len()).unwrap();
        let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
        packet.extend(len.to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, proto, 0, 0]);
        packet.extend(src);
        packet.extend(dst);
        packet.extend(options);
        let sum = !sum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn udp(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
        packet(src, dst, 17, &[], &[0; 8])
    }

    #[test]
    fn either_side_has_its_own_addresses() {
        use Refused::{Destination, Source};
        let b4 = B4.octets();
        for (src, dst, out, back) in [
            (HOST, REMOTE, Ok(28), Err(Source)),
            (b4, REMOTE, Ok(28), Err(Source)),
            (REMOTE, HOST, Err(Source), Ok(28)),
            (REMOTE, b4, Err(Source), Ok(28)),
            (REMOTE, OWN, Err(Source), Err(Destination)),
            (REMOTE, [192, 168, 2, 1], Err(Source), Err(Destination)),
            (HOST, HOST, Err(Destination), Err(Source)),
            (HOST, [224, 0, 0, 1], Err(Destination), Err(Source)),
            ([127, 0, 0, 1], HOST, Err(Source), Err(Source)),
            ([255; 4], HOST, Err(Source), Err(Source)),
            // An ICMP error of the AFTR itself.
            ([192, 0, 0, 1], HOST, Err(Source), Ok(28)),
        ] {
            assert_eq!(
                inside().outbound(&mut udp(src, dst)),
                out,
                "{src:?} {dst:?}"
            );
            assert_eq!(
                inside().inbound(&mut udp(src, dst)),
                back,
                "{src:?} {dst:?}"
            );
        }
    }

    #[test]
    fn what_is_no_packet_does_not_go_through() {
        let whole = udp(REMOTE, HOST);
        for len in 0..whole.len() {
            let cut = inside().inbound(&mut whole[..len].to_vec());
            assert_eq!(cut, Err(Refused::Malformed), "{len}");
        }
        for at in 0..HEADER {
            let mut broken = whole.clone();
            broken[at] ^= 0x10;
            assert_ne!(inside().inbound(&mut broken), Ok(28), "octet {at}");
        }
        let mut padded = [whole, vec![7; 5]].concat();
        assert_eq!(inside().inbound(&mut padded), Ok(28));
    }

    #[test]
    fn options_pass_but_source_routes() {
        let with = |options: &[u8]| {
            let mut packet = packet(REMOTE, HOST, 17, options, &[0; 8]);
            inside().inbound(&mut packet)
        };
        assert_eq!(with(&[NOP, NOP, NOP, END]), Ok(32));
        assert_eq!(with(&[7, 3, 4, NOP]), Ok(32));
        assert_eq!(with(&[131, 3, 4, END]), Err(Refused::SourceRoute));
        assert_eq!(with(&[NOP, 137, 3, 4]), Err(Refused::SourceRoute));
        assert_eq!(with(&[7, 9, 4, END]), Err(Refused::Malformed));
        assert_eq!(with(&[7, 1, 4, END]), Err(Refused::Malformed));
    }

    fn syn(options: &[u8], flags: u8) -> Vec<u8> {
        let mut tcp = vec![0, 80, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        let words = (TCP_HEADER + options.len()) / 4;
        tcp.extend([u8::try_from(words << 4).unwrap(), flags, 16, 0, 0, 0, 0, 0]);
        tcp.extend(options);
        let sum = !sum_of_tcp(HOST, REMOTE, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        packet(HOST, REMOTE, TCP, &[], &tcp)
    }

    fn sum_of_tcp(src: [u8; 4], dst: [u8; 4], tcp: &[u8]) -> u16 {
        let len = u16::try_from(tcp.len()).unwrap().to_be_bytes();
        sum(&[&src[..], &dst, &[0, TCP], &len, tcp].concat())
    }

    #[test]
    fn a_syn_announces_what_fits() {
        let announced = |options: &[u8], flags, at: usize| {
            let mut packet = syn(options, flags);
            let len = inside().outbound(&mut packet).unwrap();
            assert_eq!(len, packet.len());
            assert_eq!(sum_of_tcp(HOST, REMOTE, &packet[HEADER..]), u16::MAX);
            u16::from_be_bytes([packet[40 + at], packet[41 + at]])
        };
        assert_eq!(announced(&[2, 4, 5, 180], SYN, 2), 1420);
        assert_eq!(announced(&[2, 4, 5, 180], SYN | 16, 2), 1420);
        assert_eq!(announced(&[2, 4, 2, 0], SYN, 2), 512);
        assert_eq!(announced(&[2, 4, 5, 180], 16, 2), 1460, "no SYN");
        // Not aligned.
        assert_eq!(announced(&[NOP, 2, 4, 5, 180, END, 0, 0], SYN, 3), 1420);
        assert_eq!(announced(&[3, 0, 4, 5], SYN, 2), 0x405, "left alone");
    }

    /// What GRO has joined comes apart again: every octet once, in its place, with right lengths and checksums.
    #[test]
    fn joined_segments_come_apart() {
        let payload: Vec<u8> = (0..5001).map(|at| (at % 251) as u8).collect();
        let all = FIRST_ONLY | LAST_ONLY | 16;
        let mut joined = syn(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], all);
        joined.extend(&payload);
        let len = u16::try_from(joined.len()).unwrap();
        set_word(&mut joined, 2, len).unwrap();
        let headers = joined.len() - payload.len();
        let pieces = segments(&joined, 1500);
        assert_eq!(pieces.len(), payload.len().div_ceil(1500 - headers));
        let mut seen: Vec<u8> = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            assert_eq!(check(piece), Ok(piece.len()), "piece {n}");
            assert!(piece.len() <= 1500);
            assert_eq!(sum_of_tcp(HOST, REMOTE, &piece[HEADER..]), u16::MAX);
            let sequence = u32::from_be_bytes(*piece[24..].first_chunk().unwrap());
            let first = u32::from_be_bytes(*joined[24..].first_chunk().unwrap());
            assert_eq!(sequence as usize, first as usize + seen.len());
            let flags = match n {
                0 => 16 | FIRST_ONLY,
                3 => 16 | LAST_ONLY,
                _ => 16,
            };
            assert_eq!(piece[33], flags, "piece {n}");
            seen.extend(&piece[headers..]);
        }
        assert_eq!(seen, payload);
        // What fits, and what is not TCP, stays whole.
        assert_eq!(segments(&pieces[0], 1500), pieces[..1]);
        let large = packet(HOST, REMOTE, 17, &[], &payload);
        assert_eq!(segments(&large, 1500), std::slice::from_ref(&large));
        for len in 0..60 {
            segments(&joined[..len], 20);
        }
    }

    /// Found by `cargo xtask fuzz`: the checksum of such a segment was written into what it carries.
    #[test]
    fn a_segment_whose_header_is_too_short_stays_whole() {
        for words in 0..5 {
            let mut large = syn(&[], 16);
            large.extend([7; 3000]);
            large[HEADER + 12] = words << 4;
            assert!(segments(&large, 1500) == [large], "{words} words of TCP");
        }
        let mut large = syn(&[], 16);
        large.extend([7; 3000]);
        large[0] = 0x44;
        assert!(segments(&large, 1500) == [large], "four words of IP");
    }
}
