//! The data plane on the real maps.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::TestRun as _;
use aya::programs::raw_trace_point::RawTracePoint;
use iwf_common::config::{Config, FdbKey};
use iwf_common::event::{Event, EventKind};
use iwf_common::nat::{EndpointKey, FilterList, MappingValue};
use iwf_common::reason;
use iwf_common::tick::ClockSample;

use tracing::warn;

use super::attach::{Attachment, Mode};
use super::batch::Cursor;
use super::clock::{self, Clock, low};
use super::drop_log::DropLog;
use super::events;
use super::fragments::FragmentTables;
use super::inspect::{Inspector, TableRow};
use super::maps::{self, Maps, Sizes, refused, to_io};
use super::object::OBJECT;
use super::pair::{self, Expect, Side, Tables};
use super::pins::{self, PinSet};
pub use super::programs::Origin;
use super::programs::{self, Opened, Programs, Tools};
use super::refusals::RefusalTables;
use super::softwire::SoftwireCounters;
use super::sweep::{self, Judge, Progress, Sweeper, Totals};
use super::{
    Change, DataPlane, DataPlaneError, Found, Pinhole, PlaneConfig, PlaneEvent, SweepStep, Turn,
};
use crate::daemon::config::{
    AttachMode, Config as Configuration, EphemeralPorts, Ipv6, MssClamp, Timeouts,
};
use crate::reconcile::run::Seen;
use crate::types::NatEntry;
use configure::Applied;
use inspect::KernelInspector;

mod configure;
mod inspect;
mod ipv6;

/// What the configuration file says about the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory for pinned objects; a bpf file system is mounted there if it is not on one.
    pub bpffs_dir: PathBuf,
    /// How XDP is attached.
    pub attach: AttachMode,
    /// How the tc programs are attached.
    pub tc: TcMode,
    /// Whether LAN hosts get ports of this machine's own ephemeral range.
    pub ephemeral_ports: EphemeralPorts,
    /// Largest TCP segment that is let pass in a SYN.
    pub mss_clamp: MssClamp,
    /// Sessions, both directions of a flow counting once.
    pub sessions: u32,
    /// IPv6 sessions, counted in the same way.
    pub sessions6: u32,
    /// What the IPv6 filter lets in.
    pub ipv6: Ipv6,
    /// Explicit and dynamic mappings together.
    pub mappings: u32,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Whether the programs log each packet they drop, at DEBUG.
    pub log_drops: bool,
}

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMode {
    /// By a tcx link where the kernel has them (6.6), else by a filter.
    Auto,
    /// By a filter of a clsact qdisc.
    Filter,
}

impl From<&Configuration> for Settings {
    fn from(config: &Configuration) -> Self {
        Self {
            bpffs_dir: config.paths.bpffs_dir.clone(),
            attach: config.attach,
            tc: TcMode::Auto,
            ephemeral_ports: config.ephemeral_ports,
            mss_clamp: config.mss_clamp,
            sessions: config.limits.sessions,
            sessions6: config.limits.sessions6,
            ipv6: config.ipv6,
            mappings: config.limits.mappings,
            timeouts: config.timeouts,
            log_drops: config.log_drops,
        }
    }
}

/// Programs and maps in the kernel. Dropping it leaves them pinned and running.
pub struct KernelPlane {
    attach: (AttachMode, TcMode),
    pins: PinSet,
    links: PathBuf,
    mss_clamp: MssClamp,
    tables: KernelTables,
    programs: Programs,
    clock: Clock,
    origin: Origin,
    drop_log: Option<DropLog>,
    attached: BTreeSet<Attachment>,
    /// What BRIDGE_FDB holds.
    stations: BTreeMap<FdbKey, u32>,
    /// The part of it that an earlier daemon knew and nobody has told this one.
    adopted_stations: BTreeMap<FdbKey, u32>,
    /// What was applied last, as far as it was.
    applied: Applied,
    /// How far [`DataPlane::observe_slice`] is.
    observed: pair::Walk,
}

/// The maps, and the programs that work on them.
struct KernelTables {
    maps: Maps,
    tools: Tools,
    /// Internal and external endpoint of mappings that the daemon has displaced and not told of yet.
    displaced: Vec<(EndpointKey, EndpointKey)>,
}

impl KernelPlane {
    /// Loads the programs of this build, or adopts those an earlier daemon left. Nothing is attached yet:
    /// [`DataPlane::configure`] does that; what was attached before stays so.
    ///
    /// # Errors
    /// No privilege, no bpf file system, or the kernel refused the programs.
    pub fn open(settings: &Settings) -> Result<Self> {
        Self::open_object(settings, OBJECT)
    }

