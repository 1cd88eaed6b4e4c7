//! What control points get: how long AddPortMapping takes with few mappings and with many, how many additions a second
//! there can be, and whether the daemon's memory stays what it is. With the daemon as it is built for release, over real
//! connections from hosts of the LAN.

mod client;
mod load;
mod memory;
mod router;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_tests::bench::{Row, median};

use client::{Manner, Wish};
use load::{OneByOne, Times};
use memory::Memory;
use router::{Kind, Medium, Router, Upstream};

/// Mappings that are there already.
const FEW: u16 = 10;
const MANY: u16 = 10_000;
/// Additions in a second that are offered.
const OFFERED: u32 = 1000;
/// Looks at the memory, evenly spread over the requests.
const LOOKS: u64 = 10;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Rounds.
    pub(crate) rounds: u32,
    /// Additions one by one, for each number of mappings and each manner, in a round.
    pub(crate) additions: u16,
    /// How long additions are offered at a given rate.
    pub(crate) span: Duration,
    /// Additions as fast as it goes.
    pub(crate) flood: u16,
    /// Requests over which the memory is looked at.
    pub(crate) requests: u64,
}

impl Extent {
    /// Of a run that only shows that everything works.
    pub(crate) const fn quick(rounds: u32) -> Self {
        Self {
            rounds,
            additions: 100,
            span: Duration::from_secs(5),
            flood: 1000,
            requests: 40_000,
        }
    }

    /// Of one for the figures.
    pub(crate) const fn full(rounds: u32) -> Self {
        Self {
            rounds,
            additions: 500,
            span: Duration::from_secs(60),
            flood: 5000,
            requests: 1_000_000,
        }
    }
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// A PCP server, the store in memory.
    PcpMemory,
    /// A PCP server, the store on disk.
    PcpDisk,
    /// Nobody to ask, the store in memory.
    LocalMemory,
    /// Nobody to ask, the store on disk.
    LocalDisk,
    /// Memory of the daemon, with a PCP server.
    Resident,
}

impl What {
    const ALL: [Self; 5] = [
        Self::PcpMemory,
        Self::PcpDisk,
        Self::LocalMemory,
        Self::LocalDisk,
        Self::Resident,
    ];

    const fn kind(self) -> Kind {
        let (upstream, medium) = match self {
            Self::PcpMemory | Self::Resident => (Upstream::Pcp, Medium::Memory),
            Self::PcpDisk => (Upstream::Pcp, Medium::Disk),
            Self::LocalMemory => (Upstream::Local, Medium::Memory),
            Self::LocalDisk => (Upstream::Local, Medium::Disk),
        };
        Kind { upstream, medium }
    }
}

/// Rows of all that is wanted; without any wish, of everything. What cannot be set up, or where an answer or a packet was
/// not what it should be, is void.
pub(crate) fn measure(wanted: &[What], extent: Extent) -> Vec<Row> {
    let mut rows = Vec::new();
    for what in What::ALL {
        if !wanted.is_empty() && !wanted.contains(&what) {
            continue;
        }
        let kind = what.kind();
        let (scenario, measured) = match what {
            What::Resident => ("soap-memory", resident(kind, extent.requests)),
            What::PcpMemory | What::PcpDisk | What::LocalMemory | What::LocalDisk => {
                ("soap-add-p99", additions(kind, extent))
            }
        };
        // The others are measured all the same.
        rows.extend(measured.unwrap_or_else(|error| {
            eprintln!("{kind} is VOID: {error:#}");
            let name = Name(kind, Manner::KeepAlive);
            vec![Row {
                delivered: 0.0,
                translated: 0.0,
                valid: false,
                ..row(scenario, name, 0, 0.0, "-")
            }]
        }));
    }
    rows
}

/// A figure of the times of a round.
type Figure = (&'static str, f64);
const FIGURES: [Figure; 3] = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)];

/// Additions to few mappings and to many.
fn additions(kind: Kind, extent: Extent) -> Result<Vec<Row>> {
    let routers = [FEW, MANY].map(|count| -> Result<_> {
        let router = Router::new(kind)?;
        let staying = router::staying(count);
        load::flood(&router, &staying).context("add the mappings that stay")?;
        router.verify(&staying)?;
        router.forget();
        Ok((router, staying))
    });
    let routers = routers.into_iter().collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for manner in Manner::ALL {
        let mut rounds: Vec<[OneByOne; 2]> = Vec::new();
        for _ in 0..extent.rounds {
            let mut round = [OneByOne::default(), OneByOne::default()];
            for ((router, staying), times) in routers.iter().zip(&mut round) {
                let commits = router.counter("store_commits")?;
                *times = load::one_by_one(router, manner, extent.additions)?;
                router.forget();
                let commits = router.counter("store_commits")? - commits;
                let name = Name(kind, manner);
                let count = staying.len();
                eprintln!(
                    "soap-add     {name} {count:>6} mappings  {}; the address {}; {:.2} commits for an addition and a deletion",
                    Summary(&times.add),
                    Summary(&times.address),
                    commits as f64 / f64::from(extent.additions),
                );
            }
            rounds.push(round);
        }
        for (scenario, of) in [
            ("soap-add", (|one| &one.add) as fn(&OneByOne) -> &Times),
            ("soap-address", |one| &one.address),
        ] {
            for (figure, share) in FIGURES {
                let scenario = format!("{scenario}-{figure}");
                rows.extend(pair(&scenario, Name(kind, manner), &rounds, |one| {
                    of(one).within(share)
                }));
            }
        }
    }
    for (router, staying) in &routers {
        rows.extend(rates(router, staying, extent)?);
        router.verify(staying)?;
    }
    Ok(rows)
}

