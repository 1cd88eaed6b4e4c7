//! The carrier's server restarts with a thousand mappings: all of them come back, at the stated pace, and what goes
//! through them notices nothing.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "plays the hosts on both sides and compares with the clock of the capture"
)]

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::Scripted;
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::peers::Echo;
use iwf_tests::script::Manner;
use iwf_tests::topology::{LAN1, WAN};
use iwf_tests::wait;
use iwf_tests::wire_tap::PcpTap;

/// Hosts with so many mappings each. More at once than a host may ask for in a breath would be refused.
const HOSTS: u16 = 8;
const EACH: u16 = 125;
const COUNT: usize = HOSTS as usize * EACH as usize;
/// docs/lan.md: requests that nobody waits for in any tenth of a second.
const PACE: usize = 40;
/// Of the issue, from the first sign on the wire.
const BACK_WITHIN: Duration = Duration::from_secs(5);

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// The most of these times in any tenth of a second.
fn busiest(times: &[Duration]) -> usize {
    let window = Duration::from_millis(100);
    let within = |from: &Duration| {
        let end = *from + window;
        times.iter().filter(|at| (*from..end).contains(at)).count()
    };
    times.iter().map(within).max().unwrap_or(0)
}

#[test]
fn a_thousand_mappings_come_back_at_the_stated_pace_and_traffic_goes_on() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    // All addresses are one device's by its MAC address.
    let options = Options {
        more: "[policy]\nmax_mappings_per_host = 2000\n",
        ..Options::default()
    };
    let scripted = Scripted::up_with(Manner::Grant, &options)?;
    let lan1 = &scripted.lab.lan1;
    let gateway = Gateway::discover(lan1)?;
    for host in 0..HOSTS {
        let mut addr = LAN1;
        if host > 0 {
            addr = Ipv4Addr::new(192, 168, 1, 100 + u8::try_from(host)?);
            lan1.ip(&format!("addr add {addr}/24 dev eth0"))?;
            lan1.ip(&format!("route replace 192.168.1.0/24 dev eth0 src {addr}"))?;
        }
        for n in 0..EACH {
            let port = 20_000 + host * EACH + n;
            gateway.add("UDP", port, addr, port, 86_400)?.ok()?;
        }
    }
    let before = scripted.server.leases();
    ensure!(before.len() == COUNT, "{} leases", before.len());

    // What goes through one of them all the time: of the address that lan1 answers from.
    let port = 20_000;
    let _echo = Echo::listen(lan1, port)?;
    let remote = scripted
        .lab
        .cgn
        .within(|| UdpSocket::bind("100.64.0.1:0"))??;
    remote.connect((WAN, port))?;
    remote.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut sent = 0_u64;
    let mut ping = || -> Result<()> {
        sent += 1;
        remote.send(&sent.to_be_bytes())?;
        let mut buf = [0; 64];
        let len = remote
            .recv(&mut buf)
            .context("an echo; traffic was disturbed")?;
        ensure!(buf[..len] == sent.to_be_bytes(), "another echo");
        Ok(())
    };
    ping()?;

    let tap = PcpTap::start(&scripted.lab)?;
    scripted.server.lose_state();
    let first_sign = now()?;
    scripted.server.announce(&scripted.lab)?;
    // In the midst of it an application asks, and does not wait for the others.
    let what = "the recovery to begin";
    wait::until(what, Duration::from_secs(10), || {
        (scripted.server.leases().len() > 100).then_some(())
    })?;
    let (answer, took) =
        wait::timed(|| gateway.add("TCP", 19_999, Ipv4Addr::new(192, 168, 1, 107), 19_999, 600));
    answer?.ok()?;
    let held = scripted.server.leases().len();
    wait::until_ok(
        "all leases at the server again",
        Duration::from_secs(20),
        || {
            ping()?;
            let now = scripted.server.leases();
            ensure!(now.len() == COUNT + 1, "{} leases", now.len());
            Ok(())
        },
    )?;
    ping()?;

    let mut after = scripted.server.leases();
    after.retain(|lease| lease.protocol == 17);
    ensure!(after == before, "the same nonces, ports and addresses");
    let requests = tap.timed_map_requests()?;
    let recovery: Vec<Duration> = requests
        .iter()
        .filter(|(_, request)| request.map.is_some_and(|map| map.protocol == 17))
        .map(|(at, _)| *at)
        .collect();
    let last = recovery.iter().max().copied().unwrap_or_default();
    eprintln!(
        "{} requests, at most {} in 100 ms, the last {} ms after the first sign; a new mapping in the midst of it took \
         {} ms, with {held} back; {sent} echoes",
        recovery.len(),
        busiest(&recovery),
        last.saturating_sub(first_sign).as_millis(),
        took.as_millis(),
    );
    ensure!(recovery.len() == COUNT, "once each: {}", recovery.len());
    ensure!(
        busiest(&recovery) <= PACE,
        "a burst of {}",
        busiest(&recovery)
    );
    let patience = wait::patience();
    ensure!(last - first_sign <= BACK_WITHIN * patience, "too late");
    ensure!(took < Duration::from_secs(1) * patience, "it took {took:?}");
    let audit = scripted.iwfd.ctl().json(&["audit"])?;
    ensure!(
        audit["clean"] == true && audit["leases"] == COUNT + 1,
        "{audit}"
    );
    Ok(())
}
