//! A CPE that does not translate: the carrier's NAT knows the LAN hosts themselves, and Debian's miniupnpd maps them by
//! THIRD_PARTY, asked over either family.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the suite talks over real sockets of the hosts"
)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::carrier::{Forward, Miniupnpd, forwards};
use iwf_tests::cascade::{endpoint, nothing_is_left, rows};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::pcp::{Opcode, Response, result};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{CARRIER, EXTERNAL, LAN1, LAN2, Lab, REMOTE, WAN, WAN_IF};
use iwf_tests::wire_tap::{PcpTap, Tap};
use iwf_tests::{upnpc, wait};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

const SOON: Duration = Duration::from_secs(8);
const SILENCE: Duration = Duration::from_secs(2);
/// Longer than a refusal takes.
const LONG: Duration = Duration::from_secs(20);

/// Both ends of the subscriber's line over IPv6.
const CARRIER6: &str = "2a0c:9::1";
const WAN6: &str = "2a0c:9::2";

/// The lab with the LAN behind the CPE known to the carrier, which counts whose packets come by.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.cgn.ip(&format!("route add 192.168.1.0/24 via {WAN}"))?;
    for host in [&lab.cgn, &lab.cpe] {
        host.sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
    }
    lab.cgn
        .ip(&format!("address add {CARRIER6}/64 dev br0 nodad"))?;
    lab.cpe
        .ip(&format!("address add {WAN6}/64 dev {WAN_IF} nodad"))?;
    for rule in [
        "add table ip watch".to_owned(),
        "add chain ip watch seen { type filter hook prerouting priority -300; }".to_owned(),
        format!("add rule ip watch seen iifname br0 ip saddr {LAN1} counter comment \"routed\""),
        format!(
            "add rule ip watch seen iifname br0 ip saddr {WAN} tcp dport != 5351 counter comment \"translated\""
        ),
    ] {
        lab.cgn.must(&["nft", &rule])?;
    }
    Ok(lab)
}

/// Packets that a rule of the carrier has counted.
fn seen(cgn: &Namespace, comment: &str) -> Result<u64> {
    let text = cgn.must(&["nft", "list", "chain", "ip", "watch", "seen"])?;
    let line = text.lines().find(|line| line.contains(comment));
    let mut words = line.context("the rule")?.split_whitespace();
    words.find(|word| *word == "packets");
    Ok(words.next().context("a number")?.parse()?)
}

fn options(server: &str) -> Options {
    Options {
        mode: "no-nat",
        third_party: true,
        pcp_servers: vec![server.to_owned()],
        ..Options::default()
    }
}

fn forward(protocol: &str, external_port: u16, to: (Ipv4Addr, u16)) -> Forward {
    Forward {
        protocol: protocol.to_owned(),
        external_port,
        to,
    }
}

/// From opening by upnpc to closing, against a server at that address.
fn opens_and_closes(server: &str, attach: &'static str) -> Result<()> {
    let lab = lab()?;
    let _carrier = Miniupnpd::start_for_the_lan(&lab)?;
    let options = Options {
        attach,
        ..options(server)
    };
    let iwfd = Iwfd::start(&lab, &options)?;
    let status = iwfd.ctl().json(&["status"])?;
    ensure!(status["mode"] == "no-nat", "{status}");
    ensure!(status["translates"] == false, "{status}");
    let echo = Echo::listen(&lab.lan1, 0)?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_000);
    for protocol in ["TCP", "UDP"] {
        let (_, at) = upnpc::open(&lab.lan1, LAN1, echo.port(), 20_000, protocol)?;
        assert_eq!(at, outside);
    }
    let to = (LAN1, echo.port());
    let expected = [forward("tcp", 20_000, to), forward("udp", 20_000, to)];
    assert_eq!(forwards(&lab.cgn)?, expected, "IWF-017, IWF-031");
    for row in rows(&iwfd)? {
        assert_eq!(endpoint(&row, "nat1")?, endpoint(&row, "internal")?);
        ensure!(row["kernel"] == true, "{row}");
    }
    peers::tcp_echo(&lab.inet, outside, "over TCP", SOON)?;
    peers::udp_echo(&lab.inet, outside, "over UDP", SOON)?;
    ensure!(seen(&lab.cgn, "routed")? > 0);
    assert_eq!(seen(&lab.cgn, "translated")?, 0, "DSL-002");
    let leases = iwfd.ctl().json(&["leases"])?;
    let text = leases.to_string();
    ensure!(text.contains(server), "{text}");
    iwfd.ctl().must(&["audit"])?;
    if server == CARRIER6 {
        follows_an_announcement(&lab)?;
    }

    upnpc::close(&lab.lan1, 20_000, "TCP")?;
    assert_eq!(forwards(&lab.cgn)?, [forward("udp", 20_000, to)]);
    peers::tcp_is_closed(&lab.inet, outside, SILENCE)?;
    // The carrier itself can reach the host's address, and is not let in any more either.
    let host = SocketAddrV4::new(LAN1, echo.port());
    peers::tcp_is_closed(&lab.cgn, host, SILENCE)?;
    upnpc::close(&lab.lan1, 20_000, "UDP")?;
    peers::udp_is_closed(&lab.cgn, host, SILENCE)?;
    nothing_is_left(&iwfd)?;
    assert_eq!(forwards(&lab.cgn)?, []);
    Ok(())
}

