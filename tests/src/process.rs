//! Programs run by the harness: to completion with a time limit, or in the background behind a guard.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// Lines of a background program's log shown when a test fails.
const TAIL_LINES: usize = 40;

/// Seconds after which a foreground program is ended (by `timeout` of coreutils).
const LIMIT_SECS: u32 = 60;

/// What a finished program left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
}

impl Finished {
    /// Both streams, output first.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        }
    }
}

/// Starts the description of a foreground program: ended after a minute, reads nothing.
pub fn command<S: AsRef<OsStr>>(argv: &[S]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=1", &LIMIT_SECS.to_string()])
        .args(argv)
        .stdin(Stdio::null());
    command
}

/// Runs a program to its end, whatever its exit status.
///
/// # Errors
/// If it cannot be started.
pub fn run<S: AsRef<OsStr>>(argv: &[S]) -> Result<Finished> {
    let shown = show(argv);
    let output = command(argv)
        .output()
        .with_context(|| format!("run {shown}"))?;
    Ok(output.into())
}

/// Runs a program that must succeed; returns its standard output.
///
/// # Errors
/// If it cannot be started or exits with anything but 0: what it printed is in the error.
pub fn must<S: AsRef<OsStr>>(argv: &[S]) -> Result<String> {
    succeeded(argv, run(argv)?)
}

/// The same for a program that reads `input`.
///
/// # Errors
/// As [`must`], and if it ends without having read all of it.
pub fn must_with_input<S: AsRef<OsStr>>(argv: &[S], input: &[u8]) -> Result<String> {
    let shown = show(argv);
    let mut child = command(argv)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {shown}"))?;
    // Less than a pipe holds: the program need not be read meanwhile.
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(input));
    let done = child
        .wait_with_output()
        .with_context(|| format!("run {shown}"))?;
    let output = succeeded(argv, done.into())?;
    written
        .transpose()
        .with_context(|| format!("write to {shown}"))?;
    Ok(output)
}

fn succeeded<S: AsRef<OsStr>>(argv: &[S], done: Finished) -> Result<String> {
    if !done.success() {
        bail!(
            "{} failed (status {:?}): {}",
            show(argv),
            done.code,
            done.text().trim()
        );
    }
    Ok(done.stdout)
}

fn show<S: AsRef<OsStr>>(argv: &[S]) -> String {
    let words: Vec<_> = argv
        .iter()
        .map(|word| word.as_ref().to_string_lossy())
        .collect();
    words.join(" ")
}

/// A background program. Dropping it kills it and waits for its end; in a panicking thread the drop also
/// shows the end of its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; both its streams are appended to `log`.
    ///
    /// # Errors
    /// If the log cannot be opened or the program not started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let err = out.try_clone().context("share the log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // Ctrl-C is for the harness, which then ends its programs in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
            ended: None,
        })
    }

    /// Process id. Programs started through a namespace replace `nsenter`, so it is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines it printed, for a report.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If its state cannot be read.
    pub fn running(&mut self) -> Result<bool> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().context("look at a child")?;
        }
        Ok(self.ended.is_none())
    }

    /// Waits until its log contains `needle`.
    ///
    /// # Errors
    /// If it ends first or `within` passes; the log's tail is in the error.
    pub fn wait_for_log(&mut self, needle: &str, within: Duration) -> Result<()> {
        let what = format!("{} to print {needle:?}", self.name);
        let found = wait::until(&what, within, || {
            if self.log().contains(needle) {
                return Some(true);
            }
            (!self.running().unwrap_or(false)).then_some(false)
        });
        match found {
            Ok(true) => Ok(()),
            Ok(false) if self.log().contains(needle) => Ok(()),
            Ok(false) => bail!("{} ended early:\n{}", self.name, self.tail()),
            Err(error) => Err(error.context(self.tail())),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).context("a pid fits")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Waits for its end by itself.
    ///
    /// # Errors
    /// If it still runs after `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until(&what, within, || match self.running() {
            Ok(true) => None,
            Ok(false) | Err(_) => Some(()),
        })?;
        self.ended.context("read the exit status")
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// If it does not end within `within`, or not with status 0 or by that signal.
    pub fn terminate(&mut self, within: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(within)?;
        if !status.success() && status.signal() != Some(Signal::SIGTERM as i32) {
            bail!("{} ended with {status}:\n{}", self.name, self.tail());
        }
        Ok(())
    }

    /// Sends SIGKILL and reaps it.
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill_hard(&mut self) -> Result<()> {
        if !self.running()? {
            bail!("{} had ended already:\n{}", self.name, self.tail());
        }
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }

    /// Lets it run on without a guard; whoever owns its namespace ends it later.
    pub fn leave_running(mut self) -> u32 {
        let pid = self.pid();
        // A status that is already there keeps `drop` from killing.
        self.ended = Some(ExitStatus::default());
        pid
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Failure means it is gone, which is what is wanted.
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!(
                "--- end of {} ({}) ---\n{}",
                self.name,
                self.log.display(),
                self.tail()
            );
        }
    }
}
