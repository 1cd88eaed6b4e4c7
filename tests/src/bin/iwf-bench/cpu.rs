//! Where the bench runs, and the CPU time that its threads have.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_tests::cpu::{allowed, pin};
use iwf_tests::netns::Namespace;
use iwf_tests::wait;
use nix::time::{ClockId, clock_gettime};

/// Where the two sides of a run live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    /// The generator's CPU.
    pub(crate) generator: usize,
    /// The CPU of the router and, in its pauses, of the far end.
    pub(crate) router: usize,
}

impl Placement {
    /// First and last of the CPUs this process may use: interrupts mostly go to the first.
    ///
    /// # Errors
    /// If there is only one.
    pub(crate) fn choose() -> Result<Self> {
        let mut cpus = allowed()?.into_iter();
        let generator = cpus.next().context("a CPU to run on")?;
        let router = cpus
            .next_back()
            .context("the bench needs two CPUs: one sends, the other forwards")?;
        Ok(Self { generator, router })
    }
}

/// Moves the packet processing of an interface from softirq into a kernel thread and binds that to `cpu`.
/// Returns the thread: its CPU time is what the interface's packets cost, and nothing else.
///
/// # Errors
/// If the kernel has no threaded NAPI, or the interface no NAPI context at all.
pub(crate) fn thread_of(ns: &Namespace, interface: &str, cpu: usize) -> Result<i32> {
    // /sys shows the namespace it was mounted in; `ip netns exec` mounts the right one.
    let switch = format!("echo 1 > /sys/class/net/{interface}/threaded");
    iwf_tests::process::must(&["ip", "netns", "exec", ns.name(), "sh", "-c", &switch])
        .with_context(|| format!("switch {interface} to threaded NAPI"))?;
    let prefix = format!("napi/{interface}-");
    let thread = wait::until("a NAPI thread", Duration::from_secs(2), || find(&prefix))
        .with_context(|| format!("find {prefix}"))?;
    pin(Some(thread), cpu)?;
    Ok(thread)
}

/// Lets two threads of one CPU run until they have no more work, one after the other, and nothing else of
/// the machine in between.
///
/// # Errors
/// If `chrt` fails.
pub(crate) fn take_turns(threads: [i32; 2]) -> Result<()> {
    for thread in threads {
        iwf_tests::process::must(&["chrt", "--fifo", "--pid", "1", &thread.to_string()])
            .context("let the packet threads take turns")?;
    }
    Ok(())
}

fn find(prefix: &str) -> Option<i32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        comm.starts_with(prefix).then_some(pid)
    })
}

/// CPU time a thread has had.
///
/// # Errors
/// If it is gone, or the kernel keeps no account (CONFIG_SCHED_INFO).
pub(crate) fn time_of(thread: i32) -> Result<Duration> {
    let path = format!("/proc/{thread}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let nanos = text
        .split_whitespace()
        .next()
        .and_then(|field| field.parse().ok())
        .with_context(|| format!("{path} reads {text:?}"))?;
    Ok(Duration::from_nanos(nanos))
}

/// CPU time that the calling thread has had, to the nanosecond.
///
/// # Errors
/// If the kernel has no such clock.
pub(crate) fn own_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the CPU clock")?;
    Ok(time.into())
}

/// CPU time that all other threads of this process have had, those that have ended as well.
///
/// # Errors
/// As [`own_time`].
pub(crate) fn others_time() -> Result<Duration> {
    let all = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("read the CPU clock")?;
    Ok(Duration::from(all).saturating_sub(own_time()?))
}
