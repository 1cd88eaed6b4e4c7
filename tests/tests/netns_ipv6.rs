//! The IPv6 filter between real stacks: LAN host, router with the daemon, provider, Internet host.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "plays the hosts on both sides, in real time"
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::packet::ETHERNET;
use iwf_tests::packet6::Frame6;
use iwf_tests::topology::{GATEWAY_6, LAN1_6, Lab, REMOTE_6, WAN_IF};
use iwf_tests::wait;
use iwf_tests::wire::Wire;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(1);

const HOST: Ipv6Addr = LAN1_6;
const ROUTER: Ipv6Addr = GATEWAY_6;
const REMOTE: Ipv6Addr = REMOTE_6;
const OPEN_PORT: u16 = 8080;

/// The lab with IPv6 and the provider beyond a link without Ethernet headers.
fn bare_lab() -> Result<(Lab, Wire)> {
    let lab = Lab::with_ipv6()?;
    lab.cpe.ip(&format!("link del {WAN_IF}"))?;
    let wire = Wire::between((&lab.cpe, WAN_IF), (&lab.inet, "tun0"))?;
    for (host, args) in [
        (&lab.cpe, format!("address add 100.64.0.2/24 dev {WAN_IF}")),
        (&lab.cpe, format!("route replace default dev {WAN_IF}")),
        (
            &lab.cpe,
            format!("address add 2a0c:9::2/64 dev {WAN_IF} nodad"),
        ),
        (&lab.cpe, format!("-6 route replace default dev {WAN_IF}")),
        (
            &lab.inet,
            "address add 2a0c:9::1/64 dev tun0 nodad".to_owned(),
        ),
        (&lab.inet, "-6 route add 2a0b:1:2::/48 dev tun0".to_owned()),
    ] {
        host.ip(&args)?;
    }
    Ok((lab, wire))
}

fn start(lab: &Lab, more: &'static str) -> Result<Iwfd> {
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more,
        ..Options::default()
    };
    let iwfd = Iwfd::start(lab, &options)?;
    wait::until_ok("the first packet to pass", SOON, || ping(&lab.lan1, REMOTE))?;
    Ok(iwfd)
}

fn ping(host: &Namespace, to: Ipv6Addr) -> Result<()> {
    let to = to.to_string();
    host.must(&["ping", "-6", "-n", "-c", "3", "-i", "0.2", "-W", "2", &to])
        .map(drop)
}

fn listen(host: &Namespace, addr: Ipv6Addr, port: u16) -> Result<TcpListener> {
    Ok(host.within(|| TcpListener::bind((addr, port)))??)
}

fn udp(host: &Namespace, addr: Ipv6Addr) -> Result<UdpSocket> {
    let socket = host.within(|| UdpSocket::bind((addr, 0)))??;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

fn connect(host: &Namespace, to: SocketAddr, within: Duration) -> Result<TcpStream> {
    let stream = host.within(|| TcpStream::connect_timeout(&to, within))??;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// A socket that sends IPv6 packets as they are.
fn raw(host: &Namespace) -> Result<Socket> {
    // IPPROTO_RAW.
    let open = || Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(255)));
    Ok(host.within(open)??)
}

fn send_raw(socket: &Socket, frame: &Frame6) -> Result<()> {
    let to = SocketAddr::from((Ipv6Addr::from(frame.dst), 0));
    socket.send_to(&frame.bytes()[ETHERNET..], &to.into())?;
    Ok(())
}

