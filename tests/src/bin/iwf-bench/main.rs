//! Measures what a packet costs the router, for our data plane and for the kernel's own, in one run.
//!
//! Started by `cargo xtask bench`, which builds the objects. Method: docs/bench.md.
#![expect(
    clippy::print_stdout,
    reason = "a command-line program: the table is its output, progress goes to standard error"
)]

#[path = "../../../../iwf-ebpf/src/bin/iwf-bench/abi.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "shared with the programs, which use all of it"
)]
mod abi;
mod bed;
mod cpu;
mod hit;
mod nat;
mod report;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use iwf_tests::netns;

use crate::bed::{Bed, Mode};
use crate::cpu::Placement;

/// Concurrent flows measured.
const FLOWS: [u32; 2] = [1, abi::MAX_FLOWS];

/// Measure packet forwarding through a router of each kind, side by side.
#[derive(Debug, Parser)]
#[command(name = "iwf-bench")]
struct Args {
    /// The object with generator and far end.
    #[arg(long, value_name = "FILE")]
    object: PathBuf,
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Also write the rows to FILE, as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds; each measures every mode once and the median counts [default: 7, with --quick 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Milliseconds of the router's CPU time per mode and round [default: 400, with --quick 100].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=60_000))]
    stretch: Option<u32>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    netns::privileged().context("the bench cannot run here")?;
    let placement = Placement::choose()?;
    let (rounds, stretch) = if args.quick { (3, 100) } else { (7, 400) };
    let rounds = args.rounds.unwrap_or(rounds);
    let stretch = Duration::from_millis(args.stretch.unwrap_or(stretch).into());

    let mut rows = hit::measure(&args.object).context("measure a session hit")?;
    let mut beds = Vec::new();
    for mode in Mode::ALL {
        let bed =
            Bed::new(mode, placement, &args.object).with_context(|| format!("set up {mode}"))?;
        beds.push(bed);
    }
    let mut samples = report::Samples::default();
    for flows in FLOWS {
        for bed in &mut beds {
            bed.warm_up(flows)?;
        }
        for round in 1..=rounds {
            for bed in &mut beds {
                let sample = bed.measure(flows, stretch)?;
                eprintln!("{}", report::progress(round, bed.mode(), flows, &sample));
                samples.push(bed.mode(), flows, sample);
            }
        }
    }
    drop(beds);

    rows.splice(0..0, samples.rows());
    println!("{}", report::table(&rows));
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&rows).context("write rows as JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    ensure!(
        rows.iter().all(|row| row.valid),
        "a figure is void: too few packets arrived as they should"
    );
    Ok(())
}
