//! Running the steps of a subcommand: each is announced, timed, and fails with its own name.
#![expect(
    clippy::disallowed_methods,
    reason = "steps are timed on the wall clock"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Top of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Announces a step.
pub(crate) fn say(text: &str) {
    println!("==> {text}");
}

/// `cargo ARGS` at the top of the workspace, with the cargo that runs us.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// Announces and runs a command whose output the user sees.
///
/// # Errors
/// If it cannot start or does not exit with 0.
pub(crate) fn run(what: &str, mut command: Command) -> Result<()> {
    say(what);
    let start = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    let seconds = start.elapsed().as_secs_f32();
    if !status.success() {
        bail!("{what}: {status} after {seconds:.1} s");
    }
    println!("    done in {seconds:.1} s");
    Ok(())
}

/// Runs a command whose output is only shown when it fails.
///
/// # Errors
/// If it cannot start or does not exit with 0: what it printed is in the error.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{:?} failed with {}:\n{stdout}{}",
            command.get_program(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout)
}
