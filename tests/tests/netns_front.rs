//! The server for LAN hosts under pressure: ten thousand connections that do nothing and senders that never finish are
//! nobody's trouble, and nothing of it is there on the WAN.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "plays hosts that misbehave, in real time"
)]

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::{Gateway, SSDP, Version};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers;
use iwf_tests::topology::{GATEWAY, LAN_BRIDGE, Lab, WAN, WAN_IF};
use iwf_tests::wait;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for an answer that would come.
const SILENCE: Duration = Duration::from_millis(700);
/// Of the issue.
const IDLE: usize = 10_000;
const SLOW: usize = 60;
/// Between two octets of a slow sender.
const DRIP: Duration = Duration::from_millis(5);
/// Requests whose times are compared.
const ASKED: usize = 60;
/// docs/lan.md: connections in all.
const CONNECTIONS: usize = 128;
/// How many times longer a good request may take meanwhile, by the median: what two processors with other work make of one
/// millisecond.
const RATIO: f64 = 8.0;
/// What all the connections may cost, in KiB: places are few, and the rest is closed.
const GROWTH: u64 = 8 << 10;

fn local() -> Options {
    Options {
        mode: "local",
        ..Options::default()
    }
}

/// A host that holds connections and does what it should not, until this is dropped.
struct Pest {
    stop: Sender<()>,
    /// Connections that were opened.
    opened: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Pest {
    fn start(
        host: &Namespace,
        body: impl FnOnce(&Receiver<()>, &AtomicUsize) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = channel();
        let opened = Arc::<AtomicUsize>::default();
        let thread = host.thread({
            let opened = Arc::clone(&opened);
            move || body(&stopped, &opened)
        })?;
        Ok(Self {
            stop,
            opened,
            thread,
        })
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    fn finish(self) -> Result<()> {
        drop(self.stop);
        self.thread.join().expect("it does not panic")
    }
}

fn connect(to: SocketAddrV4) -> Result<TcpStream> {
    Ok(TcpStream::connect_timeout(&SocketAddr::V4(to), SOON)?)
}

/// Opens that many connections, one after another, and keeps whatever becomes of them: one that is closed at once may look
/// like one that could not be opened.
fn idle(to: SocketAddrV4, stop: &Receiver<()>, opened: &AtomicUsize) -> Result<()> {
    let mut held = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        held.push(connect(to));
        opened.fetch_add(1, Ordering::SeqCst);
    }
    // Nothing is ever sent.
    ensure!(stop.recv().is_err(), "stopped");
    Ok(())
}

/// Keeps that many requests going that never end, head and body by turns, an octet of each at a time. What is closed is
/// opened again.
fn drip(to: SocketAddrV4, path: &str, stop: &Receiver<()>, opened: &AtomicUsize) {
    let head = format!("POST {path} HTTP/1.1\r\nHost: {to}\r\n");
    let begins = [
        format!("{head}X: "),
        format!("{head}Content-Length: 60000\r\n\r\n<s:Envelope "),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n"),
    ];
    let mut held: Vec<Option<TcpStream>> = (0..SLOW).map(|_| None).collect();
    while stop.recv_timeout(DRIP) == Err(RecvTimeoutError::Timeout) {
        // One at a time: a flood of connections is what the other host does.
        let mut may_open = true;
        for (number, place) in held.iter_mut().enumerate() {
            if let Some(stream) = place {
                let octet: &[u8] = if number % 3 == 2 { b"1\r\nx\r\n" } else { b"x" };
                if stream.write_all(octet).is_err() {
                    *place = None;
                }
                continue;
            }
            if !std::mem::take(&mut may_open) {
                continue;
            }
            opened.fetch_add(1, Ordering::SeqCst);
            // It may be closed already.
            *place = connect(to).ok().filter(|mut stream| {
                let begin = begins[number % 3].as_bytes();
                stream.write_all(begin).is_ok()
            });
        }
    }
}

/// How long good requests took; each has its right answer.
fn good(gateway: &Gateway, count: usize) -> Result<Vec<Duration>> {
    (0..count)
        .map(|_| {
            let begun = Instant::now();
            let answer = gateway.call("GetExternalIPAddress", &[])?.ok()?;
            let took = begun.elapsed();
            let address = answer.element("NewExternalIPAddress");
            ensure!(address == Some(&WAN.to_string()), "{}", answer.text);
            Ok(took)
        })
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// SEC-03: one host's idle connections and another's slow requests do not delay a third one's.
#[test]
fn ten_thousand_idle_connections_and_slow_senders_delay_nobody() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = IDLE as u64 + 1000;
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))?;
    let lab = Lab::new()?;
    let host = lab.one_more_on_the_lan("lan3", "lan3p", Ipv4Addr::new(192, 168, 1, 12))?;
    let iwfd = Iwfd::start(&lab, &local())?;
    let gateway = Gateway::discover(&host)?;
    let to = gateway.address();
    good(&gateway, 10)?;
    let memory = iwfd.resident_kib()?;
    let before = median(good(&gateway, ASKED)?);

    let sleepers = Pest::start(&lab.lan1, move |stop, opened| idle(to, stop, opened))?;
    let path = gateway.control_path().to_owned();
    let senders = Pest::start(&lab.lan2, move |stop, opened| {
        drip(to, &path, stop, opened);
        Ok(())
    })?;
    // While they come.
    let begun = Instant::now();
    let mut coming = Vec::new();
    wait::until_ok("all the connections", Duration::from_secs(60), || {
        coming.extend(good(&gateway, 1)?);
        let opened = sleepers.opened();
        ensure!(opened == IDLE, "{opened} are opened");
        Ok(())
    })?;
    let took = begun.elapsed();
    // A connection whose SYN is lost takes a second more.
    let worst = coming.iter().max().copied().unwrap_or_default();
    ensure!(
        worst < Duration::from_secs(1) * wait::patience(),
        "{worst:?}"
    );
    ensure!(coming.len() > 3, "only {} meanwhile", coming.len());
    // And when they are there.
    wait::until_ok("slow senders", SOON, || {
        let opened = senders.opened();
        ensure!(opened >= SLOW, "{opened} are opened");
        Ok(())
    })?;
    let after = median(good(&gateway, ASKED)?);
    let ratio = after.as_secs_f64() / before.as_secs_f64();
    eprintln!(
        "a good request took {before:?} alone, {:?} (at most {worst:?}) in the {took:?} in which they came, {after:?} \
         with them: {ratio:.2} times",
        median(coming)
    );
    ensure!(ratio < RATIO, "{before:?} became {after:?}");

    let grown = iwfd.resident_kib()?.saturating_sub(memory);
    ensure!(grown < GROWTH, "{grown} KiB more");
    let files = std::fs::read_dir(format!("/proc/{}/fd", iwfd.pid()))?.count();
    ensure!(files < CONNECTIONS + 200, "{files} files are open");
    let closed = iwfd.ctl().counter("http_full")? + iwfd.ctl().counter("http_made_room")?;
    ensure!(closed as usize > IDLE / 2, "{closed} were closed");
    sleepers.finish()?;
    senders.finish()
}

