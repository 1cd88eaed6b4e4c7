//! What the data plane lets through and what not, seen from the hosts on both sides.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_tests::bpf::Objects;
use iwf_tests::cascade::Cascade;
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{CARRIER, EXTERNAL, GATEWAY, LAN1, LAN2, REMOTE, WAN};
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(1);

fn ping(host: &Namespace, to: std::net::Ipv4Addr) -> Result<()> {
    host.must(&[
        "ping",
        "-n",
        "-c",
        "3",
        "-i",
        "0.2",
        "-W",
        "2",
        &to.to_string(),
    ])
    .map(drop)
}

/// Counters of that name, as the daemon reads them from the kernel.
#[test]
fn hosts_of_the_lan_reach_the_internet_through_both_nats() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let echo = Echo::listen(&cascade.lab.inet, 0)?;
    let outside = SocketAddrV4::new(REMOTE, echo.port());
    for host in [&cascade.lab.lan1, &cascade.lab.lan2] {
        peers::tcp_echo(host, outside, "out over TCP", SOON)?;
        peers::udp_echo(host, outside, "out over UDP", SOON)?;
        ping(host, REMOTE)?;
        ping(host, CARRIER)?;
    }
    Ok(())
}

#[test]
fn the_routers_own_traffic_works_on_both_sides() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let cpe = &cascade.lab.cpe;
    let echo = Echo::listen(&cascade.lab.inet, 0)?;
    let outside = SocketAddrV4::new(REMOTE, echo.port());
    peers::tcp_echo(cpe, outside, "own TCP", SOON)?;
    peers::udp_echo(cpe, outside, "own UDP", SOON)?;
    ping(cpe, REMOTE)?;
    ping(cpe, LAN1)?;
    ping(&cascade.lab.lan1, GATEWAY)?;
    ping(&cascade.lab.lan1, LAN2)?;
    Ok(())
}

#[test]
fn no_untranslated_private_source_leaves_the_wan() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let tap = Tap::start(&cascade.lab, &cascade.lab.cgn, "br0", "ip")?;
    let echo = Echo::listen(&cascade.lab.inet, 0)?;
    let outside = SocketAddrV4::new(REMOTE, echo.port());
    let (lan1, lan2) = (&cascade.lab.lan1, &cascade.lab.lan2);
    // The first packet of each kind finds no neighbour and goes through the stack.
    cascade.lab.cpe.ip("neigh flush all")?;
    peers::udp_echo(lan1, outside, "first", SOON)?;
    peers::tcp_echo(lan2, outside, "second", SOON)?;
    // Kinds that are not translated: a protocol without ports, and fragments.
    lan1.run(&[
        "ping",
        "-n",
        "-c",
        "2",
        "-i",
        "0.2",
        "-W",
        "1",
        "-s",
        "4000",
        &REMOTE.to_string(),
    ])?;
    lan1.run(&[
        "ping",
        "-n",
        "-c",
        "1",
        "-W",
        "1",
        "-t",
        "1",
        &REMOTE.to_string(),
    ])?;
    // A source that is not of this LAN.
    lan2.ip("addr add 10.9.8.7/32 dev eth0")?;
    lan2.run(&[
        "ping",
        "-n",
        "-c",
        "2",
        "-i",
        "0.2",
        "-W",
        "1",
        "-I",
        "10.9.8.7",
        &REMOTE.to_string(),
    ])?;
    ping(lan1, REMOTE)?;

    let frames = tap.finish()?;
    assert!(frames.len() >= 10, "the capture saw {}", frames.len());
    for frame in frames {
        let (source, destination) = (&frame[26..30], &frame[30..34]);
        let from_the_cpe = destination != WAN.octets();
        assert!(
            !from_the_cpe || source == WAN.octets() || source == CARRIER.octets(),
            "{source:?} to {destination:?} left the WAN"
        );
    }
    Ok(())
}

