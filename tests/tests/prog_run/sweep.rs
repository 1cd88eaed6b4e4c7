//! Ageing and ending.

use anyhow::Result;
use iwf_common::flow::{SessionFlags, SessionValue};
use iwf_common::names;
use iwf_common::nat::EndpointKey;
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;
use iwf_userspace::daemon::dataplane::sweep::Totals;

use crate::bed::{
    ACK, Bed, DROP, HOST, HOST2, HZ, REDIRECT, REMOTE, REMOTE2, RST, SYN, TCP, UDP, WAN, endpoint,
    lan_frame, translated_in, translated_out, wan_frame, with_bed, with_sized_bed,
};

fn age(bed: &mut Bed) -> Result<Totals> {
    bed.sweep()
}

fn left(swept: Totals) -> (u64, u64) {
    (swept.sessions_left, swept.mappings_left)
}

fn open_tcp(bed: &mut Bed, host: [u8; 4], port: u16) -> Result<()> {
    bed.lan_in(&lan_frame(Frame::tcp((host, port), (REMOTE, 80), SYN)))?;
    bed.wan_in(&wan_frame(Frame::tcp((REMOTE, 80), (WAN, port), SYN | ACK)))?;
    bed.lan_in(&lan_frame(Frame::tcp((host, port), (REMOTE, 80), ACK)))?;
    Ok(())
}

/// RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2: kept for as long as they say, and no longer.
#[test]
fn each_protocol_has_its_own_patience() -> Result<()> {
    let seconds = |bed: &mut Bed, open: &dyn Fn(&mut Bed) -> Result<()>, patience: u32| {
        // Before, as that takes the verifier's time.
        bed.plane.ready(names::RUN_SWEEP)?;
        open(bed)?;
        bed.let_pass((patience - 1) * HZ)?;
        assert_eq!(left(age(bed)?), (2, 1));
        bed.let_pass(2 * HZ)?;
        let swept = age(bed)?;
        assert_eq!(swept.sessions_removed, 2);
        Ok(())
    };
    with_bed(|bed| {
        let udp = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        seconds(bed, &|bed| bed.lan_in(&udp).map(drop), 300)
    })?;
    with_bed(|bed| {
        let ping = lan_frame(Frame::icmp(HOST, REMOTE, 8, 5000));
        seconds(bed, &|bed| bed.lan_in(&ping).map(drop), 60)
    })?;
    with_bed(|bed| {
        let syn = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), SYN));
        seconds(bed, &|bed| bed.lan_in(&syn).map(drop), 240)
    })?;
    with_bed(|bed| seconds(bed, &|bed| open_tcp(bed, HOST, 5000), 7440))?;
    // RFC 7857 section 2.2: after a RST four minutes remain.
    with_bed(|bed| {
        let reset = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), RST));
        let open = |bed: &mut Bed| {
            open_tcp(bed, HOST, 5000)?;
            bed.lan_in(&reset).map(drop)
        };
        seconds(bed, &open, 240)
    })
}

#[test]
fn everything_goes_when_its_time_has_come() -> Result<()> {
    with_bed(|bed| {
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        bed.lan_in(&lan_frame(Frame::icmp(HOST, REMOTE, 8, 5000)))?;
        open_tcp(bed, HOST, 5000)?;
        bed.let_pass(7441 * HZ)?;
        age(bed)?;
        bed.let_pass(241 * HZ)?;
        assert_eq!(left(age(bed)?), (0, 0));
        let state = bed.plane.state()?;
        assert!(
            state.sessions.is_empty() && state.internal.is_empty() && state.external.is_empty()
        );
        Ok(())
    })
}

/// RFC 4787 REQ-6 with inbound refresh off: a peer cannot hold a mapping open by itself.
#[test]
fn only_outbound_packets_keep_a_udp_mapping() -> Result<()> {
    with_bed(|bed| {
        let outbound = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        let inbound = wan_frame(Frame::udp((REMOTE, 53), (WAN, 5000)));
        bed.lan_in(&outbound)?;
        for _ in 0..4 {
            bed.let_pass(100 * HZ)?;
            bed.wan_in(&inbound)?;
            age(bed)?;
        }
        // The mapping has gone in the last run; the session goes with the next.
        assert_eq!(left(age(bed)?), (0, 0));
        bed.wan_in(&inbound)?
            .is(DROP, Delta::counted(&["drop_unsolicited"]));

        bed.lan_in(&outbound)?;
        for _ in 0..4 {
            bed.let_pass(100 * HZ)?;
            bed.lan_in(&outbound)?;
            assert_eq!(left(age(bed)?), (2, 1));
        }
        Ok(())
    })
}