/// The addresses of one host, and the connections it has by each.
const ADDRESSES: std::ops::Range<u8> = 40..50;
const EACH: usize = 16;

/// Has that many connections by each of these addresses, all with calls that take their time: pinholes for addresses of
/// nobody, which are looked for. What is closed stays closed.
fn busy(to: SocketAddrV4, path: &str, stop: &Receiver<()>, opened: &AtomicUsize) -> Result<()> {
    let service = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1";
    let mut held = Vec::new();
    for number in 0..ADDRESSES.len() * EACH {
        let calls: String = (0..8)
            .map(|call| {
                let body = format!(
                    "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
                     <u:AddPinhole xmlns:u=\"{service}\"><RemoteHost/><RemotePort>0</RemotePort>\
                     <InternalClient>2a0b:1:2:3::dead:{:x}</InternalClient><InternalPort>5000</InternalPort>\
                     <Protocol>6</Protocol><LeaseTime>60</LeaseTime></u:AddPinhole></s:Body></s:Envelope>",
                    number * 8 + call
                );
                format!(
                    "POST {path} HTTP/1.1\r\nHost: {to}\r\nContent-Type: text/xml\r\n\
                     SOAPAction: \"{service}#AddPinhole\"\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            })
            .collect();
        let from = Ipv4Addr::new(192, 168, 1, ADDRESSES.start + u8::try_from(number / EACH)?);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        // It may be closed already, and then looks like one that could not be opened.
        if socket
            .connect_timeout(&SocketAddr::V4(to).into(), SOON)
            .is_ok()
        {
            let mut stream = TcpStream::from(socket);
            let is_sent = stream.write_all(calls.as_bytes()).is_ok();
            held.extend(is_sent.then_some(stream));
        }
        opened.fetch_add(1, Ordering::SeqCst);
    }
    ensure!(stop.recv().is_err(), "stopped");
    Ok(())
}

/// SEC-03: addresses are free, and calls that take long cost nothing but their connections.
#[test]
fn a_host_with_many_addresses_has_the_places_of_one() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    for last in ADDRESSES {
        lab.lan1
            .ip(&format!("address add 192.168.1.{last}/24 dev eth0"))?;
    }
    let iwfd = Iwfd::start(&lab, &local())?;
    let gateway = Gateway::discover_version(&lab.lan2, Version::Two)?;
    good(&gateway, 1)?;
    let to = gateway.address();
    let path = gateway
        .control_path()
        .replace("WANIPConn", "WANIPv6Firewall");
    let pest = Pest::start(&lab.lan1, move |stop, opened| busy(to, &path, stop, opened))?;
    wait::until_ok("places to be short", SOON, || {
        let full = iwfd.ctl().counter("http_full")?;
        ensure!(full > 0, "{full} were closed");
        Ok(())
    })?;
    good(&gateway, 10)?;
    wait::until_ok("all the connections", Duration::from_secs(60), || {
        let opened = pest.opened();
        ensure!(opened == ADDRESSES.len() * EACH, "{opened} are opened");
        Ok(())
    })?;
    // The kernel makes a connection before the server can refuse it.
    wait::until_ok("what has no place to be closed", SOON, || {
        let holds =
            lab.lan1
                .must(&["ss", "-Htn", "state", "established", "dport", "=", ":5000"])?;
        ensure!(holds.lines().count() <= EACH, "{holds}");
        Ok(())
    })?;
    pest.finish()
}

/// An answer to a search that was sent there, if any comes.
fn searched(host: &Namespace, to: SocketAddrV4) -> Result<Option<String>> {
    let search = format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {SSDP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: upnp:rootdevice\r\n\r\n"
    );
    host.within(|| -> Result<Option<String>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(SILENCE * 2))?;
        socket.send_to(search.as_bytes(), to)?;
        let mut answer = [0; 2048];
        match socket.recv_from(&mut answer) {
            Ok((len, _)) => Ok(Some(String::from_utf8_lossy(&answer[..len]).into_owned())),
            Err(_) => Ok(None),
        }
    })?
}

