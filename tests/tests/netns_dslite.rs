//! DS-Lite between real stacks: LAN host, B4 with the daemon, AFTR with a NAT, Internet host (RFC 6333).
#![expect(
    clippy::disallowed_types,
    reason = "the suite talks over real sockets of the hosts"
)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};
use iwf_common::names;
use iwf_tests::aftr::{self, Aftr};
use iwf_tests::carrier::{Forward, Miniupnpd, forwards};
use iwf_tests::cascade::{endpoint, nothing_is_left, rows};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::packet::{ETHERNET, Frame};
use iwf_tests::peers::{Datagrams, Echo, Transfer, tcp_echo, udp_echo};
use iwf_tests::topology::{CARRIER_RULES, EXTERNAL, GATEWAY, LAN1, Lab, REMOTE, WAN_IF};
use iwf_tests::wire_tap::Tap;
use iwf_tests::{upnpc, wait};
use iwf_userspace::daemon::dataplane::object::OBJECT;

const SOON: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_millis(500);

const B4: Ipv6Addr = Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 2);
const MOVED: Ipv6Addr = Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 7);
const AFTR: Ipv6Addr = Ipv6Addr::new(0x2a0c, 0xa, 0, 0, 0, 0, 0, 1);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2a0c, 0xa, 0, 0, 0, 0, 0, 9);
/// The CPE inside (RFC 6333 section 5.7).
const B4_INSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
const DEVICE: &str = "iwf-b4";

const BY_ADDRESS: &str = "[ds_lite]\naftr = \"2a0c:a::1\"\n";

const NAT: &str = "table ip nat {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    oifname ext0 masquerade
  }
}
";

/// The lab without IPv4 between CPE and provider. The AFTR is `at` a host, the provider or the Internet host.
fn lab() -> Result<Lab> {
    lab_with(NAT)
}

