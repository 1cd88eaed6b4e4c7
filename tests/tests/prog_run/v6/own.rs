//! The CPE itself: its own flows, its addresses, and what leaves by its stack (S6-02).

use anyhow::Result;
use iwf_common::flow6::{PinholeKey, Shape};
use iwf_common::names;
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{HOST, REMOTE, REMOTE2, ROUTER, WAN, with_bed6};
use crate::bed::{ACK, DROP, PASS, SYN, TC_DROP, TC_NEXT};

#[test]
fn nothing_of_the_router_answers_strangers() -> Result<()> {
    with_bed6(|bed| {
        for own in [ROUTER, WAN] {
            for frame in [
                Frame6::udp((REMOTE, 9), (own, 53)),
                Frame6::udp((REMOTE, 546), (own, 547)),
                Frame6::tcp((REMOTE, 9), (own, 80), SYN),
                Frame6::tcp((REMOTE, 9), (own, 22), ACK),
                Frame6::new(REMOTE, own, Upper::Other(253)),
            ] {
                let seen = bed.wan_in(&frame)?;
                seen.is(DROP, Delta::counted(&["drop_unsolicited6"]));
            }
            for frame in [
                Frame6::echo(REMOTE, own, 128, 1),
                Frame6::udp((REMOTE, 547), (own, 546)),
            ] {
                bed.wan_in(&frame)?.is(PASS, Delta::counted(&["pass_host"]));
            }
        }
        bed.wan_in(&Frame6::new(REMOTE, WAN, Upper::Other(50)))?
            .is(PASS, Delta::counted(&["pass_host"]));
        Ok(())
    })
}

#[test]
fn a_flow_of_the_router_lets_its_answers_in_and_nobody_else() -> Result<()> {
    with_bed6(|bed| {
        let query = Frame6::udp((WAN, 40000), (REMOTE, 53));
        bed.egress(&query, false)?.is(
            TC_NEXT,
            Delta::counted(&["sessions6_created", "host_out"]).sessions6(2),
        );
        // The session notes the MAC address it was reached by.
        bed.wan_in(&Frame6::udp((REMOTE, 53), (WAN, 40000)))?
            .is(PASS, Delta::counted(&["pass_host"]).sessions6_changed(1));
        bed.wan_in(&Frame6::udp((REMOTE2, 53), (WAN, 40000)))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        // Connections of the stack are believed whatever their segment.
        bed.egress(&Frame6::tcp((WAN, 40001), (REMOTE, 80), ACK), false)?
            .is(
                TC_NEXT,
                Delta::counted(&["sessions6_created", "host_out"]).sessions6(2),
            );
        bed.egress(&Frame6::echo(WAN, REMOTE, 128, 1), false)?
            .is(TC_NEXT, Delta::counted(&["host_out"]));
        Ok(())
    })
}

#[test]
fn a_configured_port_is_open_at_every_address_of_the_router() -> Result<()> {
    with_bed6(|bed| {
        let open = PinholeKey {
            internal_port: 443u16.to_be_bytes(),
            proto: 6,
            shape: Shape::ANY_REMOTE | Shape::ANY_REMOTE_PORT,
            ..PinholeKey::default()
        };
        bed.pinhole(open, 1, 0)?;
        for own in [ROUTER, WAN] {
            let frame = Frame6::tcp((REMOTE, 9), (own, 443), SYN);
            bed.wan_in(&frame)?.is(PASS, Delta::counted(&["pass_host"]));
        }
        // But not at a LAN host's.
        bed.wan_in(&Frame6::tcp((REMOTE, 9), (HOST, 443), SYN))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        bed.wan_in(&Frame6::udp((REMOTE, 9), (WAN, 443)))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

/// A pinhole may lead to the router's address in the LAN's prefix; no session begins by it, as by no open port.
#[test]
fn a_pinhole_to_the_router_lets_in_what_it_names() -> Result<()> {
    with_bed6(|bed| {
        let pinhole = PinholeKey {
            internal: ROUTER,
            internal_port: 443u16.to_be_bytes(),
            proto: 6,
            shape: Shape::ANY_REMOTE | Shape::ANY_REMOTE_PORT,
            ..PinholeKey::default()
        };
        bed.pinhole(pinhole, 1, 0)?;
        let frame = |to, port| Frame6::tcp((REMOTE, 9), (to, port), SYN);
        bed.wan_in(&frame(ROUTER, 443))?
            .is(PASS, Delta::counted(&["pass_host"]));
        for refused in [frame(ROUTER, 80), frame(WAN, 443)] {
            bed.wan_in(&refused)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        Ok(())
    })
}

#[test]
fn what_the_stack_forwards_opens_as_well() -> Result<()> {
    with_bed6(|bed| {
        let out = Frame6::udp((HOST, 5000), (REMOTE, 53));
        let seen = bed.egress(&out, true)?;
        seen.is(
            TC_NEXT,
            Delta::counted(&["sessions6_created", "egress6"])
                .sessions6(2)
                .endpoints6(1),
        );
        assert_eq!(seen.bytes, out.bytes());
        bed.egress(&Frame6::tcp((HOST, 1), (REMOTE, 2), ACK), true)?
            .is(TC_DROP, Delta::counted(&["drop_tcp_stray"]));
        // A network that is not the LAN's is not ours to judge.
        let vpn = Frame6::udp((REMOTE2, 5), (REMOTE, 53));
        bed.egress(&vpn, true)?
            .is(TC_NEXT, Delta::counted(&["egress_untouched"]));
        Ok(())
    })
}

#[test]
fn the_filter_of_tc_is_the_same() -> Result<()> {
    with_bed6(|bed| {
        let wan = bed.wan;
        let stranger = Frame6::udp((REMOTE, 53), (HOST, 5000));
        bed.tc(names::TC_INGRESS, &stranger, wan)?
            .is(TC_DROP, Delta::counted(&["drop_unsolicited6"]));
        bed.egress(&Frame6::udp((HOST, 5000), (REMOTE, 53)), true)?;
        let seen = bed.tc(names::TC_INGRESS, &stranger, wan)?;
        assert_eq!(seen.action, TC_NEXT);
        assert_eq!(seen.bytes, stranger.bytes());
        Ok(())
    })
}
