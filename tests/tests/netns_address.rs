//! External addresses that come, go and are several, between real stacks and under load.

#![expect(
    clippy::disallowed_types,
    reason = "sockets inside of namespaces are what is observed"
)]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_common::host::{HostKey, paired};
use iwf_tests::cascade;
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::gena::{Manner, Subscriber};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Datagrams, Echo, Transfer};
use iwf_tests::topology::{CARRIER, LAN1, LAN2, Lab, REMOTE, WAN, WAN_IF};
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(1);

/// What the WAN changes to.
const MOVED: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 77);

/// The lab with a daemon that asks nobody upstream.
struct Router {
    iwfd: Iwfd,
    lab: Lab,
}

impl Router {
    fn up(lab: Lab, more: &'static str) -> Result<Self> {
        let options = Options {
            mode: "local",
            more,
            ..Options::default()
        };
        Ok(Self {
            iwfd: Iwfd::start(&lab, &options)?,
            lab,
        })
    }

    /// Gives the WAN this address alone, and the default route.
    fn readdress(&self, addr: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
        let cpe = &self.lab.cpe;
        cpe.ip(&format!("addr flush dev {WAN_IF}"))?;
        cpe.address(WAN_IF, addr, 24)?;
        cpe.ip(&format!("route add default via {gateway} dev {WAN_IF}"))?;
        Ok(())
    }

    fn count(&self, counter: &str) -> Result<u64> {
        self.iwfd.ctl().counter(counter)
    }

    fn wait_for_status(
        &self,
        what: &str,
        holds: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<()> {
        wait::until_ok(what, LATER, || {
            let status = self.iwfd.ctl().json(&["status"])?;
            ensure!(holds(&status), "{status}");
            Ok(())
        })
    }

    /// The external endpoint of our NAT of each mapping.
    fn nat1(&self) -> Result<Vec<SocketAddrV4>> {
        let rows = cascade::rows(&self.iwfd)?;
        rows.iter()
            .map(|row| cascade::endpoint(row, "nat1"))
            .collect()
    }

    /// Writes the configuration anew with `change`, and has it read.
    fn reload(&mut self, change: impl FnOnce(String) -> String) -> Result<()> {
        let path = self.iwfd.files().config.clone();
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, change(text))?;
        self.iwfd.process().signal(Signal::SIGHUP)
    }
}

fn told_address(gateway: &Gateway) -> Result<String> {
    let answer = gateway.call("GetExternalIPAddress", &[])?.ok()?;
    let told = answer.element("NewExternalIPAddress");
    Ok(told.context("an address")?.to_owned())
}

/// The address that a remote host sees a LAN host's datagram come from.
fn seen_at_the_carrier(lab: &Lab, host: &Namespace) -> Result<Ipv4Addr> {
    let there = lab.cgn.within(|| UdpSocket::bind((CARRIER, 0)))??;
    there.set_read_timeout(Some(Duration::from_millis(200)))?;
    let to = there.local_addr()?;
    let here = host.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let from = wait::until_ok("a datagram at the carrier", SOON, || {
        here.send_to(b"who am I", to)?;
        let (_, from) = there.recv_from(&mut [0; 64])?;
        Ok(from)
    })?;
    match from {
        SocketAddr::V4(from) => Ok(*from.ip()),
        SocketAddr::V6(_) => anyhow::bail!("IPv6"),
    }
}

