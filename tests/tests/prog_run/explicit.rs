//! Explicit mappings: who may come in, several of one internal endpoint, what a change does to their sessions.
//!
//! Read before editing: RFC 6887 sections 11, 13.3 and 15.

use anyhow::Result;
use iwf_common::names;
use iwf_common::nat::{FilterEntry, FilterList, MappingFlags, MappingValue, mask};
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, Bed, DROP, HOST, REDIRECT, REMOTE, REMOTE2, SYN, TCP, UDP, WAN, endpoint, explicit,
    lan_frame, translated_in, translated_out, wan_frame, with_bed,
};

const INTERNAL: ([u8; 4], u16) = (HOST, 5000);

fn opened() -> Delta {
    Delta::counted(&["forwarded_in", "next_hops_refreshed", "sessions_created"]).sessions(2)
}

fn list(entries: &[([u8; 4], u8, u16)]) -> FilterList {
    let mut list = FilterList::default();
    for (slot, (addr, len, port)) in list.entries.iter_mut().zip(entries) {
        *slot = FilterEntry {
            addr: *addr,
            mask: mask(*len),
            port: port.to_be_bytes(),
            pad: [0; 2],
        };
        list.len += 1;
    }
    list
}

fn map_listed(bed: &mut Bed, proto: u8, port: u16, list: FilterList) -> Result<()> {
    let value = MappingValue {
        flags: MappingFlags::FILTER_LIST,
        ..explicit(INTERNAL, 0)
    };
    bed.plane.set_filter(endpoint((WAN, port), proto), list)?;
    bed.map_with(proto, port, value)
}

/// One more external port of the same internal endpoint.
fn map_second(bed: &mut Bed, proto: u8, port: u16) -> Result<()> {
    let value = MappingValue {
        flags: MappingFlags::SECONDARY,
        ..explicit(INTERNAL, 0)
    };
    let external = endpoint((WAN, port), proto);
    bed.plane.set_mapping(names::MAPPINGS_EXT, external, value)
}

/// RFC 6887 section 13.3: a packet is let in if one filter of the list has its source; port 0 is every port.
#[test]
fn each_entry_of_a_filter_list_lets_its_remotes_in_and_nobody_else() -> Result<()> {
    let entries = [
        ([11, 22, 33, 4], 32, 443),
        ([11, 22, 34, 0], 24, 0),
        ([11, 22, 35, 128], 25, 7),
        ([11, 22, 36, 1], 32, 0),
        ([11, 22, 36, 2], 32, 1),
        ([11, 22, 36, 3], 32, 2),
        ([11, 22, 36, 4], 32, 3),
        ([11, 22, 36, 5], 32, 65_535),
    ];
    let admitted = [
        ([11, 22, 33, 4], 443),
        ([11, 22, 34, 200], 1),
        ([11, 22, 35, 254], 7),
        ([11, 22, 36, 1], 9999),
        ([11, 22, 36, 5], 65_535),
    ];
    let refused = [
        ([11, 22, 33, 4], 444),
        ([11, 22, 33, 5], 443),
        ([11, 22, 35, 1], 7),
        ([11, 22, 35, 254], 8),
        ([11, 22, 36, 5], 1),
        ([198, 51, 100, 1], 443),
    ];
    for proto in [UDP, TCP] {
        let frame = |from| {
            wan_frame(match proto {
                UDP => Frame::udp(from, (WAN, 40000)),
                _ => Frame::tcp(from, (WAN, 40000), SYN),
            })
        };
        with_bed(|bed| {
            map_listed(bed, proto, 40000, list(&entries))?;
            for from in refused {
                let frame = frame(from);
                let filtered = Delta::counted(&["drop_filtered"]);
                bed.wan_in(&frame)?.is_untouched(DROP, filtered, &frame);
            }
            for from in admitted {
                let frame = frame(from);
                let seen = bed.wan_in(&frame)?;
                seen.is(REDIRECT, opened());
                assert_eq!(seen.frame(), translated_in(&frame, INTERNAL));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The list is written before the mapping and removed after it; should it be missing all the same, the mapping is
/// closed.
#[test]
fn without_its_list_a_mapping_lets_nobody_in() -> Result<()> {
    with_bed(|bed| {
        let value = MappingValue {
            flags: MappingFlags::FILTER_LIST,
            ..explicit(INTERNAL, 0)
        };
        bed.map_with(UDP, 40000, value)?;
        let frame = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 40000)));
        bed.wan_in(&frame)?
            .is_untouched(DROP, Delta::counted(&["drop_filtered"]), &frame);
        Ok(())
    })
}

/// IGD-010, NAT-50: each external port leads in, and answers leave from the one that was used; what the host begins
/// leaves from the first.
#[test]
fn two_external_ports_of_one_internal_endpoint_work_both() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, INTERNAL, 40000, 0)?;
        map_second(bed, UDP, 40001)?;
        for (remote, port) in [(REMOTE, 40000), (REMOTE2, 40001)] {
            let request = wan_frame(Frame::udp((remote, 9999), (WAN, port)));
            let seen = bed.wan_in(&request)?;
            seen.is(REDIRECT, opened());
            assert_eq!(seen.frame(), translated_in(&request, INTERNAL));
            let reply = lan_frame(Frame::udp(INTERNAL, (remote, 9999)));
            let seen = bed.lan_in(&reply)?;
            assert_eq!(seen.action, REDIRECT);
            assert_eq!(seen.frame(), translated_out(&reply, port));
        }
        let own = lan_frame(Frame::udp(INTERNAL, (REMOTE, 53)));
        let seen = bed.lan_in(&own)?;
        assert_eq!(seen.frame(), translated_out(&own, 40000));
        assert_eq!(seen.delta.external.added, 0, "no mapping besides");
        Ok(())
    })
}

