//! One guest: powered on, listened to, and off again in time.
#![expect(
    clippy::disallowed_methods,
    reason = "guests are timed on the wall clock"
)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The guest's last word when everything passed.
pub(super) const PASSED: &str = "iwf-guest: passed";
/// The guest's last word otherwise.
pub(super) const FAILED: &str = "iwf-guest: failed";

/// Lines of the console that an error quotes.
const QUOTED: usize = 40;
const EMULATOR: &str = "qemu-system-x86_64";

/// Boots the kernel and waits for the guest's last word; the console goes to `log`, what the suite prints also to
/// standard output.
///
/// # Errors
/// If the guest fails, ends without a word, or takes longer than `limit`.
pub(super) fn run(kernel: &Path, initramfs: &Path, log: &Path, limit: Duration) -> Result<()> {
    let mut child = Guest(
        Command::new(EMULATOR)
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", "1024", "-nographic", "-no-reboot", "-nodefaults"])
            .args(["-serial", "stdio", "-monitor", "none", "-nic", "none"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args([
                "-append",
                "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic no_timer_check",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {EMULATOR}"))?,
    );
    let console = child.0.stdout.take().context("the guest has a console")?;
    let mut complaints = child.0.stderr.take().context("the emulator can complain")?;
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let (line_in, lines) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(console);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(len) if len > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if line_in.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });

    let start = Instant::now();
    let mut seen = Vec::new();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                writeln!(file, "{line}").context("write the console's log")?;
                if line.contains(PASSED) {
                    return Ok(());
                }
                if line.contains(FAILED) {
                    bail!("the suite failed:\n{}", tail(&seen));
                }
                if line.starts_with("test ") || line.contains(": verified ") {
                    println!("    {line}");
                }
                seen.push(line);
            }
            Err(RecvTimeoutError::Timeout) => bail!(
                "no end after {} s; the console's last lines:\n{}",
                limit.as_secs(),
                tail(&seen)
            ),
            Err(RecvTimeoutError::Disconnected) => {
                let mut said = String::new();
                std::io::Read::read_to_string(&mut complaints, &mut said).ok();
                bail!(
                    "the guest ended without a result; the console's last lines:\n{}\n{said}",
                    tail(&seen)
                );
            }
        }
    }
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(QUOTED)..].join("\n")
}

/// Powered off when it drops.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // A failure means it is off, which is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