    /// As [`Self::open`] with an object of another build.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_object(settings: &Settings, object: &[u8]) -> Result<Self> {
        pins::ensure_bpffs(&settings.bpffs_dir)?;
        let sizes = Sizes {
            session_entries: settings.sessions.saturating_mul(2),
            session6_entries: settings.sessions6.saturating_mul(2),
            mappings: settings.mappings,
        };
        let Opened {
            mut maps,
            programs,
            tools,
            origin,
        } = programs::open(&settings.bpffs_dir, object, &sizes, settings.log_drops)?;
        let clock = tie_clock(&mut maps, &tools)?;
        let held = maps.config.get(&0, 0).context("read the kernel's CONFIG")?;
        // Zeroes in a new map are no configuration.
        let mut config = if held.hz == clock.hz() {
            held
        } else {
            Config::empty(clock.hz())
        };
        (config.ports.hole_min, config.ports.hole_max) = hole(settings.ephemeral_ports);
        (config.filter6, config.flags) = ipv6::flags(&settings.ipv6, config.flags);
        config.idle = maps::idle_times(&settings.timeouts, clock.hz());
        config.room_sessions = settings.sessions;
        config.room_sessions6 = settings.sessions6;
        config.room_mappings = settings.mappings;
        // However large the tables are, no host has more than a quarter of them.
        config.host_sessions = settings.sessions.div_ceil(4);
        config.host_sessions6 = settings.sessions6.div_ceil(4);
        config.host_mappings = settings.mappings.div_ceil(4);
        if config != held {
            maps.config
                .set(0, config, 0)
                .context("write the kernel's CONFIG")?;
        }
        let drop_log = match settings.log_drops {
            true => Some(DropLog::open(&programs).context("follow the packet programs' log")?),
            false => None,
        };
        let stations = maps::contents(&maps.fdb).context("read the kernel's BRIDGE_FDB")?;
        Ok(Self {
            attach: (settings.attach, settings.tc),
            pins: PinSet::current(&settings.bpffs_dir),
            links: PinSet::current(&settings.bpffs_dir).links(),
            mss_clamp: settings.mss_clamp,
            tables: KernelTables {
                maps,
                tools,
                displaced: Vec::new(),
            },
            programs,
            clock,
            origin,
            drop_log,
            attached: BTreeSet::new(),
            adopted_stations: stations.clone(),
            stations,
            applied: Applied::default(),
            observed: pair::Walk::default(),
        })
    }

    /// Whether this daemon loaded the programs or found them.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Interfaces whose programs run in the network core instead of the driver, by index.
    pub fn generic_interfaces(&self) -> Vec<u32> {
        let generic = self.attached.iter().filter(|a| a.mode == Mode::Generic);
        generic.map(|a| a.ifindex).collect()
    }

    /// What is needed to hold fragments that come before the first one of their datagram.
    ///
    /// # Errors
    /// If the maps cannot be opened once more.
    pub(crate) fn fragments(&self) -> Result<FragmentTables> {
        maps::fragments(&self.pins, self.clock.hz(), self.clock.now())
    }

    /// What is needed to tell the senders of refused packets.
    ///
    /// # Errors
    /// As [`Self::fragments`].
    pub(crate) fn refusals(&self) -> Result<RefusalTables> {
        maps::refusals(&self.pins)
    }

    /// Where the daemon counts what it carries through the softwire itself.
    pub(crate) fn softwire_counters(&self) -> SoftwireCounters {
        SoftwireCounters::of(self.pins.clone())
    }

    /// A whole pass of the sweep, in one go: for tests and tools, because it waits between slices.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    pub fn sweep(&mut self) -> Result<u64, DataPlaneError> {
        loop {
            let step = self.sweep_slice()?;
            match step.found {
                Some(found) => return Ok(found.sessions),
                None => std::thread::sleep(step.again),
            }
        }
    }

    /// Waits until all sessions have ended that changes have ended.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    pub fn settle(&mut self) -> Result<(), DataPlaneError> {
        while self.is_settling() {
            self.settle_slice()?;
        }
        Ok(())
    }

    /// What came of a change since the search `before` was the newest.
    fn change_since(&self, before: Turn) -> Change {
        match self.tables.maps.sweeper.newest() {
            newest if newest == before => Change::Settled,
            newest => Change::Settling(newest),
        }
    }

    /// Clock of the moment: both clocks read by one program run.
    fn tick_clock(&mut self) -> Result<(), DataPlaneError> {
        let sample = read_clock(&mut self.tables.maps, &self.tables.tools)
            .map_err(refused("read the clock"))?;
        self.clock.update(sample);
        Ok(())
    }
}

