//! The packet programs, one packet at a time: what comes out, what changed, and that nothing else did.

use anyhow::Result;
use iwf_tests::netns;
use iwf_tests::prog::Plane;
use iwf_userspace::daemon::dataplane::object::OBJECT;

#[test]
fn the_verifier_accepts_every_program() -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    Plane::load(OBJECT, 1024, 1024)?;
    Ok(())
}