/// The same with these rules at the provider.
fn lab_with(nat: &str) -> Result<Lab> {
    let lab = Lab::new()?;
    for host in lab.hosts() {
        host.sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
        host.sysctl("net/ipv6/conf/default/disable_ipv6", "0")?;
    }
    for router in [&lab.cpe, &lab.cgn] {
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    lab.cgn.must(&["nft", "flush", "ruleset"])?;
    let rules = lab.dir().join("aftr.nft");
    std::fs::write(&rules, nat)?;
    lab.cgn.must(&["nft", "-f", &rules.display().to_string()])?;
    for (host, args) in [
        (&lab.cpe, format!("-4 address flush dev {WAN_IF}")),
        (&lab.cpe, format!("address add {B4}/64 dev {WAN_IF} nodad")),
        (&lab.cpe, "-6 route add default via 2a0c:9::1".to_owned()),
        (&lab.cgn, "-4 address flush dev br0".to_owned()),
        (
            &lab.cgn,
            "address add 2a0c:9::1/64 dev br0 nodad".to_owned(),
        ),
        (&lab.cgn, "address add 2a0e::1/64 dev ext0 nodad".to_owned()),
        (
            &lab.inet,
            "address add 2a0e::2/64 dev eth0 nodad".to_owned(),
        ),
        (&lab.inet, "-6 route add default via 2a0e::1".to_owned()),
    ] {
        host.ip(&args)?;
    }
    Ok(lab)
}

/// An AFTR at one of the hosts.
fn aftr(host: &Namespace) -> Result<Aftr> {
    for address in [AFTR, STRANGER] {
        host.ip(&format!("address add {address}/128 dev lo nodad"))?;
    }
    // What the Internet host answers itself comes from the address that was asked.
    let own = if host.host() == "inet" {
        format!(" src {REMOTE}")
    } else {
        String::new()
    };
    Aftr::start(host, AFTR, &[&format!("192.168.1.0/24{own}")])
}

/// The AFTR at the provider. Its interface receives what XDP redirects by a program of its own, and joins no segments
/// (GRO): the AFTR takes packets as they came over the wire.
fn provider(lab: &Lab) -> Result<(Aftr, Ebpf)> {
    let whole = lab.cgn.within(|| {
        let mut ebpf = Ebpf::load(OBJECT)?;
        let program = ebpf.program_mut(names::XDP_PASS).context("no program")?;
        let program: &mut Xdp = program.try_into()?;
        program.load()?;
        program.attach("br0", XdpMode::Driver)?;
        anyhow::Ok(ebpf)
    })??;
    lab.cgn.must(&["ethtool", "-K", "br0", "gro", "off"])?;
    Ok((aftr(&lab.cgn)?, whole))
}

fn options(attach: &'static str) -> Options {
    Options {
        mode: "local",
        pcp_servers: Vec::new(),
        attach,
        more: BY_ADDRESS,
        ..Options::default()
    }
}

fn start(lab: &Lab, attach: &'static str) -> Result<Iwfd> {
    start_with(lab, &options(attach))
}

fn start_with(lab: &Lab, options: &Options) -> Result<Iwfd> {
    let iwfd = Iwfd::start(lab, options)?;
    is_up(&iwfd, B4)?;
    Ok(iwfd)
}

/// Waits until the softwire is there with this end of ours.
fn is_up(iwfd: &Iwfd, local: Ipv6Addr) -> Result<()> {
    wait::until_ok("the softwire", SOON, || {
        let status = iwfd.ctl().json(&["status"])?;
        let softwire = &status["softwire"];
        ensure!(softwire["local"] == local.to_string(), "{softwire}");
        ensure!(softwire["aftr"] == AFTR.to_string(), "{softwire}");
        Ok(())
    })
}

fn ping(host: &Namespace, to: Ipv4Addr, more: &[&str]) -> Result<()> {
    let to = to.to_string();
    let base = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2"];
    let argv = [&base[..], more, &[&to]].concat();
    wait::until_ok("the echo", SOON, || host.must(&argv).map(drop))
}

fn bound(host: &Namespace, port: u16) -> Result<UdpSocket> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    let socket = host.within(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(socket)
}

/// Sends a datagram of that size to an echo server until it comes back whole.
fn large_echo(host: &Namespace, to: SocketAddrV4, len: usize) -> Result<()> {
    let socket = bound(host, 0)?;
    let sent: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let mut back = vec![0; 65_536];
    wait::until_ok("the echo of a large datagram", SOON, || {
        socket.send_to(&sent, to)?;
        let len = socket.recv(&mut back)?;
        ensure!(back[..len] == sent, "the echo differs");
        Ok(())
    })
}

fn server(lab: &Lab) -> Result<(Echo, SocketAddrV4)> {
    let echo = Echo::listen(&lab.inet, 0)?;
    let to = SocketAddrV4::new(REMOTE, echo.port());
    Ok((echo, to))
}

/// DSL-002: nothing is translated before the AFTR.
#[test]
fn the_lan_reaches_the_internet_with_its_own_addresses() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let (aftr, _whole) = provider(&lab)?;
    let iwfd = start(&lab, "native")?;
    let (_echo, to) = server(&lab)?;
    udp_echo(&lab.lan1, to, "hello", SOON)?;
    tcp_echo(&lab.lan1, to, "hello again", SOON)?;
    ping(&lab.lan1, REMOTE, &[])?;
    ensure!(aftr.sources() == [LAN1].into(), "{:?}", aftr.sources());
    ensure!(aftr.subscriber() == Some(B4), "{:?}", aftr.subscriber());

    // What is known is carried by the programs, all of it.
    let relayed = iwfd.ctl().counter("softwire_relayed_out")?;
    let (out, back) = (
        iwfd.ctl().counter("softwire_out")?,
        iwfd.ctl().counter("softwire_in")?,
    );
    let mut transfer = Transfer::start(&lab.lan1, to)?;
    transfer.goes_on(2_000_000, SOON)?;
    transfer.finish()?;
    ensure!(iwfd.ctl().counter("softwire_out")? > out + 1000);
    ensure!(iwfd.ctl().counter("softwire_in")? > back + 1000);
    let now = iwfd.ctl().counter("softwire_relayed_out")?;
    ensure!(now == relayed, "{relayed} relayed before, {now} after");
    ensure!(iwfd.ctl().counter("mss_clamped")? >= 2);
    ensure!(iwfd.ctl().counter("sessions_created")? == 0);
    Ok(())
}

