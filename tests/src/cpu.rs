//! CPUs and the threads bound to them.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that the calling thread may use.
///
/// # Errors
/// If the kernel does not say.
pub fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("read own CPU set")?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

/// Binds a thread to one CPU; `None` is the calling thread.
///
/// # Errors
/// If the kernel refuses.
pub fn pin(thread: Option<i32>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(thread.unwrap_or(0)), &set)
        .with_context(|| format!("bind a thread to CPU {cpu}"))
}

/// Binds the calling thread to the CPU that it runs on.
///
/// # Errors
/// If the kernel refuses.
pub fn stay() -> Result<()> {
    pin(None, sched_getcpu().context("ask for the CPU")?)
}