/// The rate that is to be had, and what it costs.
fn rates(router: &Router, staying: &[Wish], extent: Extent) -> Result<Vec<Row>> {
    let commits = router.counter("store_commits")?;
    let kept = load::sustained(router, OFFERED, extent.span)
        .with_context(|| format!("{OFFERED} additions a second\n{}", router.refusals()))?;
    router.forget();
    let commits = router.counter("store_commits")? - commits;
    let (name, count) = (Name(router.kind, Manner::KeepAlive), staying.len());
    eprintln!(
        "soap-rate    {name} {count:>6} mappings  {:.0} additions/s of {OFFERED}, {}; {:.2} commits for an addition and a \
         deletion",
        kept.achieved,
        Summary(&kept.times),
        commits as f64 / kept.times.len() as f64,
    );
    let wishes = flood_of(extent.flood);
    let most = load::flood(router, &wishes).context("as many additions as can be")?;
    let all: Vec<Wish> = staying.iter().chain(&wishes).copied().collect();
    router.verify(&all)?;
    load::delete(router, &wishes)?;
    router.forget();
    eprintln!(
        "soap-flood   {name} {count:>6} mappings  {:.0} additions/s, {}",
        most.achieved,
        Summary(&most.times),
    );
    let row = |scenario: &str, value: f64, unit: &str| row(scenario, name, count, value, unit);
    let mut rows = vec![row("soap-rate", kept.achieved, "additions/s")];
    for (figure, share) in FIGURES {
        let scenario = format!("soap-rate-{figure}");
        rows.push(row(&scenario, kept.times.within(share), "ms"));
    }
    rows.push(row("soap-flood", most.achieved, "additions/s"));
    Ok(rows)
}

fn flood_of(count: u16) -> Vec<Wish> {
    let hosts: Vec<_> = router::addresses(0).chain(router::addresses(1)).collect();
    let ports = load::FIRST..load::FIRST + count;
    ports
        .zip(hosts.into_iter().cycle())
        .map(|(port, host)| Wish { host, port })
        .collect()
}

/// The daemon's memory, after so many requests each.
fn resident(kind: Kind, requests: u64) -> Result<Vec<Row>> {
    let router = Router::new(kind)?;
    let staying = router::staying(FEW);
    load::flood(&router, &staying)?;
    let mut looks = vec![Memory::of(router.pid())?];
    for look in 0..=LOOKS {
        if look > 0 {
            memory::mixed(&router, requests / LOOKS)?;
            router.forget();
            looks.push(Memory::of(router.pid())?);
        }
        if let Some(Memory {
            resident,
            anonymous,
        }) = looks.last()
        {
            let done = requests / LOOKS * look;
            eprintln!(
                "soap-memory  {kind} {done:>8} requests  {resident} KiB, {anonymous} of them no file's"
            );
        }
    }
    router.verify(&staying)?;
    let name = Name(kind, Manner::KeepAlive);
    let rows = looks.iter().enumerate().map(|(look, memory)| {
        let done = usize::try_from(requests / LOOKS).unwrap_or(usize::MAX) * look;
        let mut row = row("soap-memory", name, done, memory.resident as f64, "KiB");
        // What comes into being with the first requests is no growth.
        if let Some(first) = looks.get(1).filter(|_| look > 1) {
            row.against = Some(format!("{} requests", requests / LOOKS));
            row.ratio = Some(first.resident as f64 / memory.resident as f64);
        }
        row
    });
    Ok(rows.collect())
}

/// Two rows: of few mappings and of many, which is compared with the first.
fn pair(
    scenario: &str,
    name: Name,
    rounds: &[[OneByOne; 2]],
    figure: impl Fn(&OneByOne) -> f64,
) -> Vec<Row> {
    let all = [0, 1].map(|at| -> Vec<f64> {
        rounds
            .iter()
            .filter_map(|round| round.get(at))
            .map(&figure)
            .collect()
    });
    let ratios: Vec<f64> = all[0]
        .iter()
        .zip(&all[1])
        .map(|(few, many)| few / many)
        .collect();
    [FEW, MANY]
        .into_iter()
        .zip(&all)
        .map(|(count, values)| {
            let value = median(values).unwrap_or(f64::NAN);
            let mut row = row(scenario, name, usize::from(count), value, "ms");
            if count != FEW {
                row.against = Some(format!("{FEW} mappings"));
                row.ratio = median(&ratios);
            }
            row
        })
        .collect()
}

/// Every answer was looked at, and whatever was not as it should be has ended the run.
fn row(scenario: &str, name: Name, count: usize, value: f64, unit: &str) -> Row {
    Row {
        scenario: scenario.into(),
        mode: name.to_string(),
        sessions: u32::try_from(count).unwrap_or(u32::MAX),
        packet_bytes: 0,
        value,
        unit: unit.into(),
        against: None,
        ratio: None,
        delivered: 1.0,
        translated: 1.0,
        valid: value.is_finite(),
    }
}

/// What is measured, and how it is called.
#[derive(Clone, Copy, Debug)]
struct Name(Kind, Manner);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(kind, manner) = self;
        match manner {
            Manner::KeepAlive => write!(f, "{kind}"),
            Manner::Close => write!(f, "{kind}-close"),
        }
    }
}

/// Some times in one line.
struct Summary<'a>(&'a Times);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = FIGURES.map(|(_, share)| self.0.within(share));
        write!(f, "p50 {p50:.2} p99 {p99:.2} max {max:.2} ms")
    }
}
