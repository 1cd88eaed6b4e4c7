//! `cargo xtask setup`: installs what is missing, says what and why, and is quick when nothing is.
//!
//! On the Debian family, as root, everything comes from the distribution by apt; the linker of the eBPF
//! programs is built by cargo below `target/tools`. Servers that tests run are unpacked below `target/cache`
//! and never installed, so that no service starts on the user's machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;
use crate::toolchain::{self, Missing};
use iwf_tests::packages;

/// Install what is missing for building, showing and testing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what is needed to build.
    #[arg(long)]
    build_only: bool,
}

/// Programs the lab calls: name, Debian package, and what it is for.
const TOOLS: [(&str, &str, &str); 9] = [
    ("ip", "iproute2", "makes the namespaces and links"),
    ("nft", "nftables", "is the carrier's NAT"),
    ("ethtool", "ethtool", "sets offloads of the links"),
    ("tcpdump", "tcpdump", "watches what is on the wire"),
    ("upnpc", "miniupnpc", "is the UPnP client on the LAN"),
    ("ping", "iputils-ping", "tries who is there"),
    ("nsenter", "util-linux", "runs programs in a namespace"),
    (
        "python3",
        "python3",
        "runs control points of GUPnP and over TLS",
    ),
    ("openssl", "openssl", "makes certificates of control points"),
];

/// Installs everything.
///
/// # Errors
/// If something is missing and cannot be installed here; the message says what to install by hand.
pub(crate) fn run(args: &Args) -> Result<()> {
    toolchain()?;
    if !args.build_only {
        lab()?;
    }
    step::say("set-up is complete");
    Ok(())
}

/// Sees to a compiler and a linker for the eBPF programs.
///
/// # Errors
/// If one is missing and cannot be installed here.
pub(crate) fn toolchain() -> Result<()> {
    let root = step::root();
    let mut resolved = toolchain::resolve(&root);
    if let Err(Missing::Compiler(_)) = &resolved {
        apt().map_err(|why| by_hand(&why, &resolved))?.install(
            &["rustc-web", "libstd-rust-web-dev-bpf"],
            "the compiler for the eBPF programs, with its core library",
        )?;
        resolved = toolchain::resolve(&root);
    }
    if let Err(Missing::Linker { llvm }) = resolved {
        build_linker(&root, llvm).map_err(|why| by_hand(&why, &resolved))?;
        resolved = toolchain::resolve(&root);
    }
    let found = resolved?;
    step::say(&format!("eBPF toolchain: {found}"));
    Ok(())
}

fn by_hand<T>(why: &anyhow::Error, resolved: &Result<T, Missing>) -> anyhow::Error {
    match resolved {
        Ok(_) => anyhow::anyhow!("{why:#}"),
        Err(missing) => anyhow::anyhow!("{why:#}\n{missing}"),
    }
}

fn build_linker(root: &Path, llvm: u32) -> Result<()> {
    let bin = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin"));
    if !bin.join("llvm-config").exists() {
        apt()?.install(
            &[&format!("llvm-{llvm}-dev"), "g++"],
            "the linker of the eBPF programs is built against this LLVM",
        )?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path)))?;
    let mut cargo = step::cargo(&["install", "bpf-linker", "--no-default-features"]);
    cargo
        .args(["--features", &format!("llvm-{llvm}")])
        .args(["--locked", "--root"])
        .arg(root.join("target/tools"))
        .env("PATH", path);
    step::run("building bpf-linker, about a minute", cargo)
}

