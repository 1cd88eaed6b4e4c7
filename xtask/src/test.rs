//! `cargo xtask test`: everything that must hold before a change lands.
//!
//! Every cargo call names the whole workspace and picks targets, never packages: a selection of packages
//! would unify features differently and compile the dependencies again.
#![expect(
    clippy::disallowed_methods,
    reason = "steps are timed on the wall clock"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use iwf_tests::netns;

use crate::{build, setup, step, tidy, toolchain};

/// Run every check, or one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One check by name; all when left out. `--list` shows the names.
    suite: Option<String>,
    /// Show the names of all checks.
    #[arg(long)]
    list: bool,
    /// Passed on to the test programs, for instance a part of a test's name.
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Format,
    Lint,
    LintEbpf,
    Core,
    Unit,
    /// A file below `tests/tests`, in a process of its own.
    Suite,
    Tidy,
    Doc,
}

#[derive(Clone, Debug)]
struct Check {
    name: String,
    what: String,
    kind: Kind,
    privileged: bool,
}

#[derive(Debug)]
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Runs the checks, all of them even after one failed, and prints a summary.
///
/// # Errors
/// If one of them fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut checks = checks()?;
    if args.list {
        for check in checks {
            println!("{:24} {}", check.name, check.what);
        }
        return Ok(());
    }
    if let Some(name) = &args.suite {
        checks.retain(|check| check.name == *name);
        if checks.is_empty() {
            bail!("there is no check named {name}; `cargo xtask test --list` shows them");
        }
    }

    let privilege = netns::privileged();
    let required = std::env::var_os("IWF_REQUIRE_PRIVILEGED").is_some_and(|value| value == "1");
    setup::toolchain()?;
    if checks.iter().any(|check| check.privileged) && privilege.is_ok() {
        setup::lab()?;
    }
    let needs_build = |check: &Check| matches!(check.kind, Kind::Suite | Kind::Unit);
    if checks.iter().any(needs_build) {
        build::workspace(false)?;
    }
    if args.suite.is_none() {
        // All at once, on all CPUs: each suite would build its own program alone.
        let args = ["test", "--workspace", "--locked", "--no-run", "--quiet"];
        step::run("building the tests", step::cargo(&args))?;
    }

    let mut results = Vec::new();
    for check in checks {
        let start = Instant::now();
        let outcome = match &privilege {
            Err(reason) if check.privileged && required => {
                Outcome::Failed(format!("{reason:#}, and IWF_REQUIRE_PRIVILEGED=1 is set"))
            }
            Err(reason) if check.privileged => Outcome::Skipped(format!("{reason:#}")),
            _ => perform(&check, &args.rest)
                .unwrap_or_else(|error| Outcome::Failed(format!("{error:#}"))),
        };
        if let Outcome::Failed(reason) | Outcome::Skipped(reason) = &outcome {
            println!("    {}: {reason}", check.name);
        }
        results.push((check, outcome, start.elapsed()));
    }
    summary(&results)
}

fn checks() -> Result<Vec<Check>> {
    let check = |name: &str, what: &str, kind| Check {
        name: name.to_owned(),
        what: what.to_owned(),
        kind,
        privileged: false,
    };
    let mut all = vec![
        check("fmt", "formatting", Kind::Format),
        check("clippy", "lints of the workspace", Kind::Lint),
        check("clippy-ebpf", "lints of the eBPF programs", Kind::LintEbpf),
        check("core", "the protocol core builds alone", Kind::Core),
        check(
            "unit",
            "unit, vector, property and simulation tests",
            Kind::Unit,
        ),
        check("tidy", "compliance tables and house rules", Kind::Tidy),
        check("doc", "documentation without broken links", Kind::Doc),
    ];
    let mut suites = Vec::new();
    for (name, path) in targets("tests/tests")? {
        suites.push(Check {
            what: first_line(&path)?,
            kind: Kind::Suite,
            // Suites that load programs or make namespaces; their own guard says so as well.
            privileged: ["netns_", "prog_", "verifier", "restart", "fault"]
                .iter()
                .any(|prefix| name.starts_with(prefix)),
            name,
        });
    }
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    all.extend(suites);
    Ok(all)
}

