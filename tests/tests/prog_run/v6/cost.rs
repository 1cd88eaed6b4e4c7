//! What a hit costs, beside IPv4's. Printed, not judged: the machine decides.

use anyhow::Result;
use iwf_common::flow6::{SessionKey6, SessionValue6};
use iwf_common::names;
use iwf_tests::packet6::Frame6;

use super::bed::{HOST, REMOTE, lan_frame, with_bed6};
use crate::bed::{BRIDGE_MAC, REDIRECT, UDP};

/// A session that sends frames back to the CPE's own MAC address, so that one buffer serves every repetition.
#[test]
fn a_hit_is_measured() -> Result<()> {
    with_bed6(|bed| {
        let key = SessionKey6::new(
            HOST,
            5000u16.to_be_bytes(),
            REMOTE,
            53u16.to_be_bytes(),
            UDP,
        );
        let value = SessionValue6 {
            egress: bed.wan,
            next_hop_generation: bed.config.next_hop_generation,
            next_hop_mac: BRIDGE_MAC,
            router_mac: BRIDGE_MAC,
            mtu: 1500,
            ..SessionValue6::default()
        };
        bed.plane.set_session6(key, value)?;
        bed.plane.ready(names::XDP_LAN)?;
        let mut frame = lan_frame(&Frame6::udp((HOST, 5000), (REMOTE, 53)));
        frame.hop_limit = 255;
        let before = bed.plane.state()?.counters["forwarded6_out"];
        let repeat = 200;
        let mut best = u64::MAX;
        for _ in 0..50 {
            let ran = bed
                .plane
                .xdp(names::XDP_LAN, &frame.bytes(), bed.lan, repeat)?;
            assert_eq!((ran.action, ran.frame[21]), (REDIRECT, 55));
            best = best.min(ran.nanos);
        }
        let hits = bed.plane.state()?.counters["forwarded6_out"] - before;
        assert_eq!(hits, 50 * u64::from(repeat));
        eprintln!(
            "IPv6 session hit, UDP, {} octets: {best} ns",
            frame.bytes().len()
        );
        Ok(())
    })
}
