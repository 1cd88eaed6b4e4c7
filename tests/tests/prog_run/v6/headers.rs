//! Extension headers and fragments: bounded, and no way around the filter (S6-01, RFC 7112, RFC 5095).

use anyhow::Result;
use iwf_tests::packet::ETHERNET;
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{HOST, REMOTE, gone_in, gone_out, lan_frame, with_bed6};
use crate::bed::{DROP, HZ, PASS, REDIRECT, SYN, TC_DROP, TC_NEXT};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

fn out() -> Frame6 {
    Frame6::udp((HOST, 5000), (REMOTE, 53))
}

fn back() -> Frame6 {
    Frame6::udp((REMOTE, 53), (HOST, 5000))
}

#[test]
fn a_chain_of_headers_is_walked_to_the_ports() -> Result<()> {
    with_bed6(|bed| {
        bed.lan_in(&out())?;
        let chained = out()
            .with_options(DESTINATION)
            .with(ROUTING, &[0, 4, 0, 0, 0, 0, 0])
            .with_options(DESTINATION);
        let seen = bed.lan_in(&chained)?;
        seen.is(REDIRECT, Delta::counted(&["forwarded6_out"]));
        assert_eq!(seen.bytes, gone_out(&chained));
        let chained = back().with_options(DESTINATION);
        assert_eq!(bed.wan_in(&chained)?.bytes, gone_in(&chained));
        let stranger = Frame6::tcp((REMOTE, 53), (HOST, 5000), SYN).with_options(DESTINATION);
        bed.wan_in(&stranger)?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

/// RFC 6092 REC-47: a Shim6 payload header (RFC 5533 section 5.1) does not hide the flow it carries.
#[test]
fn a_shim6_header_is_walked() -> Result<()> {
    with_bed6(|bed| {
        let payload = |frame: Frame6| frame.with(140, &[0, 0x80, 0, 0, 0, 0, 7]);
        bed.lan_in(&out())?;
        let (there, here) = (payload(out()), payload(back()));
        assert_eq!(bed.lan_in(&there)?.bytes, gone_out(&there));
        assert_eq!(bed.wan_in(&here)?.bytes, gone_in(&here));
        let stranger = payload(Frame6::udp((REMOTE, 53), (HOST, 5001)));
        bed.wan_in(&stranger)?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn a_chain_out_of_bounds_is_dropped() -> Result<()> {
    with_bed6(|bed| {
        bed.lan_in(&out())?;
        let mut eight = back();
        let mut long = back();
        for _ in 0..8 {
            eight = eight.with_options(DESTINATION);
        }
        assert_eq!(bed.wan_in(&eight)?.action, REDIRECT);
        let nine = eight.with_options(DESTINATION);
        // 264 octets of options.
        let mut options = vec![32, 1, 4];
        options.resize(263, 0);
        long = long.with(DESTINATION, &options);
        let routing0 = back().with(ROUTING, &[0, 0, 0, 0, 0, 0, 0]);
        let late = back().with_options(DESTINATION).with_options(HOP_BY_HOP);
        for frame in [nine, long, routing0, late] {
            let seen = bed.wan_in(&frame)?;
            seen.is(DROP, Delta::counted(&["drop_headers6"]));
        }
        let routing0 = out().with(ROUTING, &[0, 0, 1, 0, 0, 0, 0]);
        bed.lan_in(&routing0)?
            .is(DROP, Delta::counted(&["drop_headers6"]));
        bed.egress(&routing0, true)?
            .is(TC_DROP, Delta::counted(&["drop_headers6"]));
        Ok(())
    })
}

#[test]
fn hop_by_hop_options_are_the_stacks_and_pass_only_what_may() -> Result<()> {
    with_bed6(|bed| {
        let frame = out().with_options(HOP_BY_HOP);
        let seen = bed.lan_in(&frame)?;
        seen.is(PASS, Delta::counted(&["pass_ipv6_stack"]));
        assert_eq!(seen.bytes, lan_frame(&frame).bytes());
        bed.egress(&frame, true)?.is(
            TC_NEXT,
            Delta::counted(&["sessions6_created", "egress6"])
                .sessions6(2)
                .endpoints6(1),
        );
        // The session notes the MAC address it was reached by.
        bed.wan_in(&back().with_options(HOP_BY_HOP))?.is(
            PASS,
            Delta::counted(&["pass_ipv6_stack"]).sessions6_changed(1),
        );
        let stranger = Frame6::udp((REMOTE, 53), (HOST, 5001)).with_options(HOP_BY_HOP);
        bed.wan_in(&stranger)?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn a_packet_cut_short_does_not_come_in() -> Result<()> {
    with_bed6(|bed| {
        let wan = bed.wan;
        for (cut, number) in [(4, 17), (19, 6), (7, 58), (11, 132)] {
            let mut frame = Frame6::new(REMOTE, HOST, Upper::Other(number));
            frame.payload = vec![1; cut];
            bed.wan_in(&frame)?
                .is(DROP, Delta::counted(&["drop_malformed"]));
            frame = Frame6::new(HOST, REMOTE, Upper::Other(number));
            frame.payload = vec![1; cut];
            bed.lan_in(&frame)?
                .is(PASS, Delta::counted(&["pass_malformed"]));
            bed.egress(&frame, true)?
                .is(TC_DROP, Delta::counted(&["drop_malformed"]));
        }
        // More promised than there is.
        let mut bytes = super::bed::wan_frame(&back()).bytes();
        bytes[18..20].copy_from_slice(&999u16.to_be_bytes());
        bed.raw(iwf_common::names::XDP_WAN, &bytes, wan)?
            .is(DROP, Delta::counted(&["drop_malformed"]));
        Ok(())
    })
}

#[test]
fn fragments_follow_their_first() -> Result<()> {
    with_bed6(|bed| {
        let mut large = out();
        large.payload = vec![9; 100];
        let pieces = large.fragments(77, 48);
        let seen = bed.lan_in(&pieces[0])?;
        seen.is(
            REDIRECT,
            Delta::counted(&["sessions6_created", "forwarded6_out"])
                .sessions6(2)
                .endpoints6(1)
                .fragments6(1),
        );
        assert_eq!(seen.bytes, gone_out(&pieces[0]));
        for piece in &pieces[1..] {
            let seen = bed.lan_in(piece)?;
            seen.is(
                REDIRECT,
                Delta::counted(&["forwarded6_out", "fragments_forwarded"]),
            );
            assert_eq!(seen.bytes, gone_out(piece));
        }
        let mut answer = back();
        answer.payload = vec![8; 100];
        for (n, piece) in answer.fragments(78, 48).iter().enumerate() {
            let seen = bed.wan_in(piece)?;
            assert_eq!((n, seen.action), (n, REDIRECT));
            assert_eq!(seen.bytes, gone_in(piece));
        }
        Ok(())
    })
}

#[test]
fn a_fragment_without_its_first_does_not_come_in() -> Result<()> {
    with_bed6(|bed| {
        bed.lan_in(&out())?;
        let mut answer = back();
        answer.payload = vec![8; 100];
        let pieces = answer.fragments(78, 48);
        let early = Delta::counted(&["drop_fragment_early", "fragments_held"]);
        bed.wan_in(&pieces[1])?.is(DROP, early.clone());
        // The daemon has a copy, as it came, and would send it on now.
        let held = bed.plane.held()?.expect("a copy");
        assert_eq!(held, pieces[1].bytes()[ETHERNET..]);
        assert_eq!(bed.plane.held()?, None);
        bed.wan_in(&pieces[0])?;
        assert_eq!(bed.wan_in(&pieces[1])?.action, REDIRECT);
        // Another packet's, and one that is late.
        bed.wan_in(&answer.fragments(79, 48)[1])?
            .is(DROP, early.clone());
        bed.plane.age_fragments6(61 * HZ)?;
        bed.wan_in(&pieces[1])?.is(DROP, early);
        // Larger than what is held.
        answer.payload = vec![8; 4000];
        bed.wan_in(&answer.fragments(81, 1992)[1])?
            .is(DROP, Delta::counted(&["drop_fragments_full"]));
        // From outside to a network that is not guarded: the stack's.
        let mut beyond = pieces[1].clone();
        beyond.dst[..4].copy_from_slice(&[0x2a, 0x0e, 0, 5]);
        beyond.dst[4..].fill(9);
        beyond.dst[4..8].fill(0);
        bed.wan_in(&beyond)?
            .is(PASS, Delta::counted(&["pass_not_external_addr"]));
        // The first of a packet that is not let in opens nothing.
        let mut stranger = Frame6::tcp((REMOTE, 9), (HOST, 9), SYN);
        stranger.payload = vec![8; 100];
        bed.wan_in(&stranger.fragments(80, 48)[0])?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn fragments_hide_no_headers() -> Result<()> {
    with_bed6(|bed| {
        let syn = Frame6::tcp((HOST, 5000), (REMOTE, 80), SYN);
        bed.lan_in(&syn)?;
        let mut answer = Frame6::tcp((REMOTE, 80), (HOST, 5000), SYN | 0x10);
        answer.payload = vec![8; 100];
        let tiny = Delta::counted(&["drop_tiny_fragment"]);
        // 16 octets do not hold a TCP header.
        bed.wan_in(&answer.fragments(1, 16)[0])?
            .is(DROP, tiny.clone());
        // One that would write over the header.
        bed.wan_in(&answer.fragments(2, 48)[0])?;
        let mut overlap = answer.fragments(2, 8)[2].clone();
        assert_eq!(overlap.payload[2..4], [0, 17]);
        bed.wan_in(&overlap)?.is(DROP, tiny);
        overlap = answer.fragments(2, 8)[3].clone();
        assert_eq!(bed.wan_in(&overlap)?.action, REDIRECT);
        Ok(())
    })
}

#[test]
fn a_fragment_that_is_whole_is_a_packet() -> Result<()> {
    with_bed6(|bed| {
        let whole = &out().fragments(5, 4096)[0];
        let seen = bed.lan_in(whole)?;
        assert_eq!(seen.bytes, gone_out(whole));
        assert_eq!(bed.plane.state()?.fragments6.len(), 0);
        Ok(())
    })
}

#[test]
fn fragments_of_the_lan_by_way_of_the_stack_follow_too() -> Result<()> {
    with_bed6(|bed| {
        let mut large = out();
        large.payload = vec![9; 100];
        let pieces = large.fragments(77, 48);
        bed.lan_in(&pieces[1])?
            .is(PASS, Delta::counted(&["pass_fragment"]));
        bed.egress(&pieces[1], true)?.is(
            TC_DROP,
            Delta::counted(&["drop_fragment_early", "fragments_held"]),
        );
        assert_eq!(
            bed.plane.held()?.expect("a copy"),
            pieces[1].bytes()[ETHERNET..]
        );
        // What the router itself sends is not held.
        bed.egress(&pieces[2], false)?
            .is(TC_NEXT, Delta::counted(&["host_out"]));
        assert_eq!(bed.egress(&pieces[0], true)?.action, TC_NEXT);
        bed.egress(&pieces[1], true)?
            .is(TC_NEXT, Delta::counted(&["egress6", "fragments_forwarded"]));
        Ok(())
    })
}