/// Tests of a suite at once. Real programs talk to each other there, which is mostly waiting for timers of protocols.
fn test_threads() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// The test programs of a directory: name and file. None if there is no such directory.
fn targets(dir: &str) -> Result<Vec<(String, PathBuf)>> {
    let dir = step::root().join(dir);
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        if let Some(name) = name
            && path.extension().is_some_and(|extension| extension == "rs")
        {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

fn first_line(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).context("read a suite")?;
    let line = text.lines().next().unwrap_or_default();
    Ok(line.trim_start_matches("//!").trim().to_owned())
}

fn perform(check: &Check, rest: &[String]) -> Result<Outcome> {
    let what = format!("{}: {}", check.name, check.what);
    match check.kind {
        Kind::Format => {
            step::run(&what, step::cargo(&["fmt", "--all", "--check"]))?;
            let ebpf = ["fmt", "--manifest-path", "iwf-ebpf/Cargo.toml", "--check"];
            step::quiet(&mut step::cargo(&ebpf))?;
        }
        Kind::Lint => {
            let args = [
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--locked",
                "--quiet",
                "--",
                "-Dwarnings",
            ];
            step::run(&what, step::cargo(&args))?;
        }
        Kind::LintEbpf => return lint_ebpf(&what),
        Kind::Core => {
            let args = [
                "check",
                "-p",
                "iwf-userspace",
                "--no-default-features",
                "--locked",
                "--quiet",
            ];
            step::run(&what, step::cargo(&args))?;
        }
        Kind::Unit => {
            let mut cargo = step::cargo(&["test", "--workspace", "--locked", "--lib", "--bins"]);
            for (name, _) in targets("iwf-userspace/tests")? {
                cargo.args(["--test", &name]);
            }
            step::run(&what, with_rest(cargo, rest))?;
            let docs = ["test", "--workspace", "--locked", "--doc", "--quiet"];
            step::quiet(&mut step::cargo(&docs))?;
            // Of a feature of its own, so that the suites need not wait for what only it is built from.
            let bench = [
                "-p",
                "iwf-tests",
                "--features",
                "bench",
                "--bin",
                "iwf-bench",
            ];
            let mut cargo = step::cargo(&["test", "--locked", "--quiet"]);
            step::quiet(cargo.args(bench))?;
        }
        Kind::Suite => {
            let args = ["test", "--workspace", "--locked", "--test", &check.name];
            let mut cargo = step::cargo(&args);
            if std::env::var_os("RUST_TEST_THREADS").is_none() {
                cargo.env("RUST_TEST_THREADS", test_threads().to_string());
            }
            step::run(&what, with_rest(cargo, rest))?;
        }
        Kind::Tidy => {
            step::say(&what);
            tidy::run(&tidy::Args::default())?;
        }
        Kind::Doc => {
            let args = [
                "doc",
                "--workspace",
                "--no-deps",
                "--locked",
                "--quiet",
                "--document-private-items",
            ];
            let mut cargo = step::cargo(&args);
            // Private items are documented too, so links to them are good.
            let flags = "-Dwarnings -Arustdoc::private-intra-doc-links";
            cargo.env("RUSTDOCFLAGS", flags);
            step::run(&what, cargo)?;
        }
    }
    Ok(Outcome::Passed)
}

fn with_rest(mut cargo: Command, rest: &[String]) -> Command {
    cargo.arg("--").args(rest);
    cargo
}

/// The eBPF crate is linted by the clippy that belongs to its own compiler, if there is one.
fn lint_ebpf(what: &str) -> Result<Outcome> {
    let root = step::root();
    let found = toolchain::resolve(&root)?;
    let driver = found.rustc.with_file_name("clippy-driver");
    if !driver.is_file() {
        return Ok(Outcome::Skipped(format!(
            "{} has no clippy-driver beside it",
            found.rustc.display()
        )));
    }
    let target = root.join("target/ebpf-clippy");
    let mut cargo = toolchain::build_command(&found, &root, &target, toolchain::OBJECT);
    cargo
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CLIPPY_ARGS", "-Dwarnings");
    step::run(what, cargo)?;
    Ok(Outcome::Passed)
}

fn summary(results: &[(Check, Outcome, Duration)]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let mut failed = Vec::new();
    for (check, outcome, took) in results {
        let verdict = match outcome {
            Outcome::Passed => "passed",
            Outcome::Skipped(_) => "skipped",
            Outcome::Failed(_) => {
                failed.push(check.name.as_str());
                "FAILED"
            }
        };
        let note = match outcome {
            Outcome::Passed => "",
            Outcome::Skipped(reason) | Outcome::Failed(reason) => {
                reason.lines().next().unwrap_or_default()
            }
        };
        table.add_row([
            check.name.as_str(),
            verdict,
            &format!("{:.1} s", took.as_secs_f32()),
            note,
        ]);
    }
    println!("\n{table}\n");
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    step::say("everything passed");
    Ok(())
}
