//! What a hit and a sweep cost. Printed, not judged: the machine decides.
#![expect(
    clippy::disallowed_methods,
    reason = "measures on the machine's own clock"
)]

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::{csum, names};
use iwf_tests::packet::Frame;

use iwf_common::sweep::SweepMode;

use crate::bed::{
    BRIDGE_MAC, HOST, HZ, REDIRECT, REMOTE, UDP, WAN, endpoint, lan_frame, with_bed, with_sized_bed,
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

/// A million sessions in the table, none of them over: what the daemon does every few seconds. Then all of them are.
#[test]
#[ignore = "fills two million entries; run it by name to measure"]
fn slices_of_a_million_sessions_are_measured() -> Result<()> {
    const SESSIONS: u32 = 1 << 20;
    with_sized_bed(2 * SESSIONS, 65_536, |bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        let now = bed.now()?;
        for flow in 0..SESSIONS {
            let [_, b, c, d] = flow.to_be_bytes();
            let remote = [11, b, c, d];
            let (inner, outer) = (5000u16.to_be_bytes(), 40000u16.to_be_bytes());
            let out = SessionValue {
                src: WAN,
                src_port: outer,
                dst: remote,
                dst_port: inner,
                last_seen: now,
                packets: 1,
                ..SessionValue::default()
            };
            let back = SessionValue {
                src: remote,
                src_port: inner,
                dst: HOST,
                dst_port: inner,
                flags: SessionFlags::INBOUND,
                ..out
            };
            let key = SessionKey::new(HOST, inner, remote, inner, UDP);
            bed.plane.set_session(key, out)?;
            bed.plane.set_session(out.reverse_key(UDP), back)?;
        }
        let fd = bed
            .plane
            .map_data(names::SESSIONS)?
            .fd()
            .as_fd()
            .as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        for line in info.lines().filter(|line| line.starts_with("memlock")) {
            eprintln!("SESSIONS with {} entries: {line}", 2 * SESSIONS);
        }
        let mut sweeper = bed.sweeper()?;
        for what in ["all live", "all over"] {
            let (mut longest, mut sum, mut slices) = (Duration::ZERO, Duration::ZERO, 0u32);
            let totals = loop {
                let start = Instant::now();
                let done = bed.sweep_slice(&mut sweeper)?;
                let took = start.elapsed();
                longest = longest.max(took);
                sum += took;
                slices += 1;
                if let Some(totals) = done {
                    break totals;
                }
            };
            eprintln!(
                "{what}: {slices} slices, {sum:?} in all, the longest {longest:?}, {totals:?}"
            );
            bed.reconfigure(|config| config.idle.udp = 0)?;
            while bed.now()?.wrapping_sub(now) < 5 * HZ {
                std::thread::yield_now();
            }
        }
        let start = Instant::now();
        let external = endpoint((WAN, 40000), UDP);
        bed.sweep(SweepMode::EndSessionsOf, external)?;
        eprintln!("a walk over the empty table: {:?}", start.elapsed());
        Ok(())
    })
}