/// Source addresses of the frames, in their order.
fn sources(frames: &[Vec<u8>]) -> Vec<Ipv4Addr> {
    let source = |frame: &Vec<u8>| {
        let octets: [u8; 4] = frame.get(26..30)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    frames.iter().filter_map(source).collect()
}

/// What the LAN sends to the carrier's link: neither the carrier's own packets nor ARP.
const FROM_THE_CPE: &str = "ip and not src host 100.64.0.1 and (udp or tcp)";

/// The most reported failure of the peers (landscape 214, einat 34): after the first packet with the new address none
/// has the old one, mappings move, and applications are told.
#[test]
fn the_wan_address_changes_under_load() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let router = Router::up(Lab::new()?, "")?;
    let lab = &router.lab;
    let far = Echo::listen(&lab.cgn, 0)?;
    let near = Echo::listen(&lab.lan1, 8080)?;
    let carrier = SocketAddrV4::new(CARRIER, far.port());
    let gateway = Gateway::discover(&lab.lan1)?;
    gateway.add("TCP", 9090, LAN1, near.port(), 3600)?.ok()?;
    gateway.add("UDP", 9090, LAN1, near.port(), 3600)?.ok()?;
    peers::tcp_echo(&lab.cgn, SocketAddrV4::new(WAN, 9090), "before", SOON)?;
    assert_eq!(told_address(&gateway)?, WAN.to_string());

    let tap = Tap::start(lab, &lab.cgn, "br0", FROM_THE_CPE)?;
    let flows = [
        Datagrams::start(&lab.lan1, carrier)?,
        Datagrams::start(&lab.lan2, carrier)?,
    ];
    let mut transfers = [
        Transfer::start(&lab.lan1, carrier)?,
        Transfer::start(&lab.lan2, carrier)?,
    ];
    let mut inbound = Transfer::start(&lab.cgn, SocketAddrV4::new(WAN, 9090))?;
    for transfer in transfers.iter_mut().chain([&mut inbound]) {
        transfer.goes_on(100_000, LATER)?;
    }
    for flow in &flows {
        flow.goes_on(10, LATER)?;
    }

    router.readdress(MOVED, CARRIER)?;
    // Datagrams go on by themselves; a connection cannot, but another one can be made at once.
    for flow in &flows {
        flow.goes_on(50, LATER)?;
    }
    peers::tcp_echo(&lab.lan1, carrier, "a new connection", LATER)?;
    peers::tcp_echo(
        &lab.cgn,
        SocketAddrV4::new(MOVED, 9090),
        "it has moved",
        LATER,
    )?;
    peers::udp_echo(
        &lab.cgn,
        SocketAddrV4::new(MOVED, 9090),
        "it has moved",
        LATER,
    )?;
    peers::tcp_is_closed(&lab.cgn, SocketAddrV4::new(WAN, 9090), SILENCE)?;
    assert_eq!(told_address(&gateway)?, MOVED.to_string());
    assert_eq!(router.nat1()?, [SocketAddrV4::new(MOVED, 9090); 2]);
    router.iwfd.ctl().must(&["audit"])?;

    let seen = sources(&tap.finish()?);
    let first = seen.iter().position(|addr| *addr == MOVED);
    let first = first.context("nothing with the new address")?;
    let before = seen[..first].iter().filter(|addr| **addr == WAN).count();
    let after = seen[first..].iter().filter(|addr| **addr == WAN).count();
    assert!(before > 100, "{before} packets are no load");
    assert_eq!(after, 0, "of {} packets", seen.len() - first);

    // Another subscriber gets the old address: it is a host like any other by now.
    lab.cgn.ip(&format!("addr add {WAN}/32 dev br0"))?;
    let neighbour = SocketAddrV4::new(WAN, far.port());
    for host in [&lab.lan1, &lab.lan2] {
        // What came for the old address has made the router look for it before it was there, which fails once more.
        wait::until_ok("the neighbour to be met", LATER, || {
            peers::tcp_echo(host, neighbour, "to the neighbour", LATER)
        })?;
    }
    drop((flows, transfers, inbound));
    Ok(())
}