/// Sends the fragments of a datagram, the last one first, until it arrives.
fn send_reversed(from: (&Namespace, &UdpSocket), to: &UdpSocket) -> Result<()> {
    let end = |socket: &UdpSocket| -> Result<([u8; 16], u16)> {
        match socket.local_addr()? {
            SocketAddr::V6(addr) => Ok((addr.ip().octets(), addr.port())),
            SocketAddr::V4(addr) => anyhow::bail!("{addr} is no IPv6 address"),
        }
    };
    let socket = raw(from.0)?;
    let mut frame = Frame6::udp(end(from.1)?, end(to)?);
    frame.payload = (0..5000u32).map(|at| (at % 251) as u8).collect();
    to.set_read_timeout(Some(SILENCE))?;
    let mut id = 0x1000;
    let mut buffer = vec![0; 65536];
    wait::until_ok("a datagram in reversed fragments", SOON, || {
        id += 1;
        for piece in frame.fragments(id, 1208).iter().rev() {
            send_raw(&socket, piece)?;
        }
        let (len, sender) = to.recv_from(&mut buffer)?;
        ensure!(buffer[..len] == frame.payload[..], "{len} octets differ");
        ensure!(sender == from.1.local_addr()?, "from {sender}");
        Ok(())
    })?;
    to.set_read_timeout(Some(SOON))?;
    Ok(())
}

/// Sends `octets` one way and the count back.
fn transfer(host: &Namespace, listener: &TcpListener, octets: usize) -> Result<()> {
    let to = listener.local_addr()?;
    let mut client = connect(host, to, SOON)?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(SOON))?;
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(move || -> Result<()> {
            client.write_all(&vec![7; octets])?;
            let mut answer = [0; 2];
            client.read_exact(&mut answer)?;
            ensure!(&answer == b"ok");
            Ok(())
        });
        let mut got = vec![0; octets];
        server.read_exact(&mut got).context("receive it all")?;
        server.write_all(b"ok")?;
        sender.join().expect("no panic")
    })
}

/// A datagram of `len` octets there and back.
fn exchange(inside: &UdpSocket, outside: &UdpSocket, len: usize) -> Result<()> {
    let mut buffer = vec![0; 65536];
    inside.send_to(&vec![7; len], outside.local_addr()?)?;
    let (got, from) = outside.recv_from(&mut buffer).context("outside")?;
    ensure!(
        got == len && from == inside.local_addr()?,
        "got {got} from {from}"
    );
    outside.send_to(&vec![8; len], from)?;
    let (got, _) = inside.recv_from(&mut buffer).context("inside")?;
    ensure!(got == len, "got {got}");
    Ok(())
}

#[test]
fn the_lan_begins_what_it_likes_and_strangers_do_not() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(
        &lab,
        "[[pinhole]]\ninternal = \"2a0b:1:2:3::10\"\ninternal_port = 8080\nprotocol = \"tcp\"\n",
    )?;
    let server = listen(&lab.inet, REMOTE, 0)?;
    transfer(&lab.lan1, &server, 1 << 20)?;
    let (inside, outside) = (udp(&lab.lan1, HOST)?, udp(&lab.inet, REMOTE)?);
    // By XDP, not by the stack alone, as soon as the daemon has told the programs behind which port the host is.
    wait::until_ok("the short way in both directions", SOON, || {
        exchange(&inside, &outside, 100)?;
        for name in ["forwarded6_out", "forwarded6_in"] {
            ensure!(iwfd.ctl().counter(name)? > 0, "nothing is {name}");
        }
        Ok(())
    })?;

    // In fragments, both ways.
    exchange(&inside, &outside, 8000)?;
    ensure!(iwfd.ctl().counter("fragments_forwarded")? >= 10);

    // Another remote socket: the endpoint is open.
    let other = udp(&lab.inet, REMOTE)?;
    other.send_to(b"hello", inside.local_addr()?)?;
    let mut buffer = [0; 16];
    let (_, from) = inside.recv_from(&mut buffer)?;
    ensure!(from == other.local_addr()?);

    // Nobody asked for these.
    let before = iwfd.ctl().counter("drop_unsolicited6")?;
    let closed = listen(&lab.lan1, HOST, 0)?;
    let open = listen(&lab.lan1, HOST, OPEN_PORT)?;
    ensure!(connect(&lab.inet, closed.local_addr()?, SILENCE).is_err());
    let silent = udp(&lab.lan1, HOST)?;
    silent.set_read_timeout(Some(SILENCE))?;
    other.send_to(b"hello", silent.local_addr()?)?;
    ensure!(silent.recv_from(&mut buffer).is_err());
    ensure!(ping(&lab.inet, HOST).is_err());
    // Nor for a service of the router, at either address.
    let service = listen(&lab.cpe, Ipv6Addr::UNSPECIFIED, 0)?;
    let own = service.local_addr()?.port();
    let wan: Ipv6Addr = "2a0c:9::2".parse()?;
    for addr in [ROUTER, wan] {
        ensure!(connect(&lab.inet, (addr, own).into(), SILENCE).is_err());
    }
    ensure!(iwfd.ctl().counter("drop_unsolicited6")? > before + 4);

    // But this was.
    transfer(&lab.inet, &open, 1 << 16)?;
    // The router itself is not cut off.
    ping(&lab.cpe, REMOTE)?;
    transfer(&lab.cpe, &server, 1 << 16)?;
    Ok(())
}

