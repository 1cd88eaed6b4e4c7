//! `cargo xtask build`: the eBPF object and the programs.

use anyhow::Result;

use crate::{setup, step};

/// Build the eBPF object, the daemon and the command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Optimize, as for an installation.
    #[arg(long)]
    release: bool,
}

/// Builds everything; installs the eBPF toolchain first where it is missing.
///
/// # Errors
/// If the toolchain is missing and cannot be installed, or the build fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::toolchain()?;
    workspace(args.release)
}

/// Builds the workspace; the eBPF object is made by a build script on the way.
///
/// # Errors
/// If the build fails.
pub(crate) fn workspace(release: bool) -> Result<()> {
    let mut cargo = step::cargo(&["build", "--workspace", "--locked"]);
    if release {
        cargo.arg("--release");
    }
    step::run("building the eBPF programs and the workspace", cargo)
}