/// RFC 5382 REQ-5: a download keeps its connection, whichever way the packets go.
#[test]
fn any_packet_keeps_a_connection() -> Result<()> {
    with_bed(|bed| {
        open_tcp(bed, HOST, 5000)?;
        let inbound = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), ACK));
        for _ in 0..3 {
            bed.let_pass(4000 * HZ)?;
            bed.wan_in(&inbound)?
                .is(REDIRECT, Delta::counted(&["forwarded_in"]));
            assert_eq!(left(age(bed)?), (2, 1));
        }
        Ok(())
    })
}

/// Explicit mappings outlive idle time (NAT-50) and end when they were promised to.
#[test]
fn an_explicit_mapping_ends_at_its_expiry_only() -> Result<()> {
    with_bed(|bed| {
        let now = bed.now()?;
        bed.map(UDP, (HOST, 1), 40001, 0)?;
        bed.map(UDP, (HOST, 2), 40002, now.wrapping_add(1_000_000))?;
        bed.map(UDP, (HOST, 3), 40003, now.wrapping_sub(1))?;
        bed.let_pass(100_000 * HZ)?;
        assert_eq!(left(age(bed)?), (0, 2));
        let state = bed.plane.state()?;
        assert_eq!(state.internal.len(), 2);
        assert!(!state.external.contains_key(&endpoint((WAN, 40003), UDP)));
        Ok(())
    })
}

/// RFC 6887 section 15.1, NAT-50: what ends a connection does not end the mapping it came by.
#[test]
fn an_explicit_mapping_outlives_its_connections() -> Result<()> {
    const FIN: u8 = 1;
    let inbound = |flags| wan_frame(Frame::tcp((REMOTE, 9999), (WAN, 40000), flags));
    let outbound = |flags| lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 9999), flags));
    with_bed(|bed| {
        bed.map(TCP, (HOST, 5000), 40000, 0)?;
        for closing in [FIN | ACK, RST] {
            let opened = ["forwarded_in", "next_hops_refreshed", "sessions_created"];
            bed.wan_in(&inbound(SYN))?
                .is(REDIRECT, Delta::counted(&opened).sessions(2));
            bed.lan_in(&outbound(SYN | ACK))?;
            bed.wan_in(&inbound(ACK))?;
            bed.wan_in(&wan_frame(Frame::icmp(REMOTE, WAN, 3, 1)))?;
            // The closing segments are translated like any other.
            let seen = bed.wan_in(&inbound(closing))?;
            let changed = Delta::counted(&["forwarded_in"]).sessions_changed(1);
            seen.is(REDIRECT, changed);
            assert_eq!(seen.frame(), translated_in(&inbound(closing), (HOST, 5000)));
            let seen = bed.lan_in(&outbound(closing))?;
            let changed = Delta::counted(&["forwarded_out"]).sessions_changed(1);
            seen.is(REDIRECT, changed);
            assert_eq!(seen.frame(), translated_out(&outbound(closing), 40000));
            bed.let_pass(241 * HZ)?;
            assert_eq!(left(age(bed)?), (0, 1));
        }
        Ok(())
    })
}

/// cilium 47425: no entry keeps itself alive.
#[test]
fn a_session_dies_with_its_mapping() -> Result<()> {
    with_bed(|bed| {
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        bed.lan_in(&lan_frame(Frame::udp((HOST2, 6000), (REMOTE, 53))))?;
        // One mapping disappears, the other is displaced by an explicit one of another host.
        let gone = endpoint((WAN, 5000), UDP);
        bed.plane.remove_mapping(names::MAPPINGS_EXT, gone)?;
        bed.map(UDP, (HOST, 7000), 6000, 0)?;
        bed.let_pass(10 * HZ)?;
        let swept = age(bed)?;
        assert_eq!((swept.sessions_left, swept.sessions_removed), (0, 4));
        // And what pointed at them: only the explicit mapping is left.
        let state = bed.plane.state()?;
        assert_eq!((state.internal.len(), state.external.len()), (1, 1));
        Ok(())
    })
}

/// Half of a pair is left alone while the other half may still be on its way, and no longer.
#[test]
fn half_a_session_does_not_stay() -> Result<()> {
    with_bed(|bed| {
        // Before, as the verifier may take longer than the half has.
        bed.plane.ready(names::RUN_SWEEP)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        // What the opening packet used; nothing has come back on the other one.
        let (key, _) = bed.plane.state()?.sessions.pop_last().expect("a session");
        assert_eq!(key.src, HOST);
        bed.plane.remove_session(key)?;
        assert_eq!(age(bed)?.sessions_left, 1);
        bed.let_pass(3 * HZ)?;
        assert_eq!(age(bed)?.sessions_left, 0);
        Ok(())
    })
}

