//! A WAN without Ethernet headers (PPP, tunnels): the same filter, and the stack forwards (S6-01 to S6-07, S6-10).

use anyhow::Result;
use iwf_common::flow6::{PinholeKey, SessionKey6};
use iwf_common::names::{L3_EGRESS, L3_INGRESS};
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{Bed6, HOST, REMOTE, REMOTE2, ROUTER, with_bed6};
use crate::bed::{ACK, SYN, Seen, TC_DROP, TC_NEXT};

fn out(bed: &mut Bed6, frame: &Frame6) -> Result<Seen> {
    let bridge = bed.bridge;
    bed.bare(L3_EGRESS, frame, bridge)
}

fn back(bed: &mut Bed6, frame: &Frame6) -> Result<Seen> {
    let wan = bed.wan;
    bed.bare(L3_INGRESS, frame, wan)
}

#[test]
fn a_flow_goes_out_and_its_answer_comes_in_and_nothing_else() -> Result<()> {
    with_bed6(|bed| {
        let flows = [
            (
                Frame6::udp((HOST, 5000), (REMOTE, 53)),
                Frame6::udp((REMOTE, 53), (HOST, 5000)),
            ),
            (
                Frame6::tcp((HOST, 5000), (REMOTE, 80), SYN),
                Frame6::tcp((REMOTE, 80), (HOST, 5000), SYN | ACK),
            ),
            (
                Frame6::echo(HOST, REMOTE, 128, 7),
                Frame6::echo(REMOTE, HOST, 129, 7),
            ),
            (
                Frame6::new(HOST, REMOTE, Upper::Other(41)),
                Frame6::new(REMOTE, HOST, Upper::Other(41)),
            ),
            (
                Frame6::udp((HOST, 6000), (REMOTE, 53)).with_options(60),
                Frame6::udp((REMOTE, 53), (HOST, 6000)).with_options(60),
            ),
        ];
        for (there, answer) in flows {
            back(bed, &answer)?.is(TC_DROP, Delta::counted(&["drop_unsolicited6"]));
            let seen = out(bed, &there)?;
            assert_eq!(
                (seen.action, seen.delta.sessions6.added),
                (TC_NEXT, 2),
                "{there:?}"
            );
            let seen = back(bed, &answer)?;
            assert_eq!(seen.action, TC_NEXT, "{answer:?}");
            assert_eq!(seen.delta.counters.get("pass_no_redirect"), Some(&1));
            let error = Frame6::error(REMOTE2, HOST, 1, &there);
            back(bed, &error)?.is(TC_NEXT, Delta::counted(&["pass_ipv6_stack"]));
        }
        for frame in [
            Frame6::tcp((REMOTE, 9), (HOST, 80), SYN),
            Frame6::tcp((REMOTE, 9), (ROUTER, 80), SYN),
            Frame6::udp((REMOTE, 9), (ROUTER, 53)),
        ] {
            back(bed, &frame)?.is(TC_DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        Ok(())
    })
}

#[test]
fn a_pinhole_lets_in_there_too() -> Result<()> {
    with_bed6(|bed| {
        let wanted = SessionKey6::new(REMOTE, 9u16.to_be_bytes(), HOST, 80u16.to_be_bytes(), 6);
        bed.pinhole(PinholeKey::of_inbound(&wanted, 0), 1, 0)?;
        back(bed, &Frame6::tcp((REMOTE, 9), (HOST, 80), SYN))?.is(
            TC_NEXT,
            Delta::counted(&["sessions6_created", "pass_no_redirect"]).sessions6(2),
        );
        back(bed, &Frame6::tcp((REMOTE, 10), (HOST, 80), SYN))?
            .is(TC_DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn addresses_are_judged_there_too() -> Result<()> {
    with_bed6(|bed| {
        back(bed, &Frame6::udp((HOST, 1), (ROUTER, 2)))?
            .is(TC_DROP, Delta::counted(&["drop_spoofed"]));
        let mut local = REMOTE;
        local[..2].copy_from_slice(&[0xfd, 0]);
        back(bed, &Frame6::udp((local, 1), (HOST, 2)))?
            .is(TC_DROP, Delta::counted(&["drop_forbidden6"]));
        out(bed, &Frame6::udp((local, 1), (REMOTE, 2)))?
            .is(TC_DROP, Delta::counted(&["drop_forbidden6"]));
        Ok(())
    })
}

/// The end of a packet is where it says, and not where an Ethernet header would have moved it.
#[test]
fn a_packet_cut_short_does_not_come_in() -> Result<()> {
    with_bed6(|bed| {
        for (cut, number) in [(4, 17), (19, 6), (7, 58), (11, 132)] {
            let mut frame = Frame6::new(REMOTE, HOST, Upper::Other(number)).with_options(60);
            frame.payload = vec![1; cut];
            let mut packet = frame.bytes().split_off(14);
            // What lies behind it does not belong to it.
            packet.extend([0; 14]);
            let wan = bed.wan;
            bed.plane.ready(L3_INGRESS)?;
            let before = bed.plane.state()?;
            let ran = bed.plane.tc(L3_INGRESS, &packet, wan, 0)?;
            assert_eq!(ran.action, TC_DROP);
            let delta = Delta::between(&before, &bed.plane.state()?);
            assert_eq!(delta, Delta::counted(&["drop_malformed"]), "{number}");
        }
        Ok(())
    })
}

#[test]
fn fragments_follow_their_first_there_too() -> Result<()> {
    with_bed6(|bed| {
        let mut large = Frame6::udp((HOST, 5000), (REMOTE, 53));
        large.payload = vec![9; 100];
        for piece in large.fragments(77, 48) {
            assert_eq!(out(bed, &piece)?.action, TC_NEXT);
        }
        let mut answer = Frame6::udp((REMOTE, 53), (HOST, 5000));
        answer.payload = vec![9; 100];
        for piece in answer.fragments(78, 48) {
            assert_eq!(back(bed, &piece)?.action, TC_NEXT);
        }
        Ok(())
    })
}