/// A lease that ends and is given out again, as DHCP clients do it: silence in between, and then everything goes on.
#[test]
fn the_wan_address_goes_and_comes_back() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let router = Router::up(Lab::new()?, "")?;
    let lab = &router.lab;
    let far = Echo::listen(&lab.cgn, 0)?;
    let near = Echo::listen(&lab.lan1, 8080)?;
    let carrier = SocketAddrV4::new(CARRIER, far.port());
    let gateway = Gateway::discover(&lab.lan1)?;
    gateway.add("TCP", 9090, LAN1, near.port(), 3600)?.ok()?;
    let flow = Datagrams::start(&lab.lan1, carrier)?;
    let mut transfer = Transfer::start(&lab.lan2, carrier)?;
    flow.goes_on(10, LATER)?;
    transfer.goes_on(100_000, LATER)?;

    lab.cpe.ip(&format!("addr flush dev {WAN_IF}"))?;
    router.wait_for_status("the address to be gone", |s| s["wan_address"].is_null())?;
    let tap = Tap::start(lab, &lab.cgn, "br0", FROM_THE_CPE)?;
    let before = router.count("drop_address_gone")?;
    wait::until_ok("packets of the flow to be dropped", LATER, || {
        let more = router.count("drop_address_gone")? - before;
        ensure!(more > 20, "{more}");
        Ok(())
    })?;
    let left = sources(&tap.frames()?);
    assert!(left.is_empty(), "nothing leaves meanwhile: {left:?}");

    lab.cpe.address(WAN_IF, WAN, 24)?;
    lab.cpe.ip(&format!("route add default via {CARRIER}"))?;
    flow.goes_on(50, LATER)?;
    transfer.goes_on(100_000, LATER)?;
    transfer.finish()?;
    peers::tcp_echo(&lab.cgn, SocketAddrV4::new(WAN, 9090), "as before", LATER)?;
    drop(flow);
    // One flow, one endpoint, before and after.
    let ports: std::collections::BTreeSet<[u8; 2]> = tap
        .finish()?
        .iter()
        .filter(|frame| frame.get(23) == Some(&17))
        .filter_map(|frame| frame.get(34..36)?.try_into().ok())
        .collect();
    assert_eq!(ports.len(), 1, "{ports:?}");
    router.iwfd.ctl().must(&["audit"])?;
    Ok(())
}

/// An address that LAN2 is paired with while LAN1 has the WAN's own.
fn second_address() -> Ipv4Addr {
    let of = |host: Ipv4Addr, other: Ipv4Addr| {
        let mut pool = [[0; 4]; 7];
        pool[0] = other.octets();
        Ipv4Addr::from(paired(&HostKey::v4(host.octets()), WAN.octets(), &pool))
    };
    (100..200)
        .map(|last| Ipv4Addr::new(100, 64, 0, last))
        .find(|other| of(LAN1, *other) == WAN && of(LAN2, *other) == *other)
        .expect("one of a hundred")
}

