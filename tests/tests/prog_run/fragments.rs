//! Datagrams in fragments (RFC 4787 REQ-13 and REQ-14, RFC 1858, RFC 3128, RFC 6864).
//!
//! What comes out is put together again and judged as the datagram it was.

use std::collections::BTreeSet;

use anyhow::Result;
use iwf_common::names;
use iwf_tests::packet::{ETHERNET, Frame, split};
use iwf_tests::prog::Delta;

use crate::bed::{
    Bed, DROP, HOST, HOST2, PASS, REDIRECT, REMOTE, SYN, Seen, TC_DROP, TC_NEXT, TC_REDIRECT, UDP,
    WAN, lan_frame, translated_in, translated_out, wan_frame, with_bed,
};

/// A datagram of each protocol, its answer, and whether the host's port may stay.
fn flows() -> Vec<(Frame, Frame)> {
    let large = |mut frame: Frame| {
        frame.fragment = 0;
        frame.payload = (0..3000u16).map(|n| (n % 251) as u8).collect();
        frame
    };
    let mut unchecked = Frame::udp((HOST, 5001), (REMOTE, 53));
    unchecked.transport = iwf_tests::packet::Transport::Udp {
        ports: (5001, 53),
        checksum: false,
    };
    let flows = [
        (
            Frame::udp((HOST, 5000), (REMOTE, 53)),
            Frame::udp((REMOTE, 53), (WAN, 5000)),
        ),
        (unchecked, Frame::udp((REMOTE, 53), (WAN, 5001))),
        (
            Frame::tcp((HOST, 5000), (REMOTE, 80), SYN),
            Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | 0x10),
        ),
        (
            Frame::icmp(HOST, REMOTE, 8, 77),
            Frame::icmp(REMOTE, WAN, 0, 77),
        ),
    ];
    flows
        .into_iter()
        .map(|(out, back)| (lan_frame(large(out)), wan_frame(large(back))))
        .collect()
}

