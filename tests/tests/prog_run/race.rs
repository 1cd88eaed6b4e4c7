//! Two CPUs at once.

use std::collections::BTreeSet;
use std::sync::Barrier;

use anyhow::Result;
use iwf_common::names;
use iwf_tests::cpu;
use iwf_tests::packet::Frame;

use crate::bed::{Bed, HOST, HOST2, REDIRECT, REMOTE, REMOTE2, UDP, lan_frame, with_sized_bed};

const ROUNDS: u16 = 1500;

/// Runs both frames of every round at the same moment on different CPUs.
fn collide(
    bed: &mut Bed,
    cpus: [usize; 2],
    frames: impl Fn(u16) -> [Frame; 2] + Sync,
) -> Result<()> {
    bed.plane.ready(names::XDP_LAN)?;
    let start = Barrier::new(2);
    let (plane, ingress) = (&bed.plane, bed.lan);
    let one_side = |side: usize| -> Result<()> {
        cpu::pin(None, cpus[side])?;
        for round in 0..ROUNDS {
            let bytes = lan_frame(frames(round)[side].clone()).bytes();
            start.wait();
            let ran = plane.xdp(names::XDP_LAN, &bytes, ingress, 1)?;
            assert_eq!(ran.action, REDIRECT, "round {round}");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| one_side(1));
        one_side(0)?;
        other.join().expect("the other side has not panicked")
    })
}

/// Each entry of one table has its counterpart in the other: no external endpoint twice, none forgotten.
fn assert_one_to_one(bed: &Bed, mappings: usize) -> Result<()> {
    let state = bed.plane.state()?;
    let forth: BTreeSet<_> = state
        .internal
        .iter()
        .map(|(internal, value)| (*internal, value.endpoint(UDP)))
        .collect();
    let back: BTreeSet<_> = state
        .external
        .iter()
        .map(|(external, value)| (value.endpoint(UDP), *external))
        .collect();
    assert_eq!(forth, back);
    assert_eq!(forth.len(), mappings);
    Ok(())
}

/// Those that a test may use before its bed binds it to one.
fn two_cpus() -> Result<Option<[usize; 2]>> {
    let [first, second, ..] = cpu::allowed()?[..] else {
        eprintln!("skipped: a race needs two CPUs");
        return Ok(None);
    };
    Ok(Some([first, second]))
}

#[test]
fn two_hosts_never_get_one_external_port() -> Result<()> {
    let Some(cpus) = two_cpus()? else {
        return Ok(());
    };
    with_sized_bed(16384, 8192, |bed| {
        collide(bed, cpus, |round| {
            [HOST, HOST2].map(|host| Frame::udp((host, 2000 + round), (REMOTE, 53)))
        })?;
        assert_one_to_one(bed, usize::from(ROUNDS) * 2)
    })
}

#[test]
fn one_internal_endpoint_never_gets_two_external_ports() -> Result<()> {
    let Some(cpus) = two_cpus()? else {
        return Ok(());
    };
    with_sized_bed(16384, 8192, |bed| {
        // Ports below the range are not kept, so that both CPUs claim random ones.
        bed.reconfigure(|config| config.ports.min = 10000)?;
        collide(bed, cpus, |round| {
            [REMOTE, REMOTE2].map(|remote| Frame::udp((HOST, 2000 + round), (remote, 53)))
        })?;
        assert_one_to_one(bed, usize::from(ROUNDS))?;
        let state = bed.plane.state()?;
        assert_eq!(state.sessions.len(), usize::from(ROUNDS) * 4);
        eprintln!(
            "claims given back: {:?}",
            state.counters.get("claims_returned")
        );
        Ok(())
    })
}
