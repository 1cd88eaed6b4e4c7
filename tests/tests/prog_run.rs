//! The packet programs, one packet at a time: what comes out, what changed, and that nothing else did.
//!
//! Read before editing: RFC 4787, RFC 5382, RFC 5508. A program run returns the verdict without redirecting;
//! delivery is the business of the suites with namespaces on both sides.

use iwf_tests::netns;
use iwf_tests::prog::Plane;
use iwf_userspace::daemon::dataplane::object::OBJECT;

#[path = "prog_run/address.rs"]
mod address;
#[path = "prog_run/bed.rs"]
mod bed;
#[path = "prog_run/egress.rs"]
mod egress;
#[path = "prog_run/explicit.rs"]
mod explicit;
#[path = "prog_run/filtering.rs"]
mod filtering;
#[path = "prog_run/fragments.rs"]
mod fragments;
#[path = "prog_run/frames.rs"]
mod frames;
#[path = "prog_run/hairpin.rs"]
mod hairpin;
#[path = "prog_run/icmp.rs"]
mod icmp;
#[path = "prog_run/inbound.rs"]
mod inbound;
#[path = "prog_run/outbound.rs"]
mod outbound;
#[path = "prog_run/quota.rs"]
mod quota;
#[path = "prog_run/race.rs"]
mod race;
#[path = "prog_run/refresh.rs"]
mod refresh;
#[path = "prog_run/refusals.rs"]
mod refusals;
#[path = "prog_run/routed.rs"]
mod routed;
#[path = "prog_run/softwire.rs"]
mod softwire;
#[path = "prog_run/spoofed.rs"]
mod spoofed;
#[path = "prog_run/sweep.rs"]
mod sweep;
#[path = "prog_run/tcp.rs"]
mod tcp;
#[path = "prog_run/v6/mod.rs"]
mod v6;

/// Half of what the kernel gives up at: other kernels go through more instructions than this one.
const VERIFIED_MOST: u32 = 500_000;

#[test]
fn the_verifier_accepts_every_program_with_room_to_spare() -> anyhow::Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    let mut plane = Plane::load(OBJECT, 1024, 1024)?;
    let programs = plane.programs();
    assert_eq!(programs.len(), 11);
    for name in programs {
        plane.ready(&name)?;
        let verified = plane.verified(&name)?;
        eprintln!("{name}: {verified} instructions verified");
        assert!(verified <= VERIFIED_MOST, "{name}: {verified}");
    }
    Ok(())
}

#[test]
fn both_clocks_run() -> anyhow::Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    let mut plane = Plane::load(OBJECT, 1024, 1024)?;
    let first = plane.clock()?;
    let second = plane.clock()?;
    assert!(first.jiffies > 0 && second.jiffies >= first.jiffies);
    assert!(second.boot_ns > first.boot_ns);
    Ok(())
}