impl DataPlane for KernelPlane {
    fn configure(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        self.tick_clock()?;
        self.follow(config)
    }

    fn write(&mut self, entry: &NatEntry) -> Result<Change, DataPlaneError> {
        let (external, internal) = (maps::external_key(entry), maps::internal_key(entry));
        if self.tables.maps.sweeper.ends(&external, &internal) {
            // Nobody asks for a mapping again before he has heard that it is gone; repairs may.
            self.settle()?;
        }
        self.tick_clock()?;
        let before = self.tables.maps.sweeper.newest();
        pair::write(&mut self.tables, entry, &self.clock)?;
        self.note_pair(entry);
        Ok(self.change_since(before))
    }

    fn remove(&mut self, entry: &NatEntry) -> Result<Change, DataPlaneError> {
        self.tick_clock()?;
        self.forget_pair();
        let before = self.tables.maps.sweeper.newest();
        pair::remove(&mut self.tables, entry, &self.clock)?;
        Ok(self.change_since(before))
    }

    fn is_settling(&self) -> bool {
        self.tables.maps.sweeper.is_settling()
    }

    fn settle_slice(&mut self) -> Result<Turn, DataPlaneError> {
        self.tick_clock()?;
        let now = self.clock.now();
        self.tables
            .with_judge(now, Sweeper::settle)
            .map_err(refused("end the sessions of a mapping"))
    }

    fn observe(&self) -> Result<Vec<NatEntry>, DataPlaneError> {
        pair::observe(&self.tables, &self.clock)
    }

    fn observe_anew(&mut self) {
        self.observed = pair::Walk::default();
    }

    fn observe_slice(&mut self) -> Result<Seen, DataPlaneError> {
        self.tick_clock()?;
        pair::observe_slice(&mut self.tables, &mut self.observed, &self.clock)
    }

    fn find(&self, like: &NatEntry) -> Result<Option<NatEntry>, DataPlaneError> {
        pair::find(&self.tables, like, &self.clock)
    }

    fn set_pinholes(&mut self, pinholes: &[Pinhole]) -> Result<(), DataPlaneError> {
        self.tick_clock()?;
        self.applied.pinholes = None;
        let host_ports = self.applied.host_ports.clone();
        self.follow_pinholes(pinholes, &host_ports)
    }

    fn observe_pinholes(&self) -> Result<Vec<Pinhole>, DataPlaneError> {
        ipv6::observe(&self.tables.maps, &self.clock).map_err(refused("list the pinholes"))
    }

    fn pinhole_packets(&self) -> Result<Vec<(u16, u64)>, DataPlaneError> {
        ipv6::packets(&self.tables.maps).map_err(refused("count the packets of pinholes"))
    }

    fn hosts(&self) -> Result<BTreeMap<Ipv4Addr, u64>, DataPlaneError> {
        let mut hosts = BTreeMap::new();
        for item in self.tables.maps.hosts.iter() {
            let (_, value) = item.map_err(to_io).map_err(refused("count the hosts"))?;
            if value.mappings > 0 && value.external != [0; 4] {
                *hosts.entry(Ipv4Addr::from(value.external)).or_insert(0) += 1;
            }
        }
        Ok(hosts)
    }

    fn counters(&self) -> Result<Vec<(&'static str, u64)>, DataPlaneError> {
        reason::all()
            .map(|(slot, name)| {
                let per_cpu = self.tables.maps.counters.get(&slot, 0).map_err(to_io)?;
                Ok((name, per_cpu.iter().sum()))
            })
            .collect::<io::Result<_>>()
            .map_err(refused("read the counters"))
    }

    fn sweep_slice(&mut self) -> Result<SweepStep, DataPlaneError> {
        self.tick_clock()?;
        let step = self
            .tables
            .sweep_slice(self.clock.now())
            .map_err(refused("sweep the tables"))?;
        if step.done.is_some()
            && let Some(log) = &mut self.drop_log
        {
            log.flush();
        }
        Ok(SweepStep {
            again: step.again,
            found: step.done.map(|totals| self.tables.found(&totals)),
        })
    }

