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
mod soap;
mod sweep;
mod targets;
mod tcp;
mod traffic;
mod windows;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use iwf_tests::bench::Row;
use iwf_tests::netns;

use crate::abi::{LARGE, MAX_FLOWS, SMALL};
use crate::bed::{Bed, Mode, Room};
use crate::cpu::Placement;
use crate::report::Samples;
use crate::traffic::Load;

/// What every mode is measured with.
const LOADS: [Load; 6] = [
    load(1, SMALL),
    load(1024, SMALL),
    load(16_384, SMALL),
    load(65_536, SMALL),
    load(1, LARGE),
    load(65_536, LARGE),
];

/// More flows than conntrack has room for unless the whole machine is changed.
const MILLION: [Load; 2] = [load(MAX_FLOWS, SMALL), load(MAX_FLOWS, LARGE)];

/// First packets only: as many internal endpoints as there are.
const NEW: Load = load(abi::ENDPOINTS, SMALL);

const fn load(flows: u32, frame: usize) -> Load {
    Load { flows, frame }
}

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
    /// Only this; may be given more than once.
    #[arg(long, value_name = "PART", value_enum)]
    only: Vec<Part>,
    /// Also write the rows to FILE, as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Of the part `soap` only this; may be given more than once.
    #[arg(long, value_name = "WHAT", value_enum)]
    soap: Vec<soap::What>,
    /// Rounds; each measures every mode once and the median counts [default: 7, with --quick 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Milliseconds of the router's CPU time per mode and round [default: 400, with --quick 100].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=60_000))]
    stretch: Option<u32>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// What a session hit costs by the kernel's own clock.
    Hit,
    /// Packets of flows that are known.
    Forward,
    /// First packets.
    New,
    /// TCP with segmentation offload through tc.
    Tcp,
    /// Forwarding while a million sessions are swept.
    Sweep,
    /// Forwarding while mappings come and go.
    Churn,
    /// Control points: how long additions take, how many there can be, and the daemon's memory.
    Soap,
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

    let quiet = Duration::from_secs(if args.quick { 2 } else { 5 });
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let run = Run {
        object: &args.object,
        placement,
        rounds,
        stretch,
    };
    let mut rows = Vec::new();
    if wanted(Part::Forward) {
        let mut forward = Samples::of("forward");
        run.forward(&mut forward, &LOADS, &Mode::ALL, Room::Ordinary)?;
        run.forward(
            &mut forward,
            &MILLION,
            &[Mode::Plain, Mode::Iwf, Mode::Redirect],
            Room::Million,
        )?;
        rows.extend(forward.rows());
    }
    if wanted(Part::New) {
        let mut new = Samples::of("new-session");
        run.new_sessions(&mut new)?;
        rows.extend(new.rows());
    }
    if wanted(Part::Tcp) {
        let measured = tcp::measure(placement.router, rounds, stretch);
        rows.extend(measured.context("measure TCP")?);
    }
    if wanted(Part::Hit) {
        let measured = hit::measure(&args.object);
        rows.extend(measured.context("measure a session hit")?);
    }
    if wanted(Part::Sweep) {
        let measured = sweep::measure(placement, &args.object, quiet);
        rows.extend(measured.context("measure a sweep")?);
    }
    if wanted(Part::Churn) {
        let measured = sweep::churn(placement, &args.object, quiet);
        rows.extend(measured.context("measure mappings that come and go")?);
    }
    if wanted(Part::Soap) {
        let extent = match args.quick {
            true => soap::Extent::quick(rounds),
            false => soap::Extent::full(rounds),
        };
        rows.extend(soap::measure(&args.soap, extent));
    }
    finish(args, &rows)
}

/// Prints the rows and writes them to a file, if asked to.
fn finish(args: &Args, rows: &[Row]) -> Result<()> {
    println!("{}", report::table(rows));
    if let Some(targets) = targets::table(rows) {
        println!("{targets}");
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(rows).context("write rows as JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    ensure!(
        rows.iter().all(|row| row.valid),
        "a figure is void: something did not arrive as it should"
    );
    Ok(())
}

/// How a run measures.
struct Run<'a> {
    object: &'a Path,
    placement: Placement,
    rounds: u32,
    stretch: Duration,
}

impl Run<'_> {
    /// Packets of flows that are known.
    fn forward(
        &self,
        samples: &mut Samples,
        loads: &[Load],
        modes: &[Mode],
        room: Room,
    ) -> Result<()> {
        let mut beds = modes
            .iter()
            .map(|mode| self.bed(*mode, room))
            .collect::<Result<Vec<_>>>()?;
        for load in loads {
            for bed in &mut beds {
                bed.warm_up(*load)?;
            }
            for _ in 0..self.rounds {
                for bed in &mut beds {
                    let sample = bed.measure(*load, self.stretch)?;
                    samples.push(bed.mode(), *load, sample);
                }
            }
        }
        Ok(())
    }

    /// One packet of each flow, on a router that knows none: with a new one each time.
    fn new_sessions(&self, samples: &mut Samples) -> Result<()> {
        for _ in 0..self.rounds {
            for mode in [Mode::Nftables, Mode::Iwf] {
                let mut bed = self.bed(mode, Room::Ordinary)?;
                samples.push(mode, NEW, bed.measure_once(NEW)?);
            }
        }
        Ok(())
    }

    fn bed(&self, mode: Mode, room: Room) -> Result<Bed> {
        Bed::new(mode, room, self.placement, self.object).with_context(|| format!("set up {mode}"))
    }
}