#[test]
fn two_hosts_have_two_addresses_and_meet_at_them() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let second = second_address();
    let lab = Lab::new()?;
    lab.cpe.ip(&format!("addr add {second}/32 dev {WAN_IF}"))?;
    let more = format!("[nat]\nexternal_addresses = [\"{second}\"]\n");
    let mut router = Router::up(lab, more.leak())?;
    let lab = &router.lab;
    for _ in 0..4 {
        assert_eq!(seen_at_the_carrier(lab, &lab.lan1)?, WAN);
        assert_eq!(seen_at_the_carrier(lab, &lab.lan2)?, second);
    }
    let far = Echo::listen(&lab.cgn, 0)?;
    let carrier = SocketAddrV4::new(CARRIER, far.port());
    for host in [&lab.lan1, &lab.lan2] {
        peers::tcp_echo(host, carrier, &"both ways ".repeat(1000), SOON)?;
        host.must(&[
            "ping",
            "-c",
            "2",
            "-i",
            "0.1",
            "-W",
            "2",
            &CARRIER.to_string(),
        ])?;
    }

    // Explicit mappings are at their host's address, and that is what it is told.
    let (one, two) = (
        Echo::listen(&lab.lan1, 8080)?,
        Echo::listen(&lab.lan2, 8080)?,
    );
    let first = Gateway::discover(&lab.lan1)?;
    let other = first.seen_from(&lab.lan2);
    assert_eq!(told_address(&first)?, WAN.to_string());
    assert_eq!(told_address(&other)?, second.to_string());
    // In events both are told the same, whichever it is (GENA-004).
    let subscribers = [
        Subscriber::start(&lab.lan1, LAN1, Manner::Good)?,
        Subscriber::start(&lab.lan2, LAN2, Manner::Good)?,
    ];
    let told: Result<Vec<_>> = subscribers
        .iter()
        .map(|subscriber| {
            subscriber.subscribe(&first)?;
            let message = subscriber.wait_for("the first message", SOON, |m| m.seq == 0)?;
            let address = message.value("ExternalIPAddress").map(str::to_owned);
            address.context("an address")
        })
        .collect();
    let told = told?;
    assert_eq!(told[0], told[1]);
    for protocol in ["TCP", "UDP"] {
        first.add(protocol, 9090, LAN1, one.port(), 3600)?.ok()?;
        other.add(protocol, 9091, LAN2, two.port(), 3600)?.ok()?;
    }
    let (at_first, at_second) = (
        SocketAddrV4::new(WAN, 9090),
        SocketAddrV4::new(second, 9091),
    );
    for endpoint in [at_first, at_second] {
        peers::tcp_echo(&lab.cgn, endpoint, "from outside", SOON)?;
        peers::udp_echo(&lab.cgn, endpoint, "from outside", SOON)?;
    }
    for (addr, port) in [(second, 9090), (WAN, 9091)] {
        peers::tcp_is_closed(&lab.cgn, SocketAddrV4::new(addr, port), SILENCE)?;
    }
    // RFC 4787 REQ-9 between the two.
    for (host, endpoint) in [(&lab.lan1, at_second), (&lab.lan2, at_first)] {
        peers::tcp_echo(host, endpoint, "turned back", LATER)?;
        peers::udp_echo(host, endpoint, "turned back", LATER)?;
    }
    router.wait_for_status("each address to have a host", |status| {
        let of = |at: usize| &status["external_addresses"][at];
        of(0)["address"] == WAN.to_string()
            && of(1)["address"] == second.to_string()
            && of(0)["hosts"] == 1
            && of(1)["hosts"] == 1
    })?;
    let shown = router.iwfd.ctl().must(&["status"])?;
    assert!(shown.contains(&second.to_string()), "{shown}");

    // A restart keeps all of it.
    router.iwfd.kill()?;
    router.iwfd.restart()?;
    let lab = &router.lab;
    peers::tcp_echo(&lab.cgn, at_second, "after a restart", SOON)?;
    assert_eq!(seen_at_the_carrier(lab, &lab.lan2)?, second);

    // An address is taken out, and put in again, without one.
    router.reload(|text| text.replace(&format!("[\"{second}\"]"), "[]"))?;
    router.wait_for_status("no pool", |s| {
        s["external_addresses"] == serde_json::json!([])
    })?;
    let lab = &router.lab;
    assert_eq!(seen_at_the_carrier(lab, &lab.lan2)?, WAN);
    let moved = SocketAddrV4::new(WAN, 9091);
    peers::tcp_echo(&lab.cgn, moved, "it has moved", LATER)?;
    peers::tcp_is_closed(&lab.cgn, at_second, SILENCE)?;
    assert_eq!(told_address(&other)?, WAN.to_string());
    router.iwfd.ctl().must(&["audit"])?;

    router.reload(|text| {
        text.replace(
            "external_addresses = []",
            &format!("external_addresses = [\"{second}\"]"),
        )
    })?;
    router.wait_for_status("the pool again", |s| {
        s["external_addresses"][1]["hosts"].is_u64()
    })?;
    // Who has mappings stays where they are.
    let lab = &router.lab;
    peers::tcp_echo(&lab.cgn, moved, "it stays", SOON)?;
    assert_eq!(seen_at_the_carrier(lab, &lab.lan2)?, WAN);
    Ok(())
}