#[test]
fn nothing_unsolicited_comes_in_and_the_drop_is_counted() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    let (_lan1, _cpe) = (
        Echo::listen(&cascade.lab.lan1, 30000)?,
        Echo::listen(&cascade.lab.cpe, 30001)?,
    );
    let dropped = || cascade.iwfd.ctl().counter("drop_unsolicited");
    let before = dropped()?;

    // From the carrier's own network, so that the carrier's NAT has no say. 5000 is the daemon's HTTP server,
    // 1900 its discovery.
    let ports = [30000, 30001, gateway.address().port(), 1900, 5351, 22, 80];
    let cgn = &cascade.lab.cgn;
    std::thread::scope(|scope| {
        let attempts = ports.map(|port| {
            let target = SocketAddrV4::new(WAN, port);
            scope.spawn(move || {
                peers::tcp_is_closed(cgn, target, SILENCE)?;
                peers::udp_is_closed(cgn, target, SILENCE)
            })
        });
        attempts.into_iter().try_for_each(|attempt| {
            attempt
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    assert!(
        dropped()? >= before + ports.len() as u64,
        "each is counted under its reason"
    );

    // The way of a packet that claims to belong inside: routed straight at the private addresses.
    cascade
        .lab
        .cgn
        .ip(&format!("route add 192.168.1.0/24 via {WAN}"))?;
    peers::tcp_is_closed(&cascade.lab.cgn, SocketAddrV4::new(LAN1, 30000), SILENCE)?;
    peers::udp_is_closed(&cascade.lab.cgn, SocketAddrV4::new(LAN1, 30000), SILENCE)?;
    let gateway = SocketAddrV4::new(GATEWAY, gateway.address().port());
    peers::tcp_is_closed(&cascade.lab.cgn, gateway, SILENCE)
}

#[test]
fn each_drop_is_logged_by_name_when_asked_for() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let options = Options {
        log: "debug",
        log_drops: true,
        ..Options::default()
    };
    let mut cascade = Cascade::up(&options)?;
    peers::udp_is_closed(&cascade.lab.cgn, SocketAddrV4::new(WAN, 30000), SILENCE)?;
    cascade.iwfd.process().wait_for_log(
        "packet dropped reason=\"drop_unsolicited\"",
        Duration::from_secs(20),
    )
}

#[test]
fn generic_mode_works_and_warns() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let options = Options {
        attach: "generic",
        ..Options::default()
    };
    let mut cascade = Cascade::up(&options)?;
    let attached = Objects::of(&cascade.lab.cpe)?;
    assert_eq!(attached.xdp.len(), 3);
    assert!(attached.xdp.iter().all(|(_, mode)| *mode == "generic"));
    let log = cascade.iwfd.process().log();
    assert!(
        log.lines()
            .any(|line| line.contains("WARN") && line.contains("generic")),
        "{log}"
    );

    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    let echo = Echo::listen(&cascade.lab.lan1, 0)?;
    gateway.add("TCP", 31000, LAN1, echo.port(), 3600)?.ok()?;
    let outside = SocketAddrV4::new(EXTERNAL, 31000);
    peers::tcp_echo(&cascade.lab.inet, outside, "generic", SOON)?;
    let server = Echo::listen(&cascade.lab.inet, 0)?;
    let remote = SocketAddrV4::new(REMOTE, server.port());
    peers::tcp_echo(&cascade.lab.lan2, remote, "generic", SOON)?;
    peers::udp_echo(&cascade.lab.lan2, remote, "generic", SOON)
}

#[test]
fn native_mode_is_what_runs_on_every_port() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let mut attached = Objects::of(&cascade.lab.cpe)?.xdp;
    attached.sort();
    let expected = ["lan1p", "lan2p", "wan0"].map(|name| (name.to_owned(), "native"));
    assert_eq!(attached, expected);
    Ok(())
}

#[test]
fn an_established_flow_bypasses_the_stack_in_both_directions() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let (lan1, cpe) = (&cascade.lab.lan1, &cascade.lab.cpe);
    // Neighbours and the bridge's stations are learnt.
    wait::until_ok("a flow that the stack never sees", SOON, || {
        ping(lan1, REMOTE)?;
        let forwarded = |path: &str| -> Result<u64> {
            let text = cpe.must(&["cat", "/proc/net/snmp"])?;
            let line = text.lines().filter(|line| line.starts_with(path)).nth(1);
            let fields = line.context("/proc/net/snmp has the protocol")?;
            // Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams ...
            let count = fields.split_whitespace().nth(6);
            count.context("a sixth field")?.parse().context("a number")
        };
        let (stack, out, back) = (
            forwarded("Ip:")?,
            cascade.iwfd.ctl().counter("forwarded_out")?,
            cascade.iwfd.ctl().counter("forwarded_in")?,
        );
        ping(lan1, REMOTE)?;
        anyhow::ensure!(
            cascade.iwfd.ctl().counter("forwarded_out")? >= out + 3,
            "not out by XDP"
        );
        anyhow::ensure!(
            cascade.iwfd.ctl().counter("forwarded_in")? >= back + 3,
            "not in by XDP"
        );
        anyhow::ensure!(forwarded("Ip:")? == stack, "the stack forwarded");
        Ok(())
    })
}
