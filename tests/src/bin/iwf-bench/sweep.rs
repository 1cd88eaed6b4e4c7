//! Forwarding while the tables are worked on: the daemon's own sweep over a million sessions, and mappings that come
//! and go a thousand times a second.
//!
//! The generator sends as in the other scenarios. Beside it a thread does the daemon's work at the daemon's pace, in
//! turns with doing nothing, and looks at both ends' counters every ten milliseconds. Shown are the packets per second of
//! the router's CPU time in the median of these windows; the packets per second of the generator's CPU time in the
//! worst, since the thread runs on the generator's CPU and takes real time from it; and how long the slowest burst was
//! under way.
#![expect(
    clippy::disallowed_methods,
    reason = "measures on the machine's own clock, and goes at the daemon's pace"
)]

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData};
use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::tick::ClockSample;
use iwf_common::{csum, limits, names};
use iwf_tests::bench::{LEAST_SHARE, Row};
use iwf_userspace::daemon::dataplane::kernel::KernelPlane;
use iwf_userspace::daemon::dataplane::{Change, DataPlane as _, Turn};
use iwf_userspace::types::{
    ExternalEndpoint, ExternalPort, Generation, InternalEndpoint, InternalPort, NatEntry, Protocol,
    RemotePeer,
};

use crate::abi::SMALL;
use crate::bed::{Bed, EXTERNAL, Gauge, Mode, Room};
use crate::cpu::{self, Placement};
use crate::traffic::{Counts, Load};
use crate::windows::{AllRates, Beside, Rates, Turns, watch};

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

const UDP: u8 = 17;
/// Who holds the sessions, by which external port.
const HOLDER: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 1, 250), 5000);
const HOLDER_PORT: u16 = 40_000;
/// Whose mappings come and go.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 251);