/// RFC 6092 REC-34.
#[test]
fn a_stranger_is_refused_after_six_seconds() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    let within = Duration::from_secs(20) * wait::patience();
    let wan: Ipv6Addr = "2a0c:9::2".parse()?;
    std::thread::scope(|scope| -> Result<()> {
        let attempt = |to: Ipv6Addr| {
            let inet = &lab.inet;
            scope.spawn(move || {
                let began = Instant::now();
                let error = connect(inet, (to, 4444).into(), within).err();
                (error, began.elapsed())
            })
        };
        for attempt in [attempt(HOST), attempt(ROUTER), attempt(wan)] {
            let ended = attempt.join();
            let (error, took) = ended.map_err(|_| anyhow::anyhow!("the remote host panicked"))?;
            let error = error.context("nobody listens there")?;
            let kind = error
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind);
            // Administratively prohibited, as the kernel puts it.
            ensure!(kind == Some(ErrorKind::PermissionDenied), "{error}");
            ensure!(took >= Duration::from_secs(6), "after {took:?}");
        }
        Ok(())
    })?;
    // A telling is counted when it has been sent.
    wait::until_ok("each telling to be counted", SOON, || {
        let told = iwfd.ctl().counter("refusals_told")?;
        ensure!(told == 3, "{told} are counted");
        Ok(())
    })
}

#[test]
fn a_path_with_a_smaller_mtu_is_found_out() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    lab.cgn.ip("link set ext0 mtu 1400")?;
    let _iwfd = start(&lab, "")?;
    let server = listen(&lab.inet, REMOTE, 0)?;
    transfer(&lab.lan1, &server, 1 << 18)?;
    let route = lab.lan1.ip(&format!("-6 route get {REMOTE}"))?;
    ensure!(route.contains("mtu 1400"), "{route}");
    Ok(())
}

#[test]
fn without_the_filter_strangers_come_in() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "[ipv6]\nfilter = false\n")?;
    let open = listen(&lab.lan1, HOST, 0)?;
    transfer(&lab.inet, &open, 1 << 16)?;
    ping(&lab.inet, ROUTER)?;
    ensure!(iwfd.ctl().counter("pass_ipv6_unfiltered")? > 0);
    ensure!(iwfd.ctl().counter("drop_unsolicited6")? == 0);
    Ok(())
}