/// A pass says rightly what is left, also when it has removed the half of a session before it came to it.
#[test]
fn what_ends_in_a_pass_is_not_left() -> Result<()> {
    const FLOWS: u16 = 4000;
    with_sized_bed(16_384, 64, |bed| {
        bed.plane.ready(names::XDP_WAN)?;
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        let begin = |bed: &mut Bed, flows: std::ops::Range<u16>| -> Result<()> {
            for flow in flows {
                let remote = ([11, 22, (flow >> 8) as u8, flow as u8], 9999);
                let frame = wan_frame(Frame::udp(remote, (WAN, 40000))).bytes();
                let ran = bed.plane.xdp(names::XDP_WAN, &frame, bed.wan, 1)?;
                assert_eq!(ran.action, REDIRECT);
            }
            Ok(())
        };
        begin(bed, 0..FLOWS)?;
        bed.let_pass(301 * HZ)?;
        begin(bed, FLOWS..FLOWS + 100)?;
        let swept = age(bed)?;
        assert_eq!(left(swept), (200, 1));
        assert_eq!(swept.sessions_ended, 2 * u64::from(FLOWS));
        // What was marked last may rest until the next pass.
        let mut removed = swept.sessions_removed;
        while bed.plane.state()?.sessions.len() > 200 {
            let again = age(bed)?;
            assert_eq!((left(again), again.sessions_ended), ((200, 1), 0));
            assert_ne!(again.sessions_removed, 0);
            removed += again.sessions_removed;
        }
        assert_eq!(removed, swept.sessions_ended);
        Ok(())
    })
}

/// One slice reads, judges and removes a bounded number of entries, however many have ended.
#[test]
fn a_slice_is_bounded() -> Result<()> {
    const FLOWS: u16 = 2000;
    const SLICE: usize = 256;
    with_sized_bed(16_384, 64, |bed| {
        bed.plane.ready(names::XDP_WAN)?;
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        for flow in 0..FLOWS {
            let remote = ([11, 22, (flow >> 8) as u8, flow as u8], 9999);
            let frame = wan_frame(Frame::udp(remote, (WAN, 40000))).bytes();
            bed.plane.xdp(names::XDP_WAN, &frame, bed.wan, 1)?;
        }
        bed.let_pass(301 * HZ)?;
        let mut sweeper = bed.sweeper()?;
        let mut slices = 0;
        loop {
            let before = (ended(bed)?, bed.plane.state()?.sessions.len());
            let done = bed.sweep_slice(&mut sweeper)?;
            let after = (ended(bed)?, bed.plane.state()?.sessions.len());
            // Both halves of what is judged are marked; both of what is removed go, of those read and those remembered.
            assert!(after.0 <= before.0 + 2 * SLICE, "{before:?} {after:?}");
            assert!(after.1 + 4 * SLICE >= before.1, "{before:?} {after:?}");
            slices += 1;
            if done.is_some() {
                break;
            }
        }
        assert!(slices >= usize::from(FLOWS) / SLICE, "{slices}");
        assert!(bed.plane.state()?.sessions.is_empty());
        Ok(())
    })
}

fn ended(bed: &Bed) -> Result<usize> {
    let state = bed.plane.state()?;
    let ended = |value: &&SessionValue| value.flags & SessionFlags::ENDED != 0;
    Ok(state.sessions.values().filter(ended).count())
}

/// Both halves of a mapping are taken away, as the daemon does it.
fn unmap(bed: &mut Bed, port: u16) -> Result<EndpointKey> {
    let external = endpoint((WAN, port), UDP);
    bed.plane
        .remove_mapping(names::MAPPINGS_INT, endpoint((HOST, 5000), UDP))?;
    bed.plane.remove_mapping(names::MAPPINGS_EXT, external)?;
    Ok(external)
}