/// What a piece of work said of itself.
struct Worked {
    rates: AllRates,
    /// The longest that it held up whoever waits for the daemon.
    longest: Duration,
    /// The most CPU time that it took without a pause.
    busiest: Duration,
    /// As long as it would have taken without others' turns.
    whole: Duration,
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
        rows.extend(compare("sweep", mode, HELD, &before.0, &during));
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
    let mut rows = compare("churn", mode, CHURN.flows, &before.0, &during);
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
fn idle(gauge: &Gauge, quiet: Duration) -> Result<()> {
    let end = Instant::now() + quiet;
    watch(gauge, &[Beside::Nothing], |now| {
        Ok((now < end).then_some((Beside::Nothing, end)))
    })
    .map(drop)
}

/// One pass at the pace it wants, in its turns; in others the same pauses without a look at the tables, or nothing.
fn sweep(plane: &mut KernelPlane, gauge: &Gauge, left: u32) -> Result<Worked> {
    let (mut longest, mut busiest) = (Duration::ZERO, Duration::ZERO);
    let mut sessions = None;
    let (mut work_due, mut pause_due) = (Instant::now(), Instant::now());
    let (mut slices, mut busy, mut pauses) = (0u32, Duration::ZERO, Duration::ZERO);
    let turns = Turns::new(&[Beside::Work, Beside::Pauses, Beside::Nothing]);
    let rates = watch(gauge, turns.order(), |now| {
        if sessions.is_some() {
            return Ok(None);
        }
        let (beside, _, until) = turns.at(now);
        Ok(Some(match beside {
            Beside::Nothing => (beside, until),
            Beside::Work if now < work_due => (beside, work_due.min(until)),
            Beside::Work => {
                let cpu = cpu::own_time()?;
                let step = plane.sweep_slice().context("sweep")?;
                busiest = busiest.max(cpu::own_time()? - cpu);
                let ended = Instant::now();
                longest = longest.max(ended - now);
                busy += ended - now;
                pauses += step.again;
                slices += 1;
                sessions = step.found.map(|found| found.sessions);
                work_due = ended + step.again;
                (beside, work_due.min(until))
            }
            Beside::Pauses if now < pause_due => (beside, pause_due.min(until)),
            Beside::Pauses => {
                let over = now + busy / slices.max(1);
                while Instant::now() < over {
                    std::hint::spin_loop();
                }
                pause_due = Instant::now() + pauses / slices.max(1);
                (beside, pause_due.min(until))
            }
        }))
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
        whole: busy + pauses,
        right,
    })
}

/// Makes and removes mappings in its turns, as the daemon's loop would: a slice of ending sessions whenever there is
/// nothing else.
fn come_and_go(plane: &mut KernelPlane, gauge: &Gauge, quiet: Duration) -> Result<Worked> {
    let begun = Instant::now();
    // Two turns, one of them with work.
    let end = begun + 2 * quiet;
    let mut made = 0u32;
    let mut made_before = 0u32;
    let mut since = begun;
    let mut longest = Duration::ZERO;
    let mut waiting: std::collections::VecDeque<(Turn, Instant)> =
        std::collections::VecDeque::new();
    let mut settled = 0u32;
    let turns = Turns::new(&[Beside::Work, Beside::Nothing]);
    let rates = watch(gauge, turns.order(), |now| {
        let (beside, from, until) = turns.at(now);
        if from != since {
            (since, made_before) = (from, made);
        }
        let due = since + Duration::from_secs(1) * (made - made_before) / CHANGES;
        let (over, ours) = (now >= end, beside == Beside::Work);
        if ours && !over && now >= due {
            // One that the flows do not have: a mapping that is asked for would end theirs.
            let port = 1 + (made % 1000) as u16;
            let entry = entry((CLIENT, port), port, 2 + made)?;
            plane.write(&entry).context("make a mapping")?;
            match plane.remove(&entry).context("remove a mapping")? {
                Change::Settled => settled += 1,
                Change::Settling(turn) => waiting.push_back((turn, now)),
            }
            made += 1;
            return Ok(Some((Beside::Work, now)));
        }
        if plane.is_settling() {
            let turn = plane.settle_slice().context("end sessions")?;
            while let Some((_, since)) = waiting.pop_front_if(|(waits, _)| *waits <= turn) {
                longest = longest.max(since.elapsed());
                settled += 1;
            }
            return Ok(Some((Beside::Work, now)));
        }
        Ok((!over).then_some((beside, if ours { due.min(until) } else { until })))
    })?;
    // Most of what was wanted was done: else the machine is too slow for the figure.
    let wanted = quiet.as_secs_f64() * f64::from(CHANGES);
    Ok(Worked {
        rates,
        longest,
        busiest: Duration::ZERO,
        whole: begun.elapsed(),
        right: settled == made && f64::from(made) > 0.9 * wanted,
    })
}

/// Without and with work: the median and the worst window, and the slowest burst, of which the first is of a run in
/// which nothing was done at all.
fn compare(
    scenario: &str,
    mode: &str,
    sessions: u32,
    idle: &Counts,
    (counts, worked): &(Counts, Worked),
) -> Vec<Row> {
    let AllRates {
        nothing,
        work,
        pauses,
    } = &worked.rates;
    let slowest = |counts: &Counts| counts.received.longest as f64 / 1e3;
    for (what, rates) in [("work", work), ("pauses", pauses), ("nothing", nothing)] {
        eprintln!(
            "{scenario:<12} {mode}, {what}: {:.0} packets/s/core in the median of {} windows, {:.0} packets/s in the worst of {}",
            rates.median(),
            rates.core.len(),
            rates.worst(),
            rates.sending.len(),
        );
    }
    for (what, counts) in [("with", counts), ("without", idle)] {
        eprintln!(
            "{:<12} {what} work: slowest burst {:.0} us, {} over 1 ms",
            "",
            slowest(counts),
            counts.received.late,
        );
    }
    let without = format!("{mode}, no work");
    let alone = format!("{mode}, pauses alone");
    let row = |what: &str, unit: &str, name: &str, value: f64, ratio: f64| Row {
        scenario: format!("{scenario}{what}"),
        mode: name.into(),
        sessions,
        packet_bytes: SMALL as u32,
        value,
        unit: unit.into(),
        against: Some(without.clone()),
        ratio: ratio.is_finite().then_some(ratio),
        delivered: delivered(counts),
        translated: translated(counts),
        valid: worked.right && right(counts) && right(idle),
    };
    let (rate, sending, micros) = ("packets/s/core", "packets/s", "us at most");
    // Whoever works takes the CPU from the generator, which is not the work's doing: it is compared with as many pauses
    // where there was a turn of them.
    let (peer, peers) = if pauses.core.is_empty() {
        (&without, nothing)
    } else {
        (&alone, pauses)
    };
    let median = |rates: &Rates, name: &str, peer: &str, peers: &Rates| Row {
        against: Some(peer.into()),
        ..row(
            "",
            rate,
            name,
            rates.median(),
            rates.median() / peers.median(),
        )
    };
    let (lowest, usual) = (work.worst(), nothing.worst());
    let (slow, usually) = (slowest(counts), slowest(idle));
    let mut rows = vec![
        median(nothing, &without, &without, nothing),
        median(work, mode, peer, peers),
        row("-worst-window", sending, &without, usual, 1.0),
        row("-worst-window", sending, mode, lowest, lowest / usual),
        row("-burst", micros, &without, usually, 1.0),
        row("-burst", micros, mode, slow, usually / slow),
    ];
    if !pauses.core.is_empty() {
        rows.insert(1, median(pauses, &alone, &without, nothing));
    }
    rows
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
}