/// DISC-010, DSL-007: who says where the softwire ends has said who is asked for mappings, by IPv6 beside it.
#[test]
fn mappings_are_made_at_the_aftr() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab_with(&CARRIER_RULES.replace("iifname br0", "iifname aftr0"))?;
    let (_aftr, _whole) = provider(&lab)?;
    let _server = Miniupnpd::start_for_the_softwire(&lab)?;
    let iwfd = start_with(
        &lab,
        &Options {
            mode: "auto",
            third_party: true,
            upstream: "discovery = [\"router\"]",
            ..options("native")
        },
    )?;
    let aftr = SocketAddrV6::new(AFTR, 5351, 0, 0);
    wait::until_ok("the AFTR to answer", SOON, || {
        let status = iwfd.ctl().json(&["status"])?;
        ensure!(status["mode"] == "ds-lite", "{status}");
        ensure!(status["translates"] == false, "{status}");
        let server = &status["servers"][0];
        ensure!(server["origin"] == "aftr", "{server}");
        ensure!(server["address"] == aftr.to_string(), "{server}");
        ensure!(server["state"] == "answering", "{server}");
        Ok(())
    })?;
    let tap = Tap::start(&lab, &lab.cgn, "br0", "ip6 and udp dst port 5351")?;
    let echo = Echo::listen(&lab.lan1, 0)?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_000);
    for protocol in ["TCP", "UDP"] {
        let (_, at) = upnpc::open(&lab.lan1, LAN1, echo.port(), 20_000, protocol)?;
        ensure!(at == outside, "DSL-008: {at}");
    }
    let to = (LAN1, echo.port());
    let forward = |protocol: &str| Forward {
        protocol: protocol.to_owned(),
        external_port: 20_000,
        to,
    };
    let forwarded = forwards(&lab.cgn)?;
    ensure!(
        forwarded == [forward("tcp"), forward("udp")],
        "{forwarded:?}"
    );
    for row in rows(&iwfd)? {
        ensure!(
            endpoint(&row, "nat1")? == endpoint(&row, "internal")?,
            "{row}"
        );
        ensure!(row["kernel"] == true, "{row}");
    }
    // This AFTR knows its subscriber by what he has sent.
    ping(&lab.lan1, REMOTE, &[])?;
    tcp_echo(&lab.inet, outside, "over TCP", SOON)?;
    udp_echo(&lab.inet, outside, "over UDP", SOON)?;
    iwfd.ctl().must(&["audit"])?;
    // Each of them as plain IPv6, from our end of the softwire to the other.
    let frames = tap.finish()?;
    ensure!(frames.len() >= 2, "{} requests", frames.len());
    for frame in &frames {
        let header = frame.get(ETHERNET..ETHERNET + 40).context("a header")?;
        ensure!(header[6] == 17, "UDP, with nothing around it");
        ensure!(header[8..24] == B4.octets() && header[24..] == AFTR.octets());
    }
    for protocol in ["TCP", "UDP"] {
        upnpc::close(&lab.lan1, 20_000, protocol)?;
    }
    ensure!(forwards(&lab.cgn)?.is_empty());
    nothing_is_left(&iwfd)
}

/// DSL-003: 1500 octets inside do not fit 1500 outside.
#[test]
fn large_packets_are_fragmented_outside_and_arrive_whole() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let (_aftr, _whole) = provider(&lab)?;
    let iwfd = start(&lab, "native")?;
    let (_echo, to) = server(&lab)?;
    for len in [1432, 1433, 1472, 8000] {
        large_echo(&lab.lan1, to, len)?;
    }
    ping(&lab.lan1, REMOTE, &["-s", "4000"])?;
    // Nobody has fragmented what may not be.
    ping(&lab.lan1, REMOTE, &["-M", "do", "-s", "1472"])?;
    ensure!(iwfd.ctl().counter("softwire_relayed_out")? > 4);
    ensure!(iwfd.ctl().counter("softwire_relayed_in")? > 4);
    Ok(())
}

