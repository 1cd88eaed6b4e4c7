//! Nothing is lost while sessions and mappings come and go by the thousand, on all processors, with the daemon and
//! without it.
//!
//! Read before editing: RFC 4787 REQ-1, REQ-3 and REQ-11, RFC 5382 REQ-7.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the suites talk to real programs over sockets, in real time"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iwf_tests::cascade::{Scripted, endpoint, nothing_is_left, rows};
use iwf_tests::cpu;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo, Transfer};
use iwf_tests::script::Manner;
use iwf_tests::topology::{CARRIER, LAN1, LAN2, WAN};
use iwf_tests::wait;

const SOON: Duration = Duration::from_secs(10);
/// What some hundred flows or a megabyte may take beside everything else.
const WHILE: Duration = Duration::from_secs(60);
/// Flows of a run, at least.
const FLOWS: u64 = 4000;
/// And about so many at most, spread over the run, however quick the machine is: a host may have 16384 sessions.
const MOST: u128 = 12_000;
/// Mappings of a run, at least.
const MAPPINGS: u16 = 40;
/// Two periods of the sweep.
const SWEPT: Duration = Duration::from_secs(11);
/// Source ports that two hosts share.
const SHARED: std::ops::Range<u16> = 20_000..20_800;

/// Two connections, one begun from either side, whose every octet is compared.
struct Long {
    out: Transfer,
    inward: Transfer,
    _servers: [Echo; 2],
}

impl Long {
    fn start(scripted: &Scripted, gateway: &Gateway) -> Result<Self> {
        let lab = &scripted.lab;
        let far = Echo::listen(&lab.cgn, 0)?;
        let near = Echo::listen(&lab.lan2, 0)?;
        gateway
            .seen_from(&lab.lan2)
            .add("TCP", 7000, LAN2, near.port(), 3600)?
            .ok()?;
        let outside = nat1_endpoint(scripted, 7000)?;
        Ok(Self {
            out: Transfer::start(&lab.lan1, SocketAddrV4::new(CARRIER, far.port()))?,
            inward: Transfer::start(&lab.cgn, outside)?,
            _servers: [far, near],
        })
    }

    fn goes_on(&mut self) -> Result<()> {
        self.out.goes_on(1 << 20, WHILE).context("outbound")?;
        self.inward.goes_on(1 << 20, WHILE).context("inbound")
    }

    fn finish(self) -> Result<u64> {
        Ok(self.out.finish()? + self.inward.finish()?)
    }
}

/// Where the mapping with that external port is found from the carrier's network.
fn nat1_endpoint(scripted: &Scripted, external_port: u16) -> Result<SocketAddrV4> {
    let rows = rows(&scripted.iwfd)?;
    let of_port = |row: &&serde_json::Value| {
        endpoint(row, "carrier").is_ok_and(|carrier| carrier.port() == external_port)
    };
    let row = rows.iter().find(of_port).context("the mapping is listed")?;
    Ok(SocketAddrV4::new(WAN, endpoint(row, "nat1")?.port()))
}

/// Both LAN hosts begin flows one after the other, each from a port of its own, UDP and TCP, and wait for the echo of
/// each. As many as they are asked for: a host may have so many sessions and no more.
struct Churn {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    made: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Churn {
    fn start(hosts: &[&Namespace], to: SocketAddrV4) -> Result<Self> {
        let mut churn = Self {
            stop: Arc::default(),
            asked: Arc::default(),
            made: Arc::default(),
            threads: Vec::new(),
        };
        for host in hosts {
            churn.add(host, move || udp_flow(to))?;
            let from = (*host).clone();
            churn.add(host, move || peers::tcp_echo(&from, to, "churn", SOON))?;
        }
        Ok(churn)
    }

    fn add(
        &mut self,
        host: &Namespace,
        flow: impl Fn() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (stop, asked) = (Arc::clone(&self.stop), Arc::clone(&self.asked));
        let made = Arc::clone(&self.made);
        self.threads.push(host.thread(move || {
            while !stop.load(Ordering::SeqCst) {
                if made.load(Ordering::SeqCst) >= asked.load(Ordering::SeqCst) {
                    std::thread::park_timeout(Duration::from_millis(1));
                    continue;
                }
                flow()?;
                made.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        })?);
        Ok(())
    }

    /// How many were asked for so far.
    fn asked(&self) -> u128 {
        self.asked.load(Ordering::SeqCst).into()
    }

    /// Asks for so many more flows, and waits for nothing.
    fn ask(&self, more: u64) {
        self.asked.fetch_add(more, Ordering::SeqCst);
    }

    /// Waits until all that were asked for are made, or one has failed, which [`finish`](Self::finish) tells.
    fn wait(&self) -> Result<()> {
        let asked = self.asked.load(Ordering::SeqCst);
        wait::until(&format!("{asked} flows"), WHILE, || {
            let broken = self.threads.iter().any(JoinHandle::is_finished);
            (broken || self.made.load(Ordering::SeqCst) >= asked).then_some(())
        })
    }

    /// Ends it; the number of flows, each of which had its echo.
    fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            joined(thread).context("a flow of the churn")?;
        }
        Ok(self.made.load(Ordering::SeqCst))
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A datagram from a new port, sent again until its echo is back.
fn udp_flow(to: SocketAddrV4) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    echoed(&socket, b"churn", SocketAddr::V4(to))
        .with_context(|| format!("from {:?}", socket.local_addr()))
}

fn echoed(socket: &UdpSocket, text: &[u8], to: SocketAddr) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    wait::until_ok(&format!("the echo of {to}"), SOON, || {
        socket.send_to(text, to)?;
        let mut buf = [0; 64];
        let (len, from) = socket.recv_from(&mut buf)?;
        // That of an earlier attempt, perhaps.
        ensure!(from == to && &buf[..len] == text, "another's echo");
        Ok(())
    })
}

