//! Network namespaces and the veth pairs between them, removed when their guard drops.
//!
//! Every name starts with `iwf-<pid>-<n>-`: runs that overlap never meet, and what a killed run left behind
//! is recognized by its dead pid and removed by the next one. Interfaces are made inside the namespaces, so
//! they can have short speaking names.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::process::{self, Finished, Process};
use crate::wait;

const NETNS_DIR: &str = "/run/netns";
const RUN_DIR: &str = "/run";
const PREFIX: &str = "iwf-";

/// Sets that this process removes at its end.
static OWNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn owned() -> MutexGuard<'static, BTreeSet<String>> {
    OWNED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One set of namespaces with a private directory, all removed on drop.
#[derive(Debug)]
pub struct Network {
    id: String,
    dir: PathBuf,
    keep: bool,
}

impl Network {
    /// A new empty set with a name of its own. Collects what dead runs left, once per process.
    ///
    /// # Errors
    /// If the private directory cannot be made (not root).
    pub fn new() -> Result<Self> {
        static COLLECT: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        COLLECT.call_once(collect_stale);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("{}-{number}", std::process::id()))
    }

    /// A set with a fixed name, for a lab that outlives its maker. A name that does not start with a pid is
    /// never collected as stale.
    ///
    /// # Errors
    /// If a set of that name exists, or its directory cannot be made.
    pub fn named(name: &str) -> Result<Self> {
        remove_on_signal()?;
        let id = format!("{PREFIX}{name}");
        let dir = Path::new(RUN_DIR).join(&id);
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        owned().insert(id.clone());
        Ok(Self {
            id,
            dir,
            keep: false,
        })
    }

    /// Takes over an existing set of that name, for instance to remove it.
    ///
    /// # Errors
    /// If there is none.
    pub fn adopt(name: &str) -> Result<Self> {
        let id = format!("{PREFIX}{name}");
        let dir = Path::new(RUN_DIR).join(&id);
        ensure!(dir.is_dir(), "{} does not exist", dir.display());
        Ok(Self {
            id,
            dir,
            keep: false,
        })
    }

    /// The private directory of this run: state, sockets, mounts, logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves everything in place when this guard drops.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Makes a namespace with `lo` up and without IPv6 chatter.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn namespace(&self, host: &str) -> Result<Namespace> {
        let ns = self.existing(host);
        process::must(&["ip", "netns", "add", &ns.name])?;
        ns.ip("link set lo up")?;
        ns.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        Ok(ns)
    }

    /// The namespace of that host, taken to exist.
    pub fn existing(&self, host: &str) -> Namespace {
        let name = format!("{}-{host}", self.id);
        Namespace {
            path: Path::new(NETNS_DIR).join(&name),
            host: host.to_owned(),
            name,
            logs: self.dir.clone(),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.id);
        }
        owned().remove(&self.id);
    }
}

/// A network namespace. A plain handle: the [`Network`] that made it removes it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    host: String,
    path: PathBuf,
    logs: PathBuf,
}

impl Namespace {
    /// Full name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The role in the topology, for example `lan1`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Path for `nsenter --net=`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command inside the namespace. Only the network changes: `ip netns exec` would also put a fresh
    /// /sys over the bpffs.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .arg("--")
            .args(argv)
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, whatever its exit status.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Finished> {
        process::run(&self.argv(argv))
    }

