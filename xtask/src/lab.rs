//! `cargo xtask lab`: the demonstration's network, left up for hand use.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use iwf_tests::bpf::Objects;
use iwf_tests::carrier::Miniupnpd;
use iwf_tests::daemon::{Ctl, Files, Iwfd, Options};
use iwf_tests::peers::Echo;
use iwf_tests::topology::{EXTERNAL, LAN1, Lab};
use iwf_tests::{netns, packages};

use crate::{build, setup, step};

/// Name of the one lab that outlives its command.
const NAME: &str = "lab";
/// The kernel frees programs some time after their last pin.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Directory below the lab's own that `exec` puts first in PATH.
const SHORTCUTS: &str = "bin";

/// The network of the demonstration, left up for hand use.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the network and start the daemon and the carrier in it.
    Up,
    /// Stop everything and remove the network.
    Down,
    /// Run a command on a host: lan1, lan2, cpe, cgn or inet.
    Exec {
        /// Where.
        host: String,
        /// What, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Say whether the lab is up and what runs in it.
    Status,
    /// Return what arrives on a port of lan1, until killed.
    #[command(hide = true)]
    Serve,
}

/// Port of lan1 on which something answers.
const SERVED: u16 = 8080;

/// Runs one action.
///
/// # Errors
/// If it fails.
pub(crate) fn run(args: Args) -> Result<()> {
    netns::privileged()?;
    match args.action {
        Action::Up => up(),
        Action::Down => down(),
        Action::Exec { host, command } => exec(&host, &command),
        Action::Status => status(),
        Action::Serve => serve(),
    }
}

fn adopt() -> Result<Lab> {
    Lab::adopt(NAME).context("the lab is not up; `cargo xtask lab up` builds it")
}

fn up() -> Result<()> {
    if let Ok(lab) = Lab::adopt(NAME) {
        lab.keep();
        bail!("the lab is up already; `cargo xtask lab down` removes it");
    }
    setup::toolchain()?;
    setup::lab()?;
    build::workspace(false)?;

    step::say("joining lan1 and lan2, cpe, cgn and inet");
    let lab = Lab::named(NAME)?;
    step::say("starting miniupnpd on cgn");
    let carrier = Miniupnpd::start(&lab)?;
    step::say("starting iwfd on cpe");
    let iwfd = Iwfd::start(&lab, &Options::default())?;

    step::say("starting an echo server on lan1");
    // Not by the path of this process, whose file the build may just have replaced.
    let own = packages::built("xtask")?;
    let server = lab
        .lan1
        .spawn("echo", &[own.as_os_str(), "lab".as_ref(), "serve".as_ref()])?;
    write_shortcut(&lab, &iwfd.ctl())?;

    server.leave_running();
    carrier.leave_running();
    iwfd.leave_running();
    println!(
        "\nThe lab is up; files and logs are in {}.\n\n\
         Open a port on lan1 by UPnP:\n  \
         cargo xtask lab exec lan1 -- upnpc -a {LAN1} {SERVED} {SERVED} TCP\n\
         See it in the three tables:\n  \
         cargo xtask lab exec cpe -- iwfctl mappings\n\
         Reach it from the Internet side, through both NATs:\n  \
         cargo xtask lab exec inet -- bash -c 'exec 3<>/dev/tcp/{EXTERNAL}/{SERVED}; echo hello >&3; head -n1 <&3'\n\n\
         `cargo xtask lab down` removes everything.",
        lab.dir().display()
    );
    lab.keep();
    Ok(())
}

/// Puts an `iwfctl` that knows the lab's socket where `lab exec` looks first.
fn write_shortcut(lab: &Lab, ctl: &Ctl) -> Result<()> {
    let dir = lab.dir().join(SHORTCUTS);
    std::fs::create_dir(&dir).context("create the directory of shortcuts")?;
    let file = dir.join("iwfctl");
    let script = format!("#!/bin/sh\nexec {} \"$@\"\n", ctl.argv(&[])?.join(" "));
    std::fs::write(&file, script).context("write a shortcut")?;
    std::fs::set_permissions(&file, Permissions::from_mode(0o755)).context("write a shortcut")
}

fn serve() -> Result<()> {
    let _echo = Echo::here(SERVED)?;
    loop {
        std::thread::park();
    }
}

fn down() -> Result<()> {
    let lab = adopt()?;
    let kernel = Objects::of(&lab.cpe).unwrap_or_default();
    // Ends every process in the namespaces; the programs go with the file system that pins them.
    drop(lab);
    kernel.are_gone(GONE_WITHIN)?;
    step::say("the lab is gone");
    Ok(())
}

fn exec(host: &str, command: &[String]) -> Result<()> {
    let lab = adopt()?;
    let namespace = lab.host(host).map(|host| host.command(command));
    let shortcuts = lab.dir().join(SHORTCUTS);
    lab.keep();
    let Some(mut command) = namespace else {
        bail!("there is no host {host}: lan1, lan2, cpe, cgn or inet");
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(shortcuts).chain(std::env::split_paths(&path)))?;
    let status = command
        .env("PATH", path)
        .stdin(std::process::Stdio::inherit())
        .status()
        .with_context(|| format!("run a command on {host}"))?;
    match status.code() {
        Some(0) => Ok(()),
        // The command has said itself what is wrong.
        Some(code) => std::process::exit(code),
        None => bail!("the command was ended by a signal"),
    }
}

fn status() -> Result<()> {
    let lab = adopt()?;
    let (ctl, files) = (Ctl::of(&lab), Files::of(&lab));
    for host in lab.hosts() {
        println!("{:5} namespace {}", host.host(), host.name());
        let pids = iwf_tests::process::must(&["ip", "netns", "pids", host.name()])?;
        for pid in pids.lines() {
            println!("      {pid} {}", command_line(pid));
        }
    }
    println!("files and logs: {}", lab.dir().display());
    println!("configuration:  {}", files.config.display());
    let report = ctl.run(&["status"]);
    lab.keep();
    print!("{}", report?.text());
    Ok(())
}

fn command_line(pid: &str) -> String {
    let bytes = std::fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
