//! Network namespaces and the veth pairs between them, removed when their guard drops.
//!
//! Every name starts with `iwf-<pid>-<n>-`: runs that overlap never meet, and what a killed run left behind
//! is recognized by its dead pid and removed by the next one. Interfaces are made inside the namespaces, so
//! they can have short speaking names.

mod cleanup;

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::{self, Finished, Process};

use cleanup::{collect_stale, owned, remove, remove_on_signal};

const NETNS_DIR: &str = "/run/netns";
const RUN_DIR: &str = "/run";
const PREFIX: &str = "iwf-";

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
    /// Runs `body` on a thread in a new namespace without a name: for program runs, which need interfaces and routes
    /// and nobody at the other end. It lives as long as that thread, however this ends, so that nobody has to remove
    /// it. Without IPv6 chatter, as any other.
    ///
    /// # Errors
    /// If the kernel refuses. A panic in `body` goes on in the caller.
    pub fn nameless<T: Send>(host: &str, body: impl FnOnce(Self) -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).context("make a namespace")?;
                let tid = nix::unistd::gettid();
                let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
                let ns = Self {
                    name: path.clone(),
                    host: host.to_owned(),
                    path: path.into(),
                    logs: std::env::temp_dir(),
                };
                for scope in ["all", "default"] {
                    ns.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
                }
                Ok(body(ns))
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Full name, as `ip netns` lists it, or the path of one that has none: `ip link` takes either.
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

    /// Runs a list of `ip` commands, a line each.
    ///
    /// # Errors
    /// If one of them fails.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let argv = self.argv(&["ip", "-batch", "-"]);
        process::must_with_input(&argv, lines.as_bytes())
            .map(drop)
            .with_context(|| format!("on {}", self.host))
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
    for program in aya::programs::loaded_programs() {
        let Err(error) = program else { break };
        let error = anyhow::Error::from(error);
        // One that goes while it is asked for: another test's.
        let gone = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|cause| cause.kind() == std::io::ErrorKind::NotFound);
        if !gone {
            return Err(error).context("the kernel refuses BPF");
        }
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
