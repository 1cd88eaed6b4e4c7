//! `cargo xtask build`: the eBPF object and the programs.

use anyhow::Result;

use crate::step;

/// Build the eBPF object, the daemon and the command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Optimize, as for an installation.
    #[arg(long)]
    release: bool,
}

/// Builds everything.
///
/// # Errors
/// If the toolchain is missing or the build fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut cargo = step::cargo(&["build", "--workspace"]);
    if args.release {
        cargo.arg("--release");
    }
    step::run("building the eBPF object and the workspace", cargo)
}
