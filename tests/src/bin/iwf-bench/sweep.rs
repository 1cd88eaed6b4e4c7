//! Forwarding while the tables are worked on: the daemon's own sweep over a million sessions, and mappings that come
//! and go a thousand times a second.
//!
//! The generator sends as in the other scenarios. Beside it a thread does the daemon's work at the daemon's pace, and
//! looks at the far end's counter every ten milliseconds. Shown are the packets per second of the router's CPU time in
//! the median of these windows, and the packets per second of real time in the worst. The thread runs on the
//! generator's CPU, so that what it needs is missing in real time.
#![expect(
    clippy::disallowed_methods,
    reason = "measures on the machine's own clock, and goes at the daemon's pace"
)]

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData};
use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::tick::ClockSample;
use iwf_common::{csum, limits, names};
use iwf_tests::bench::{LEAST_SHARE, Row, median};
use iwf_userspace::daemon::dataplane::kernel::KernelPlane;
use iwf_userspace::daemon::dataplane::{Change, DataPlane as _, Turn};
use iwf_userspace::types::{
    ExternalEndpoint, ExternalPort, Generation, InternalEndpoint, InternalPort, NatEntry, Protocol,
    RemotePeer,
};

use crate::abi::SMALL;
use crate::bed::{Bed, EXTERNAL, Gauge, Mode, Room};
use crate::cpu::Placement;
use crate::traffic::{Counts, Load};

/// Sessions held besides those of the traffic.
const HELD: u32 = 1 << 20;
/// Of how many flows the traffic is.
const TRAFFIC: Load = Load {
    flows: 1024,
    frame: SMALL,
};
/// While mappings come and go.
const CHURN: Load = Load {
    flows: 65_536,
    frame: SMALL,
};
/// Mappings that are made and removed in a second.
const CHANGES: u32 = 1000;

/// The packet rate is that of windows as long as this.
const WINDOW: Duration = Duration::from_millis(10);

const UDP: u8 = 17;
/// Who holds the sessions, by which external port.
const HOLDER: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 1, 250), 5000);
const HOLDER_PORT: u16 = 40_000;
/// Whose mappings come and go.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 251);

/// Packet rates of windows.
#[derive(Default)]
struct Rates {
    /// By real time.
    wall: Vec<f64>,
    /// By the router's CPU time.
    core: Vec<f64>,
}

impl Rates {
    fn median(&self) -> f64 {
        median(&self.core).unwrap_or(0.0)
    }