/// Writes the checksum of the IPv4 header.
fn seal(bytes: &mut [u8], header_len: usize) {
    bytes[24..26].fill(0);
    let field = !sum(&bytes[ETHERNET..ETHERNET + header_len]);
    bytes[24..26].copy_from_slice(&field.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The datagram that fragments in order make, every checksum verified, and their one identification.
#[track_caller]
fn join(fragments: &[Vec<u8>]) -> (Frame, u16) {
    let header_len = usize::from(fragments[0][ETHERNET] & 15) * 4;
    let mut whole = fragments[0][..ETHERNET + header_len].to_vec();
    let ids: BTreeSet<[u8; 2]> = fragments.iter().map(|f| [f[18], f[19]]).collect();
    assert_eq!(ids.len(), 1, "one identification for one datagram");
    for fragment in fragments {
        assert_eq!(sum(&fragment[ETHERNET..ETHERNET + header_len]), 0xffff);
        let offset = usize::from(u16::from_be_bytes([fragment[20], fragment[21]]) & 0x1fff) * 8;
        assert_eq!(offset, whole.len() - ETHERNET - header_len);
        // Addresses, TTL and MAC addresses are everywhere the same.
        assert_eq!(fragment[..12], fragments[0][..12]);
        assert_eq!(fragment[22], fragments[0][22]);
        assert_eq!(fragment[26..34], fragments[0][26..34]);
        whole.extend(&fragment[ETHERNET + header_len..]);
    }
    let total = (whole.len() - ETHERNET) as u16;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    whole[20..22].fill(0);
    seal(&mut whole, header_len);
    let id = ids.first().expect("counted");
    (
        Frame::parse(&whole).expect("a good datagram"),
        u16::from_be_bytes(*id),
    )
}

fn lan(bed: &mut Bed, bytes: &[u8]) -> Result<Seen> {
    bed.raw(names::XDP_LAN, bytes, bed.lan)
}

fn wan(bed: &mut Bed, bytes: &[u8]) -> Result<Seen> {
    bed.raw(names::XDP_WAN, bytes, bed.wan)
}

const LATER: &[&str] = &["fragments_forwarded"];

#[test]
fn fragments_follow_their_first_in_both_directions() -> Result<()> {
    with_bed(|bed| {
        for (index, (out, back)) in flows().into_iter().enumerate() {
            let id = 0x4000 + index as u16;
            let mut sent = Vec::new();
            for (place, bytes) in split(&out, 1208, id).iter().enumerate() {
                let seen = lan(bed, bytes)?;
                assert_eq!(seen.action, REDIRECT);
                if place > 0 {
                    seen.is(REDIRECT, Delta::counted(LATER));
                }
                sent.push(seen.bytes);
            }
            let port = out.src_port().expect("translated protocols have one");
            assert_eq!(join(&sent), (translated_out(&out, port), id));

            let mut received = Vec::new();
            for (place, bytes) in split(&back, 1208, 0x5000).iter().enumerate() {
                let seen = wan(bed, bytes)?;
                let counted = if place == 0 { &["forwarded_in"] } else { LATER };
                seen.is(REDIRECT, seen_sessions(place == 0, Delta::counted(counted)));
                received.push(seen.bytes);
            }
            assert_eq!(
                join(&received),
                (translated_in(&back, (HOST, port)), 0x5000)
            );
        }
        Ok(())
    })
}

/// The first packet of the inbound direction caches its next hop.
fn seen_sessions(first: bool, mut delta: Delta) -> Delta {
    if first {
        delta.counters.insert("next_hops_refreshed", 1);
        delta.sessions.changed = 1;
    }
    delta
}

/// RFC 6864 section 5.3.1: hosts that share an address must not share identifications.
#[test]
fn two_hosts_with_one_identification_get_two() -> Result<()> {
    with_bed(|bed| {
        let mut sent = Vec::new();
        for host in [HOST, HOST2] {
            let mut frame = lan_frame(Frame::udp((host, 5000), (REMOTE, 53)));
            frame.fragment = 0;
            frame.payload = vec![7; 2000];
            let mut out = Vec::new();
            for bytes in split(&frame, 1208, 0x4242) {
                let seen = lan(bed, &bytes)?;
                assert_eq!(seen.action, REDIRECT);
                out.push(seen.bytes);
            }
            sent.push(join(&out));
        }
        assert_eq!(sent[0].1, 0x4242, "the first keeps its own");
        assert_ne!(sent[1].1, 0x4242, "the second may not have it");
        assert_eq!(sent[0].0.payload, sent[1].0.payload);
        // The same datagram once more, as a network may duplicate it.
        let mut frame = lan_frame(Frame::udp((HOST2, 5000), (REMOTE, 53)));
        frame.fragment = 0;
        frame.payload = vec![7; 2000];
        let again = lan(bed, &split(&frame, 1208, 0x4242)[0])?;
        assert_eq!(
            u16::from_be_bytes([again.bytes[18], again.bytes[19]]),
            sent[1].1
        );
        Ok(())
    })
}

/// What cannot be translated yet is held if it would be, and else goes its way.
#[test]
fn a_fragment_before_its_first_is_held() -> Result<()> {
    with_bed(|bed| {
        let held = ["fragments_held", "drop_fragment_early"];
        for (out, back) in flows() {
            let later = &split(&out, 1208, 9)[1];
            lan(bed, later)?.is(DROP, Delta::counted(&held));
            let frame = bed.held()?.expect("a copy");
            assert_eq!(frame, later[ETHERNET..]);

            // The stack has it as well: the datagram may be the CPE's own.
            let later = &split(&back, 1208, 9)[1];
            let seen = wan(bed, later)?;
            seen.is(PASS, Delta::counted(&["fragments_held", "pass_fragment"]));
            assert_eq!(seen.bytes, *later);
            assert_eq!(bed.held()?.expect("a copy"), later[ETHERNET..]);
        }
        let (out, _) = &flows()[0];
        let to = |dst: [u8; 4]| {
            let mut frame = out.clone();
            frame.dst = dst;
            split(&frame, 1208, 9).remove(1)
        };
        for (reason, bytes) in [
            ("pass_not_to_wan", to(HOST2)),
            ("pass_not_to_wan", to([192, 168, 1, 1])),
            ("pass_not_unicast", to([239, 1, 1, 1])),
        ] {
            lan(bed, &bytes)?.is(PASS, Delta::counted(&[reason]));
        }
        assert_eq!(bed.held()?, None);
        Ok(())
    })
}

/// RFC 1858, RFC 3128, and lengths of which no datagram can be made.
#[test]
fn fragments_that_cannot_be_are_dropped() -> Result<()> {
    with_bed(|bed| {
        let (udp, tcp) = (&flows()[0].0, &flows()[2].0);
        let field = |bytes: &[u8], value: u16| {
            let mut bytes = bytes.to_vec();
            bytes[20..22].copy_from_slice(&value.to_be_bytes());
            seal(&mut bytes, 20);
            bytes
        };
        let later = &split(udp, 1208, 9)[1];
        let mut empty = later[..34].to_vec();
        empty[16..18].copy_from_slice(&20u16.to_be_bytes());
        seal(&mut empty, 20);
        let mut ragged = later[..34 + 12].to_vec();
        ragged[16..18].copy_from_slice(&32u16.to_be_bytes());
        let cases = [
            ("drop_tiny_fragment", split(tcp, 8, 9).remove(0)),
            ("drop_tiny_fragment", split(tcp, 16, 9).remove(0)),
            ("drop_tiny_fragment", split(tcp, 8, 9).remove(1)),
            ("drop_malformed", empty),
            ("drop_malformed", field(&ragged, 0x2010)),
            ("drop_malformed", field(later, 0x1fff)),
            ("drop_malformed", later[..later.len() - 1].to_vec()),
        ];
        for (reason, bytes) in &cases {
            lan(bed, bytes)?.is(DROP, Delta::counted(&[reason]));
        }
        // Eight octets are all of a UDP header.
        assert_eq!(lan(bed, &split(udp, 8, 9)[0])?.action, REDIRECT);
        assert_eq!(bed.held()?, None);
        Ok(())
    })
}

/// What the stack fragments for the WAN, or forwards in fragments, leaves in order.
#[test]
fn the_stacks_fragments_are_translated_on_their_way_out() -> Result<()> {
    with_bed(|bed| {
        for (out, _) in flows() {
            let mut sent = Vec::new();
            for (place, bytes) in split(&out, 1208, 9).iter().enumerate() {
                let seen = bed.tc_raw(names::TC_EGRESS, bytes, bed.bridge)?;
                assert_eq!(seen.action, TC_NEXT);
                if place > 0 {
                    seen.is(TC_NEXT, Delta::counted(LATER));
                }
                sent.push(seen.bytes);
            }
            let mut wanted = out.clone();
            wanted.src = WAN;
            assert_eq!(join(&sent).0, wanted);
        }
        let (out, _) = &flows()[0];
        // Not known: held, and nothing private leaves.
        let held = ["fragments_held", "drop_fragment_early"];
        bed.tc_raw(names::TC_EGRESS, &split(out, 1208, 99)[1], bed.bridge)?
            .is(TC_DROP, Delta::counted(&held));
        // The CPE's own, and what the daemon sends on, are as they should be.
        let mut own = out.clone();
        own.src = WAN;
        let own = &split(&own, 1208, 77)[1];
        let seen = bed.tc_raw(names::TC_EGRESS, own, 0)?;
        seen.is(TC_NEXT, Delta::counted(&["host_out"]));
        assert_eq!(seen.bytes, *own);
        Ok(())
    })
}

/// Where XDP cannot run, the stack forwards what comes in translated.
#[test]
fn fragments_come_in_by_tc() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, (HOST, 5000), 5000, 0)?;
        let (_, back) = &flows()[0];
        let mut received = Vec::new();
        for bytes in split(back, 1208, 9) {
            let seen = bed.tc_raw(names::TC_INGRESS, &bytes, bed.wan)?;
            assert_eq!(seen.action, TC_REDIRECT);
            received.push(seen.bytes);
        }
        let wanted = translated_in(back, (HOST, 5000));
        assert_eq!(join(&received).0, wanted);
        Ok(())
    })
}