/// PPP and tunnels: what comes out of them is judged as what an Ethernet link brings (RFC 7084 S-3).
#[test]
fn a_wan_without_ethernet_is_filtered_as_well() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (lab, _wire) = bare_lab()?;
    let iwfd = start(
        &lab,
        "[[pinhole]]\ninternal = \"2a0b:1:2:3::10\"\ninternal_port = 8080\nprotocol = \"tcp\"\n",
    )?;
    let server = listen(&lab.inet, REMOTE, 0)?;
    transfer(&lab.lan1, &server, 1 << 20)?;
    let (inside, outside) = (udp(&lab.lan1, HOST)?, udp(&lab.inet, REMOTE)?);
    // Segments may be joined before they come to WAN egress, as the receive queue happens to be filled; datagrams are not.
    for _ in 0..51 {
        exchange(&inside, &outside, 100)?;
    }
    exchange(&inside, &outside, 8000)?;
    ensure!(iwfd.ctl().counter("egress6")? > 50 && iwfd.ctl().counter("pass_no_redirect")? > 50);
    send_reversed((&lab.lan1, &inside), &outside)?;
    send_reversed((&lab.inet, &outside), &inside)?;
    ensure!(
        iwfd.ctl().counter("fragments_held")? >= 8,
        "nothing was held"
    );

    let before = iwfd.ctl().counter("drop_unsolicited6")?;
    let closed = listen(&lab.lan1, HOST, 0)?;
    let open = listen(&lab.lan1, HOST, OPEN_PORT)?;
    ensure!(connect(&lab.inet, closed.local_addr()?, SILENCE).is_err());
    ensure!(ping(&lab.inet, HOST).is_err());
    let service = listen(&lab.cpe, Ipv6Addr::UNSPECIFIED, 0)?;
    let own = service.local_addr()?.port();
    let wan: Ipv6Addr = "2a0c:9::2".parse()?;
    for addr in [ROUTER, wan] {
        ensure!(connect(&lab.inet, (addr, own).into(), SILENCE).is_err());
    }
    ensure!(iwfd.ctl().counter("drop_unsolicited6")? >= before + 4);
    transfer(&lab.inet, &open, 1 << 16)?;
    transfer(&lab.cpe, &server, 1 << 16)?;
    Ok(())
}

#[test]
fn reversed_fragments_arrive_whole_both_ways() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    let (inside, outside) = (udp(&lab.lan1, HOST)?, udp(&lab.inet, REMOTE)?);
    send_reversed((&lab.lan1, &inside), &outside)?;
    send_reversed((&lab.inet, &outside), &inside)?;
    ensure!(
        iwfd.ctl().counter("fragments_held")? >= 8,
        "nothing was held"
    );
    // A datagram for the router itself, of a flow that it has begun.
    let own = udp(&lab.cpe, "2a0c:9::2".parse()?)?;
    exchange(&own, &outside, 100)?;
    send_reversed((&lab.inet, &outside), &own)?;
    Ok(())
}

/// One host makes up an address for each packet; the table has room for 256 sessions.
#[test]
fn a_flood_from_made_up_addresses_stops_nobody_else() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    lab.lan2
        .ip("address add 2a0b:1:2:3::20/64 dev eth0 nodad")?;
    lab.lan2
        .ip(&format!("-6 route replace default via {ROUTER}"))?;
    let iwfd = start(&lab, "[limits]\nsessions6 = 256\n")?;
    let outside = udp(&lab.inet, REMOTE)?;
    let flood = raw(&lab.lan2)?;
    let port = outside.local_addr()?.port();
    for round in 0..5u16 {
        for n in 0..400u16 {
            let mut from = HOST.octets();
            from[8] = 0xee;
            from[12..14].copy_from_slice(&round.to_be_bytes());
            from[14..].copy_from_slice(&n.to_be_bytes());
            send_raw(&flood, &Frame6::udp((from, 9), (REMOTE.octets(), port + 1)))?;
        }
        for _ in 0..5 {
            exchange(&udp(&lab.lan1, HOST)?, &outside, 100)
                .with_context(|| format!("after round {round}"))?;
        }
    }
    let refused = iwfd.ctl().counter("drop_host_sessions")?;
    ensure!(refused > 1000, "only {refused} of 2000 were refused");
    ensure!(iwfd.ctl().counter("drop_sessions6_full")? == 0);
    // The owner is told whose flows those are, as far as the budget goes.
    let events = |more: &[&str]| {
        let kind = ["events", "--kind", "host-sessions"];
        iwfd.ctl().must(&[&kind[..], more].concat())
    };
    let made_up = events(&[
        "--json",
        "--station",
        "unknown",
        "--host",
        "2a0b:1:2:3:ee00::/72",
    ])?;
    let rows: Vec<Value> = made_up
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let row = rows.first().context("no event")?;
    ensure!(row["station"] == "unknown", "{row}");
    ensure!(row["counter"] == "drop_host_sessions", "{row}");
    ensure!(row["protocol"] == "udp", "{row}");
    let internal = row["internal"].as_str().context("an endpoint")?;
    ensure!(
        internal.starts_with("[2a0b:1:2:3:ee00:") && internal.ends_with("]:9"),
        "{row}"
    );
    let text = events(&["--station", "unknown"])?;
    ensure!(
        text.contains(":9 station unknown (drop_host_sessions)"),
        "{text}"
    );
    let elsewhere = events(&["--host", "2a0b:1:2:3::/80"])?;
    ensure!(elsewhere.is_empty(), "{elsewhere}");
    ensure!(events(&["--station", "02:00:5e:10:00:01"])?.is_empty());
    Ok(())
}