    fn worst(&self) -> f64 {
        self.wall.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// What a piece of work said of itself.
struct Worked {
    rates: Rates,
    /// The longest that it held up whoever waits for the daemon.
    longest: Duration,
    /// As it should be.
    right: bool,
}

/// Packet rates during a pass that ends nothing, during one that ends all, and without one; memory of a session.
///
/// # Errors
/// If something cannot be set up.
pub(crate) fn measure(placement: Placement, object: &Path, quiet: Duration) -> Result<Vec<Row>> {
    let mut bed = Bed::new(Mode::Iwf, Room::Held, placement, object).context("set up the sweep")?;
    bed.warm_up(TRAFFIC)?;
    let dir = bed.pins()?;
    let tables = Tables::open(&dir)?;
    let memory = tables.memory()?;
    let mut rows = vec![Row {
        scenario: "session-memory".into(),
        mode: "iwf".into(),
        sessions: Room::Held.sessions(),
        packet_bytes: 0,
        value: memory as f64 / f64::from(Room::Held.sessions()),
        unit: "octets/session".into(),
        against: None,
        ratio: None,
        delivered: 1.0,
        translated: 1.0,
        valid: true,
    }];
    bed.with_plane(|plane| {
        plane.write(&entry(HOLDER, HOLDER_PORT, 1)?)?;
        Ok(())
    })?;
    let idle_for = limits::UDP_IDLE + 100;
    for (mode, age, left) in [
        ("iwf, none over", 0, HELD + TRAFFIC.flows),
        ("iwf, all over", idle_for, TRAFFIC.flows),
    ] {
        let mut tables = Tables::open(&dir)?;
        tables.fill(age)?;
        let before = bed.under_load(TRAFFIC, |_, far| idle(far, quiet))?;
        let during = bed.under_load(TRAFFIC, |plane, far| sweep(plane, far, left))?;
        rows.extend(compare("sweep", mode, HELD, &before, &during));
        rows.push(longest("sweep-slice", mode, HELD, &during));
    }
    Ok(rows)
}

/// Packet rates while mappings come and go, and without.
///
/// # Errors
/// If something cannot be set up.
pub(crate) fn churn(placement: Placement, object: &Path, quiet: Duration) -> Result<Vec<Row>> {
    let mut bed =
        Bed::new(Mode::Iwf, Room::Ordinary, placement, object).context("set up the churn")?;
    bed.warm_up(CHURN)?;
    let before = bed.under_load(CHURN, |_, far| idle(far, quiet))?;
    let during = bed.under_load(CHURN, |plane, far| come_and_go(plane, far, quiet))?;
    let mode = "iwf";
    let mut rows = compare("churn", mode, CHURN.flows, &before, &during);
    rows.push(longest("churn-removal", mode, CHURN.flows, &during));
    Ok(rows)
}

/// Nothing but the traffic.
fn idle(far: &Gauge, quiet: Duration) -> Result<Rates> {
    let end = Instant::now() + quiet;
    watch(far, |now| Ok((now < end).then_some(end)))
}

/// One pass, at the pace it wants.
fn sweep(plane: &mut KernelPlane, far: &Gauge, left: u32) -> Result<Worked> {
    let mut longest = Duration::ZERO;
    let mut sessions = None;
    let mut due = Instant::now();
    let rates = watch(far, |now| {
        if now < due {
            return Ok(Some(due));
        }
        let step = plane.sweep_slice().context("sweep")?;
        let done = Instant::now();
        longest = longest.max(done - now);
        sessions = step.found.map(|found| found.sessions);
        due = done + step.again;
        Ok(sessions.is_none().then_some(due))
    })?;
    // A pass sees the sessions that come and go meanwhile as well, but the traffic makes none.
    let right = sessions == Some(left.into());
    if !right {
        eprintln!("sweep        {sessions:?} sessions left instead of {left}");
    }
    Ok(Worked {
        rates,
        longest,
        right,
    })
}

/// Makes and removes mappings, as the daemon's loop would: a slice of ending sessions whenever there is nothing else.
fn come_and_go(plane: &mut KernelPlane, far: &Gauge, quiet: Duration) -> Result<Worked> {
    let begun = Instant::now();
    let mut made = 0u32;
    let mut longest = Duration::ZERO;
    let mut waiting: std::collections::VecDeque<(Turn, Instant)> =
        std::collections::VecDeque::new();
    let mut settled = 0u32;
    let rates = watch(far, |now| {
        let due = begun + Duration::from_secs(1) * made / CHANGES;
        let over = now >= begun + quiet;
        if !over && now >= due {
            let port = 41_000 + (made % 1000) as u16;
            let entry = entry((CLIENT, port), port, 2 + made)?;
            plane.write(&entry).context("make a mapping")?;
            match plane.remove(&entry).context("remove a mapping")? {
                Change::Settled => settled += 1,
                Change::Settling(turn) => waiting.push_back((turn, now)),
            }
            made += 1;
            return Ok(Some(now));
        }
        if plane.is_settling() {
            let turn = plane.settle_slice().context("end sessions")?;
            while let Some((_, since)) = waiting.pop_front_if(|(waits, _)| *waits <= turn) {
                longest = longest.max(since.elapsed());
                settled += 1;
            }
            return Ok(Some(now));
        }
        Ok((!over).then_some(due))
    })?;
    // Most of what was wanted was done: else the machine is too slow for the figure.
    let wanted = quiet.as_secs_f64() * f64::from(CHANGES);
    Ok(Worked {
        rates,
        longest,
        right: settled == made && f64::from(made) > 0.9 * wanted,
    })
}

/// Lets `work` go on until it says `None`, whenever the instant it says has come, and looks at the far end in between.
fn watch(far: &Gauge, mut work: impl FnMut(Instant) -> Result<Option<Instant>>) -> Result<Rates> {
    let mut rates = Rates::default();
    let mut last = (Instant::now(), far.read()?);
    while let Some(due) = work(Instant::now())? {
        let now = Instant::now();
        let age = now - last.0;
        if age >= WINDOW {
            let read = far.read()?;
            let now = Instant::now();
            let (frames, cpu) = (read.0 - last.1.0, read.1.saturating_sub(last.1.1));
            rates
                .wall
                .push(frames as f64 / (now - last.0).as_secs_f64());
            if !cpu.is_zero() {
                rates.core.push(frames as f64 / cpu.as_secs_f64());
            }
            last = (now, read);
            continue;
        }
        let pause = due.saturating_duration_since(now).min(WINDOW - age);
        if !pause.is_zero() {
            // tidy: sleep: the pause that the daemon makes between two slices
            std::thread::sleep(pause);
        }
    }
    ensure!(
        !rates.core.is_empty(),
        "it was over too soon to see a packet rate"
    );
    Ok(rates)
}

/// Without and with work: the median and the worst window.
fn compare(
    scenario: &str,
    mode: &str,
    sessions: u32,
    (idle_counts, before): &(Counts, Rates),
    (counts, worked): &(Counts, Worked),
) -> Vec<Row> {
    let during = &worked.rates;
    eprintln!(
        "{scenario:<12} {mode}: {:.0} packets/s/core in the median of {} windows, {:.0} packets/s in the worst; without work {:.0}, {:.0}; right: {}",
        during.median(),
        during.wall.len(),
        during.worst(),
        before.median(),
        before.worst(),
        worked.right,
    );
    let idle = format!("{mode}, no work");
    let row = |what: &str, unit: &str, name: &str, value: f64, ratio: f64| Row {
        scenario: format!("{scenario}{what}"),
        mode: name.into(),
        sessions,
        packet_bytes: SMALL as u32,
        value,
        unit: unit.into(),
        against: Some(idle.clone()),
        ratio: ratio.is_finite().then_some(ratio),
        delivered: delivered(counts),
        translated: translated(counts),
        valid: worked.right && right(counts) && right(idle_counts),
    };
    let (rate, wall) = ("packets/s/core", "packets/s");
    let lowest = during.worst();
    vec![
        row("", rate, &idle, before.median(), 1.0),
        row(
            "",
            rate,
            mode,
            during.median(),
            during.median() / before.median(),
        ),
        row("-worst-window", wall, &idle, before.worst(), 1.0),
        row("-worst-window", wall, mode, lowest, lowest / before.worst()),
    ]
}

fn longest(scenario: &str, mode: &str, sessions: u32, (counts, worked): &(Counts, Worked)) -> Row {
    Row {
        scenario: scenario.into(),
        mode: mode.into(),
        sessions,
        packet_bytes: SMALL as u32,
        value: worked.longest.as_micros() as f64,
        unit: "us at most".into(),
        against: None,
        ratio: None,
        delivered: delivered(counts),
        translated: translated(counts),
        valid: worked.right && right(counts),
    }
}

fn delivered(counts: &Counts) -> f64 {
    counts.received.frames as f64 / (counts.sent.frames as f64).max(1.0)
}

fn translated(counts: &Counts) -> f64 {
    counts.received.good as f64 / (counts.sent.frames as f64).max(1.0)
}

fn right(counts: &Counts) -> bool {
    delivered(counts) > LEAST_SHARE && translated(counts) > LEAST_SHARE
}

fn entry(internal: (Ipv4Addr, u16), external: u16, generation: u32) -> Result<NatEntry> {
    Ok(NatEntry {
        protocol: Protocol::Udp,
        external: ExternalEndpoint {
            addr: EXTERNAL,
            port: ExternalPort::new(external).context("port 0")?,
        },
        internal: InternalEndpoint {
            addr: internal.0,
            port: InternalPort::new(internal.1).context("port 0")?,
        },
        remote: RemotePeer::Any,
        generation: Generation(generation),
        expires: None,
    })
}

/// The tables as they are pinned.
struct Tables {
    sessions: HashMap<MapData, SessionKey, SessionValue>,
    clock: Array<MapData, ClockSample>,
    config: Array<MapData, Config>,
}

impl Tables {
    fn open(dir: &Path) -> Result<Self> {
        let open = |name: &str| {
            let path = dir
                .join(format!("v{}", names::LAYOUT_VERSION))
                .join("maps")
                .join(name);
            MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))
        };
        Ok(Self {
            sessions: HashMap::try_from(Map::HashMap(open(names::SESSIONS)?))?,
            clock: array(open(names::CLOCK)?)?,
            config: array(open(names::CONFIG)?)?,
        })
    }