/// A mapping comes, is used from outside, and goes.
fn map_and_unmap(scripted: &Scripted, gateway: &Gateway, port: u16, near: &Echo) -> Result<()> {
    gateway.add("UDP", port, LAN1, near.port(), 3600)?.ok()?;
    let outside = nat1_endpoint(scripted, port)?;
    peers::udp_echo(&scripted.lab.cgn, outside, "by a mapping", SOON)?;
    gateway.delete("UDP", port)?.ok().map(drop)
}

#[test]
fn a_long_transfer_loses_nothing_while_sessions_and_mappings_come_and_go() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let lab = &scripted.lab;
    let gateway = Gateway::discover(&lab.lan1)?;
    let mut long = Long::start(&scripted, &gateway)?;
    let echo = Echo::listen(&lab.cgn, 0)?;
    let to = SocketAddrV4::new(CARRIER, echo.port());
    let churn = Churn::start(&[&lab.lan1, &lab.lan2], to)?;
    let near = Echo::listen(&lab.lan1, 0)?;
    let began = Instant::now();
    let mut mapped = 0;
    while mapped < MAPPINGS || began.elapsed() < SWEPT {
        let spent = began.elapsed().as_millis();
        if mapped < MAPPINGS || churn.asked() * SWEPT.as_millis() < MOST * spent {
            // Some more: one from a port that was chosen before is no other session.
            churn.ask(FLOWS / u64::from(MAPPINGS) + 10);
        }
        map_and_unmap(&scripted, &gateway, 7100 + mapped % 100, &near)?;
        mapped += 1;
        churn.wait()?;
    }
    long.goes_on()?;
    let made = churn.finish().with_context(|| fates(&scripted))?;
    ensure!(made >= FLOWS, "{made} flows only");
    let moved = long.finish()?;
    let created = scripted.iwfd.ctl().counter("sessions_created")?;
    ensure!(created >= FLOWS, "{created} sessions for {made} flows");
    for refused in [
        "drop_sessions_full",
        "drop_mappings_full",
        "drop_ports_exhausted",
        "drop_host_sessions",
        "drop_session_collision",
        "drop_private_source",
    ] {
        ensure!(scripted.iwfd.ctl().counter(refused)? == 0, "{refused}");
    }
    eprintln!("{moved} octets beside {made} flows and {mapped} mappings");
    let owner = gateway.seen_from(&scripted.lab.lan2);
    owner.delete("TCP", 7000)?.ok()?;
    nothing_is_left(&scripted.iwfd)
}

#[test]
fn a_kill_and_a_restart_under_load_lose_no_flow() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    let mut long = Long::start(&scripted, &gateway)?;
    let echo = Echo::listen(&scripted.lab.cgn, 0)?;
    let to = SocketAddrV4::new(CARRIER, echo.port());
    let churn = Churn::start(&[&scripted.lab.lan1, &scripted.lab.lan2], to)?;
    // Flows that are silent while the daemon is away, with the external port that their remote host sees.
    let witness = Witness::listen(&scripted.lab.cgn)?;
    let quiet: Vec<UdpSocket> = (0..50)
        .map(|_| {
            scripted
                .lab
                .lan2
                .within(|| UdpSocket::bind((LAN2, 0)))?
                .map_err(Into::into)
        })
        .collect::<Result<_>>()?;
    let speak = |quiet: &[UdpSocket]| -> Result<()> {
        for (number, socket) in (0u16..).zip(quiet) {
            echoed(socket, &number.to_be_bytes(), witness.at(0))?;
        }
        Ok(())
    };
    speak(&quiet)?;
    for round in 0..3 {
        churn.ask(300);
        scripted.iwfd.kill()?;
        // Without the daemon new flows are made and old ones go on all the same.
        churn.wait().context("without the daemon")?;
        churn.ask(600);
        long.goes_on()
            .with_context(|| format!("round {round}, without the daemon"))?;
        scripted.iwfd.restart()?;
        long.goes_on()
            .with_context(|| format!("round {round}, with a new daemon"))?;
        churn.wait()?;
    }
    speak(&quiet)?;
    for (tag, sources) in witness.seen() {
        ensure!(sources.len() == 1, "flow {tag:?} was seen from {sources:?}");
    }
    let made = churn.finish().with_context(|| fates(&scripted))?;
    let moved = long.finish()?;
    eprintln!("{moved} octets beside {made} flows and 3 restarts");
    let owner = gateway.seen_from(&scripted.lab.lan2);
    owner.delete("TCP", 7000)?.ok()?;
    nothing_is_left(&scripted.iwfd)
}

