//! ICMPv6 errors (S6-04, S6-06; RFC 6092 REC-10, REC-18, REC-19, REC-36, REC-37).

use anyhow::Result;
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{HOST, REMOTE, REMOTE2, WAN, lan_frame, wan_frame, with_bed6};
use crate::bed::{DROP, PASS, SYN, TC_DROP, TC_NEXT};

fn flows() -> Vec<Frame6> {
    vec![
        Frame6::udp((HOST, 5000), (REMOTE, 53)),
        Frame6::tcp((HOST, 5000), (REMOTE, 80), SYN),
        Frame6::echo(HOST, REMOTE, 128, 7),
        Frame6::new(HOST, REMOTE, Upper::Other(50)),
        Frame6::udp((HOST, 5001), (REMOTE, 53)).with_options(60),
    ]
}

#[test]
fn an_error_about_a_flow_comes_in_and_changes_nothing() -> Result<()> {
    with_bed6(|bed| {
        for flow in flows() {
            bed.lan_in(&flow)?;
            for kind in [1, 2, 3, 4] {
                let error = Frame6::error(REMOTE2, HOST, kind, &flow);
                let seen = bed.wan_in(&error)?;
                seen.is(PASS, Delta::counted(&["pass_ipv6_stack"]));
                assert_eq!(seen.bytes, wan_frame(&error).bytes());
            }
            // As short as RFC 4443 has it for a packet of many headers.
            let mut short = Frame6::error(REMOTE2, HOST, 1, &flow);
            if flow.headers.is_empty() {
                short.payload.truncate(48);
                bed.wan_in(&short)?
                    .is(PASS, Delta::counted(&["pass_ipv6_stack"]));
            }
        }
        Ok(())
    })
}

#[test]
fn an_error_about_nothing_does_not_come_in() -> Result<()> {
    with_bed6(|bed| {
        let flow = Frame6::udp((HOST, 5000), (REMOTE, 53));
        bed.lan_in(&flow)?;
        let mut cut = Frame6::error(REMOTE2, HOST, 1, &flow);
        cut.payload.truncate(47);
        let mut foreign = flow.clone();
        foreign.src[15] = 0x11;
        for error in [
            Frame6::error(REMOTE2, HOST, 1, &Frame6::udp((HOST, 5001), (REMOTE, 53))),
            Frame6::error(
                REMOTE2,
                HOST,
                2,
                &Frame6::tcp((HOST, 5000), (REMOTE, 53), SYN),
            ),
            // The direction of what comes in.
            Frame6::error(REMOTE2, HOST, 1, &Frame6::udp((REMOTE, 53), (HOST, 5000))),
            // Who it is for had not sent that.
            Frame6::error(REMOTE2, HOST, 1, &foreign),
            // About an error.
            Frame6::error(REMOTE2, HOST, 1, &Frame6::error(HOST, REMOTE, 1, &flow)),
            cut,
        ] {
            let seen = bed.wan_in(&error)?;
            seen.is(DROP, Delta::counted(&["drop_icmp_error_stray"]));
        }
        Ok(())
    })
}

#[test]
fn an_error_of_a_lan_host_goes_out_about_what_came_in() -> Result<()> {
    with_bed6(|bed| {
        bed.lan_in(&Frame6::udp((HOST, 5000), (REMOTE, 53)))?;
        let answer = Frame6::udp((REMOTE, 53), (HOST, 5000));
        let error = Frame6::error(HOST, REMOTE, 1, &answer);
        let seen = bed.lan_in(&error)?;
        seen.is(PASS, Delta::counted(&["pass_ipv6_stack"]));
        assert_eq!(seen.bytes, lan_frame(&error).bytes());
        bed.egress(&error, true)?
            .is(TC_NEXT, Delta::counted(&["egress6"]));
        let stray = Frame6::error(HOST, REMOTE, 1, &Frame6::udp((REMOTE, 53), (HOST, 5001)));
        bed.egress(&stray, true)?
            .is(TC_DROP, Delta::counted(&["drop_icmp_error_stray"]));
        Ok(())
    })
}

#[test]
fn an_error_about_a_later_fragment_finds_the_flow() -> Result<()> {
    with_bed6(|bed| {
        let mut large = Frame6::udp((HOST, 5000), (REMOTE, 53));
        large.payload = vec![9; 100];
        let pieces = large.fragments(77, 48);
        bed.lan_in(&pieces[0])?;
        bed.wan_in(&Frame6::error(REMOTE2, HOST, 2, &pieces[1]))?
            .is(PASS, Delta::counted(&["pass_ipv6_stack"]));
        let other = large.fragments(78, 48);
        bed.wan_in(&Frame6::error(REMOTE2, HOST, 2, &other[1]))?
            .is(DROP, Delta::counted(&["drop_icmp_error_stray"]));
        Ok(())
    })
}

#[test]
fn messages_that_are_no_errors_do_not_come_in() -> Result<()> {
    with_bed6(|bed| {
        for kind in [130, 133, 135, 136, 137, 139, 144, 160, 200, 255] {
            let frame = Frame6::new(REMOTE, HOST, Upper::Icmp(kind, 0, [0; 4]));
            bed.wan_in(&frame)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
            // The router's own stack judges for itself.
            let own = Frame6::new(REMOTE, WAN, Upper::Icmp(kind, 0, [0; 4]));
            bed.wan_in(&own)?.is(PASS, Delta::counted(&["pass_host"]));
        }
        Ok(())
    })
}
