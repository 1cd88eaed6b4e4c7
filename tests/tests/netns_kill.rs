//! A daemon that is killed at any instant under load: what was acknowledged is there after each restart, with its
//! nonce, and nothing else.
//!
//! `IWF_KILLS` sets how often it is killed.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "the suites talk to real programs over sockets, in real time, and say what they saw"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{Scripted, endpoint, rows};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::pcp::Map;
use iwf_tests::script::Manner;
use iwf_tests::topology::{LAN1, LAN2};
use iwf_tests::{upnpc, wait};

/// Kills in a plain run.
const KILLS: u64 = 20;
/// External ports of each client.
const PORTS: u16 = 12;
/// What a client may wait for an answer, and the daemon for its first calls after a start.
const SOON: Duration = Duration::from_secs(20);
/// How long after its first answer the daemon may take until its tables agree.
const CLEAN_WITHIN: Duration = Duration::from_secs(2);
/// How long the server's leases may take to be asked for again, at the pace of the client.
const RECOVERED: Duration = Duration::from_secs(60);

/// What a client knows of one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Open,
    Closed,
    /// Its last call had no answer, or a refusal: either may be.
    Unknown,
}

/// A client's ports: those that it has had an answer for.
type Ports = Arc<Mutex<BTreeMap<u16, Known>>>;

#[derive(Default)]
struct Flags {
    stop: AtomicBool,
    pause: AtomicBool,
    /// Clients that are in a call.
    busy: AtomicUsize,
    answered: AtomicU64,
    /// Answers with success by what was asked.
    added: AtomicU64,
    renewed: AtomicU64,
    deleted: AtomicU64,
    /// Those that Debian's upnpc has had.
    by_upnpc: AtomicU64,
}

/// How a client calls.
#[derive(Clone)]
enum Program {
    /// The calls of the suite's own.
    Ours(Gateway),
    /// miniupnpc's, which sends each from a connection and a process of its own.
    Upnpc { host: Namespace, url: String },
}

impl Program {
    /// Whether it was told that it has succeeded.
    fn add(&self, addr: Ipv4Addr, port: u16) -> bool {
        match self {
            Self::Ours(gateway) => gateway
                .add("TCP", port, addr, port, 3600)
                .is_ok_and(|answer| answer.ok().is_ok()),
            Self::Upnpc { host, url } => {
                upnpc::opens_at(host, url, addr, port, "TCP").is_ok_and(|opened| opened)
            }
        }
    }

    fn delete(&self, port: u16) -> bool {
        match self {
            Self::Ours(gateway) => gateway
                .delete("TCP", port)
                .is_ok_and(|answer| answer.ok().is_ok()),
            Self::Upnpc { host, url } => {
                upnpc::closes_at(host, url, port, "TCP").is_ok_and(|closed| closed)
            }
        }
    }
}

/// One client of its own, with its own ports.
struct Client {
    addr: Ipv4Addr,
    ports: Ports,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Numbers without a pattern that are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    fn start(
        host: &Namespace,
        addr: Ipv4Addr,
        program: Program,
        first: u16,
        flags: &Arc<Flags>,
    ) -> Result<Self> {
        let ports: Ports = Arc::default();
        lock(&ports).extend((first..first + PORTS).map(|port| (port, Known::Closed)));
        let thread = host.thread({
            let (ports, flags) = (Arc::clone(&ports), Arc::clone(flags));
            move || {
                let mut dice = Dice(u64::from(first) | 1);
                while !flags.stop.load(Ordering::SeqCst) {
                    flags.busy.fetch_add(1, Ordering::SeqCst);
                    if flags.pause.load(Ordering::SeqCst) {
                        flags.busy.fetch_sub(1, Ordering::SeqCst);
                        std::thread::park_timeout(Duration::from_millis(1));
                        continue;
                    }
                    let port = first + u16::try_from(dice.roll(PORTS.into())).unwrap_or(0);
                    one_call(&program, addr, port, &ports, &flags, &mut dice);
                    flags.busy.fetch_sub(1, Ordering::SeqCst);
                }
                Ok(())
            }
        })?;
        Ok(Self {
            addr,
            ports,
            thread: Some(thread),
        })
    }
}