/// DSL-005.
#[test]
fn the_cpe_speaks_for_itself_by_the_address_that_is_its_own_inside() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let (aftr, _whole) = provider(&lab)?;
    let _iwfd = start(&lab, "native")?;
    ping(&lab.cpe, REMOTE, &[])?;
    ensure!(aftr.sources() == [B4_INSIDE].into(), "{:?}", aftr.sources());
    let (_echo, to) = server(&lab)?;
    tcp_echo(&lab.cpe, to, "from the router", SOON)?;
    let mut transfer = Transfer::start(&lab.cpe, to)?;
    transfer.goes_on(500_000, SOON)?;
    transfer.finish()?;
    // The AFTR sees who a packet died at: the far end of the softwire is the next hop.
    ping(&lab.lan1, Ipv4Addr::new(192, 0, 0, 1), &[])?;
    Ok(())
}

#[test]
fn strangers_and_what_is_not_for_the_lan_do_not_come_in() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let (_aftr, _whole) = provider(&lab)?;
    let iwfd = start(&lab, "native")?;
    let host = bound(&lab.lan1, 4000)?;
    let gateway = bound(&lab.cpe, 4000)?;
    // What is let in is told from what is not: it may be sent more than once until it comes.
    let (good, bad) = (7, 8);
    let packet = |to: Ipv4Addr, octet: u8, len: usize| {
        let mut frame = Frame::udp((REMOTE.octets(), 9), (to.octets(), 4000));
        frame.payload = vec![octet; len];
        frame.bytes().split_off(ETHERNET)
    };
    let mut buffer = [0; 4096];
    let mut heard = Vec::new();
    for (len, counted) in [(16, "drop_softwire_inner"), (1450, "drop_softwire_relay")] {
        // The AFTR, which is believed.
        wait::until_ok("what the AFTR sends", SOON, || {
            aftr::send(&lab.cgn, AFTR, B4, &packet(LAN1, good, len))?;
            let got = host.recv(&mut buffer)?;
            heard.extend_from_slice(&buffer[..got]);
            ensure!(got == len, "{got} octets");
            Ok(())
        })?;
        let before = iwfd.ctl().counter(counted)?;
        for to in [GATEWAY, Ipv4Addr::new(10, 9, 8, 7)] {
            aftr::send(&lab.cgn, AFTR, B4, &packet(to, bad, len))?;
        }
        wait::until_ok("both to be dropped", SOON, || {
            let all = [counted, "drop_softwire_relay"];
            let now = iwfd.ctl().counter(counted)?;
            ensure!(now > before, "{all:?}: {before}, {now}");
            Ok(())
        })?;
        let before = iwfd.ctl().counter("drop_softwire_stranger")?;
        aftr::send(&lab.cgn, STRANGER, B4, &packet(LAN1, bad, len))?;
        wait::until_ok("the stranger to be dropped", SOON, || {
            let now = iwfd.ctl().counter("drop_softwire_stranger")?;
            ensure!(now > before, "{before}, {now}");
            Ok(())
        })?;
    }
    while let Ok(got) = host.recv(&mut buffer) {
        heard.extend_from_slice(&buffer[..got]);
    }
    ensure!(heard.iter().all(|octet| *octet == good), "more was let in");
    ensure!(gateway.recv(&mut buffer).is_err(), "the router had nothing");
    Ok(())
}

/// The fast path needs no daemon; a new one takes over the device and goes on with the rest.
#[test]
fn traffic_goes_on_while_the_daemon_is_killed_and_comes_back() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let (_aftr, _whole) = provider(&lab)?;
    let mut iwfd = start(&lab, "native")?;
    let (_echo, to) = server(&lab)?;
    udp_echo(&lab.lan1, to, "hello", SOON)?;
    let index = lab.cpe.ifindex(DEVICE)?;
    let flow = Datagrams::start(&lab.lan1, to)?;
    let mut transfer = Transfer::start(&lab.lan1, to)?;
    for _ in 0..3 {
        iwfd.kill()?;
        flow.goes_on(50, SOON)?;
        transfer.goes_on(1_000_000, SOON)?;
        iwfd.restart()?;
        is_up(&iwfd, B4)?;
        flow.goes_on(50, SOON)?;
    }
    transfer.goes_on(1_000_000, SOON)?;
    transfer.finish()?;
    ensure!(lab.cpe.ifindex(DEVICE)? == index, "the device was kept");
    large_echo(&lab.lan1, to, 8000)?;
    Ok(())
}

