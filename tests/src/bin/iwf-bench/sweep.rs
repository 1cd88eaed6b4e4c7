//! Forwarding while the tables are worked on: the daemon's own sweep over a million sessions, and mappings that come
//! and go a thousand times a second.
//!
//! The generator sends as in the other scenarios. Beside it a thread does the daemon's work at the daemon's pace, and
//! looks at both ends' counters every ten milliseconds. Shown are the packets per second of the router's CPU time in the
//! median of these windows; the packets per second of the generator's CPU time in the worst, since the thread runs on
//! the generator's CPU and takes real time from it; and how long the slowest burst was under way.
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
use crate::bed::{Bed, EXTERNAL, Gauge, Mode, Reading, Room};
use crate::cpu::{self, Placement};
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

/// The packet rate is that of windows as long as this: of real time for what the router's CPU does, of the generator's
/// CPU time for what it sends.
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
    /// By the time that the generator had the CPU: it waits for the router there, and only there.
    sending: Vec<f64>,
    /// By the router's CPU time.
    core: Vec<f64>,
}

impl Rates {
    fn median(&self) -> f64 {
        median(&self.core).unwrap_or(0.0)
    }

    fn worst(&self) -> f64 {
        self.sending.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// What a piece of work said of itself.
struct Worked {
    rates: Rates,
    /// The longest that it held up whoever waits for the daemon.
    longest: Duration,
    /// The most CPU time that it took without a pause.
    busiest: Duration,
    /// From its beginning to its end.
    whole: Duration,
    /// Real time of one slice, and of the pause after it, in the mean.
    slice: (Duration, Duration),
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
        let before = bed.under_load(TRAFFIC, |_, gauge| idle(gauge, quiet))?;
        let during = bed.under_load(TRAFFIC, |plane, gauge| sweep(plane, gauge, left))?;
        rows.extend(compare("sweep", mode, HELD, &before, &during));
        let (micros, seconds) = ("us at most", "s");
        let worked = &during.1;
        let figures = [
            ("sweep-slice", worked.longest.as_micros() as f64, micros),
            ("sweep-slice-cpu", worked.busiest.as_micros() as f64, micros),
            ("sweep-pass", worked.whole.as_secs_f64(), seconds),
        ];
        for (scenario, value, unit) in figures {
            rows.push(figure(scenario, mode, HELD, value, unit, &during));
        }
        let (work, rest) = worked.slice;
        let bare = bed.under_load(TRAFFIC, |_, gauge| bare(gauge, quiet, work, rest))?;
        let median = bare.1.median();
        rows.push(Row {
            against: Some(format!("{mode}, no work")),
            ratio: Some(median / before.1.median()),
            valid: right(&bare.0) && right(&before.0),
            delivered: delivered(&bare.0),
            translated: translated(&bare.0),
            ..figure("sweep-bare", mode, HELD, median, "packets/s/core", &during)
        });
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
    let before = bed.under_load(CHURN, |_, gauge| idle(gauge, quiet))?;
    let during = bed.under_load(CHURN, |plane, gauge| come_and_go(plane, gauge, quiet))?;
    let mode = "iwf";
    let mut rows = compare("churn", mode, CHURN.flows, &before, &during);
    let longest = during.1.longest.as_micros() as f64;
    rows.push(figure(
        "churn-removal",
        mode,
        CHURN.flows,
        longest,
        "us at most",
        &during,
    ));
    Ok(rows)
}

/// Nothing but the traffic.
fn idle(gauge: &Gauge, quiet: Duration) -> Result<Rates> {
    let end = Instant::now() + quiet;
    watch(gauge, |now| Ok((now < end).then_some(end)))
}

/// Takes the CPU for as long and as often as a sweep does, and touches no table.
fn bare(gauge: &Gauge, quiet: Duration, work: Duration, rest: Duration) -> Result<Rates> {
    let end = Instant::now() + quiet;
    let mut due = Instant::now();
    watch(gauge, |now| {
        if now >= due {
            let over = now + work;
            while Instant::now() < over {
                std::hint::spin_loop();
            }
            due = Instant::now() + rest;
        }
        Ok((now < end).then_some(due))
    })
}

/// One pass, at the pace it wants.
fn sweep(plane: &mut KernelPlane, gauge: &Gauge, left: u32) -> Result<Worked> {
    let begun = Instant::now();
    let (mut longest, mut busiest) = (Duration::ZERO, Duration::ZERO);
    let mut sessions = None;
    let mut due = begun;
    let mut ended = begun;
    let (mut slices, mut busy) = (0, Duration::ZERO);
    let rates = watch(gauge, |now| {
        if sessions.is_some() {
            return Ok(None);
        }
        if now < due {
            return Ok(Some(due));
        }
        let cpu = cpu::own_time()?;
        let step = plane.sweep_slice().context("sweep")?;
        busiest = busiest.max(cpu::own_time()? - cpu);
        ended = Instant::now();
        longest = longest.max(ended - now);
        busy += ended - now;
        slices += 1;
        sessions = step.found.map(|found| found.sessions);
        due = ended + step.again;
        Ok(Some(due))
    })?;
    // A pass sees the sessions that come and go meanwhile as well, but the traffic makes none.
    let right = sessions == Some(left.into());
    if !right {
        eprintln!("sweep        {sessions:?} sessions left instead of {left}");
    }
    Ok(Worked {
        rates,
        longest,
        busiest,
        whole: ended - begun,
        slice: (
            busy / slices.max(1),
            (ended - begun).saturating_sub(busy) / slices.max(1),
        ),
        right,
    })
}

/// Makes and removes mappings, as the daemon's loop would: a slice of ending sessions whenever there is nothing else.
fn come_and_go(plane: &mut KernelPlane, gauge: &Gauge, quiet: Duration) -> Result<Worked> {
    let begun = Instant::now();
    let mut made = 0u32;
    let mut longest = Duration::ZERO;
    let mut waiting: std::collections::VecDeque<(Turn, Instant)> =
        std::collections::VecDeque::new();
    let mut settled = 0u32;
    let rates = watch(gauge, |now| {
        let due = begun + Duration::from_secs(1) * made / CHANGES;
        let over = now >= begun + quiet;
        if !over && now >= due {
            // One that the flows do not have: a mapping that is asked for would end theirs.
            let port = 1 + (made % 1000) as u16;
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
        busiest: Duration::ZERO,
        whole: begun.elapsed(),
        slice: (Duration::ZERO, Duration::ZERO),
        right: settled == made && f64::from(made) > 0.9 * wanted,
    })
}

/// Lets `work` go on until it says `None`, whenever the instant it says has come, and looks at both ends in between.
fn watch(gauge: &Gauge, mut work: impl FnMut(Instant) -> Result<Option<Instant>>) -> Result<Rates> {
    let mut rates = Rates::default();
    let mut windows = Windows::default();
    let mut looked = Instant::now();
    while let Some(due) = work(Instant::now())? {
        let now = Instant::now();
        let age = now - looked;
        if age >= WINDOW {
            looked = now;
            windows.add(&mut rates, gauge.read()?);
            continue;
        }
        let pause = due.saturating_duration_since(now).min(WINDOW - age);
        if !pause.is_zero() {
            // tidy: sleep: the pause that the daemon makes between two slices
            std::thread::sleep(pause);
        }
    }
    ensure!(
        !rates.core.is_empty() && !rates.sending.is_empty(),
        "it was over too soon to see a packet rate"
    );
    Ok(rates)
}

/// Makes windows of readings.
#[derive(Default)]
struct Windows {
    last: Option<Reading>,
    /// Where the window of sending began: within a call of the generator, after its first frames.
    from: Option<Reading>,
}

impl Windows {
    fn add(&mut self, rates: &mut Rates, now: Reading) {
        let Some(last) = self.last.replace(now) else {
            return;
        };
        let frames = (now.arrived - last.arrived) as f64;
        let cpu = now.router.saturating_sub(last.router);
        if !cpu.is_zero() {
            rates.core.push(frames / cpu.as_secs_f64());
        }
        // Making a call ready takes milliseconds, in which nothing is sent.
        if now.call.is_none() || now.call != last.call {
            self.from = None;
            return;
        }
        let Some(from) = self.from else {
            self.from = (now.sent > last.sent).then_some(now);
            return;
        };
        let sending = now.generator.saturating_sub(from.generator);
        if sending >= WINDOW {
            let frames = (now.arrived - from.arrived) as f64;
            rates.sending.push(frames / sending.as_secs_f64());
            self.from = Some(now);
        }
    }
}

/// Without and with work: the median and the worst window, and the slowest burst.
fn compare(
    scenario: &str,
    mode: &str,
    sessions: u32,
    (idle_counts, before): &(Counts, Rates),
    (counts, worked): &(Counts, Worked),
) -> Vec<Row> {
    let during = &worked.rates;
    let slowest = |counts: &Counts| counts.received.longest as f64 / 1e3;
    let told = |counts: &Counts, rates: &Rates| {
        format!(
            "{:.0} packets/s/core in the median of {} windows, {:.0} packets/s in the worst of {}; slowest burst {:.0} us, {} over 1 ms",
            rates.median(),
            rates.core.len(),
            rates.worst(),
            rates.sending.len(),
            slowest(counts),
            counts.received.late,
        )
    };
    eprintln!("{scenario:<12} {mode}: {}", told(counts, during));
    eprintln!("{:<12} without work: {}", "", told(idle_counts, before));
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
    let (rate, sending, micros) = ("packets/s/core", "packets/s", "us at most");
    let (lowest, usual) = (during.worst(), before.worst());
    let (slow, usually) = (slowest(counts), slowest(idle_counts));
    let median = during.median() / before.median();
    vec![
        row("", rate, &idle, before.median(), 1.0),
        row("", rate, mode, during.median(), median),
        row("-worst-window", sending, &idle, usual, 1.0),
        row("-worst-window", sending, mode, lowest, lowest / usual),
        row("-burst", micros, &idle, usually, 1.0),
        row("-burst", micros, mode, slow, usually / slow),
    ]
}

/// One figure of the work itself.
fn figure(
    scenario: &str,
    mode: &str,
    sessions: u32,
    value: f64,
    unit: &str,
    (counts, worked): &(Counts, Worked),
) -> Row {
    Row {
        scenario: scenario.into(),
        mode: mode.into(),
        sessions,
        packet_bytes: SMALL as u32,
        value,
        unit: unit.into(),
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

    fn reading(arrived: u64, router: u64, generator: u64, call: Option<u64>) -> Reading {
        Reading {
            sent: arrived,
            arrived,
            router: Duration::from_millis(router),
            generator: Duration::from_millis(generator),
            call,
        }
    }

    /// A window of sending is of one call, begins after its first frames, and is as long as the generator had the CPU.
    #[test]
    fn windows_leave_the_generators_pauses_out() {
        let mut windows = Windows::default();
        let mut rates = Rates::default();
        for seen in [
            reading(0, 0, 0, Some(1)),
            reading(0, 0, 10, Some(1)),
            reading(100, 10, 20, Some(1)),
            // Nobody sent for most of this one.
            reading(150, 15, 22, Some(1)),
            reading(300, 25, 32, Some(1)),
            reading(300, 25, 42, None),
            reading(300, 25, 52, Some(3)),
            reading(400, 35, 62, Some(3)),
            // The router stood still.
            reading(400, 35, 72, Some(3)),
        ] {
            windows.add(&mut rates, seen);
        }
        let per_second: Vec<_> = rates.sending.iter().map(|rate| rate.round()).collect();
        assert_eq!(per_second, [16_667.0, 0.0]);
        assert_eq!(rates.core.len(), 4);
        assert_eq!((rates.median(), rates.worst()), (10_000.0, 0.0));
    }
}