/// A new external address takes nothing of the old one's datagrams over.
#[test]
fn a_datagram_ends_with_its_address() -> Result<()> {
    with_bed(|bed| {
        let (out, _) = &flows()[0];
        let fragments = split(out, 1208, 9);
        assert_eq!(lan(bed, &fragments[0])?.action, REDIRECT);
        bed.reconfigure(|config| config.external_addr = [100, 64, 0, 3])?;
        lan(bed, &fragments[1])?.is(DROP, Delta::counted(&["drop_address_gone"]));
        Ok(())
    })
}

/// What goes by way of the stack does so as a whole.
#[test]
fn all_fragments_go_to_the_stack_if_the_first_does() -> Result<()> {
    with_bed(|bed| {
        let (out, back) = &flows()[0];
        let mut far = out.clone();
        far.dst = [100, 64, 0, 77];
        let fragments = split(&far, 1208, 9);
        let seen = lan(bed, &fragments[0])?;
        assert_eq!(seen.action, PASS);
        assert_eq!(seen.bytes, fragments[0]);
        for bytes in &fragments[1..] {
            let seen = lan(bed, bytes)?;
            seen.is(PASS, Delta::counted(&["pass_fragment"]));
            assert_eq!(seen.bytes, *bytes);
        }
        // Inbound the same, translated: the device takes no redirects.
        bed.map(UDP, (HOST, 5000), 5000, 0)?;
        bed.plane.remove_device(bed.lan)?;
        let mut received = Vec::new();
        for bytes in split(back, 1208, 10) {
            let seen = wan(bed, &bytes)?;
            assert_eq!(seen.action, PASS);
            received.push(seen.bytes);
        }
        let mut wanted = back.clone();
        wanted.dst = HOST;
        assert_eq!(join(&received).0, wanted);
        Ok(())
    })
}

/// A large ping of the router: the stack has the first fragment, and nobody waits for it.
#[test]
fn what_follows_a_first_fragment_for_the_router_is_not_held() -> Result<()> {
    with_bed(|bed| {
        let mut query = wan_frame(Frame::icmp(REMOTE, WAN, 8, 77));
        query.fragment = 0;
        query.payload = vec![7; 2000];
        for (place, bytes) in split(&query, 1208, 9).iter().enumerate() {
            let reason = ["pass_echo_request", "pass_fragment"][place];
            let seen = wan(bed, bytes)?;
            seen.is(PASS, Delta::counted(&[reason]));
            assert_eq!(seen.bytes, *bytes);
        }
        assert_eq!(bed.held()?, None);
        Ok(())
    })
}