/// PCPC-070: what the server says to all nodes of the link by IPv6 is heard. It has restarted, and is asked for all that it
/// should hold.
fn follows_an_announcement(lab: &Lab) -> Result<()> {
    let restarted = Response {
        opcode: Opcode::Announce,
        result: result::SUCCESS,
        lifetime: 0,
        epoch: 0,
        map: None,
    };
    let tap = Tap::start(lab, &lab.cgn, "br0", "ip6 and udp dst port 5351")?;
    let link = lab.cgn.ifindex("br0")?;
    let group = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 5350, 0, link);
    let from: Ipv6Addr = CARRIER6.parse()?;
    let socket = lab.cgn.within(|| UdpSocket::bind((from, 0)))??;
    socket.send_to(&restarted.encode(), group)?;
    wait::until_ok("both mappings to be asked for again", SOON, || {
        // Ethernet, IPv6, UDP, and the version before the opcode.
        let opcode = |frame: &Vec<u8>| frame.get(14 + 40 + 8 + 1).copied();
        let frames = tap.frames()?;
        let maps = frames.iter().filter(|frame| opcode(frame) == Some(1));
        ensure!(maps.count() >= 2, "{} requests", frames.len());
        Ok(())
    })
}

#[test]
fn the_providers_nat_maps_the_host_itself() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    opens_and_closes(&CARRIER.to_string(), "native")
}

#[test]
fn the_same_asked_over_ipv6_and_without_xdp() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    opens_and_closes(CARRIER6, "tc")
}

#[test]
fn hosts_have_their_own_ports_and_the_firewall_stays() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let _carrier = Miniupnpd::start_for_the_lan(&lab)?;
    let _iwfd = Iwfd::start(&lab, &options(&CARRIER.to_string()))?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let (first, second) = (Echo::listen(&lab.lan1, 0)?, Echo::listen(&lab.lan2, 0)?);
    gateway.add("TCP", 20_001, LAN1, first.port(), 3600)?.ok()?;
    let other = gateway.seen_from(&lab.lan2);
    other.add("TCP", 20_002, LAN2, second.port(), 3600)?.ok()?;
    for port in [20_001, 20_002] {
        peers::tcp_echo(&lab.inet, SocketAddrV4::new(EXTERNAL, port), "hello", SOON)?;
    }
    // What nobody has mapped is closed, however it is addressed.
    let unmapped = Echo::listen(&lab.lan1, 0)?;
    let host = SocketAddrV4::new(LAN1, unmapped.port());
    peers::tcp_is_closed(&lab.cgn, host, SILENCE)?;
    peers::udp_is_closed(&lab.cgn, host, SILENCE)?;
    let ping = |from: &Namespace, to: &str, more: &[&str]| {
        let argv = [&["ping", "-n", "-c", "1", "-W", "2"], more, &[to]].concat();
        from.run(&argv)
    };
    let unasked = ping(&lab.cgn, &LAN1.to_string(), &[])?;
    ensure!(!unasked.success(), "an echo request reaches the LAN");
    // Nor is anybody behind another router of the LAN open, who may send like the others.
    let behind = Ipv4Addr::new(10, 5, 0, 9);
    lab.lan1.ip(&format!("address add {behind}/32 dev lo"))?;
    lab.cgn.ip(&format!("route add {behind}/32 via {WAN}"))?;
    lab.cpe.ip(&format!("route add {behind}/32 via {LAN1}"))?;
    let there = Echo::listen(&lab.inet, 0)?;
    let remote = SocketAddrV4::new(REMOTE, there.port());
    wait::until_ok("the daemon to know of the other router", SOON, || {
        let from = SocketAddrV4::new(behind, 0);
        let socket = lab.lan1.within(|| UdpSocket::bind(from))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(b"from behind", remote)?;
        let mut answer = [0; 64];
        let len = socket.recv(&mut answer)?;
        ensure!(answer[..len] == *b"from behind");
        Ok(())
    })?;
    let closed = SocketAddrV4::new(behind, unmapped.port());
    peers::tcp_is_closed(&lab.cgn, closed, SILENCE)?;
    peers::udp_is_closed(&lab.cgn, closed, SILENCE)?;
    // Out and back in, fragments too.
    let large = ping(&lab.lan1, &REMOTE.to_string(), &["-s", "4000"])?;
    ensure!(large.success(), "{}", large.stdout);
    peers::tcp_echo(&lab.lan1, remote, "out", SOON)?;
    peers::udp_echo(&lab.lan1, remote, &"x".repeat(1600), SOON)?;
    assert_eq!(seen(&lab.cgn, "translated")?, 0);
    Ok(())
}