/// A station on the provider's link is a stranger at the link-local address as well.
#[test]
fn a_neighbour_on_the_wan_reaches_no_service() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    let service = listen(&lab.cpe, Ipv6Addr::UNSPECIFIED, 0)?;
    let port = service.local_addr()?.port();
    let addresses = lab.cpe.ip(&format!("-6 -o address show dev {WAN_IF}"))?;
    let own: Ipv6Addr = addresses
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64").filter(|w| w.starts_with("fe80")))
        .context("a link-local address")?
        .parse()?;
    let zone = lab.cgn.ifindex("br0")?;
    let to = std::net::SocketAddrV6::new(own, port, 0, zone).into();
    let before = iwfd.ctl().counter("drop_unsolicited6")?;
    ensure!(connect(&lab.cgn, to, SILENCE).is_err());
    ensure!(iwfd.ctl().counter("drop_unsolicited6")? > before);
    // The link itself works: neighbour discovery and echo.
    lab.cgn
        .must(&["ping", "-6", "-c", "1", "-W", "2", &format!("{own}%br0")])?;
    Ok(())
}

#[test]
fn sessions_are_listed_with_what_they_counted() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(
        &lab,
        "[[pinhole]]\ninternal = \"2a0b:1:2:3::10\"\ninternal_port = 8080\nprotocol = \"tcp\"\n",
    )?;
    let (inside, outside) = (udp(&lab.lan1, HOST)?, udp(&lab.inet, REMOTE)?);
    for _ in 0..3 {
        exchange(&inside, &outside, 100)?;
    }
    let open = listen(&lab.lan1, HOST, OPEN_PORT)?;
    let client = connect(&lab.inet, open.local_addr()?, SOON)?;
    let list = |filter: &[&str]| -> Result<Value> {
        let mut args = vec!["sessions"];
        args.extend(filter);
        let answer = iwfd.ctl().json(&args)?;
        ensure!(answer["matched"] == 1, "{filter:?}: {answer}");
        Ok(answer["sessions"][0].clone())
    };
    let port = outside.local_addr()?.port().to_string();
    let row = list(&[
        "--protocol",
        "udp",
        "--port",
        &port,
        "--remote",
        "2a0d:7::/64",
    ])?;
    ensure!(row["internal"] == inside.local_addr()?.to_string(), "{row}");
    ensure!(row["remote"] == outside.local_addr()?.to_string(), "{row}");
    ensure!(
        row["external"].is_null() && row["mapping"].is_null(),
        "{row}"
    );
    ensure!(
        row["packets_out"] == 3 && row["octets_out"] == 3 * 148,
        "{row}"
    );
    ensure!(
        row["packets_in"] == 3 && row["octets_in"] == 3 * 148,
        "{row}"
    );
    let row = list(&["--host", &HOST.to_string(), "--protocol", "tcp"])?;
    ensure!(row["began"] == "in" && row["pinhole"].is_u64(), "{row}");
    ensure!(row["remote"] == client.local_addr()?.to_string(), "{row}");
    Ok(())
}
