//! ICMP errors and hairpinning, seen from the hosts on both sides: traceroute, path-MTU discovery, refusals, and LAN
//! hosts that meet at external endpoints.
#![expect(
    clippy::disallowed_types,
    reason = "the suite talks over real sockets of the hosts"
)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{self, Cascade};
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{CARRIER, EXTERNAL, GATEWAY, LAN1, REMOTE, WAN};
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;

const SOON: Duration = Duration::from_secs(10);
/// Octets that are many full segments.
const MUCH: usize = 100_000;

fn socket(host: &Namespace) -> Result<UdpSocket> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    Ok(host.within(|| UdpSocket::bind(any))??)
}

/// Maps a port of lan1 through both NATs; yields NAT1's external port.
fn map(cascade: &Cascade, protocol: &str, port: u16) -> Result<u16> {
    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    gateway.add(protocol, 31000, LAN1, port, 3600)?.ok()?;
    let rows = cascade::rows(&cascade.iwfd)?;
    let row = rows
        .iter()
        .find(|row| {
            row["protocol"]
                .as_str()
                .is_some_and(|p| p.eq_ignore_ascii_case(protocol))
        })
        .context("the mapping is listed")?;
    Ok(cascade::endpoint(row, "nat1")?.port())
}

/// Source of an ICMP error, type, and both endpoints of the packet that it quotes.
type Report = (Ipv4Addr, u8, SocketAddrV4, SocketAddrV4);

fn report(frame: &[u8]) -> Option<Report> {
    let addr = |at: usize| -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?,
        ))
    };
    let port = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
    };
    let quote = 14 + 20 + 8;
    Some((
        addr(26)?,
        *frame.get(34)?,
        SocketAddrV4::new(addr(quote + 12)?, port(quote + 20)?),
        SocketAddrV4::new(addr(quote + 16)?, port(quote + 22)?),
    ))
}

/// Sends a datagram with that TTL until an error about it is seen on the sender's interface.
fn probe(
    cascade: &Cascade,
    host: &Namespace,
    to: SocketAddrV4,
    ttl: u32,
) -> Result<(SocketAddrV4, Report)> {
    let tap = Tap::start(&cascade.lab, host, "eth0", "icmp")?;
    let socket = socket(host)?;
    socket.set_ttl(ttl)?;
    // Connected, so that the socket knows its own address.
    socket.connect(to)?;
    let SocketAddr::V4(from) = socket.local_addr()? else {
        anyhow::bail!("an IPv4 socket");
    };
    let seen = wait::until_ok("an ICMP error", SOON, || {
        // A refusal is reported to the socket as well.
        socket.send(b"how far").ok();
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.recv(&mut [0; 64]).ok();
        let frames = tap.frames()?;
        frames
            .iter()
            .filter_map(|frame| report(frame))
            .find(|(.., quoted, _)| quoted.port() == from.port())
            .context("none yet")
    })?;
    tap.finish()?;
    Ok((from, seen))
}

/// UDP, as traceroute does it, and ICMP, as ping does: each hop is seen by its own address, and what it quotes is
/// what the host has sent.
#[test]
fn a_lan_host_traces_the_route_through_both_nats() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let lan1 = &cascade.lab.lan1;
    let to = SocketAddrV4::new(REMOTE, 33434);
    for (ttl, hop, kind) in [(1, GATEWAY, 11), (2, CARRIER, 11), (3, REMOTE, 3)] {
        let (from, seen) = probe(&cascade, lan1, to, ttl)?;
        assert_eq!(seen, (hop, kind, from, to), "hop {ttl}");
    }
    for (ttl, hop) in [(1, GATEWAY), (2, CARRIER)] {
        let (ttl, target) = (ttl.to_string(), REMOTE.to_string());
        // A hop sends a host about one error a second, and the datagrams before may have used up what it has saved.
        wait::until_ok("an error about an echo request", SOON, || {
            let ping = lan1.run(&["ping", "-n", "-c", "1", "-W", "1", "-t", &ttl, &target])?;
            let text = ping.text();
            ensure!(text.contains(&format!("From {hop}")), "{text}");
            Ok(())
        })?;
    }
    assert!(cascade.iwfd.ctl().counter("icmp_errors_translated")? >= 3);
    Ok(())
}

/// The CPE is a hop like any other, and shows nothing of what is behind it.
#[test]
fn a_remote_host_traces_the_route_to_a_mapped_port() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let echo = Echo::listen(&cascade.lab.lan1, 0)?;
    map(&cascade, "UDP", echo.port())?;
    let to = SocketAddrV4::new(EXTERNAL, 31000);
    let (from, seen) = probe(&cascade, &cascade.lab.inet, to, 2)?;
    assert_eq!((seen.1, seen.2, seen.3), (11, from, to));
    drop(echo);
    // Nobody listens any more: the host's own refusal comes back too.
    let (from, seen) = probe(&cascade, &cascade.lab.inet, to, 64)?;
    assert_eq!((seen.1, seen.2, seen.3), (3, from, to));
    Ok(())
}