#[test]
fn sessions_of_a_removed_mapping_end_and_no_others() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        for remote in [REMOTE, REMOTE2] {
            bed.wan_in(&wan_frame(Frame::udp((remote, 9999), (WAN, 40000))))?;
        }
        bed.lan_in(&lan_frame(Frame::udp((HOST2, 5000), (REMOTE, 53))))?;
        let external = unmap(bed, 40000)?;
        bed.settle(&[external])?;
        assert_eq!(ended(bed)?, 4);
        let stays = wan_frame(Frame::udp((REMOTE, 53), (WAN, 5000)));
        assert_eq!(bed.wan_in(&stays)?.frame().dst, HOST2);
        // Nobody finds them any more, from either side; their room comes free a little later.
        for remote in [REMOTE, REMOTE2] {
            let gone = wan_frame(Frame::udp((remote, 9999), (WAN, 40000)));
            let unsolicited = Delta::counted(&["drop_unsolicited"]);
            bed.wan_in(&gone)?.is_untouched(DROP, unsolicited, &gone);
        }
        let reply = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 9999)));
        let seen = bed.lan_in(&reply)?;
        assert_ne!(seen.frame().src_port(), Some(40000), "a mapping of its own");
        bed.let_pass(HZ)?;
        assert_eq!(age(bed)?.sessions_removed, 3, "one lives again");
        Ok(())
    })
}

/// Any number are looked for by one walk, and a walk is of slices.
#[test]
fn many_mappings_end_in_one_walk() -> Result<()> {
    const FLOWS: u16 = 4000;
    with_sized_bed(16_384, 64, |bed| {
        let ports = 40000..40008u16;
        bed.plane.ready(names::XDP_WAN)?;
        for port in ports.clone() {
            bed.map(UDP, (HOST, port), port, 0)?;
        }
        for flow in 0..FLOWS {
            let remote = ([11, 22, (flow >> 8) as u8, flow as u8], 9999);
            let port = 40000 + flow % 8;
            let frame = wan_frame(Frame::udp(remote, (WAN, port))).bytes();
            let ran = bed.plane.xdp(names::XDP_WAN, &frame, bed.wan, 1)?;
            assert_eq!(ran.action, REDIRECT);
        }
        bed.plane.ready(names::RUN_SWEEP)?;
        let mut removed = Vec::new();
        for port in ports.filter(|port| port % 2 == 0) {
            let external = endpoint((WAN, port), UDP);
            bed.plane.remove_mapping(names::MAPPINGS_EXT, external)?;
            removed.push(external);
        }
        let slices = bed.settle(&removed)?;
        assert_eq!(ended(bed)?, usize::from(FLOWS));
        // 8,000 entries are 32 slices of 256 and a bit; the first ones do not count.
        assert!((32..=40).contains(&slices), "{slices}");
        Ok(())
    })
}

/// The host goes on sending, so that a dynamic mapping takes the place of the one that was removed, port and all. It
/// does not let those in whom that had let in.
#[test]
fn a_dynamic_mapping_keeps_no_session_of_the_explicit_one_before_it() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, (HOST, 5000), 5000, 0)?;
        let guest = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 5000)));
        assert_eq!(bed.wan_in(&guest)?.action, REDIRECT);
        let external = unmap(bed, 5000)?;
        let own = lan_frame(Frame::udp((HOST, 5000), (REMOTE2, 53)));
        let seen = bed.lan_in(&own)?;
        assert_eq!(seen.frame(), translated_out(&own, 5000), "the same port");
        bed.settle(&[external])?;
        let unsolicited = Delta::counted(&["drop_unsolicited"]);
        bed.wan_in(&guest)?.is_untouched(DROP, unsolicited, &guest);
        let answer = wan_frame(Frame::udp((REMOTE2, 53), (WAN, 5000)));
        assert_eq!(bed.wan_in(&answer)?.action, REDIRECT);
        Ok(())
    })
}

/// The same when the explicit mapping ends by itself: its sessions are not prolonged by another.
#[test]
fn a_session_of_an_expired_mapping_is_not_prolonged_by_a_dynamic_one() -> Result<()> {
    with_bed(|bed| {
        let now = bed.now()?;
        bed.map(UDP, (HOST, 5000), 5000, now.wrapping_add(1_000_000))?;
        let guest = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 5000)));
        assert_eq!(bed.wan_in(&guest)?.action, REDIRECT);
        // Its time comes.
        let past = now.wrapping_sub(1);
        for (key, mut value) in bed.plane.state()?.sessions {
            value.deadline = past;
            bed.plane.set_session(key, value)?;
        }
        bed.map(UDP, (HOST, 5000), 5000, past)?;
        let own = lan_frame(Frame::udp((HOST, 5000), (REMOTE2, 53)));
        let seen = bed.lan_in(&own)?;
        assert_eq!(seen.frame(), translated_out(&own, 5000), "the same port");
        bed.wan_in(&guest)?
            .is(DROP, Delta::counted(&["drop_mapping_expired"]));
        // And the sweep sees no use in it either.
        age(bed)?;
        let unsolicited = Delta::counted(&["drop_unsolicited"]);
        bed.wan_in(&guest)?.is_untouched(DROP, unsolicited, &guest);
        Ok(())
    })
}