/// RFC 4787 REQ-1 and REQ-3: two hosts on two processors begin flows from the same source port at the same moment. Each
/// gets an external port that is its own, and has it towards every destination.
#[test]
fn two_processors_never_give_one_port_twice() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let lab = &scripted.lab;
    let witness = Witness::listen(&lab.cgn)?;
    let cpus = cpu::allowed()?;
    let together = Arc::new(Barrier::new(2));
    let mut senders = Vec::new();
    for (number, (host, address)) in (0u8..).zip([(&lab.lan1, LAN1), (&lab.lan2, LAN2)]) {
        let (together, to) = (Arc::clone(&together), [witness.at(0), witness.at(1)]);
        let cpu = cpus[usize::from(number) % cpus.len()];
        senders.push(host.thread(move || {
            cpu::pin(None, cpu)?;
            let mut failed = None;
            for port in SHARED {
                let socket = UdpSocket::bind((address, port))?;
                let [high, low] = port.to_be_bytes();
                let tag = [number, high, low];
                together.wait();
                // Both destinations at once: which of the two packets makes the mapping is open.
                for to in to {
                    socket.send_to(&tag, to)?;
                }
                for to in to {
                    // The other sender waits at the barrier: an error is told at the end.
                    failed = echoed(&socket, &tag, to).err().or(failed);
                }
            }
            failed.map_or(Ok(()), Err)
        })?);
    }
    for sender in senders {
        joined(sender)?;
    }
    let seen = witness.seen();
    assert_eq!(seen.len(), 2 * SHARED.len());
    let mut owners = BTreeMap::new();
    let mut kept = 0;
    for (tag, sources) in seen {
        let [source] = Vec::from_iter(sources.clone())[..] else {
            bail!("{tag:?} was seen from {sources:?}");
        };
        ensure!(source.ip() == WAN, "{tag:?} left as {source}");
        if let Some(other) = owners.insert(source, tag.clone()) {
            bail!("{tag:?} and {other:?} share {source}");
        }
        let [_, high, low] = tag[..] else {
            bail!("{tag:?} is no tag");
        };
        kept += usize::from(source.port() == u16::from_be_bytes([high, low]));
    }
    ensure!(
        kept > 0 && kept <= SHARED.len(),
        "{kept} flows kept their port"
    );
    eprintln!(
        "{} flows on CPUs {cpus:?}, {kept} kept their port",
        owners.len()
    );
    Ok(())
}

/// Notes who sends, and sends it back, on two ports.
struct Witness {
    at: Vec<SocketAddr>,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// The sources that each payload came from.
type Seen = BTreeMap<Vec<u8>, BTreeSet<SocketAddr>>;

impl Witness {
    fn listen(host: &Namespace) -> Result<Self> {
        let mut witness = Self {
            at: Vec::new(),
            seen: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..2 {
            let socket = host.within(|| UdpSocket::bind((CARRIER, 0)))??;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            witness.at.push(socket.local_addr()?);
            let (seen, stop) = (Arc::clone(&witness.seen), Arc::clone(&witness.stop));
            witness.threads.push(host.thread(move || {
                let mut buf = [0; 64];
                while !stop.load(Ordering::SeqCst) {
                    match socket.recv_from(&mut buf) {
                        Ok((len, from)) => {
                            let mut seen = seen.lock().expect("no thread of it panics");
                            seen.entry(buf[..len].to_vec()).or_default().insert(from);
                            socket.send_to(&buf[..len], from)?;
                        }
                        Err(error)
                            if [ErrorKind::WouldBlock, ErrorKind::TimedOut]
                                .contains(&error.kind()) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            })?);
        }
        Ok(witness)
    }

    fn at(&self, which: usize) -> SocketAddr {
        self.at[which]
    }

    fn seen(&self) -> Seen {
        self.seen.lock().expect("no thread of it panics").clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// All counters, for the report of a failure.
fn fates(scripted: &Scripted) -> String {
    let stats = scripted.iwfd.ctl().must(&["stats"]);
    stats.unwrap_or_else(|error| format!("{error:#}"))
}