#[test]
fn a_refusal_reaches_the_socket() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let socket = socket(&cascade.lab.lan1)?;
    socket.connect(SocketAddrV4::new(REMOTE, 9))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    wait::until("a refusal", SOON, || {
        socket.send(b"anybody").ok();
        let refused = socket.recv(&mut [0; 64]);
        refused
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            .then_some(())
    })
}

/// A link behind the carrier that takes less than the LAN (cilium 33844, einat 19).
#[test]
fn a_lan_host_learns_the_path_mtu() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let (lan1, cgn) = (&cascade.lab.lan1, &cascade.lab.cgn);
    cgn.ip(&format!("route add {REMOTE}/32 dev ext0 mtu lock 1300"))?;
    let echo = Echo::listen(&cascade.lab.inet, 0)?;
    let outside = SocketAddrV4::new(REMOTE, echo.port());
    peers::tcp_echo(lan1, outside, &"x".repeat(MUCH), SOON)?;
    let route = lan1.ip(&format!("route get {REMOTE}"))?;
    assert!(route.contains("mtu 1300"), "{route}");
    assert!(cascade.iwfd.ctl().counter("icmp_errors_translated")? >= 1);
    Ok(())
}

/// A LAN that takes less than the WAN: the CPE itself reports, about a packet that it has translated.
#[test]
fn a_remote_host_learns_the_path_mtu() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let (cpe, inet) = (&cascade.lab.cpe, &cascade.lab.inet);
    cpe.ip(&format!("route add {LAN1}/32 dev br-lan mtu lock 1300"))?;
    let echo = Echo::listen(&cascade.lab.lan1, 0)?;
    map(&cascade, "TCP", echo.port())?;
    let to = SocketAddrV4::new(EXTERNAL, 31000);
    peers::tcp_echo(inet, to, &"x".repeat(MUCH), SOON)?;
    let route = inet.ip(&format!("route get {EXTERNAL}"))?;
    assert!(route.contains("mtu 1300"), "{route}");
    assert!(cascade.iwfd.ctl().counter("icmp_errors_translated")? >= 1);
    Ok(())
}

#[test]
fn lan_hosts_meet_at_external_endpoints() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let (lan1, lan2) = (&cascade.lab.lan1, &cascade.lab.lan2);
    let echo = Echo::listen(lan1, 0)?;
    for protocol in ["TCP", "UDP"] {
        let port = map(&cascade, protocol, echo.port())?;
        let external = SocketAddrV4::new(WAN, port);
        // Another host, and the host itself.
        for host in [lan2, lan1] {
            if protocol == "TCP" {
                peers::tcp_echo(host, external, &"y".repeat(MUCH), SOON)?;
            } else {
                peers::udp_echo(host, external, "hairpinned", SOON)?;
            }
        }
    }
    assert!(cascade.iwfd.ctl().counter("hairpinned")? >= 20);
    // The address itself is the CPE's.
    lan2.must(&["ping", "-n", "-c", "1", "-W", "5", &WAN.to_string()])?;
    Ok(())
}

/// The stack takes such a packet, which has the CPE's own address as its source, and resolves the host.
#[test]
fn a_host_that_is_not_resolved_yet_is_met_too() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let echo = Echo::listen(&cascade.lab.lan1, 0)?;
    let port = map(&cascade, "TCP", echo.port())?;
    let external = SocketAddrV4::new(WAN, port);
    let meet = || -> Result<bool> {
        cascade.lab.cpe.ip("neigh flush dev br-lan")?;
        peers::tcp_echo(&cascade.lab.lan2, external, "first of all", SOON)?;
        Ok(cascade.iwfd.ctl().counter("pass_unresolved")? >= 1)
    };
    // It is met each time; something else may have had the host resolved first.
    wait::until("a host that is not resolved", SOON, || {
        let met = meet();
        (!matches!(met, Ok(false))).then_some(met)
    })?
    .map(drop)
}

/// RFC 4787 REQ-9: "External source IP address and port".
#[test]
fn the_sender_is_seen_by_its_external_endpoint() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let server = socket(&cascade.lab.lan1)?;
    server.set_read_timeout(Some(Duration::from_millis(200)))?;
    let port = map(&cascade, "UDP", server.local_addr()?.port())?;
    let client = socket(&cascade.lab.lan2)?;
    let from = wait::until_ok("a datagram", SOON, || {
        client.send_to(b"who am I", SocketAddrV4::new(WAN, port))?;
        Ok(server.recv_from(&mut [0; 64])?.1)
    })?;
    assert_eq!(from.ip(), WAN);
    Ok(())
}