/// DSL-006, and an address that moves.
#[test]
fn the_softwire_follows_the_wan_and_leaves_nothing_behind() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let (aftr, _whole) = provider(&lab)?;
    let mut iwfd = start(&lab, "native")?;
    let (_echo, to) = server(&lab)?;
    udp_echo(&lab.lan1, to, "hello", SOON)?;

    lab.cpe
        .ip(&format!("address add {MOVED}/64 dev {WAN_IF} nodad"))?;
    lab.cpe.ip(&format!("address del {B4}/64 dev {WAN_IF}"))?;
    is_up(&iwfd, MOVED)?;
    udp_echo(&lab.lan1, to, "from elsewhere", SOON)?;
    large_echo(&lab.lan1, to, 8000)?;
    ensure!(aftr.subscriber() == Some(MOVED), "{:?}", aftr.subscriber());

    let is_there = || lab.cpe.ifindex(DEVICE).is_ok();
    lab.cpe
        .ip(&format!("address add 100.64.0.2/24 dev {WAN_IF}"))?;
    wait::until("the softwire to go", SOON, || (!is_there()).then_some(()))?;
    let status = iwfd.ctl().json(&["status"])?;
    ensure!(status["softwire"].is_null(), "{status}");
    lab.cpe
        .ip(&format!("address del 100.64.0.2/24 dev {WAN_IF}"))?;
    is_up(&iwfd, MOVED)?;
    udp_echo(&lab.lan1, to, "back again", SOON)?;

    // Somebody removes it under the daemon.
    let index = lab.cpe.ifindex(DEVICE)?;
    lab.cpe.ip(&format!("link del {DEVICE}"))?;
    wait::until("another device", SOON, || {
        lab.cpe
            .ifindex(DEVICE)
            .is_ok_and(|new| new != index)
            .then_some(())
    })?;
    udp_echo(&lab.lan1, to, "once more", SOON)?;
    large_echo(&lab.lan1, to, 8000)?;

    iwfd.stop()?;
    ensure!(is_there(), "stopping changes nothing");
    udp_echo(&lab.lan1, to, "without a daemon", SOON)?;
    iwfd.ctl().detach()?;
    ensure!(!is_there(), "detaching removes the device");
    Ok(())
}

/// What the path outside takes is learned from ICMPv6 and costs no packet but the first.
#[test]
fn a_narrow_path_to_the_aftr_is_learned() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    // Beyond the provider, over a link that takes less.
    let _aftr = aftr(&lab.inet)?;
    lab.cgn.ip("-6 route add 2a0c:a::/64 via 2a0e::2")?;
    for (host, interface) in [(&lab.cgn, "ext0"), (&lab.inet, "eth0")] {
        host.ip(&format!("link set {interface} mtu 1400"))?;
    }
    let iwfd = start(&lab, "native")?;
    let (_echo, to) = server(&lab)?;
    udp_echo(&lab.lan1, to, "hello", SOON)?;
    large_echo(&lab.lan1, to, 1400)?;
    large_echo(&lab.lan1, to, 8000)?;
    ping(&lab.lan1, REMOTE, &["-M", "do", "-s", "1400"])?;
    ensure!(iwfd.ctl().counter("softwire_relayed_out")? > 0);
    Ok(())
}

/// Where XDP does not run the daemon carries everything.
#[test]
fn without_xdp_it_works_as_well() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let (aftr, _whole) = provider(&lab)?;
    let iwfd = start(&lab, "tc")?;
    let (_echo, to) = server(&lab)?;
    udp_echo(&lab.lan1, to, "hello", SOON)?;
    large_echo(&lab.lan1, to, 8000)?;
    let mut transfer = Transfer::start(&lab.lan1, to)?;
    transfer.goes_on(500_000, SOON)?;
    transfer.finish()?;
    ensure!(aftr.sources() == [LAN1].into(), "{:?}", aftr.sources());
    ensure!(iwfd.ctl().counter("softwire_out")? == 0);
    ensure!(iwfd.ctl().counter("softwire_relayed_out")? > 100);
    Ok(())
}
