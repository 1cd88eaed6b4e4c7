//! `cargo xtask fuzz`: coverage-guided search for inputs that the core takes badly.
//!
//! libFuzzer needs no other compiler for it: what it looks at is inserted by a pass of LLVM that every rustc has. Only the
//! address sanitizer would need one, and the core has no unsafe code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::step;

/// What has the targets, and is compiled apart.
const MANIFEST: &str = "fuzz/Cargo.toml";
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Search for inputs from the network and from files that the core takes badly: panics, wrong numbers, calls without an
/// answer, a kernel that holds something else than the table.
///
/// Each target begins with its committed corpus and what earlier runs have found (target/fuzz/corpus). An input that fails
/// is written to target/fuzz/artifacts, and the run ends. The test fuzz_corpus gives the targets their committed corpora, and
/// looks how far they get.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this target, a directory of fuzz/corpus; may be given more than once.
    #[arg(long, value_name = "T")]
    target: Vec<String>,
    /// How long each is searched.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Afterwards put into the committed corpora what reaches most of the code that their inputs with names do not reach.
    #[arg(long)]
    keep: bool,
}

/// Longest input that is kept.
const MAX_KEPT: &str = "-max_len=2048";
/// Octets of the inputs of one target that are kept besides those with names of their own.
const MOST_KEPT: u64 = 32 << 10;

/// Builds the targets and searches each.
///
/// # Errors
/// If one cannot be built, or an input fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = step::root();
    let committed = root.join("fuzz/corpus");
    let mut targets = args.target.clone();
    if targets.is_empty() {
        for entry in fs::read_dir(&committed).context("list the targets")? {
            targets.push(entry?.file_name().to_string_lossy().into_owned());
        }
        targets.sort();
    }
    // Named, so that build scripts and macros do without the flags.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let work = root.join("target/fuzz");
    let mut build = step::cargo(&["build", "--release", "--locked", "--target", &host]);
    build
        .args(["--manifest-path", MANIFEST])
        .env("CARGO_TARGET_DIR", &work)
        .env("RUSTFLAGS", FLAGS.join(" "));
    step::run("building the targets", build)?;
    let artifacts = work.join("artifacts");
    fs::create_dir_all(&artifacts).context("make a directory")?;
    for target in &targets {
        let (found, committed) = (work.join("corpus").join(target), committed.join(target));
        fs::create_dir_all(&found).context("make a directory")?;
        let fuzzer = || {
            let program = work.join(&host).join("release/iwf-fuzz");
            let mut fuzzer = Command::new(program);
            fuzzer.env("IWF_FUZZ_TARGET", target).arg("-verbosity=0");
            fuzzer
        };
        let mut search = fuzzer();
        search
            .args([&found, &committed])
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!(
                "-artifact_prefix={}/{target}-",
                artifacts.display()
            ))
            // An input that takes a second would be an attack.
            .args(["-timeout=5", "-rss_limit_mb=1024", "-max_len=16384"])
            .arg("-print_final_stats=1");
        step::run(&format!("searching {target}"), search)?;
        if args.keep {
            keep(
                fuzzer(),
                &committed,
                &found,
                &work.join("merged").join(target),
            )?;
        }
    }
    Ok(())
}

/// Puts into the committed corpus what reaches most of what it does not reach, in the place of what was kept before.
/// Inputs with names of their own stay.
fn keep(mut fuzzer: Command, committed: &Path, found: &Path, merged: &Path) -> Result<()> {
    if merged.exists() {
        fs::remove_dir_all(merged).context("clear a directory")?;
    }
    fs::create_dir_all(merged).context("make a directory")?;
    let files = |of: &Path| -> Result<Vec<PathBuf>> {
        let files = fs::read_dir(of).with_context(|| format!("list {}", of.display()))?;
        let paths = files.map(|file| Ok(file?.path()));
        paths.collect()
    };
    let (by_search, named): (Vec<_>, Vec<_>) = files(committed)?
        .into_iter()
        .partition(|path| is_of_search(path));
    for path in &named {
        fs::copy(path, merged.join(path.file_name().unwrap_or_default())).context("copy")?;
    }
    // Code that is reached counts, not how often.
    fuzzer
        .args(["-set_cover_merge=1", "-use_counters=0", MAX_KEPT])
        .args([merged, committed, found]);
    step::run("choosing what to keep", fuzzer)?;
    for path in by_search {
        fs::remove_file(path).context("remove what was kept before")?;
    }
    // It writes first what reaches most.
    let mut new = Vec::new();
    for path in files(merged)?.into_iter().filter(|path| is_of_search(path)) {
        let about = fs::metadata(&path).context("look at an input")?;
        new.push((about.modified().context("its time")?, about.len(), path));
    }
    new.sort();
    let (mut kept, mut octets) = (0, 0);
    for (_, len, path) in &new {
        if octets + len <= MOST_KEPT {
            fs::copy(path, committed.join(path.file_name().unwrap_or_default()))
                .context("keep an input")?;
            (kept, octets) = (kept + 1, octets + len);
        }
    }
    println!("    {kept} of {} kept, {octets} octets", new.len());
    Ok(())
}

/// The search names what it finds by the hash.
fn is_of_search(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.len() == 40 && name.bytes().all(|octet| octet.is_ascii_hexdigit())
}
