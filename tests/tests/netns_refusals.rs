//! What hosts on both sides hear of refused packets, and whom a mapping lets in, between real stacks (RFC 5382 REQ-4,
//! RFC 5508 REQ-8, RFC 4787 REQ-8).
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the suite talks over real sockets of the hosts, in real time"
)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::packet::{ETHERNET, Frame, Transport};
use iwf_tests::topology::{CARRIER, GATEWAY, LAN1, Lab, WAN};
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

const SOON: Duration = Duration::from_secs(10);
/// RFC 5382 REQ-4.
const NOT_BEFORE: Duration = Duration::from_secs(6);
/// Longer than that, and than a SYN is sent twice.
const LONG: Duration = Duration::from_secs(20);

/// What the daemon says then.
const READ_AGAIN: &str = "configuration read again";

fn start(lab: &Lab, more: &'static str) -> Result<Iwfd> {
    let options = Options {
        mode: "local",
        more,
        ..Options::default()
    };
    let iwfd = Iwfd::start(lab, &options)?;
    let to = CARRIER.to_string();
    wait::until_ok("the first packet to pass", SOON, || {
        lab.lan1.must(&["ping", "-n", "-c", "1", "-W", "1", &to])
    })?;
    Ok(iwfd)
}

/// Changes the text of the configuration and lets the daemon read it again.
fn reload(iwfd: &mut Iwfd, from: &str, to: &str) -> Result<()> {
    let path = iwfd.files().config.clone();
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains(from), "the configuration says {from}");
    std::fs::write(&path, text.replace(from, to))?;
    let read = |iwfd: &mut Iwfd| iwfd.process().log().matches(READ_AGAIN).count();
    let before = read(iwfd);
    iwfd.process().signal(Signal::SIGHUP)?;
    wait::until("the configuration to be read again", SOON, || {
        (read(iwfd) > before).then_some(())
    })
}

/// A TCP socket of a host on that port, 0 for any.
fn tcp(host: &Namespace, port: u16) -> Result<Socket> {
    let socket = host.within(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket)
}

/// Connects to the WAN, and says how that ended and how long it took.
fn attempt(host: &Namespace, port: u16, within: Duration) -> Result<(ErrorKind, Duration)> {
    let socket = tcp(host, 0)?;
    let began = Instant::now();
    let outcome = socket.connect_timeout(&SocketAddrV4::new(WAN, port).into(), within);
    let error = outcome.err().context("nobody listens there")?;
    Ok((error.kind(), began.elapsed()))
}

fn refused(host: &Namespace, port: u16) -> Result<()> {
    let (kind, took) = attempt(host, port, LONG * wait::patience())?;
    ensure!(
        kind == ErrorKind::ConnectionRefused && took >= NOT_BEFORE,
        "{kind} after {took:?}"
    );
    Ok(())
}

/// Every frame with its lengths and checksums verified.
fn parsed(frames: &[Vec<u8>]) -> Result<Vec<Frame>> {
    let read = |bytes: &Vec<u8>| {
        Frame::parse(bytes).map_err(|problem| anyhow::anyhow!("{problem}: {bytes:02x?}"))
    };
    frames.iter().map(read).collect()
}

/// The ICMP errors among them: kind, code, and the packet they quote.
fn errors(frames: &[Frame]) -> Vec<(&Frame, (u8, u8))> {
    let error = |frame: &Frame| match frame.transport {
        Transport::IcmpError { kind, code, .. } => Some((kind, code)),
        Transport::Udp { .. }
        | Transport::Tcp { .. }
        | Transport::Icmp { .. }
        | Transport::Other(_) => None,
    };
    frames
        .iter()
        .filter_map(|frame| Some((frame, error(frame)?)))
        .collect()
}

#[test]
fn a_remote_host_is_refused_after_six_seconds() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = start(&lab, "")?;
    let tap = Tap::start(&lab, &lab.cgn, "br0", "tcp port 5000 or icmp[0] == 3")?;
    refused(&lab.cgn, 5000)?;
    let raw = tap.finish()?;
    let frames = parsed(&raw)?;
    let [(error, kind)] = errors(&frames)[..] else {
        anyhow::bail!("one answer, not {frames:?}");
    };
    ensure!(kind == (3, 3), "{kind:?}");
    ensure!(
        (error.src, error.dst) == (WAN.octets(), CARRIER.octets()),
        "{error:?}"
    );
    // All of the first SYN, as the remote host sent it.
    let syn = raw.first().context("a SYN")?;
    ensure!(
        syn.get(ETHERNET..).is_some_and(|syn| error.payload == syn),
        "{syn:?}, {error:?}"
    );
    // A telling is counted when it has been sent.
    wait::until_ok("it to be counted", SOON, || {
        let told = iwfd.ctl().counter("refusals_told")?;
        ensure!(told == 1, "{told} are counted");
        Ok(())
    })
}

/// Both ends send a SYN, the remote one first: they meet, and nobody hears of the one that was refused.
#[test]
fn a_simultaneous_open_is_not_spoken_of() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = start(&lab, "")?;
    let tap = Tap::start(&lab, &lab.cgn, "br0", "icmp[0] == 3")?;
    let within = LONG * wait::patience();
    let outside = tcp(&lab.cgn, 9000)?;
    let inside = tcp(&lab.lan1, 7000)?;
    std::thread::scope(|scope| -> Result<()> {
        let to = SocketAddrV4::new(WAN, 7000).into();
        let met = scope.spawn(move || outside.connect_timeout(&to, within));
        wait::until_ok("the SYN to be refused", SOON, || {
            let noted = iwfd.ctl().counter("refusals_noted")?;
            ensure!(noted > 0, "not yet");
            Ok(())
        })?;
        inside.connect_timeout(&SocketAddrV4::new(CARRIER, 9000).into(), within)?;
        met.join()
            .map_err(|_| anyhow::anyhow!("the remote host panicked"))?
            .context("connect from outside")
    })?;
    // Who comes later is answered later.
    refused(&lab.cgn, 5000)?;
    let frames = parsed(&tap.finish()?)?;
    let about: Vec<_> = errors(&frames)
        .iter()
        .map(|(error, _)| error.payload.get(22..24).map(<[u8]>::to_vec))
        .collect();
    ensure!(about == [Some(5000u16.to_be_bytes().to_vec())], "{about:?}");
    Ok(())
}

