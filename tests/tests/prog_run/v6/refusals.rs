//! What the daemon hears of refused IPv6 packets (RFC 6092 REC-34).

use anyhow::Result;
use iwf_common::config::ConfigFlags;
use iwf_common::refusal::Side;
use iwf_tests::packet::ETHERNET;
use iwf_tests::packet6::Frame6;
use iwf_tests::prog::Delta;

use super::bed::{
    Bed6, HOST, REMOTE, ROUTER, WAN, lan_frame, wan_frame, with_bed6, with_sized_bed6,
};
use crate::bed::{ACK, DROP, SYN, TC_NEXT};

fn answer(bed: &mut Bed6) -> Result<()> {
    bed.reconfigure(|config| config.flags |= ConfigFlags::ANSWER_WAN | ConfigFlags::ANSWER_LAN)
}

fn packet(frame: &Frame6) -> Vec<u8> {
    frame.bytes().split_off(ETHERNET)
}

#[test]
fn an_unsolicited_syn_is_noted() -> Result<()> {
    with_bed6(|bed| {
        let unsolicited = "drop_unsolicited6";
        let syn = wan_frame(&Frame6::tcp((REMOTE, 80), (HOST, 5000), SYN));
        bed.wan_in(&syn)?.is(DROP, Delta::counted(&[unsolicited]));
        assert_eq!(bed.plane.refused()?, None, "not unless configured");
        answer(bed)?;
        // For a LAN host, for the router on either side; behind options the daemon looks itself.
        for frame in [
            syn.clone(),
            wan_frame(&Frame6::tcp((REMOTE, 80), (ROUTER, 5000), SYN)),
            wan_frame(&Frame6::tcp((REMOTE, 80), (WAN, 5000), SYN)),
            wan_frame(&Frame6::tcp((REMOTE, 80), (HOST, 5000), SYN).with_options(60)),
        ] {
            bed.wan_in(&frame)?
                .is(DROP, Delta::counted(&[unsolicited, "refusals_noted"]));
            assert_eq!(bed.plane.refused()?, Some((Side::Wan, packet(&frame))));
        }
        for frame in [
            Frame6::udp((REMOTE, 80), (HOST, 5000)),
            Frame6::echo(REMOTE, HOST, 128, 1),
            Frame6::tcp((REMOTE, 80), (HOST, 5000), SYN | ACK),
            Frame6::tcp((REMOTE, 80), (HOST, 5000), ACK),
        ] {
            bed.wan_in(&wan_frame(&frame))?
                .is(DROP, Delta::counted(&[unsolicited]));
            assert_eq!(bed.plane.refused()?, None);
        }
        Ok(())
    })
}

#[test]
fn a_flow_that_there_is_no_room_for_is_noted() -> Result<()> {
    with_sized_bed6(2, |bed| {
        answer(bed)?;
        let flow = |port| lan_frame(&Frame6::udp((HOST, port), (REMOTE, 53)));
        // The kernel has some more room than it is asked for.
        let mut port = 5000;
        while bed.lan_in(&flow(port))?.action != DROP {
            port += 1;
        }
        assert_eq!(bed.plane.refused()?, Some((Side::Lan, packet(&flow(port)))));
        Ok(())
    })
}

/// As the kernel sends it for the daemon.
#[test]
fn the_answer_leaves_the_wan() -> Result<()> {
    with_bed6(|bed| {
        let syn = wan_frame(&Frame6::tcp((REMOTE, 80), (HOST, 5000), SYN));
        let error = Frame6::error(WAN, REMOTE, 1, &syn);
        bed.egress(&error, false)?
            .is(TC_NEXT, Delta::counted(&["host_out"]));
        Ok(())
    })
}