/// Sees to the tools and servers of the lab.
///
/// # Errors
/// If one is missing and cannot be installed here.
pub(crate) fn lab() -> Result<()> {
    let missing: Vec<_> = TOOLS.iter().filter(|tool| !on_path(tool.0)).collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|tool| tool.1).collect();
        let apt = apt().with_context(|| format!("install by hand: {}", names.join(" ")))?;
        let why: Vec<String> = missing
            .iter()
            .map(|(name, _, why)| format!("{name} {why}"))
            .collect();
        apt.install(&names, &why.join(", "))?;
    }
    if packages::miniupnpd().is_err() || packages::library_path().is_err() {
        unpack(&packages::CARRIER, "the carrier's PCP server")?;
        packages::miniupnpd()?;
    }
    if packages::stun_client().is_err() || packages::stun_server().is_err() {
        unpack(&packages::STUN, "they tell what kind of NAT they see")?;
        packages::stun_client()?;
        packages::stun_server()?;
    }
    let dhcp = [
        packages::dnsmasq(),
        packages::kea(4),
        packages::kea(6),
        packages::busybox(),
        packages::dhclient(),
    ];
    if dhcp.iter().any(Result::is_err) {
        unpack(&packages::DHCP, "they tell where PCP servers are")?;
        packages::dnsmasq()?;
        packages::busybox()?;
        packages::dhclient()?;
    }
    if clients().is_err() {
        unpack(
            &packages::CLIENTS,
            "they open ports by UPnP, and follow its events",
        )?;
        clients()?;
    }
    if packages::prometheus_client().is_err() {
        unpack(&packages::METRICS, "they read metrics")?;
        packages::prometheus_client()?;
    }
    Ok(())
}

/// Whether the UPnP clients are there.
fn clients() -> Result<()> {
    packages::transmission("cli")?;
    packages::gupnp_igd()?;
    packages::gupnp()?;
    packages::net_upnp()?;
    packages::libupnp()?;
    packages::libtorrent()?;
    packages::syncthing()?;
    packages::siad()?;
    Ok(())
}

/// Sees to what boots other kernels.
///
/// # Errors
/// If it is missing and cannot be installed here.
pub(crate) fn emulator() -> Result<()> {
    let (program, package) = ("qemu-system-x86_64", "qemu-system-x86");
    if on_path(program) {
        return Ok(());
    }
    let apt = apt().with_context(|| format!("install by hand: {package}"))?;
    apt.install(&[package], &format!("{program} boots other kernels"))
}

/// Unpacks Debian packages below `target/cache`, where no service of theirs is ever started.
fn unpack(wanted: &[&str], why: &str) -> Result<()> {
    let names = wanted.join(" ");
    let apt = apt().with_context(|| {
        format!(
            "unpack the Debian packages {names} by hand into {}",
            packages::cache().display()
        )
    })?;
    step::say(&format!("unpacking (not installing) {names}: {why}"));
    let downloads = step::root().join("target/cache/downloads");
    std::fs::create_dir_all(&downloads).context("create the cache")?;
    apt.download(wanted, &downloads)?;
    for entry in std::fs::read_dir(&downloads).context("list the downloads")? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            let mut dpkg = Command::new("dpkg");
            dpkg.arg("-x").arg(&file).arg(packages::cache());
            step::quiet(&mut dpkg)?;
        }
    }
    Ok(())
}

/// Whether a program is found, also where a user's PATH does not lead.
fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|dir| dir.join(name).is_file())
}

/// Proof that apt can be used: a Debian family system, and root.
struct Apt(());

fn apt() -> Result<Apt> {
    if !on_path("apt-get") || !on_path("dpkg") {
        bail!("this is not a Debian system, so nothing can be installed from here");
    }
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        bail!("/proc is not mounted");
    };
    let root = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"));
    if !root {
        bail!(
            "not root, so nothing can be installed from here; run `cargo xtask setup` as root once"
        );
    }
    Ok(Apt(()))
}

impl Apt {
    fn install(&self, names: &[&str], why: &str) -> Result<()> {
        step::say(&format!("installing {}: {why}", names.join(" ")));
        self.with_fresh_lists(|| {
            let mut command = Self::command("install");
            command
                .args(["--yes", "--no-install-recommends"])
                .args(names);
            step::quiet(&mut command)
        })
    }

    fn download(&self, names: &[&str], dir: &Path) -> Result<()> {
        self.with_fresh_lists(|| {
            let mut command = Self::command("download");
            // The sandbox user of apt may not write below a home directory.
            command
                .args(["-o", "APT::Sandbox::User=root"])
                .args(names)
                .current_dir(dir);
            step::quiet(&mut command)
        })
    }

    /// Package lists may be missing or old: on a failure they are fetched, and the action is tried again.
    fn with_fresh_lists(&self, action: impl Fn() -> Result<String>) -> Result<()> {
        if action().is_ok() {
            return Ok(());
        }
        step::say("fetching the package lists");
        step::quiet(&mut Self::command("update"))?;
        action().map(drop)
    }

    fn command(verb: &str) -> Command {
        let mut command = Command::new("apt-get");
        command
            .args(["--quiet", verb])
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}
