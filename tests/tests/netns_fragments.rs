//! Datagrams in fragments between real stacks: large ones both ways through both NATs, fragments in reversed order, and
//! a flood of them (RFC 4787 REQ-13 and REQ-14).
#![expect(
    clippy::disallowed_types,
    reason = "the suite talks over real sockets of the hosts"
)]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::Cascade;
use iwf_tests::daemon::Options;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::packet::{ETHERNET, Frame, split};
use iwf_tests::peers::Echo;
use iwf_tests::topology::{CARRIER, LAN1, LAN2, REMOTE, WAN};
use iwf_tests::wait;
use socket2::{Domain, Protocol, Socket, Type};

const SOON: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_millis(500);

/// The value of a counter.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn bound(host: &Namespace, port: u16) -> Result<UdpSocket> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    let socket = host.within(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// Sends a datagram of that size to an echo server until it comes back whole.
fn large_echo(host: &Namespace, to: SocketAddrV4, len: usize) -> Result<()> {
    let socket = bound(host, 0)?;
    let sent = text(len);
    let back = wait::until_ok("the echo of a large datagram", SOON, || {
        socket.send_to(&sent, to)?;
        receive(&socket)
    })?;
    ensure!(back == (sent, SocketAddr::V4(to)), "the echo differs");
    Ok(())
}

fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buf = vec![0; 65536];
    let (len, from) = socket.recv_from(&mut buf)?;
    buf.truncate(len);
    Ok((buf, from))
}

/// A socket that sends IPv4 packets as they are.
fn raw(host: &Namespace) -> Result<Socket> {
    // IPPROTO_RAW.
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)));
    Ok(host.within(open)??)
}

/// Sends the fragments of a datagram, the last one first.
fn send_reversed(socket: &Socket, frame: &Frame, id: u16) -> Result<()> {
    let to = SocketAddrV4::new(frame.dst.into(), 0).into();
    for bytes in split(frame, 1208, id).iter().rev() {
        socket.send_to(&bytes[ETHERNET..], &to)?;
    }
    Ok(())
}

fn datagram(from: SocketAddrV4, to: SocketAddrV4, len: usize) -> Frame {
    let mut frame = Frame::udp(
        (from.ip().octets(), from.port()),
        (to.ip().octets(), to.port()),
    );
    frame.fragment = 0;
    frame.payload = text(len);
    frame
}

#[test]
fn large_datagrams_cross_both_nats() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let echo = Echo::listen(&cascade.lab.inet, 0)?;
    let outside = SocketAddrV4::new(REMOTE, echo.port());
    for host in [&cascade.lab.lan1, &cascade.lab.lan2] {
        for len in [1473, 8192, 65_000] {
            large_echo(host, outside, len)?;
        }
        for to in [REMOTE, CARRIER] {
            let to = to.to_string();
            let argv = [
                "ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", "-s", "8000", &to,
            ];
            host.must(&argv)?;
        }
    }
    ensure!(
        cascade.iwfd.ctl().counter("fragments_forwarded")? > 100,
        "not translated by XDP"
    );
    // The CPE's own fragments, and pings of its WAN address.
    let wan = WAN.to_string();
    let own = [
        "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", "-s", "8000",
    ];
    cascade.lab.cgn.must(&[&own[..], &[&wan]].concat())?;
    let remote = REMOTE.to_string();
    cascade.lab.cpe.must(&[&own[..], &[&remote]].concat())?;
    Ok(())
}

/// A WAN that takes less than the LAN sends: the stack fragments, and what it makes is translated on its way out.
#[test]
fn what_is_too_large_for_the_wan_is_fragmented() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    for (host, interface) in [(&cascade.lab.cpe, "wan0"), (&cascade.lab.cgn, "br0")] {
        host.ip(&format!("link set {interface} mtu 1280"))?;
    }
    let echo = Echo::listen(&cascade.lab.inet, 0)?;
    let outside = SocketAddrV4::new(REMOTE, echo.port()).to_string();
    let host = &cascade.lab.lan1;
    // Without DF, unlike a datagram that Linux sends by default.
    let argv = [
        "-M", "dont", "-s", "1400", "-c", "3", "-i", "0.2", "-W", "2",
    ];
    let remote = REMOTE.to_string();
    host.must(&[&["ping", "-n"][..], &argv, &[&remote]].concat())?;
    large_echo(host, outside.parse()?, 8192)?;
    Ok(())
}

#[test]
fn reversed_fragments_arrive_whole_both_ways() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let lab = &cascade.lab;
    // Connection tracking puts fragments together and in order, also those that the carrier itself sends.
    lab.cgn.must(&["nft", "flush", "ruleset"])?;
    let outside = bound(&lab.cgn, 0)?;
    let inside = bound(&lab.lan1, 0)?;
    let far = SocketAddrV4::new(CARRIER, outside.local_addr()?.port());
    let near = SocketAddrV4::new(LAN1, inside.local_addr()?.port());
    let (out, back) = (raw(&lab.lan1)?, raw(&lab.cgn)?);
    // Neighbours and sessions are not what this is about: the first datagrams may be lost.
    let mut id = 0x1000;
    let mut next = || {
        id += 1;
        id
    };
    let (payload, from) = wait::until_ok("a datagram outside", SOON, || {
        send_reversed(&out, &datagram(near, far, 5000), next())?;
        receive(&outside)
    })?;
    ensure!(payload == text(5000), "the datagram differs");
    let SocketAddr::V4(external) = from else {
        anyhow::bail!("an IPv6 address");
    };
    ensure!(*external.ip() == WAN, "from {external}");
    let (payload, from) = wait::until_ok("a datagram inside", SOON, || {
        send_reversed(&back, &datagram(far, external, 5000), next())?;
        receive(&inside)
    })?;
    ensure!(payload == text(5000), "the datagram differs");
    ensure!(from == SocketAddr::V4(far), "from {from}");
    ensure!(
        cascade.iwfd.ctl().counter("fragments_held")? >= 8,
        "nothing was held"
    );
    Ok(())
}

#[test]
fn a_flood_of_fragments_stops_nobody_else() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let lab = &cascade.lab;
    let echo = Echo::listen(&lab.inet, 0)?;
    let outside = SocketAddrV4::new(REMOTE, echo.port());
    large_echo(&lab.lan1, outside, 8192)?;
    let flood = raw(&lab.lan2)?;
    let to = SocketAddrV4::new(REMOTE, 0).into();
    let near = SocketAddrV4::new(LAN2, 7777);
    for round in 0..10u16 {
        for id in 0..2000u16 {
            let frame = datagram(near, outside, 1600);
            let parts = split(&frame, 1208, round * 2000 + id);
            // Later ones without their first, and now and then a first without the rest; few, because the carrier
            // puts fragments together and would run out of room for it.
            let part = usize::from(id % 64 != 0);
            flood.send_to(&parts[part][ETHERNET..], &to)?;
        }
        large_echo(&lab.lan1, outside, 8192).with_context(|| format!("after round {round}"))?;
    }
    let (held, refused) = (
        cascade.iwfd.ctl().counter("fragments_held")?,
        cascade.iwfd.ctl().counter("drop_fragments_full")?,
    );
    ensure!(held > 0 && refused > 1000, "held {held}, refused {refused}");
    Ok(())
}
