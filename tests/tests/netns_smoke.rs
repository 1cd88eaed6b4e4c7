//! What must work on every kernel: the programs load, packets cross the NAT, a restart adopts, detaching leaves nothing.
//!
//! `cargo xtask vm` runs this suite on other kernels.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use iwf_tests::bpf::Objects;
use iwf_tests::cascade::Cascade;
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::peers::{self, Echo};
use iwf_tests::prog::Plane;
use iwf_tests::topology::{EXTERNAL, LAN1, REMOTE};
use iwf_tests::wait;
use iwf_userspace::daemon::dataplane::object::{self, OBJECT};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_every_program_loads() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let fitted = object::fit(OBJECT);
    let mut plane = Plane::load_with(&fitted.object, &fitted.constants, 1024, 1024)?;
    let mut refused = Vec::new();
    for name in plane.programs() {
        let (outcome, took) = wait::timed(|| plane.ready(&name));
        match outcome {
            Ok(()) => {
                // The newest one; kernels before 5.16 do not tell the number.
                let newest = loaded_programs().flatten().max_by_key(|info| info.id());
                let steps = newest.and_then(|info| info.verified_instruction_count());
                let steps = steps.map_or("?".to_owned(), |steps| steps.to_string());
                eprintln!(
                    "{name}: verified {steps} instructions in {} ms",
                    took.as_millis()
                );
            }
            Err(error) => {
                // The verifier's log is long and its end is what counts.
                let text = format!("{error:#}");
                let lines: Vec<_> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(12)..].join("\n");
                eprintln!("{name}: refused:\n{end}");
                refused.push(name);
            }
        }
    }
    assert!(refused.is_empty(), "refused: {refused:?}");
    Ok(())
}

#[test]
fn b_packets_cross_the_nat_both_ways_and_a_restart_adopts() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let options = Options {
        attach: "auto",
        ..Options::default()
    };
    let mut cascade = Cascade::up(&options)?;
    let before = Objects::of(&cascade.lab.cpe)?;
    eprintln!("attached: {:?}", before.xdp);
    let (lan1, inet) = (cascade.lab.lan1.clone(), cascade.lab.inet.clone());

    let outside = Echo::listen(&inet, 0)?;
    let remote = SocketAddrV4::new(REMOTE, outside.port());
    peers::udp_echo(&lan1, remote, "out over UDP", SOON)?;
    peers::tcp_echo(&lan1, remote, "out over TCP", SOON)?;

    let inside = Echo::listen(&lan1, 0)?;
    let gateway = Gateway::discover(&lan1)?;
    for protocol in ["TCP", "UDP"] {
        gateway
            .add(protocol, 20000, LAN1, inside.port(), 3600)?
            .ok()
            .context("open a port")?;
    }
    let mapped = SocketAddrV4::new(EXTERNAL, 20000);
    peers::udp_echo(&inet, mapped, "in over UDP", SOON)?;
    peers::tcp_echo(&inet, mapped, "in over TCP", SOON)?;

    cascade.iwfd.kill()?;
    peers::tcp_echo(&inet, mapped, "in without the daemon", SOON)?;
    peers::udp_echo(&lan1, remote, "out without the daemon", SOON)?;
    cascade.iwfd.restart()?;
    cascade.iwfd.ctl().must(&["audit"])?;
    assert_eq!(
        Objects::of(&cascade.lab.cpe)?,
        before,
        "programs, maps and links are the same by id"
    );
    peers::tcp_echo(&inet, mapped, "in after the restart", SOON)?;

    cascade.iwfd.stop()?;
    cascade.iwfd.ctl().detach()?;
    before.are_gone(SOON)?;
    assert!(Objects::of(&cascade.lab.cpe)?.is_empty());
    Ok(())
}