    fn events(&mut self) -> Vec<PlaneEvent> {
        let mut told = events::take_all(&mut self.tables.maps.events);
        // Without a newer tick, what is younger than the last one is of now.
        if !told.is_empty()
            && let Err(error) = self.tick_clock()
        {
            warn!("the events' clock stands: {error}");
        }
        let now = self.clock.now();
        let displaced = self.tables.displaced.drain(..);
        told.extend(displaced.map(|(internal, external)| Event {
            kind: EventKind::MappingDisplaced as u32,
            tick: now,
            internal,
            external,
            ..Event::default()
        }));
        let tell = |event| events::told(event, now, self.clock.hz());
        told.iter().map(tell).collect()
    }

    fn inspector(&mut self) -> Result<Box<dyn Inspector>, DataPlaneError> {
        self.tick_clock()?;
        let config = self.tables.maps.config.get(&0, 0).map_err(to_io);
        let config = config.map_err(refused("read the configuration"))?;
        let inspector = KernelInspector::open(&self.pins, config, &self.clock);
        let failed = |error| io::Error::other(format!("{error:#}"));
        let inspector = inspector
            .map_err(failed)
            .map_err(refused("open the tables once more"))?;
        Ok(Box::new(inspector))
    }
}

impl KernelTables {
    fn found(&self, totals: &Totals) -> Found {
        let met = &totals.met;
        let room = self.maps.sweeper.capacities();
        let mappings = met.dynamic + met.explicit + met.router;
        let whole = |table, entries, room: u32| TableRow::new(table, entries, Some(room.into()));
        let part = |table, entries| TableRow::new(table, entries, None);
        Found {
            sessions: totals.sessions_left / 2,
            tables: vec![
                whole("sessions", met.sessions / 2, room.sessions / 2),
                whole("sessions6", met.sessions6 / 2, room.sessions6 / 2),
                whole("endpoints6", met.endpoints6, room.endpoints6),
                whole("mappings", mappings, room.mappings),
                part("mappings_dynamic", met.dynamic),
                part("mappings_explicit", met.explicit),
                part("mappings_router", met.router),
                whole("peers", met.peers, room.peers),
                whole("hosts", met.hosts, room.hosts),
            ],
        }
    }

    /// The external addresses are others.
    fn keep_ours(&mut self) -> io::Result<()> {
        let now = low(read_clock(&mut self.maps, &self.tools)?.jiffies);
        self.with_judge(now, Sweeper::keep_ours)
    }

    /// Pinholes have gone.
    fn follow_pinholes(&mut self) -> io::Result<()> {
        let now = low(read_clock(&mut self.maps, &self.tools)?.jiffies);
        self.with_judge(now, Sweeper::follow_pinholes)
    }

    fn sweep_slice(&mut self, now: u32) -> io::Result<Progress> {
        self.with_judge(now, Sweeper::step)
    }

    fn with_judge<T>(
        &mut self,
        now: u32,
        work: impl FnOnce(&mut Sweeper, &Judge<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let config = self.maps.config.get(&0, 0).map_err(to_io)?;
        let program = &self.tools.sweep;
        let judge = Judge {
            run: &|count| sweep::run_items(program, count),
            config: &config,
            now,
        };
        work(&mut self.maps.sweeper, &judge)
    }

    fn table(
        &self,
        side: Side,
    ) -> &aya::maps::HashMap<aya::maps::MapData, EndpointKey, MappingValue> {
        match side {
            Side::Ext => &self.maps.ext,
            Side::Int => &self.maps.int,
        }
    }

    fn table_mut(
        &mut self,
        side: Side,
    ) -> &mut aya::maps::HashMap<aya::maps::MapData, EndpointKey, MappingValue> {
        match side {
            Side::Ext => &mut self.maps.ext,
            Side::Int => &mut self.maps.int,
        }
    }
}

impl Tables for KernelTables {
    fn get(&self, side: Side, key: &EndpointKey) -> io::Result<Option<MappingValue>> {
        maps::lookup(self.table(side), key)
    }

    fn put(
        &mut self,
        side: Side,
        key: &EndpointKey,
        value: &MappingValue,
        expect: Expect,
    ) -> io::Result<()> {
        /// Flags of bpf(2) for an update.
        const BPF_ANY: u64 = 0;
        const BPF_NOEXIST: u64 = 1;
        let flags = match expect {
            Expect::Nothing => BPF_NOEXIST,
            Expect::Anything => BPF_ANY,
        };
        self.table_mut(side)
            .insert(key, value, flags)
            .map_err(to_io)
    }

