//! `cargo xtask bench`: side-by-side ratios. Builds what `iwf-bench` needs and becomes it; method in
//! docs/bench.md.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use iwf_tests::netns;

use crate::{setup, step, toolchain};

/// Measure packet forwarding against kernel nftables and plain forwarding, and what control points wait for.
///
/// All modes run in turn in network namespaces of their own, round after round; the median counts. A figure
/// is void unless over 99 % of the packets arrived, rightly translated, or if an answer to a control point is wrong. Needs
/// root and two CPUs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter rounds: a check that everything works rather than a figure.
    #[arg(long)]
    quick: bool,
    /// Only this part: hit, forward, new, tcp, sweep, churn or soap; may be given more than once.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Also write the rows to FILE, as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds; each measures every mode once.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
}

/// Measures and prints the table.
///
/// # Errors
/// If something is missing. What the measurement itself says is the exit status of this process.
pub(crate) fn run(args: &Args) -> Result<()> {
    netns::privileged().context("bench cannot run here")?;
    setup::toolchain()?;
    setup::lab()?;
    let root = step::root();
    let toolchain = toolchain::resolve(&root)?;
    let target = root.join("target/ebpf-bench");
    let build = toolchain::build_command(&toolchain, &root, &target, toolchain::BENCH_OBJECT);
    step::run("building generator and far end", build)?;

    if args.only.is_empty() || args.only.iter().any(|part| part == "soap") {
        let daemon = step::cargo(&["build", "--release", "--package", "iwf-userspace"]);
        step::run("building the daemon, optimized", daemon)?;
    }
    step::say("building the measuring program, optimized");
    let mut cargo = step::cargo(&["run", "--release", "--package", "iwf-tests"]);
    cargo
        .args(["--features", "bench", "--bin", "iwf-bench", "--"])
        // `step::cargo` moves to the top of the workspace.
        .current_dir(std::env::current_dir().context("find the working directory")?)
        .arg("--object")
        .arg(toolchain::object_path(&target, toolchain::BENCH_OBJECT));
    if args.quick {
        cargo.arg("--quick");
    }
    for part in &args.only {
        cargo.arg("--only").arg(part);
    }
    if let Some(file) = &args.json {
        cargo.arg("--json").arg(file);
    }
    if let Some(rounds) = args.rounds {
        cargo.arg("--rounds").arg(rounds.to_string());
    }
    // Replaced rather than waited for: Ctrl-C and signals reach the one that has to clean up.
    Err(cargo.exec()).context("start the measuring program")
}