/// The LAN host could not tell the two sessions apart, so there is one; it is not taken over either.
#[test]
fn one_remote_endpoint_cannot_use_both_external_ports_at_once() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, INTERNAL, 40000, 0)?;
        map_second(bed, UDP, 40001)?;
        let by = |port| wan_frame(Frame::udp((REMOTE, 9999), (WAN, port)));
        bed.wan_in(&by(40001))?.is(REDIRECT, opened());
        let collision = Delta::counted(&["drop_session_collision"]);
        bed.wan_in(&by(40000))?
            .is_untouched(DROP, collision, &by(40000));
        let reply = lan_frame(Frame::udp(INTERNAL, (REMOTE, 9999)));
        let seen = bed.lan_in(&reply)?;
        assert_eq!(seen.frame(), translated_out(&reply, 40001));

        // When the mapping of the first is gone, what is left of it is in nobody's way.
        let second = endpoint((WAN, 40001), UDP);
        bed.plane.remove_mapping(names::MAPPINGS_EXT, second)?;
        let seen = bed.wan_in(&by(40000))?;
        assert_eq!(seen.action, REDIRECT);
        let seen = bed.lan_in(&reply)?;
        assert_eq!(seen.frame(), translated_out(&reply, 40000));
        Ok(())
    })
}

/// A list that narrows ends what it no longer admits; what the host began, and what is still admitted, goes on.
#[test]
fn sessions_that_are_no_longer_admitted_end_with_the_change() -> Result<()> {
    with_bed(|bed| {
        bed.map(TCP, INTERNAL, 40000, 0)?;
        let from = |remote, flags| wan_frame(Frame::tcp((remote, 9999), (WAN, 40000), flags));
        bed.wan_in(&from(REMOTE, SYN))?.is(REDIRECT, opened());
        bed.wan_in(&from(REMOTE2, SYN))?.is(REDIRECT, opened());
        let own = lan_frame(Frame::tcp(INTERNAL, ([198, 51, 100, 1], 443), SYN));
        bed.lan_in(&own)?;

        map_listed(bed, TCP, 40000, list(&[(REMOTE, 32, 0)]))?;
        let external = endpoint((WAN, 40000), TCP);
        bed.settle(&[external])?;
        let stray = Delta::counted(&["drop_filtered"]);
        let seen = bed.wan_in(&from(REMOTE2, ACK))?;
        seen.is(DROP, stray);
        let on = Delta::counted(&["forwarded_in"]);
        assert_eq!(bed.wan_in(&from(REMOTE, ACK))?.action, REDIRECT);
        bed.wan_in(&from(REMOTE, ACK))?.is(REDIRECT, on);
        let answer = Frame::tcp(([198, 51, 100, 1], 443), (WAN, 40000), SYN | ACK);
        assert_eq!(bed.wan_in(&wan_frame(answer))?.action, REDIRECT);
        Ok(())
    })
}

/// RFC 6887 section 15: a shorter lifetime holds for sessions that are open already, not from some later time on.
#[test]
fn a_shortened_lifetime_reaches_open_sessions() -> Result<()> {
    with_bed(|bed| {
        let now = bed.now()?;
        let later = now.wrapping_add(1_000_000);
        bed.map(UDP, INTERNAL, 40000, later)?;
        let request = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 40000)));
        bed.wan_in(&request)?.is(REDIRECT, opened());
        let soon = now.wrapping_add(500_000);
        bed.map(UDP, INTERNAL, 40000, soon)?;
        let external = endpoint((WAN, 40000), UDP);
        bed.settle(&[external])?;
        let state = bed.plane.state()?;
        assert_eq!(state.sessions.len(), 2);
        assert!(state.sessions.values().all(|s| s.deadline == soon));

        bed.map(UDP, INTERNAL, 40000, now.wrapping_sub(1))?;
        bed.settle(&[external])?;
        bed.wan_in(&request)?
            .is(DROP, Delta::counted(&["drop_mapping_expired"]));
        Ok(())
    })
}