/// landscape 214, einat 34: nothing of an old address stays.
#[test]
fn a_new_external_address_takes_nothing_over() -> Result<()> {
    with_bed(|bed| {
        bed.map(TCP, (HOST, 5000), 40000, 0)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        let new = [100, 64, 0, 77];
        bed.reconfigure(|config| config.external_addr = new)?;
        let left = bed.keep_ours()?;
        assert_eq!(left, (0, 0));
        let state = bed.plane.state()?;
        assert!(state.internal.is_empty());
        let ended = |value: &SessionValue| value.flags & SessionFlags::ENDED != 0;
        assert!(state.sessions.values().all(ended));
        let seen = bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        assert_eq!(seen.frame().src, new);
        // Its room comes free, too: only the new session stays.
        bed.let_pass(HZ)?;
        assert_eq!(age(bed)?.sessions_removed, 1);
        let state = bed.plane.state()?;
        assert!(state.sessions.len() == 2 && !state.sessions.values().any(ended));
        Ok(())
    })
}

/// A packet on another CPU may hold an entry for as long as it takes to forward it: until then nothing reuses it.
#[test]
fn a_session_is_marked_before_it_is_removed() -> Result<()> {
    with_bed(|bed| {
        let out = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&out)?;
        bed.let_pass(301 * HZ)?;
        let mut sweeper = bed.sweeper()?;
        let ended = |bed: &Bed| -> Result<usize> {
            let state = bed.plane.state()?;
            let ended = |value: &&SessionValue| value.flags & SessionFlags::ENDED != 0;
            Ok(state.sessions.values().filter(ended).count())
        };
        while ended(bed)? == 0 {
            assert_eq!(bed.sweep_slice(&mut sweeper)?, None);
        }
        assert_eq!((ended(bed)?, bed.plane.state()?.sessions.len()), (2, 2));
        // A packet takes the entry over where it is, with what it has counted. The mapping has not gone yet.
        let created = Delta::counted(&["forwarded_out", "sessions_created"]);
        bed.lan_in(&out)?.is(REDIRECT, created.sessions_changed(2));
        let totals = loop {
            if let Some(totals) = bed.sweep_slice(&mut sweeper)? {
                break totals;
            }
            std::thread::yield_now();
        };
        assert_eq!((totals.sessions_removed, totals.mappings_removed), (0, 0));
        let state = bed.plane.state()?;
        assert_eq!((ended(bed)?, state.sessions.len()), (0, 2));
        let packets: u32 = state.sessions.values().map(|value| value.packets).sum();
        assert_eq!(packets, 2);
        Ok(())
    })
}

/// A mapping has what its live sessions count and what its ended ones have left it, each packet once.
#[test]
fn a_mapping_inherits_what_its_sessions_counted() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        let external = endpoint((WAN, 40000), UDP);
        let inbound = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 40000)));
        let outbound = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 9999)));
        let octets = |frame: &Frame| (frame.bytes().len() - 14) as u64;
        for round in 1..=2 {
            for _ in 0..3 {
                bed.wan_in(&inbound)?;
            }
            bed.lan_in(&outbound)?;
            let state = bed.plane.state()?;
            let live: u32 = state.sessions.values().map(|value| value.packets).sum();
            assert_eq!(live, 4);
            bed.let_pass(301 * HZ)?;
            assert_eq!(age(bed)?.sessions_removed, 2);
            // Nothing is counted twice by looking again.
            age(bed)?;
            let mapping = bed.plane.state()?.external[&external];
            assert_eq!(
                (mapping.packets_in, mapping.packets_out),
                (3 * round, round)
            );
            assert_eq!(
                (mapping.octets_in, mapping.octets_out),
                (3 * round * octets(&inbound), round * octets(&outbound))
            );
        }
        Ok(())
    })
}

/// What a full table could not finish does not keep its room for long.
#[test]
fn half_a_session_of_a_full_table_goes_after_its_grace() -> Result<()> {
    with_sized_bed(3, 64, |bed| {
        let open = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&open)?;
        bed.wan_in(&wan_frame(Frame::udp((REMOTE, 53), (WAN, 5000))))?;
        // The kernel has some more room than it is asked for: one spare element per CPU.
        let mut port = 5001;
        while bed
            .lan_in(&lan_frame(Frame::udp((HOST, port), (REMOTE, 53))))?
            .action
            != DROP
        {
            port += 1;
        }
        let entries = bed.plane.state()?.sessions.len() as u64;
        bed.let_pass(3 * HZ)?;
        assert_eq!(age(bed)?.sessions_left, entries / 2 * 2);
        Ok(())
    })
}
