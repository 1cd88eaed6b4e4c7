//! What a hit and a sweep cost. Printed, not judged: the machine decides.
#![expect(
    clippy::disallowed_methods,
    reason = "measures on the machine's own clock"
)]

use std::time::Instant;

use anyhow::Result;
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::{csum, names};
use iwf_tests::packet::Frame;

use iwf_common::sweep::SweepMode;

use crate::bed::{
    BRIDGE_MAC, HOST, REDIRECT, REMOTE, UDP, WAN, endpoint, lan_frame, with_bed, with_sized_bed,
};

/// A pair of sessions that rewrite each other's packets back, so that one buffer serves every repetition.
#[test]
fn a_hit_is_measured() -> Result<()> {
    with_bed(|bed| {
        let (a, b) = ((HOST, 5000u16), (WAN, 6000u16));
        let one_way = |from: ([u8; 4], u16), to: ([u8; 4], u16), mtu| {
            let l3_delta = csum::delta32(from.0, to.0);
            let port = csum::delta16(from.1.to_be_bytes(), to.1.to_be_bytes());
            let key = SessionKey::new(
                from.0,
                from.1.to_be_bytes(),
                REMOTE,
                53u16.to_be_bytes(),
                UDP,
            );
            let value = SessionValue {
                src: to.0,
                dst: REMOTE,
                src_port: to.1.to_be_bytes(),
                dst_port: key.dst_port,
                l3_delta,
                l4_delta: csum::add(l3_delta, port),
                next_hop_mac: BRIDGE_MAC,
                router_mac: BRIDGE_MAC,
                mtu,
                ..SessionValue::default()
            };
            (key, value)
        };
        for (key, mut value) in [one_way(a, b, 1500), one_way(b, a, 1500)] {
            value.egress = bed.wan;
            value.next_hop_generation = bed.config.next_hop_generation;
            bed.plane.set_session(key, value)?;
        }
        bed.plane.ready(names::XDP_LAN)?;
        let mut frame = lan_frame(Frame::udp((a.0, a.1), (REMOTE, 53)));
        frame.ttl = 255;
        let repeat = 200;
        let mut best = u64::MAX;
        for _ in 0..50 {
            let ran = bed
                .plane
                .xdp(names::XDP_LAN, &frame.bytes(), bed.lan, repeat)?;
            assert_eq!(ran.action, REDIRECT);
            let out = Frame::parse(&ran.frame).expect("a good frame");
            assert_eq!((out.src, out.ttl), (HOST, 55));
            best = best.min(ran.nanos);
        }
        let hits = bed.plane.state()?.counters["forwarded_out"];
        assert_eq!(hits, 50 * u64::from(repeat));
        eprintln!(
            "session hit, UDP, {} octets: {best} ns",
            frame.bytes().len()
        );
        Ok(())
    })
}

/// Sessions that stay are the dear ones: each is compared with its other half and its mapping.
#[test]
fn a_sweep_is_measured() -> Result<()> {
    with_sized_bed(65536, 4096, |bed| {
        bed.plane.ready(names::XDP_LAN)?;
        for flow in 0..16384u16 {
            let to = ([11, 22, (flow >> 8) as u8, flow as u8], 53);
            let frame = lan_frame(Frame::udp((HOST, 5000 + flow % 16), to));
            bed.plane.xdp(names::XDP_LAN, &frame.bytes(), bed.lan, 1)?;
        }
        bed.plane.ready(names::RUN_SWEEP)?;
        let start = Instant::now();
        let swept = bed.sweep(SweepMode::Age, endpoint(([0; 4], 0), 0))?;
        let took = start.elapsed();
        assert_eq!((swept.sessions_left, swept.mappings_left), (32768, 16));
        eprintln!("sweep of {} session entries: {took:?}", swept.sessions_left);

        Ok(())
    })
}

/// The kernel gives up at a million steps.
#[test]
fn what_the_verifier_does_is_measured() -> Result<()> {
    with_bed(|bed| {
        for name in bed.plane.programs() {
            bed.plane.ready(&name)?;
            let steps = bed.plane.verified_instructions(&name)?;
            eprintln!("{name}: {steps} instructions verified");
        }
        Ok(())
    })
}
