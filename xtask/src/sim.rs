//! `cargo xtask sim`: the control plane on a virtual clock, month after month.

use anyhow::Result;

use crate::step;

/// Simulate months of trouble: every seed is a run of its own, on all processors.
///
/// The whole control plane runs against a server, clients, a kernel and a store that fail in every way, and after each
/// step all tables must agree with each other and with what clients were told. A seed that fails is printed; repeat it
/// with --seed and --runs 1, and with --trace to see what happened.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seeds that are tried.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    runs: u64,
    /// Days that each run simulates.
    #[arg(long, value_name = "D", default_value_t = 30)]
    days: u64,
    /// The first seed.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
}

/// Builds the simulation with optimization and runs it.
///
/// # Errors
/// If a run fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut cargo = step::cargo(&[
        "test",
        "--profile",
        "sim",
        "--no-default-features",
        "--package",
        "iwf-userspace",
        "--lib",
        "--locked",
        "--quiet",
        "--",
        "--exact",
        "--nocapture",
        "sim::months::months",
    ]);
    cargo
        .env("IWF_SIM_RUNS", args.runs.to_string())
        .env("IWF_SIM_DAYS", args.days.to_string())
        .env("IWF_SIM_SEED", args.seed.to_string());
    if args.trace {
        cargo.env("IWF_SIM_TRACE", "1");
    }
    let what = format!(
        "simulating {} runs of {} days from seed {}",
        args.runs, args.days, args.seed
    );
    step::run(&what, cargo)
}
