//! Removing what a run made: at its end, at a signal, and for runs that were killed.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{NETNS_DIR, PREFIX, RUN_DIR};
use crate::wait;

/// Sets that this process removes at its end.
static OWNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

pub(super) fn owned() -> MutexGuard<'static, BTreeSet<String>> {
    OWNED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Makes SIGINT (Ctrl-C), SIGTERM and SIGHUP remove every set of this process before they end it. A signal
/// during the drops of a normal end is harmless: both sides tolerate that things are gone.
pub(super) fn remove_on_signal() -> Result<()> {
    static WATCH: Once = Once::new();
    let mut outcome = Ok(());
    WATCH.call_once(|| {
        outcome = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
            .context("watch for signals")
            .and_then(|mut signals| {
                std::thread::Builder::new()
                    .name("signals".to_owned())
                    .spawn(move || {
                        if let Some(signal) = signals.forever().next() {
                            // Held to the end: nothing new starts meanwhile.
                            let owned = owned();
                            owned.iter().for_each(|id| remove(id));
                            eprintln!("interrupted: the network is removed");
                            std::process::exit(128 + signal);
                        }
                    })
                    .map(drop)
                    .context("start a thread")
            });
    });
    outcome
}

/// Removes what runs of dead processes left behind.
pub(super) fn collect_stale() {
    let mut ids = BTreeSet::new();
    for dir in [NETNS_DIR, RUN_DIR] {
        let Ok(entries) = std::fs::read_dir(dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if let Some(id) = name.to_str().and_then(stale_id) {
                ids.insert(id.to_owned());
            }
        }
    }
    for id in ids {
        remove(&id);
    }
}

/// `iwf-<pid>-<n>` of a name that starts so, if that pid is dead.
fn stale_id(name: &str) -> Option<&str> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
    let pid = parts.next()?;
    let number = parts.next()?;
    pid.parse::<u32>().ok()?;
    number.parse::<u32>().ok()?;
    if Path::new("/proc").join(pid).exists() {
        return None;
    }
    name.get(..PREFIX.len() + pid.len() + 1 + number.len())
}

/// Ends the processes inside the namespaces of `id`, removes these, unmounts and removes the directory.
/// Goes on after failures: this runs in drops.
pub(super) fn remove(id: &str) {
    let namespaces = namespaces_of(id);
    end_processes(&namespaces);
    for name in namespaces {
        // What `ip netns delete` does. The kernel takes it apart when nobody is inside any more.
        let path = Path::new(NETNS_DIR).join(name);
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).ok();
        std::fs::remove_file(&path).ok();
    }
    let dir = Path::new(RUN_DIR).join(id);
    for mount in mounts_below(&dir) {
        nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH).ok();
    }
    std::fs::remove_dir_all(&dir).ok();
}

fn namespaces_of(id: &str) -> Vec<String> {
    let prefix = format!("{id}-");
    let Ok(entries) = std::fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn end_processes(namespaces: &[String]) {
    let inodes: Vec<_> = namespaces
        .iter()
        .filter_map(|name| inode(&Path::new(NETNS_DIR).join(name)))
        .collect();
    for pid in processes_in(&inodes) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    wait::until("processes to end", Duration::from_secs(2), || {
        processes_in(&inodes).is_empty().then_some(())
    })
    .ok();
}

/// Processes in one of these namespaces, without this one: a thread of it inside must not end it. One that has ended
/// and waits for its guard is in no namespace any more.
fn processes_in(inodes: &[(u64, u64)]) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let namespace = inode(Path::new(&format!("/proc/{pid}/ns/net")));
            namespace.is_some_and(|namespace| inodes.contains(&namespace))
        })
        .collect()
}

/// What identifies a namespace, whatever path leads to it.
fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut mounts: Vec<_> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(dir))
        .collect();
    mounts.reverse();
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_runs_are_stale() {
        let own = std::process::id();
        assert_eq!(stale_id(&format!("iwf-{own}-0-lan1")), None);
        assert_eq!(stale_id("iwf-4999999-12-lan1"), Some("iwf-4999999-12"));
        assert_eq!(stale_id("iwf-4999999-12"), Some("iwf-4999999-12"));
        assert_eq!(stale_id("iwf-lab-cpe"), None);
        assert_eq!(stale_id("other-4999999-12"), None);
    }
}
