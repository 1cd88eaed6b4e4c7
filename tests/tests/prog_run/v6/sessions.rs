//! Flows that the LAN begins (S6-03, S6-04, S6-06, S6-07).

use anyhow::Result;
use iwf_common::names;
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{HOST, REMOTE, REMOTE2, gone_in, gone_out, lan_frame, with_bed6, with_sized_bed6};
use crate::bed::{ACK, DROP, HZ, PASS, REDIRECT, RST, SYN};

const FIN: u8 = 1;
const OUT: [&str; 2] = ["sessions6_created", "forwarded6_out"];
const FIRST_IN: [&str; 2] = ["next_hops_refreshed", "forwarded6_in"];

fn a() -> ([u8; 16], u16) {
    (HOST, 5000)
}

fn b() -> ([u8; 16], u16) {
    (REMOTE, 53)
}

#[test]
fn udp_goes_out_and_its_answer_comes_in_and_only_the_hop_changes() -> Result<()> {
    with_bed6(|bed| {
        let (out, back) = (Frame6::udp(a(), b()), Frame6::udp(b(), a()));
        let seen = bed.lan_in(&out)?;
        seen.is(REDIRECT, Delta::counted(&OUT).sessions6(2).endpoints6(1));
        assert_eq!(seen.bytes, gone_out(&out));
        let seen = bed.wan_in(&back)?;
        seen.is(REDIRECT, Delta::counted(&FIRST_IN).sessions6_changed(1));
        assert_eq!(seen.bytes, gone_in(&back));
        // From now on nothing is looked up but the session.
        bed.lan_in(&out)?
            .is(REDIRECT, Delta::counted(&["forwarded6_out"]));
        bed.wan_in(&back)?
            .is(REDIRECT, Delta::counted(&["forwarded6_in"]));
        for (_, value) in bed.plane.state()?.sessions6 {
            let octets = u32::try_from(out.bytes().len() - 14)?;
            assert_eq!((value.packets, value.octets_low), (2, 2 * octets));
        }
        Ok(())
    })
}

