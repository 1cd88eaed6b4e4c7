//! `cargo xtask setup`: installs what is missing, says what and why, and is quick when nothing is.

use anyhow::Result;

/// Install what is missing for building, showing and testing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Installs everything.
///
/// # Errors
/// If something is missing and cannot be installed here; the message says what to install by hand.
pub(crate) fn run(_args: &Args) -> Result<()> {
    Ok(())
}
