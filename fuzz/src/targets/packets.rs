//! Packets that the programs in the kernel leave to the daemon: of strangers and of LAN hosts, as they are.

use std::net::{IpAddr, Ipv4Addr};

use iwf_common::refusal::Side;
use iwf_userspace::wire::refused::{Refused, Speaker};
use iwf_userspace::wire::softwire::{Inside, segments};
use iwf_userspace::wire::udp;

use super::{count, ignore};

/// One packet, behind two octets that say how it is met.
pub(super) fn packets(octets: &[u8]) -> usize {
    let [how, size, packet @ ..] = octets else {
        return 0;
    };
    let side = match how % 3 {
        0 => Side::Wan,
        1 => Side::Lan,
        _ => Side::Forwarded,
    };
    let refused = Refused::read(side, packet.to_vec());
    if let Some(refused) = &refused {
        for speaker in [Speaker::Addressee, Speaker::Router] {
            let error = refused.error(speaker);
            let (header, most) = match refused.from {
                IpAddr::V4(_) => (28, 576),
                IpAddr::V6(_) => (8, 1240),
            };
            assert!((header..=most).contains(&error.len()), "{}", error.len());
            assert!(error.len() - header <= packet.len());
        }
    }
    let [goes, comes] = judge(packet);
    let pieces = cut(packet, usize::from(*size) * 8);
    ignore(udp::payload(packet, 5350));
    let udp = udp::in_ipv4(packet).is_some();
    count([refused.is_some(), goes, comes, pieces > 1, udp])
}

/// Whether it may go into a softwire, and come out of it.
fn judge(packet: &[u8]) -> [bool; 2] {
    let inside = Inside {
        lan: vec![(Ipv4Addr::new(192, 168, 1, 0), 24)],
        own: vec![Ipv4Addr::new(192, 168, 1, 1)],
        mss: 1400,
    };
    let (mut out, mut back) = (packet.to_vec(), packet.to_vec());
    let judged = [inside.outbound(&mut out), inside.inbound(&mut back)];
    assert_eq!((out.len(), back.len()), (packet.len(), packet.len()));
    judged.map(|judged| {
        assert!(judged.is_err() || judged.is_ok_and(|len| len <= packet.len()));
        judged.is_ok()
    })
}

/// Into how many pieces it is cut.
fn cut(packet: &[u8], most: usize) -> usize {
    let cut = segments(packet, most);
    if let [whole] = cut.as_slice() {
        assert_eq!(whole, packet);
        return 1;
    }
    let payload = |packet: &[u8]| {
        let header = usize::from(packet.first()? & 15) * 4;
        let tcp = usize::from(packet.get(header + 12)? >> 4) * 4;
        packet.get(header + tcp..).map(<[u8]>::to_vec)
    };
    let mut joined = Vec::new();
    for segment in &cut {
        assert!(segment.len() <= most, "{} of {most}", segment.len());
        joined.extend(payload(segment).expect("a segment has a payload"));
    }
    assert_eq!(Some(joined), payload(packet));
    cut.len()
}