    /// Octets that the kernel says it has given to the sessions.
    fn memory(&self) -> Result<u64> {
        let fd = self.sessions.map().fd().as_fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))
            .context("read what the kernel says of a map")?;
        info.lines()
            .find_map(|line| line.strip_prefix("memlock:"))
            .and_then(|octets| octets.trim().parse().ok())
            .context("the kernel does not say how much memory a map has")
    }

    /// Writes the sessions that are held, as last used `age` seconds ago.
    fn fill(&mut self, age: u32) -> Result<()> {
        let hz = self.config.get(&0, 0)?.hz;
        let now = self.clock.get(&0, 0)?.jiffies as u32;
        let last_seen = now.wrapping_sub(age.saturating_mul(hz));
        for flow in 0..HELD {
            for (key, mut value) in held(flow) {
                value.last_seen = last_seen;
                self.sessions.insert(key, value, 0)?;
            }
        }
        Ok(())
    }
}

fn array<V: Pod>(data: MapData) -> Result<Array<MapData, V>> {
    Ok(Array::try_from(Map::Array(data))?)
}

/// Both entries of a session that somebody outside has begun.
fn held(flow: u32) -> [(SessionKey, SessionValue); 2] {
    let [_, b, c, d] = flow.to_be_bytes();
    let remote = ([12, b, c, d], 9u16.to_be_bytes());
    let inner = (HOLDER.0.octets(), HOLDER.1.to_be_bytes());
    let outer = (EXTERNAL.octets(), HOLDER_PORT.to_be_bytes());
    let flags = SessionFlags::EXPLICIT | SessionFlags::INVITED;
    let value = |from: ([u8; 4], [u8; 2]),
                 to: ([u8; 4], [u8; 2]),
                 old: ([u8; 4], [u8; 2]),
                 new: ([u8; 4], [u8; 2])| {
        let l3_delta = csum::delta32(old.0, new.0);
        SessionValue {
            src: from.0,
            src_port: from.1,
            dst: to.0,
            dst_port: to.1,
            l3_delta,
            l4_delta: csum::add(l3_delta, csum::delta16(old.1, new.1)),
            packets: 1,
            flags,
            ..SessionValue::default()
        }
    };
    let out = value(outer, remote, inner, outer);
    let mut back = value(remote, inner, outer, inner);
    back.flags |= SessionFlags::INBOUND;
    [
        (
            SessionKey::new(inner.0, inner.1, remote.0, remote.1, UDP),
            out,
        ),
        (
            SessionKey::new(remote.0, remote.1, outer.0, outer.1, UDP),
            back,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_sessions_are_pairs_of_one_mapping() {
        for flow in [0, 1, HELD - 1] {
            let [(key, out), (reverse, back)] = held(flow);
            assert_eq!(out.reverse_key(UDP), reverse);
            assert_eq!(back.reverse_key(UDP), key);
            assert_eq!(out.endpoints(&key), back.endpoints(&reverse));
        }
        assert_ne!(held(1)[0].0, held(2)[0].0);
    }

    #[test]
    fn rates() {
        let rates = Rates {
            wall: vec![3.0, 1.0, 2.0],
            core: vec![30.0, 10.0, 20.0],
        };
        assert_eq!((rates.median(), rates.worst()), (20.0, 1.0));
    }
}