#[test]
fn spoofed_sources_of_the_lan_do_not_leave() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let router = Router::up(Lab::new()?, "")?;
    let lab = &router.lab;
    let stranger = Ipv4Addr::new(8, 8, 8, 8);
    lab.lan1.ip(&format!("addr add {stranger}/32 dev eth0"))?;
    let tap = Tap::start(lab, &lab.cgn, "br0", "ip and src host 8.8.8.8")?;
    let socket = lab.lan1.within(|| UdpSocket::bind((stranger, 0)))??;
    let counted = |counter: &str| -> Result<()> {
        let before = router.count(counter)?;
        wait::until_ok(counter, LATER, || {
            socket.send_to(b"not me", (CARRIER, 9))?;
            ensure!(router.count(counter)? > before, "not counted");
            Ok(())
        })
    };
    counted("drop_spoofed_lan")?;
    // Routed to a router in the LAN it is not spoofed; what leaves is still for the stack and WAN egress to say.
    lab.cpe.ip(&format!("route add {stranger}/32 via {LAN1}"))?;
    counted("pass_not_lan_source")?;
    lab.cpe.ip(&format!("route del {stranger}/32"))?;
    counted("drop_spoofed_lan")?;
    // Nobody else notices.
    let echo = Echo::listen(&lab.cgn, 0)?;
    let carrier = SocketAddrV4::new(CARRIER, echo.port());
    peers::udp_echo(&lab.lan1, carrier, "as ever", SOON)?;
    drop(tap);
    Ok(())
}

/// RFC 4787 REQ-7: the provider gives out the LAN's own prefix. The LAN works, the Internet is reached, and only the
/// provider's hosts of that prefix are not.
#[test]
fn the_provider_gives_us_the_lans_prefix() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut router = Router::up(Lab::new()?, "")?;
    let (ours, theirs) = (
        Ipv4Addr::new(192, 168, 1, 200),
        Ipv4Addr::new(192, 168, 1, 254),
    );
    router.lab.cgn.address("br0", theirs, 24)?;
    router.readdress(ours, theirs)?;
    router.wait_for_status("the conflict to be told", |status| {
        status["address_conflict"] == "192.168.1.0/24" && status["wan_address"] == ours.to_string()
    })?;
    router.iwfd.process().wait_for_log("overlaps", SOON)?;
    let told = router.iwfd.process().log().matches("overlaps").count();
    assert_eq!(told, 1, "once");

    let lab = &router.lab;
    let far = Echo::listen(&lab.inet, 0)?;
    let inet = SocketAddrV4::new(REMOTE, far.port());
    let near = Echo::listen(&lab.lan2, 8080)?;
    for host in [&lab.lan1, &lab.lan2] {
        peers::udp_echo(host, inet, "out", LATER)?;
        peers::tcp_echo(host, inet, "out", LATER)?;
    }
    // The LAN among itself, and its router.
    peers::tcp_echo(
        &lab.lan1,
        SocketAddrV4::new(LAN2, near.port()),
        "beside",
        SOON,
    )?;
    let gateway = Gateway::discover(&lab.lan2)?;
    gateway.add("TCP", 9090, LAN2, near.port(), 3600)?.ok()?;
    assert_eq!(told_address(&gateway)?, ours.to_string());
    // From outside, by way of the carrier, which would let nobody in by itself.
    lab.cgn.must(&[
        "nft", "add", "rule", "inet", "filter", "forward", "iifname", "ext0", "accept",
    ])?;
    let carrier = iwf_tests::topology::EXTERNAL;
    lab.inet.ip(&format!("route add {ours}/32 via {carrier}"))?;
    peers::tcp_echo(&lab.inet, SocketAddrV4::new(ours, 9090), "in", LATER)?;
    // And by the external address from inside.
    peers::tcp_echo(
        &lab.lan1,
        SocketAddrV4::new(ours, 9090),
        "turned back",
        LATER,
    )?;

    router.readdress(WAN, CARRIER)?;
    router.wait_for_status("the conflict to be over", |s| {
        s["address_conflict"].is_null()
    })?;
    peers::udp_echo(&router.lab.lan1, inet, "as before", LATER)?;
    Ok(())
}