#[test]
fn without_trust_nobody_is_named() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let _carrier = Miniupnpd::start_for_the_lan(&lab)?;
    let distrusting = Options {
        third_party: false,
        ..options(&CARRIER.to_string())
    };
    let iwfd = Iwfd::start(&lab, &distrusting)?;
    let tap = PcpTap::start(&lab)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let answer = gateway.add("TCP", 20_003, LAN1, 8000, 3600)?;
    // The word of version 1 for it.
    assert_eq!(answer.error(), Some(718), "AMB-04");
    assert_eq!(forwards(&lab.cgn)?, []);
    nothing_is_left(&iwfd)?;
    // Whom nothing lets in is told so after a while, by the router (RFC 5382 REQ-4).
    let began = Instant::now();
    let socket = lab
        .cgn
        .within(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
    let host = SocketAddrV4::new(LAN1, 5000);
    let refused = socket.connect_timeout(&host.into(), LONG * wait::patience());
    let error = refused.err().context("nobody listens there")?;
    ensure!(
        error.kind() == ErrorKind::ConnectionRefused && began.elapsed() > SILENCE,
        "{error} after {:?}",
        began.elapsed()
    );
    // It is counted when it has been sent.
    wait::until_ok("the refusal to be counted", SOON, || {
        let told = iwfd.ctl().counter("refusals_told")?;
        ensure!(told == 1, "{told} are counted");
        Ok(())
    })?;
    let named = tap.map_requests()?;
    ensure!(named.iter().all(|request| !request.options.contains(&1)));
    // The firewall is there for those who send.
    let there = Echo::listen(&lab.inet, 0)?;
    let remote = SocketAddrV4::new(REMOTE, there.port());
    peers::tcp_echo(&lab.lan1, remote, "out", SOON)?;
    assert_eq!(seen(&lab.cgn, "translated")?, 0);
    Ok(())
}

#[test]
fn a_change_of_mode_at_run_time_takes_mappings_along() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let _carrier = Miniupnpd::start_for_the_lan(&lab)?;
    let cascaded = Options {
        mode: "cascaded",
        ..options(&CARRIER.to_string())
    };
    let mut iwfd = Iwfd::start(&lab, &cascaded)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let echo = Echo::listen(&lab.lan1, 0)?;
    gateway.add("TCP", 20_004, LAN1, echo.port(), 3600)?.ok()?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_004);
    peers::tcp_echo(&lab.inet, outside, "by our NAT", SOON)?;
    let config = iwfd.files().config.clone();
    let mut modes = ["cascaded", "no-nat", "cascaded"].into_iter();
    let mut before = modes.next().context("a mode")?;
    for mode in modes {
        let text = std::fs::read_to_string(&config)?;
        let (old, new) = (format!("mode = \"{before}\""), format!("mode = \"{mode}\""));
        ensure!(text.contains(&old), "{text}");
        std::fs::write(&config, text.replace(&old, &new))?;
        iwfd.process().signal(Signal::SIGHUP)?;
        let to = match mode {
            "no-nat" => LAN1,
            _ => WAN,
        };
        let what = format!("the carrier to forward to {to}");
        wait::until(&what, SOON, || {
            let found = forwards(&lab.cgn).ok()?;
            (found.len() == 1 && found[0].to.0 == to).then_some(())
        })
        .with_context(|| format!("{:?}", forwards(&lab.cgn)))?;
        wait::until("the mapping to be leased", SOON, || {
            let status = iwfd.ctl().json(&["status"]).ok()?;
            (status["mode"] == mode).then_some(())
        })?;
        peers::tcp_echo(&lab.inet, outside, mode, SOON)?;
        iwfd.ctl().must(&["audit"])?;
        before = mode;
    }
    gateway.delete("TCP", 20_004)?.ok()?;
    assert_eq!(forwards(&lab.cgn)?, []);
    nothing_is_left(&iwfd)
}
