//! `cargo xtask vm`: other kernels, booted in QEMU, load every program and carry packets through the NAT.
//!
//! The kernels are Debian's cloud kernels, fetched with the system's own apt and kept below `target/cache/vm`. A
//! guest has no disk: its memory file system holds one suite of `tests/tests`, the daemon, and the tools they call.
//! Always emulated, never KVM: results do not depend on what the machine's own virtualization can do.
#![expect(
    clippy::disallowed_methods,
    reason = "guests are timed on the wall clock"
)]

mod debian;
mod guest;
mod image;
mod modules;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::Table;

use crate::{build, setup, step};
use debian::Mirror;

/// Boot other kernels and run a suite in each: by default the smoke suite.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this kernel; `--list` shows the names. May be given several times. Without it, all that are promised.
    #[arg(long, value_name = "NAME")]
    kernel: Vec<String>,
    /// Show the names of all kernels and where they come from.
    #[arg(long)]
    list: bool,
    /// Another suite of `tests/tests`, for instance `prog_run`.
    #[arg(long, value_name = "NAME", default_value = "netns_smoke")]
    suite: String,
    /// Seconds one guest may take, from power-on to its last line.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    /// Passed on to the test program, for instance a part of a test's name.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// A kernel and the Debian suite whose package it is.
struct Kernel {
    name: &'static str,
    suite: &'static str,
    /// Whether the programs are promised to run on it; else it is booted only when it is named.
    promised: bool,
}

/// Oldest first. The last one is whatever is newest on the day the package lists were fetched.
const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suite: "bullseye",
        promised: false,
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        promised: true,
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
        promised: true,
    },
    Kernel {
        name: "newest",
        suite: "sid",
        promised: true,
    },
];

/// Boots the kernels one after the other, all of them even after one failed.
///
/// # Errors
/// If one cannot be had, does not boot, or its suite fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for kernel in KERNELS {
            let note = if kernel.promised {
                ""
            } else {
                ", only by name"
            };
            println!("{:8} Debian {}{note}", kernel.name, kernel.suite);
        }
        return Ok(());
    }
    for name in &args.kernel {
        if !KERNELS.iter().any(|kernel| kernel.name == name) {
            bail!("there is no kernel named {name}; `cargo xtask vm --list` shows them");
        }
    }
    setup::toolchain()?;
    setup::lab()?;
    setup::emulator()?;
    build::workspace(false)?;
    let program = image::suite(&args.suite)?;
    let mirror = Mirror::of_this_system()?;
    let cache = step::root().join("target/cache/vm");

    let mut rows = Vec::new();
    for kernel in KERNELS {
        let wanted = match args.kernel.as_slice() {
            [] => kernel.promised,
            names => names.iter().any(|name| name == kernel.name),
        };
        if !wanted {
            continue;
        }
        let start = Instant::now();
        let outcome = boot(&kernel, &mirror, &cache, &program, args);
        if let Err(error) = &outcome {
            println!("    {}: {error:#}", kernel.name);
        }
        rows.push((kernel.name, outcome, start.elapsed()));
    }
    summary(&rows)
}

/// What ran.
struct Booted {
    release: String,
    log: PathBuf,
}

fn boot(
    kernel: &Kernel,
    mirror: &Mirror,
    cache: &std::path::Path,
    program: &std::path::Path,
    args: &Args,
) -> Result<Booted> {
    let packages = mirror
        .suite(kernel.suite, &cache.join(kernel.suite))
        .with_context(|| format!("fetch kernel {}", kernel.name))?;
    let release = packages.release.clone();
    let initramfs = cache.join(kernel.suite).join("initramfs");
    image::write(&initramfs, &packages, program, &args.rest)
        .with_context(|| format!("make the memory file system for {release}"))?;
    let log = cache.join(format!("{}.log", kernel.name));
    step::say(&format!(
        "booting {release}; its console is in {}",
        log.display()
    ));
    guest::run(
        &packages.image,
        &initramfs,
        &log,
        Duration::from_secs(args.limit),
    )
    .with_context(|| format!("kernel {release}"))?;
    Ok(Booted { release, log })
}

fn summary(rows: &[(&str, Result<Booted>, Duration)]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let mut failed = Vec::new();
    for (name, outcome, took) in rows {
        let took = format!("{:.0} s", took.as_secs_f32());
        match outcome {
            Ok(booted) => {
                let log = booted.log.display().to_string();
                table.add_row([*name, "passed", &took, &booted.release, &log]);
            }
            Err(error) => {
                failed.push(*name);
                let text = format!("{error:#}");
                let first = text.lines().next().unwrap_or_default().to_owned();
                table.add_row([*name, "FAILED", &took, &first]);
            }
        }
    }
    println!("\n{table}\n");
    if !failed.is_empty() {
        bail!("failed on: {}", failed.join(", "));
    }
    step::say("every kernel passed");
    Ok(())
}
