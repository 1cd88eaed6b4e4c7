//! `cargo xtask bench`: side-by-side ratios.

use anyhow::{Result, bail};

/// Measure packet forwarding against kernel nftables and plain forwarding.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Measures and prints the table.
///
/// # Errors
/// If the measurement is void.
pub(crate) fn run(_args: &Args) -> Result<()> {
    bail!("the measurement is not part of this build")
}
