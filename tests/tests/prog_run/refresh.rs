//! What keeps a mapping, and what does not (RFC 4787 REQ-6, RFC 7857 sections 7 and 7.1).

use anyhow::Result;
use iwf_common::nat::Filter;
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, Bed, DROP, HOST, HZ, PASS, REDIRECT, REMOTE, REMOTE2, RST, SYN, TC_NEXT, TCP, UDP, WAN,
    endpoint, lan_frame, wan_frame, with_both,
};

/// Lets seconds pass, sweeps, and says whether the mapping is still there. Some seconds more may pass by themselves, on a
/// slow machine.
fn stands_after(bed: &mut Bed, seconds: u32, proto: u8) -> Result<bool> {
    bed.let_pass(seconds * HZ)?;
    bed.sweep()?;
    let state = bed.plane.state()?;
    Ok(state.external.contains_key(&endpoint((WAN, 5000), proto)))
}

fn open_to_all(bed: &mut Bed) -> Result<()> {
    bed.reconfigure(|config| config.filter = Filter::EndpointIndependent as u8)
}

fn tcp_out(remote: [u8; 4], flags: u8) -> Frame {
    lan_frame(Frame::tcp((HOST, 5000), (remote, 80), flags))
}

fn tcp_in(remote: [u8; 4], flags: u8) -> Frame {
    wan_frame(Frame::tcp((remote, 80), (WAN, 5000), flags))
}

#[test]
fn what_the_filter_rejects_keeps_nothing() -> Result<()> {
    let cases = [
        (UDP, 280, Frame::udp((HOST, 5000), (REMOTE, 53)), {
            Frame::udp((REMOTE2, 53), (WAN, 5000))
        }),
        (TCP, 220, Frame::tcp((HOST, 5000), (REMOTE, 80), SYN), {
            Frame::tcp((REMOTE2, 80), (WAN, 5000), SYN)
        }),
    ];
    for (proto, patience, opening, stranger) in cases {
        with_both(|bed| {
            bed.lan_in(&lan_frame(opening.clone()))?;
            // The session's time, and for TCP once more as long for the mapping.
            let mut stands = true;
            for _ in 0..5 {
                let frame = wan_frame(stranger.clone());
                let dropped = Delta::counted(&["drop_unsolicited"]);
                bed.wan_in(&frame)?.is_untouched(DROP, dropped, &frame);
                stands = stands_after(bed, patience / 2, proto)?;
            }
            assert!(!stands);
            Ok(())
        })?;
    }
    Ok(())
}

/// A packet that is let in and answered by "port unreachable" is not wanted.
#[test]
fn an_icmp_error_of_the_host_keeps_nothing() -> Result<()> {
    with_both(|bed| {
        open_to_all(bed)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        for _ in 0..2 {
            let stranger = wan_frame(Frame::udp((REMOTE2, 53), (WAN, 5000)));
            let seen = bed.wan_in(&stranger)?;
            assert_eq!(seen.action, REDIRECT, "{:?}", seen.delta);
            let error = Frame::icmp_error(HOST, REMOTE2, (3, 3), seen.bytes[14..].to_vec());
            // By way of the stack: nothing has been sent to the stranger that the way out would be known from.
            let error = lan_frame(error);
            bed.lan_in(&error)?
                .is_untouched(PASS, Delta::counted(&["pass_unresolved"]), &error);
            let told = Delta::counted(&["icmp_errors_translated"]);
            bed.egress(&error, true)?.is(TC_NEXT, told);
            assert!(stands_after(bed, 140, UDP)?);
        }
        assert!(!stands_after(bed, 25, UDP)?);
        Ok(())
    })
}

/// The attack of RFC 7857 section 7: a SYN every two minutes by a port that the host has used once.
#[test]
fn a_connection_that_the_host_refuses_keeps_nothing() -> Result<()> {
    for answer in [Some(RST | ACK), None] {
        with_both(|bed| {
            open_to_all(bed)?;
            bed.lan_in(&tcp_out(REMOTE, SYN))?;
            // The host's own attempt keeps it for twice four minutes, the strangers' would keep it for ever.
            let mut stands = true;
            for _ in 0..5 {
                if stands {
                    let seen = bed.wan_in(&tcp_in(REMOTE2, SYN))?;
                    assert_eq!(seen.action, REDIRECT, "{:?}", seen.delta);
                    if let Some(flags) = answer {
                        let seen = bed.lan_in(&tcp_out(REMOTE2, flags))?;
                        assert_eq!(seen.action, REDIRECT, "{:?}", seen.delta);
                    }
                }
                stands = stands_after(bed, 110, TCP)?;
            }
            assert!(!stands);
            // Nor does the session, which had a packet a moment ago, outlive it.
            let left = bed.sweep()?;
            assert_eq!((left.sessions_left, left.mappings_left), (0, 0));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_connection_that_the_host_accepts_keeps_its_mapping() -> Result<()> {
    with_both(|bed| {
        open_to_all(bed)?;
        bed.lan_in(&tcp_out(REMOTE, SYN))?;
        bed.wan_in(&tcp_in(REMOTE2, SYN))?;
        bed.lan_in(&tcp_out(REMOTE2, SYN | ACK))?;
        bed.wan_in(&tcp_in(REMOTE2, ACK))?;
        for _ in 0..3 {
            assert!(stands_after(bed, 2000, TCP)?);
        }
        Ok(())
    })
}

/// A host that has ended its connection, and says so to everything that comes.
#[test]
fn segments_that_are_answered_by_a_reset_keep_nothing() -> Result<()> {
    with_both(|bed| {
        bed.lan_in(&tcp_out(REMOTE, SYN))?;
        bed.wan_in(&tcp_in(REMOTE, SYN | ACK))?;
        bed.lan_in(&tcp_out(REMOTE, ACK))?;
        for _ in 0..2 {
            bed.wan_in(&tcp_in(REMOTE, ACK))?;
            bed.lan_in(&tcp_out(REMOTE, RST))?;
            assert!(stands_after(bed, 110, TCP)?);
        }
        assert!(!stands_after(bed, 25, TCP)?);
        Ok(())
    })
}