    /// Runs a program that must succeed; returns its standard output.
    ///
    /// # Errors
    /// If it fails; what it printed is in the error.
    pub fn must<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        process::must(&self.argv(argv)).with_context(|| format!("on {}", self.host))
    }

    /// Starts a program in the background; its output goes to `<name>.log` in the run's directory.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, name: &str, argv: &[S]) -> Result<Process> {
        let log = self.logs.join(format!("{name}.log"));
        Process::spawn(name, self.command(argv), &log)
    }

    /// Runs `ip ARGS` inside; `args` is split at blanks.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn ip(&self, args: &str) -> Result<String> {
        let mut argv = vec!["ip"];
        argv.extend(args.split_whitespace());
        self.must(&argv)
    }

    /// Sets a sysctl given as a path below /proc/sys, for example `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys").join(path);
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.within(|| std::fs::write(&file, value))?
            .with_context(|| format!("set {path} on {}", self.host))
    }

    /// Runs `body` on a thread inside the namespace. Sockets it opens stay there.
    ///
    /// # Errors
    /// If the thread cannot enter the namespace. A panic in `body` goes on in the caller.
    pub fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(&self.path).with_context(|| format!("open {}", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter {}", self.name))?;
                Ok(body())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace.
    ///
    /// # Errors
    /// If the namespace cannot be opened or the thread not started. That it cannot enter is the thread's
    /// own result.
    pub fn thread<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let file = File::open(&self.path).with_context(|| format!("open {}", self.name))?;
        std::thread::Builder::new()
            .name(self.host.clone())
            .spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).context("enter a namespace")?;
                body()
            })
            .context("start a thread")
    }

    /// Index of an interface.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        self.within(|| nix::net::if_::if_nametoindex(interface))?
            .with_context(|| format!("index of {interface} on {}", self.host))
    }

    /// MAC address of an interface.
    ///
    /// # Errors
    /// If there is no such interface or it has none.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let line = self.ip(&format!("-o link show dev {interface}"))?;
        let text = line
            .split("link/ether ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("MAC address of {interface} on {}", self.host))?;
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().context("six octets")?;
            *byte = u8::from_str_radix(part, 16).context("hex octet")?;
        }
        Ok(mac)
    }

    /// Gives an interface an address and raises it.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn address(&self, interface: &str, address: Ipv4Addr, prefix_len: u8) -> Result<()> {
        self.ip(&format!("addr add {address}/{prefix_len} dev {interface}"))?;
        self.ip(&format!("link set {interface} up")).map(drop)
    }

    /// Switches transmit checksum offload off: XDP on the other end sees packets as they would be on a wire,
    /// with complete checksums.
    ///
    /// # Errors
    /// If `ethtool` fails.
    pub fn checksums_on_wire(&self, interface: &str) -> Result<()> {
        self.must(&["ethtool", "-K", interface, "tx", "off"])
            .map(drop)
    }

    /// Lets a veth end receive frames that XDP redirected to it: without GRO (or an XDP program of its own)
    /// it has no NAPI context and the kernel drops them.
    ///
    /// # Errors
    /// If `ethtool` fails.
    pub fn receive_redirected(&self, interface: &str) -> Result<()> {
        self.must(&["ethtool", "-K", interface, "gro", "on"])
            .map(drop)
    }

    fn argv<S: AsRef<OsStr>>(&self, argv: &[S]) -> Vec<std::ffi::OsString> {
        let mut full = vec![
            "nsenter".into(),
            format!("--net={}", self.path.display()).into(),
            "--".into(),
        ];
        full.extend(argv.iter().map(|word| word.as_ref().to_owned()));
        full
    }
}

/// Joins two namespaces by a veth pair; both ends are down and without address.
///
/// # Errors
/// If `ip` fails, for instance because a name is taken.
pub fn veth(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
    let ((ns_a, if_a), (ns_b, if_b)) = (a, b);
    ns_a.ip(&format!(
        "link add {if_a} type veth peer name {if_b} netns {}",
        ns_b.name
    ))
    .map(drop)
}

/// Whether this process may make namespaces and load BPF programs.
///
/// # Errors
/// The reason why not, as a sentence.
pub fn privileged() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and BPF need root"
    );
    let status = std::fs::read_to_string("/proc/self/status").context("read own capabilities")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .context("read own capabilities")?;
    for (bit, name) in [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")] {
        ensure!(effective & (1 << bit) != 0, "{name} is missing");
    }
    // Root of a user namespace has every capability, and still no BPF.
    if let Some(Err(error)) = aya::programs::loaded_programs().next() {
        return Err(error).context("the kernel refuses BPF");
    }
    Ok(())
}

/// Whether a test that needs root may run. Without the privilege it prints the reason and the test returns;
/// where `IWF_REQUIRE_PRIVILEGED=1` is set it fails instead.
///
/// # Panics
/// If the privilege is missing and required.
pub fn may_run() -> bool {
    let Err(reason) = privileged() else {
        return true;
    };
    let required = std::env::var_os("IWF_REQUIRE_PRIVILEGED").is_some_and(|value| value == "1");
    assert!(!required, "IWF_REQUIRE_PRIVILEGED=1 is set, but {reason:#}");
    eprintln!("skipped: {reason:#}");
    false
}

/// Makes SIGINT (Ctrl-C), SIGTERM and SIGHUP remove every set of this process before they end it. A signal
/// during the drops of a normal end is harmless: both sides tolerate that things are gone.
fn remove_on_signal() -> Result<()> {
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
fn collect_stale() {
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
fn remove(id: &str) {
    for name in namespaces_of(id) {
        end_processes(&name);
        process::must(&["ip", "netns", "delete", &name]).ok();
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

fn end_processes(namespace: &str) {
    let own = std::process::id().cast_signed();
    let pids = || -> Vec<i32> {
        process::must(&["ip", "netns", "pids", namespace])
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            // A thread of this process inside the namespace must not end the process.
            .filter(|pid| *pid != own)
            .collect()
    };
    for pid in pids() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    // A killed child of ours stays listed until its guard reaps it, so the end is not worth an error.
    wait::until("processes to end", Duration::from_secs(2), || {
        pids().is_empty().then_some(())
    })
    .ok();
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
