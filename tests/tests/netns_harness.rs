//! The harness itself: what it promises about clean-up and isolation, the other suites rely on.
#![expect(
    clippy::disallowed_types,
    reason = "the suites talk to real programs over sockets"
)]

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use iwf_tests::netns::{self, Network};
use iwf_tests::process::{self, Process};
use iwf_tests::wait;
use nix::sys::signal::Signal;

fn leftovers(dir: &Path) -> Vec<String> {
    let run = dir.file_name().unwrap().to_str().unwrap();
    std::fs::read_dir("/run/netns")
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with(&format!("{run}-")))
                .collect()
        })
        .unwrap_or_default()
}

#[test]
fn two_namespaces_talk_over_a_veth() -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    let network = Network::new()?;
    let (a, b) = (network.namespace("a")?, network.namespace("b")?);
    netns::veth((&a, "eth0"), (&b, "eth0"))?;
    a.address("eth0", [10, 0, 0, 1].into(), 24)?;
    b.address("eth0", [10, 0, 0, 2].into(), 24)?;

    let server = b.within(|| UdpSocket::bind("10.0.0.2:0"))??;
    let client = a.within(|| UdpSocket::bind("10.0.0.1:0"))??;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    client.send_to(b"hello", server.local_addr()?)?;
    let mut buf = [0; 16];
    let (len, from) = server.recv_from(&mut buf)?;
    assert_eq!(&buf[..len], b"hello");
    assert_eq!(from, client.local_addr()?);
    Ok(())
}

#[test]
fn a_panic_leaves_no_namespace_process_mount_or_directory() {
    if !netns::may_run() {
        return;
    }
    let seen: Mutex<(PathBuf, u32)> = Mutex::default();
    let outcome = std::panic::catch_unwind(|| {
        let network = Network::new().unwrap();
        let host = network.namespace("a").unwrap();
        let bystander = host
            .spawn("bystander", &["tail", "-f", "/dev/null"])
            .unwrap();
        let mount = network.dir().join("bpf");
        std::fs::create_dir(&mount).unwrap();
        process::must(&["mount", "-t", "bpf", "bpf", mount.to_str().unwrap()]).unwrap();
        *seen.lock().unwrap() = (network.dir().to_owned(), bystander.pid());
        assert_eq!(leftovers(network.dir()).len(), 1);
        // An unguarded process ends with its namespace.
        bystander.leave_running();
        panic!("on purpose");
    });
    assert!(outcome.is_err());
    let (dir, pid) = seen.into_inner().unwrap_or_default();
    assert!(pid > 0);
    assert_eq!(leftovers(&dir), Vec::<String>::new());
    assert!(!dir.exists());
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(
        state.is_empty() || state.contains(") Z "),
        "still runs: {state}"
    );
}

/// Whoever starts an instance collects what dead runs left, also what another test is looking at.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Set for a second instance of this program that builds a network and waits to be ended.
const HOLD: &str = "IWF_TEST_HOLD";

/// Starts that instance; returns it and the directory of its network.
fn holder(log: &Path) -> Result<(Process, PathBuf)> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "a_network_is_held_on_request", "--nocapture"])
        .env(HOLD, "1");
    let mut process = Process::spawn("holder", command, log)?;
    process.wait_for_log("holding ", Duration::from_secs(20))?;
    // The line is written in pieces.
    let dir = wait::until("the rest of the line", Duration::from_secs(20), || {
        let text = process.log();
        let (_, rest) = text.split_once("holding ")?;
        let (dir, _) = rest.split_once('\n')?;
        Some(PathBuf::from(dir))
    })?;
    Ok((process, dir))
}

#[test]
fn a_network_is_held_on_request() -> Result<()> {
    if std::env::var_os(HOLD).is_none() || !netns::may_run() {
        return Ok(());
    }
    let network = Network::new()?;
    let host = network.namespace("a")?;
    let _bystander = host.spawn("bystander", &["tail", "-f", "/dev/null"])?;
    eprintln!("holding {}", network.dir().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn ctrl_c_leaves_nothing() -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let own = Network::new()?;
    let (mut process, dir) = holder(&own.dir().join("holder.log"))?;
    assert_eq!(leftovers(&dir).len(), 1);
    process.signal(Signal::SIGINT)?;
    let status = process.wait(Duration::from_secs(20))?;
    assert_eq!(status.code(), Some(130));
    assert_eq!(leftovers(&dir), Vec::<String>::new());
    assert!(!dir.exists());
    Ok(())
}

#[test]
fn what_a_killed_run_left_the_next_one_collects() -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let own = Network::new()?;
    let (mut killed, dir) = holder(&own.dir().join("killed.log"))?;
    killed.kill_hard()?;
    assert_eq!(leftovers(&dir).len(), 1);
    assert!(!process::must(&["ip", "netns", "pids", &leftovers(&dir)[0]])?.is_empty());

    let (mut next, _) = holder(&own.dir().join("next.log"))?;
    assert_eq!(leftovers(&dir), Vec::<String>::new());
    assert!(!dir.exists());
    next.signal(Signal::SIGTERM)?;
    next.wait(Duration::from_secs(20)).map(drop)
}