/// RFC 5508 REQ-8: a table that is full is told to who would fill it.
#[test]
fn a_lan_host_hears_that_there_is_no_room() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _iwfd = start(&lab, "[limits]\nmappings = 256\nexplicit_mappings = 16\n")?;
    let tap = Tap::start(&lab, &lab.lan1, "eth0", "udp port 9 or icmp[0] == 3")?;
    let mut sockets = Vec::new();
    wait::until_ok("an error", SOON * 3, || {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let socket = lab.lan1.within(|| UdpSocket::bind(any))??;
        // Nobody listens there, but the carrier's stack says so by another code.
        socket.connect((CARRIER, 9))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        socket.send(b"one more")?;
        let error = socket.recv(&mut [0; 64]).err().context("nobody answers")?;
        sockets.push(socket);
        // The daemon may take longer than this look: the error waits at its socket.
        let late = sockets.iter().filter_map(|of| of.take_error().ok()?);
        let mut kinds = std::iter::once(error).chain(late).map(|of| of.kind());
        let refused = kinds.any(|kind| kind == ErrorKind::HostUnreachable);
        ensure!(refused, "not yet");
        Ok(())
    })?;
    let raw = tap.finish()?;
    let frames = parsed(&raw)?;
    let errors = errors(&frames);
    let told: Vec<_> = errors
        .iter()
        .filter(|(_, kind)| *kind == (3, 13))
        .map(|(error, _)| error)
        .collect();
    ensure!(!told.is_empty(), "{errors:?}");
    for error in told {
        ensure!(
            (error.src, error.dst) == (GATEWAY.octets(), LAN1.octets()),
            "{error:?}"
        );
        ensure!(
            raw.iter().any(|sent| sent[ETHERNET..] == error.payload),
            "quoted as it was sent: {error:?}"
        );
    }
    Ok(())
}

#[test]
fn nobody_is_told_while_the_configuration_forbids() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut iwfd = start(&lab, "[nat]\nrefusals = \"answer\"\n")?;
    // Also what waits already is not answered.
    let within = NOT_BEFORE + Duration::from_secs(3);
    std::thread::scope(|scope| -> Result<()> {
        let cgn = &lab.cgn;
        let attempt = scope.spawn(move || attempt(cgn, 5000, within));
        wait::until_ok("the SYN to be refused", SOON, || {
            ensure!(iwfd.ctl().counter("refusals_noted")? > 0, "not yet");
            Ok(())
        })?;
        reload(&mut iwfd, "\"answer\"", "\"silent\"")?;
        let (kind, _) = attempt
            .join()
            .map_err(|_| anyhow::anyhow!("the remote host panicked"))??;
        ensure!(kind == ErrorKind::TimedOut, "{kind}");
        Ok(())
    })?;
    let (kind, _) = attempt(&lab.cgn, 5001, within)?;
    ensure!(kind == ErrorKind::TimedOut, "{kind}");
    ensure!(iwfd.ctl().counter("refusals_told")? == 0);
    reload(&mut iwfd, "\"silent\"", "\"answer-lan\"")?;
    let (kind, _) = attempt(&lab.cgn, 5002, within)?;
    ensure!(kind == ErrorKind::TimedOut, "{kind}");
    reload(&mut iwfd, "\"answer-lan\"", "\"answer\"")?;
    refused(&lab.cgn, 5003)
}

/// A reload opens and closes mappings that are there (RFC 4787 REQ-8).
#[test]
fn another_filtering_holds_at_once_after_a_reload() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut iwfd = start(&lab, "[nat]\nfiltering = \"address-and-port-dependent\"\n")?;
    let bound = |host: &Namespace| -> Result<UdpSocket> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let socket = host.within(|| UdpSocket::bind(any))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    };
    let inside = bound(&lab.lan1)?;
    let peer = bound(&lab.cgn)?;
    let to_peer = SocketAddrV4::new(CARRIER, peer.local_addr()?.port());
    let external = wait::until_ok("the first datagram", SOON, || {
        inside.send_to(b"hello", to_peer)?;
        Ok(peer.recv_from(&mut [0; 64])?.1)
    })?;
    // Every stranger has a port of its own, so that none is known from before.
    let comes_in = || -> Result<bool> {
        let stranger = bound(&lab.cgn)?;
        stranger.send_to(b"let me in", external)?;
        Ok(inside.recv_from(&mut [0; 64]).is_ok())
    };
    ensure!(!comes_in()?, "a stranger came in");
    for (from, to, open) in [
        ("address-and-port-dependent", "endpoint-independent", true),
        ("endpoint-independent", "address-and-port-dependent", false),
        ("address-and-port-dependent", "address-dependent", true),
        ("address-dependent", "address-and-port-dependent", false),
    ] {
        reload(&mut iwfd, from, to)?;
        wait::until_ok(&format!("{to} to hold"), SOON, || {
            ensure!(comes_in()? == open, "not yet");
            Ok(())
        })?;
    }
    Ok(())
}