#[test]
fn only_a_syn_begins_a_connection() -> Result<()> {
    with_bed6(|bed| {
        for flags in [ACK, SYN | ACK, RST, FIN, FIN | ACK, 0] {
            let seen = bed.lan_in(&Frame6::tcp(a(), b(), flags))?;
            seen.is(DROP, Delta::counted(&["drop_tcp_stray"]));
        }
        let syn = Frame6::tcp(a(), b(), SYN);
        let seen = bed.lan_in(&syn)?;
        seen.is(REDIRECT, Delta::counted(&OUT).sessions6(2));
        assert_eq!(seen.bytes, gone_out(&syn));
        let seen = bed.wan_in(&Frame6::tcp(b(), a(), SYN | ACK))?;
        seen.is(REDIRECT, Delta::counted(&FIRST_IN).sessions6_changed(1));
        bed.lan_in(&Frame6::tcp(a(), b(), ACK))?.is(
            REDIRECT,
            Delta::counted(&["forwarded6_out"]).sessions6_changed(1),
        );
        // Nobody else gets in by it.
        let other = Frame6::tcp((REMOTE2, 53), a(), SYN);
        bed.wan_in(&other)?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn simultaneous_open_passes_in_both_orders() -> Result<()> {
    with_bed6(|bed| {
        bed.wan_in(&Frame6::tcp(b(), a(), SYN))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        for (inside, flags) in [
            (true, SYN),
            (false, SYN),
            (true, SYN | ACK),
            (false, SYN | ACK),
        ] {
            let seen = if inside {
                bed.lan_in(&Frame6::tcp(a(), b(), flags))?
            } else {
                bed.wan_in(&Frame6::tcp(b(), a(), flags))?
            };
            assert_eq!(seen.action, REDIRECT);
        }
        // Open: it outlives the transitory time.
        bed.let_pass(300 * HZ)?;
        bed.age()?;
        assert_eq!(bed.plane.state()?.sessions6.len(), 2);
        Ok(())
    })
}

#[test]
fn an_echo_is_answered_and_a_foreign_reply_is_not_let_in() -> Result<()> {
    with_bed6(|bed| {
        let out = Frame6::echo(HOST, REMOTE, 128, 77);
        let seen = bed.lan_in(&out)?;
        seen.is(REDIRECT, Delta::counted(&OUT).sessions6(2));
        assert_eq!(seen.bytes, gone_out(&out));
        let back = Frame6::echo(REMOTE, HOST, 129, 77);
        assert_eq!(bed.wan_in(&back)?.bytes, gone_in(&back));
        for refused in [
            Frame6::echo(REMOTE, HOST, 129, 78),
            Frame6::echo(REMOTE2, HOST, 129, 77),
            Frame6::echo(REMOTE, HOST, 128, 77),
        ] {
            let seen = bed.wan_in(&refused)?;
            seen.is(DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        Ok(())
    })
}

/// A segment of a protocol with ports where UDP has them.
fn ported(number: u8, src: ([u8; 16], u16), dst: ([u8; 16], u16)) -> Frame6 {
    let mut frame = Frame6::new(src.0, dst.0, Upper::Other(number));
    frame.payload = [src.1.to_be_bytes(), dst.1.to_be_bytes(), [0; 2], [0; 2]].concat();
    frame.payload.extend([7; 24]);
    frame
}

#[test]
fn udp_lite_sctp_and_dccp_have_ports_and_are_not_udp() -> Result<()> {
    with_bed6(|bed| {
        for number in [136, 132, 33] {
            let (out, back) = (ported(number, a(), b()), ported(number, b(), a()));
            let opens = usize::from(number == 136);
            let seen = bed.lan_in(&out)?;
            seen.is(
                REDIRECT,
                Delta::counted(&OUT).sessions6(2).endpoints6(opens),
            );
            assert_eq!(seen.bytes, gone_out(&out));
            bed.wan_in(&Frame6::udp(b(), a()))?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
            assert_eq!(bed.wan_in(&back)?.bytes, gone_in(&back));
            let other = ported(number, (REMOTE, 54), (HOST, 5001));
            bed.wan_in(&other)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        Ok(())
    })
}

#[test]
fn any_other_protocol_goes_by_its_addresses() -> Result<()> {
    with_bed6(|bed| {
        let out = Frame6::new(HOST, REMOTE, Upper::Other(253));
        bed.wan_in(&Frame6::new(REMOTE, HOST, Upper::Other(253)))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        let seen = bed.lan_in(&out)?;
        seen.is(REDIRECT, Delta::counted(&OUT).sessions6(2).endpoints6(1));
        let back = Frame6::new(REMOTE, HOST, Upper::Other(253));
        assert_eq!(bed.wan_in(&back)?.bytes, gone_in(&back));
        bed.wan_in(&Frame6::new(REMOTE, HOST, Upper::Other(254)))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn a_full_table_refuses_the_new_flow_and_no_old_one_suffers() -> Result<()> {
    with_sized_bed6(8, |bed| {
        for port in 0..4 {
            let out = Frame6::tcp((HOST, 6000 + port), b(), SYN);
            assert_eq!(bed.lan_in(&out)?.action, REDIRECT);
        }
        let one_more = Frame6::tcp((HOST, 7000), b(), SYN);
        bed.lan_in(&one_more)?
            .is(DROP, Delta::counted(&["drop_sessions6_full"]));
        for port in 0..4 {
            let back = Frame6::tcp(b(), (HOST, 6000 + port), SYN | ACK);
            assert_eq!(bed.wan_in(&back)?.action, REDIRECT);
        }
        Ok(())
    })
}

#[test]
fn what_cannot_leave_from_here_goes_to_the_stack_as_it_came() -> Result<()> {
    with_bed6(|bed| {
        let out = Frame6::udp(a(), b());
        bed.lan_in(&out)?;
        let mut spent = out.clone();
        spent.hop_limit = 1;
        let mut large = out.clone();
        large.payload = vec![7; 1600];
        for (frame, reason) in [(spent, "pass_ttl_exceeded"), (large, "pass_too_big")] {
            let seen = bed.lan_in(&frame)?;
            seen.is(PASS, Delta::counted(&[reason]));
            assert_eq!(seen.bytes, lan_frame(&frame).bytes());
        }
        // A frame to another station is bridged.
        let mut strange = lan_frame(&out);
        strange.dst_mac = [2, 9, 9, 9, 9, 9];
        let lan = bed.lan;
        bed.raw(names::XDP_LAN, &strange.bytes(), lan)?
            .is(PASS, Delta::counted(&["pass_not_our_mac"]));
        Ok(())
    })
}

#[test]
fn silence_ends_a_session_after_the_time_of_its_protocol() -> Result<()> {
    let flows = [
        (Frame6::udp(a(), b()), 300),
        (Frame6::tcp(a(), b(), SYN), 240),
        (Frame6::echo(HOST, REMOTE, 128, 1), 60),
        (ported(132, a(), b()), 240),
        (ported(33, a(), b()), 480),
        (ported(136, a(), b()), 300),
        (Frame6::new(HOST, REMOTE, Upper::Other(253)), 300),
        (Frame6::new(HOST, REMOTE, Upper::Other(50)), 300),
    ];
    with_bed6(|bed| {
        bed.plane.ready(names::RUN_SWEEP)?;
        bed.plane.ready(names::XDP_LAN)?;
        for (frame, seconds) in &flows {
            bed.lan_in(frame)?;
            // Less, because the clock goes on.
            bed.let_pass((seconds - 40) * HZ)?;
            bed.age()?;
            assert_eq!(bed.plane.state()?.sessions6.len(), 2, "{frame:?}");
            bed.let_pass(41 * HZ)?;
            bed.age()?;
            let state = bed.plane.state()?;
            assert_eq!(state.sessions6.len(), 0, "{frame:?}");
            assert_eq!(state.endpoints6.len() * usize::from(*seconds == 300), 0);
            bed.let_pass(300 * HZ)?;
            bed.age()?;
        }
        Ok(())
    })
}

#[test]
fn an_open_connection_is_kept_two_hours_and_four_minutes() -> Result<()> {
    with_bed6(|bed| {
        bed.lan_in(&Frame6::tcp(a(), b(), SYN))?;
        bed.wan_in(&Frame6::tcp(b(), a(), SYN | ACK))?;
        bed.lan_in(&Frame6::tcp(a(), b(), ACK))?;
        bed.lan_in(&ported(132, a(), b()))?;
        bed.wan_in(&ported(132, b(), a()))?;
        bed.lan_in(&ported(33, a(), b()))?;
        bed.wan_in(&ported(33, b(), a()))?;
        bed.plane.ready(names::RUN_SWEEP)?;
        bed.let_pass(7400 * HZ)?;
        bed.age()?;
        assert_eq!(bed.plane.state()?.sessions6.len(), 6);
        bed.let_pass(41 * HZ)?;
        bed.age()?;
        assert_eq!(bed.plane.state()?.sessions6.len(), 0);
        Ok(())
    })
}
