//! `cargo xtask demo`: the main job, step by step, on real parts.

use anyhow::Result;

/// Show the main job: open a port through two NATs and prove each step.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the demonstration.
///
/// # Errors
/// At the first step that fails.
pub(crate) fn run(_args: &Args) -> Result<()> {
    Ok(())
}
