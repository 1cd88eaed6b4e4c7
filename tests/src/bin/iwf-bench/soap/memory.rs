//! What the daemon's memory does while it answers very many requests.

use anyhow::{Context, Result};

use super::client::{Ask, Bad, ControlPoint, Wish};
use super::load::{FIRST, PORTS, in_parallel};
use super::router::Router;

/// Control points that ask at the same time.
const WORKERS: u32 = 16;
/// Requests of each kind in turn.
const TURN: u64 = 8;

/// Memory of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// All that is resident, in KiB.
    pub(super) resident: u64,
    /// What is not of a file, in KiB: heap and stacks.
    pub(super) anonymous: u64,
}

impl Memory {
    /// Of a process, now.
    ///
    /// # Errors
    /// If it has ended.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(Self {
            resident: field(&text, "Rss:").context("Rss")?,
            anonymous: field(&text, "Anonymous:").context("Anonymous")?,
        })
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Asks for everything in turn, so many times in all: additions, deletions, both ways to read an entry, the address, and what
/// is refused. All mappings are gone at the end.
///
/// # Errors
/// If an answer is not what it should be.
pub(super) fn mixed(router: &Router, requests: u64) -> Result<()> {
    let turns = requests / TURN / u64::from(WORKERS);
    in_parallel(router, WORKERS, |worker, points| {
        let hosts = points.len() as u64;
        for turn in 0..turns {
            let number = turn * u64::from(WORKERS) + u64::from(worker);
            // Half of the range for what there is, half for what there is not.
            let offset = u16::try_from(number % u64::from(PORTS / 2))?;
            let (port, unused) = (FIRST + offset, FIRST + PORTS / 2 + offset);
            if let Some(point) = points.get_mut(usize::try_from(turn % hosts)?) {
                one_of_each(point, port, Bad::nth(turn, unused))?;
            }
        }
        Ok(())
    })
    .map(drop)
}

fn one_of_each(point: &mut ControlPoint, port: u16, bad: Bad) -> Result<()> {
    let wish = Wish {
        host: point.host(),
        port,
    };
    let asks: [Ask; TURN as usize] = [
        Ask::Add(wish),
        Ask::GetSpecific(wish),
        Ask::GetGeneric,
        Ask::Bad(bad),
        Ask::ExternalAddress,
        Ask::GetGenericBeyond,
        // Again: the same mapping for longer.
        Ask::Add(wish),
        Ask::Delete(wish),
    ];
    asks.into_iter().try_for_each(|ask| point.ask(ask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_the_kernel_writes() {
        let text = "5581-7ffe ---p 00000000 00:00 0    [rollup]\nRss:                1432 kB\nPss: 9 kB\nAnonymous:   96 kB\n";
        assert_eq!(field(text, "Rss:"), Some(1432));
        assert_eq!(field(text, "Anonymous:"), Some(96));
        assert_eq!(field(text, "Swap:"), None);
    }

    #[test]
    fn this_process_has_memory() {
        let own = Memory::of(std::process::id()).expect("it runs");
        assert!(own.resident > own.anonymous && own.anonymous > 0);
    }
}