/// SEC-01: the packet programs are told to let these ports in, so that it is the sockets that are shown to be closed.
#[test]
fn nothing_for_lan_hosts_is_open_to_the_wan_even_where_packets_get_in() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(
        &lab,
        &Options {
            open_ports: vec![1900, 5000, 5350, 5351],
            ..local()
        },
    )?;
    let gateway = Gateway::discover(&lab.lan1)?;
    assert_eq!(gateway.address().port(), 5000);
    good(&gateway, 1)?;
    lab.cgn.ip(&format!("route add 192.168.1.0/24 via {WAN}"))?;
    lab.cgn.ip("route add 239.0.0.0/8 dev br0")?;
    for addr in [WAN, GATEWAY] {
        for port in [1900, 5000, 5350, 5351] {
            peers::tcp_is_closed(&lab.cgn, SocketAddrV4::new(addr, port), SILENCE)?;
        }
        let answer = searched(&lab.cgn, SocketAddrV4::new(addr, 1900))?;
        ensure!(answer.is_none(), "{addr}: {answer:?}");
    }
    let answer = searched(&lab.cgn, SSDP)?;
    ensure!(answer.is_none(), "{answer:?}");
    // They were refused, not lost: packets do get in.
    let to = SocketAddrV4::new(WAN, 5000);
    let refused = lab
        .cgn
        .within(|| TcpStream::connect_timeout(&SocketAddr::V4(to), SOON))?;
    let refused = refused.expect_err("closed").kind();
    assert_eq!(refused, ErrorKind::ConnectionRefused);

    // Whatever listens is bound to the interface of the LAN, or serves PCP from the WAN's.
    let listening = lab.cpe.must(&["ss", "-Htulnp"])?;
    let mut bound = 0;
    for line in listening.lines().filter(|line| line.contains("iwfd")) {
        let local = line.split_whitespace().nth(4).context("an address")?;
        let (address, port) = local.rsplit_once(':').context("a port")?;
        let (_, interface) = address.split_once('%').with_context(|| line.to_owned())?;
        let announcements = interface == WAN_IF && port == "5350";
        ensure!(interface == LAN_BRIDGE || announcements, "{line}");
        bound += 1;
    }
    ensure!(bound >= 3, "{listening}");
    ensure!(
        iwfd.ctl().counter("http_elsewhere")? == 0,
        "the kernel refuses"
    );
    Ok(())
}

/// SOAP-005, from a host of the LAN: a browser that was led to the router under another name.
#[test]
fn a_name_that_leads_here_is_no_way_in() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(&lab, &local())?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let body = "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
        <u:GetExternalIPAddress xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\"/></s:Body></s:Envelope>";
    let ask = |host: &str, field: &str| {
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n{field}\r\n{body}",
            gateway.control_path(),
            body.len()
        );
        Ok::<_, anyhow::Error>(gateway.raw(request.as_bytes())?.status)
    };
    let own = gateway.address().to_string();
    for (host, field, expected) in [
        (own.as_str(), "", 200),
        ("192.168.1.1", "", 200),
        ("evil.example", "", 403),
        ("evil.example:5000", "", 403),
        ("192.168.1.1.evil.example", "", 403),
        ("192.168.1.2:5000", "", 403),
        ("100.64.0.2:5000", "", 403),
        ("127.0.0.1:5000", "", 403),
        ("[::1]:5000", "", 403),
        ("", "", 403),
        (&own, "Origin: http://evil.example\r\n", 403),
        (&own, "Origin: null\r\n", 403),
        (&own, "Host: evil.example\r\n", 403),
        (&own, "Content-Type: text/plain\r\n", 415),
    ] {
        assert_eq!(ask(host, field)?, expected, "{host:?} {field:?}");
    }
    assert_eq!(iwfd.ctl().counter("http_foreign")?, 11);
    assert_eq!(iwfd.ctl().counter("http_bad_requests")?, 1);
    Ok(())
}