/// Adds, renews or deletes one mapping.
fn one_call(
    program: &Program,
    addr: Ipv4Addr,
    port: u16,
    ports: &Ports,
    flags: &Flags,
    dice: &mut Dice,
) {
    let before = lock(ports).insert(port, Known::Unknown);
    let deletes = before == Some(Known::Open) && dice.roll(2) == 0;
    let succeeded = if deletes {
        program.delete(port)
    } else {
        program.add(addr, port)
    };
    // No answer, or a refusal: nobody knows.
    if succeeded {
        let (known, count) = match (deletes, before) {
            (true, _) => (Known::Closed, &flags.deleted),
            (false, Some(Known::Open)) => (Known::Open, &flags.renewed),
            (false, _) => (Known::Open, &flags.added),
        };
        lock(ports).insert(port, known);
        count.fetch_add(1, Ordering::SeqCst);
        if matches!(program, Program::Upnpc { .. }) {
            flags.by_upnpc.fetch_add(1, Ordering::SeqCst);
        }
        flags.answered.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill_at_any_instant() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let kills = std::env::var("IWF_KILLS").ok();
    let kills = kills
        .map_or(Ok(KILLS), |n| n.parse())
        .context("IWF_KILLS")?;
    let mut scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    let flags = Arc::new(Flags::default());
    let (lan1, lan2) = (&scripted.lab.lan1, &scripted.lab.lan2);
    let ours = |host: &Namespace| Program::Ours(gateway.seen_from(host));
    let upnpc = Program::Upnpc {
        host: lan2.clone(),
        url: gateway.description_url(),
    };
    let mut clients = [
        Client::start(lan1, LAN1, ours(lan1), 10_000, &flags)?,
        Client::start(lan1, LAN1, ours(lan1), 10_100, &flags)?,
        Client::start(lan2, LAN2, ours(lan2), 10_200, &flags)?,
        Client::start(lan2, LAN2, ours(lan2), 10_300, &flags)?,
        Client::start(lan2, LAN2, upnpc, 10_400, &flags)?,
    ];
    let mut dice = Dice(0x1df5_9e37_79b9_7f4b);
    let (mut slowest, mut held) = (Duration::ZERO, 0);
    let mut nonces = BTreeMap::new();
    let count = |of: &AtomicU64| of.load(Ordering::SeqCst);
    let kinds = [
        &flags.added,
        &flags.renewed,
        &flags.deleted,
        &flags.by_upnpc,
    ];
    for kill in 1..=kills {
        // Some calls are done, and then no time in particular passes. Before the first kill there are some of each kind:
        // upnpc takes so long over one that each later kill may come before its answer.
        let enough = count(&flags.answered) + 1 + dice.roll(30);
        wait::until("clients to be answered", SOON, || {
            let of_each_kind = kill > 1 || kinds.iter().all(|kind| count(kind) > 0);
            (of_each_kind && count(&flags.answered) >= enough).then_some(())
        })?;
        let (since, moment) = (Instant::now(), Duration::from_micros(dice.roll(20_000)));
        while since.elapsed() < moment {
            std::thread::yield_now();
        }
        scripted.iwfd.kill()?;
        flags.pause.store(true, Ordering::SeqCst);
        wait::until("the clients to notice", SOON, || {
            (flags.busy.load(Ordering::SeqCst) == 0).then_some(())
        })?;
        scripted.iwfd.restart()?;
        let began = Instant::now();
        let audit = wait::until_ok("the tables to agree", CLEAN_WITHIN, || {
            let audit = scripted.iwfd.ctl().json(&["audit"])?;
            ensure!(audit["clean"] == true, "kill {kill}: {audit}");
            // A deletion during which the daemon died is completed.
            let leases = scripted.server.leases();
            for row in rows(&scripted.iwfd)? {
                let nat1 = endpoint(&row, "nat1")?.port();
                let held = leases.iter().any(|lease| lease.internal_port == nat1);
                ensure!(held, "kill {kill}: the server does not hold {row}");
            }
            Ok(audit)
        })?;
        slowest = slowest.max(began.elapsed());
        held += audit["mappings"].as_u64().context("a number")?;
        agree(&scripted, &clients).with_context(|| format!("after kill {kill}"))?;
        nonces_are_kept(&scripted, &mut nonces).with_context(|| format!("after kill {kill}"))?;
        flags.pause.store(false, Ordering::SeqCst);
    }
    flags.stop.store(true, Ordering::SeqCst);
    for client in &mut clients {
        if let Some(thread) = client.thread.take() {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
    }
    println!(
        "{kills} kills, {} calls answered with success ({} additions, {} renewals, {} deletions; {} of them upnpc's), {} \
         mappings at a restart on average, clean after {slowest:?} at most",
        count(&flags.answered),
        count(&flags.added),
        count(&flags.renewed),
        count(&flags.deleted),
        count(&flags.by_upnpc),
        held / kills.max(1)
    );
    for kind in kinds {
        ensure!(count(kind) > 0, "a kind of calls has not been among them");
    }
    every_nonce_comes_again(&scripted)
}

/// The daemon has what clients were told, and none of what they were told is gone.
fn agree(scripted: &Scripted, clients: &[Client]) -> Result<()> {
    let mut listed = BTreeMap::new();
    for row in rows(&scripted.iwfd)? {
        let carrier = endpoint(&row, "carrier")?;
        ensure!(row["kernel"] == true, "not in the kernel: {row}");
        listed.insert(carrier.port(), endpoint(&row, "internal")?);
    }
    for client in clients {
        for (port, known) in lock(&client.ports).iter_mut() {
            let found = listed.remove(port);
            match (*known, found) {
                (Known::Open, None) => anyhow::bail!("port {port} was acknowledged and is gone"),
                (Known::Closed, Some(_)) => anyhow::bail!("port {port} was deleted and is back"),
                (Known::Unknown, Some(_)) => *known = Known::Open,
                (Known::Unknown, None) => *known = Known::Closed,
                (Known::Open, Some(_)) | (Known::Closed, None) => {}
            }
            if let Some(internal) = found {
                ensure!(
                    (*internal.ip(), internal.port()) == (client.addr, *port),
                    "port {port} leads to {internal}"
                );
            }
        }
    }
    ensure!(listed.is_empty(), "nobody asked for {listed:?}");
    Ok(())
}

/// The nonce that the server has last seen for a mapping is the one that it has known since the mapping was listed
/// first, whatever life of the daemon sent it.
fn nonces_are_kept(scripted: &Scripted, known: &mut BTreeMap<u64, [u8; 12]>) -> Result<()> {
    let leases = scripted.server.leases();
    let mut now = BTreeMap::new();
    for row in rows(&scripted.iwfd)? {
        let generation = row["generation"].as_u64().context("a generation")?;
        let nat1 = endpoint(&row, "nat1")?.port();
        let lease = leases.iter().find(|lease| lease.internal_port == nat1);
        let lease = lease.with_context(|| format!("the server does not hold {row}"))?;
        if let Some(before) = known.get(&generation) {
            ensure!(*before == lease.nonce, "another nonce: {row}");
        }
        now.insert(generation, lease.nonce);
    }
    *known = now;
    Ok(())
}

/// The server loses everything: what it had is asked for again with the nonces it knew.
fn every_nonce_comes_again(scripted: &Scripted) -> Result<()> {
    let key = |map: &Map| (map.protocol, map.internal_port);
    let mapped: Vec<u16> = rows(&scripted.iwfd)?
        .iter()
        .map(|row| endpoint(row, "nat1").map(|nat1| nat1.port()))
        .collect::<Result<_>>()?;
    let leases: Vec<Map> = scripted.server.leases();
    scripted.server.lose_state();
    scripted.server.announce(&scripted.lab)?;
    wait::until_ok("every lease to be asked for again", RECOVERED, || {
        let now = scripted.server.leases();
        for lease in leases
            .iter()
            .filter(|lease| mapped.contains(&lease.internal_port))
        {
            let again = now.iter().find(|map| key(map) == key(lease));
            let again = again.with_context(|| format!("not yet: {lease:?}"))?;
            ensure!(again.nonce == lease.nonce, "{again:?} instead of {lease:?}");
        }
        Ok(())
    })
}