    fn delete(&mut self, side: Side, key: &EndpointKey) -> io::Result<()> {
        maps::delete(self.table_mut(side), key)
    }

    fn end_sessions(&mut self, external: &EndpointKey, internal: &EndpointKey) {
        self.maps.sweeper.recheck(*external, Some(*internal));
    }

    fn recheck(&mut self, external: &EndpointKey) {
        self.maps.sweeper.recheck(*external, None);
    }

    fn displaced(&mut self, internal: EndpointKey, external: EndpointKey) {
        self.displaced.push((internal, external));
    }

    fn filter(&self, external: &EndpointKey) -> io::Result<Option<FilterList>> {
        maps::lookup(&self.maps.filters, external)
    }

    fn put_filter(&mut self, external: &EndpointKey, list: &FilterList) -> io::Result<()> {
        self.maps.filters.insert(external, list, 0).map_err(to_io)
    }

    fn delete_filter(&mut self, external: &EndpointKey) -> io::Result<()> {
        maps::delete(&mut self.maps.filters, external)
    }

    fn filters(&self) -> io::Result<BTreeMap<EndpointKey, FilterList>> {
        maps::contents(&self.maps.filters)
    }

    fn list(&self, side: Side) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        self.maps.sweeper.written_by_us(side)
    }

    fn read(
        &mut self,
        side: Side,
        cursor: &mut Cursor,
    ) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        self.maps.sweeper.read_written_by_us(side, cursor)
    }
}

/// First and last port that LAN hosts do not get; the first is above the last if they get all.
fn hole(ports: EphemeralPorts) -> (u16, u16) {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const NONE: (u16, u16) = (1, 0);
    if ports == EphemeralPorts::Share {
        return NONE;
    }
    let text = std::fs::read_to_string(RANGE).unwrap_or_default();
    let mut bounds = text.split_whitespace().map(str::parse);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first, last),
        _ => {
            warn!("{RANGE} cannot be read; LAN hosts get all ports");
            NONE
        }
    }
}

/// Finds out the tick rate, from CONFIG if it has been found before, and ties the clock.
fn tie_clock(maps: &mut Maps, tools: &Tools) -> Result<Clock> {
    const TRIES: u32 = 20;
    const APART: Duration = Duration::from_millis(100);
    let mut sample = read_clock(maps, tools).context("read the kernel's clock")?;
    let known = maps.config.get(&0, 0).context("read the kernel's CONFIG")?;
    if known.hz != 0 {
        return Ok(Clock::new(known.hz, sample));
    }
    for _ in 0..TRIES {
        std::thread::sleep(APART);
        let later = read_clock(maps, tools).context("read the kernel's clock")?;
        if let Some(hz) = clock::rate(sample, later) {
            return Ok(Clock::new(hz, later));
        }
        sample = later;
    }
    anyhow::bail!("the kernel's tick rate cannot be measured")
}

fn read_clock(maps: &mut Maps, tools: &Tools) -> io::Result<ClockSample> {
    run(&tools.clock)?;
    maps.clock.get(&0, 0).map_err(to_io)
}

/// Runs a program that is attached to nothing.
fn run(program: &RawTracePoint) -> io::Result<()> {
    let options = aya::programs::RawTracePointRunOptions::new();
    program
        .test_run(options)
        .map(|_| ())
        .map_err(io::Error::other)
}

/// Takes the directory of the pins for this process alone, until the value is dropped, and mounts a bpf file system
/// there if need be.
///
/// # Errors
/// No privilege, or another daemon works on it.
pub fn claim(bpffs_dir: &Path) -> Result<Claim> {
    pins::ensure_bpffs(bpffs_dir)?;
    Ok(Claim {
        _dir: pins::lock(bpffs_dir)?,
    })
}

/// Whether a daemon works on the directory of the pins, whatever its other paths are.
///
/// # Errors
/// The directory is there and cannot be opened.
pub fn is_claimed(bpffs_dir: &Path) -> io::Result<bool> {
    pins::is_locked(bpffs_dir)
}

/// The directory of the pins is this process's. See [`claim`].
#[derive(Debug)]
pub struct Claim {
    _dir: File,
}

/// Removes everything an iwf daemon has left in `bpffs_dir`: links, programs, maps, qdiscs, and the file
/// system if iwf mounted it. Works with and without a daemon running, and any number of times.
///
/// # Errors
/// A pin could not be removed. What could be is gone.
pub fn detach(bpffs_dir: &Path) -> Result<()> {
    super::detach::detach(bpffs_dir)
}
