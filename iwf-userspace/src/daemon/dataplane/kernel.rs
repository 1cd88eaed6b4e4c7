//! The data plane on the real maps.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::TestRun as _;
use aya::programs::raw_trace_point::RawTracePoint;
use iwf_common::config::{Config, FdbKey, IfaceValue, NO_PREFIX, Prefix, Role as KernelRole};
use iwf_common::flow::{NO_NEXT_HOP, SessionFlags};
use iwf_common::nat::{EndpointKey, Filter, MappingFlags, MappingKind, MappingValue, mask};
use iwf_common::sweep::{SweepMode, SweepRequest};
use iwf_common::tick::ClockSample;
use iwf_common::{limits, reason};
use tracing::{info, warn};

use super::attach::{self, Attachment, Mode};
use super::clock::{self, Clock};
use super::maps::{self, Maps, Sizes, refused, to_io};
use super::object::OBJECT;
use super::pair::{self, Expect, Side, Tables};
use super::pins::{self, PinSet};
pub use super::programs::Origin;
use super::programs::{self, Opened, Programs, Tools};
use super::{DataPlane, DataPlaneError, FdbEntry, PlaneConfig, Port, Role, Session};
use crate::daemon::config::{AttachMode, Config as Configuration, Timeouts};
use crate::types::{NatEntry, Protocol};

/// What the configuration file says about the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory for pinned objects; a bpf file system is mounted there if it is not on one.
    pub bpffs_dir: PathBuf,
    /// How XDP is attached.
    pub attach: AttachMode,
    /// How the tc programs are attached.
    pub tc: TcMode,
    /// Sessions, both directions of a flow counting once.
    pub sessions: u32,
    /// Explicit and dynamic mappings together.
    pub mappings: u32,
    /// Idle times.
    pub timeouts: Timeouts,
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
            sessions: config.limits.sessions,
            mappings: config.limits.mappings,
            timeouts: config.timeouts,
        }
    }
}

/// Programs and maps in the kernel. Dropping it leaves them pinned and running.
pub struct KernelPlane {
    attach: (AttachMode, TcMode),
    links: PathBuf,
    tables: KernelTables,
    programs: Programs,
    clock: Clock,
    origin: Origin,
    attached: BTreeSet<Attachment>,
    /// Stations an earlier daemon knew. The bridge has forgotten those whose frames all take the short way.
    adopted_stations: BTreeMap<FdbKey, u32>,
    /// What was applied last, as far as it was.
    applied: Applied,
}

/// The parts of the configuration that are in the kernel; `None` is not known yet.
#[derive(Debug, Default)]
struct Applied {
    ports: Option<Vec<Port>>,
    fdb: Option<Vec<FdbEntry>>,
    next_hops: Option<u32>,
    services: Option<BTreeSet<EndpointKey>>,
}

/// The maps, and the programs that work on them.
struct KernelTables {
    maps: Maps,
    tools: Tools,
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
            mappings: settings.mappings,
        };
        let Opened {
            mut maps,
            programs,
            tools,
            origin,
        } = programs::open(&settings.bpffs_dir, object, &sizes)?;
        let clock = tie_clock(&mut maps, &tools)?;
        let held = maps.config.get(&0, 0).context("read the kernel's CONFIG")?;
        // Zeroes in a new map are no configuration.
        let mut config = if held.hz == clock.hz() {
            held
        } else {
            Config::empty(clock.hz())
        };
        config.idle = maps::idle_times(&settings.timeouts, clock.hz());
        if config != held {
            maps.config
                .set(0, config, 0)
                .context("write the kernel's CONFIG")?;
        }
        let adopted_stations = maps.fdb.iter().collect::<Result<_, _>>();
        let adopted_stations = adopted_stations.context("read the kernel's BRIDGE_FDB")?;
        Ok(Self {
            attach: (settings.attach, settings.tc),
            links: PinSet::current(&settings.bpffs_dir).links(),
            tables: KernelTables { maps, tools },
            programs,
            clock,
            origin,
            attached: BTreeSet::new(),
            adopted_stations,
            applied: Applied::default(),
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

    /// Clock of the moment: both clocks read by one program run.
    fn tick_clock(&mut self) -> Result<(), DataPlaneError> {
        let sample = read_clock(&mut self.tables.maps, &self.tables.tools)
            .map_err(refused("read the clock"))?;
        self.clock.update(sample);
        Ok(())
    }

    fn follow_ports(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        if self.applied.ports.as_ref() == Some(&config.ports) {
            return Ok(());
        }
        self.applied.ports = None;
        // Which side an interface is on must be known before its first packet.
        let ifaces = config.ports.iter().map(iface_value).collect();
        maps::replace_all(&mut self.tables.maps.ifaces, &ifaces)
            .map_err(refused("tell the interfaces"))?;
        self.attached =
            attach::reconcile(&self.links, &mut self.programs, &config.ports, self.attach)
                .map_err(refused("attach the programs"))?;
        let receivers = receivers(&self.attached);
        replace_devices(&mut self.tables.maps, &receivers)
            .map_err(refused("tell the devices to redirect to"))?;
        let complete = config.ports.iter().all(|port| {
            let mut here = self.attached.iter().filter(|a| a.ifindex == port.ifindex);
            here.any(|a| a.is_xdp())
        });
        // A device that refused is tried again with the next change of the network.
        if complete {
            self.applied.ports = Some(config.ports.clone());
        }
        Ok(())
    }

    fn follow_stations(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        if self.applied.fdb.as_ref() == Some(&config.fdb) {
            return Ok(());
        }
        self.applied.fdb = None;
        let told: BTreeMap<FdbKey, u32> = config.fdb.iter().map(station).collect();
        self.adopted_stations.retain(|key, port| {
            let ports = &config.ports;
            let stays = ports
                .iter()
                .any(|p| p.ifindex == *port && p.bridge == Some(key.bridge));
            stays && !told.contains_key(key)
        });
        let room = usize::try_from(limits::BRIDGE_FDB).unwrap_or(usize::MAX);
        let adopted = self.adopted_stations.iter().map(|(k, v)| (*k, *v));
        let stations = told.into_iter().chain(adopted).take(room).collect();
        maps::replace_all(&mut self.tables.maps.fdb, &stations)
            .map_err(refused("tell the bridge stations"))?;
        self.applied.fdb = Some(config.fdb.clone());
        Ok(())
    }

    /// Writes CONFIG. Between two external addresses there is a moment without one, in which everything of
    /// the old one ends: nothing is made for it any more, and nothing of the new one is there yet.
    fn follow_addresses(
        &mut self,
        config: &PlaneConfig,
        next_hops_changed: bool,
    ) -> Result<(), DataPlaneError> {
        let held = self
            .tables
            .maps
            .config
            .get(&0, 0)
            .map_err(to_io)
            .map_err(refused("read the configuration"))?;
        let mut new = held;
        new.external_addr = config.external_addr.map_or([0; 4], |addr| addr.octets());
        new.wan = wan_index(&config.ports);
        (new.lan, new.lan_len) = lan_prefixes(&config.lan_prefixes);
        if next_hops_changed {
            new.next_hop_generation = match held.next_hop_generation.wrapping_add(1) {
                NO_NEXT_HOP => NO_NEXT_HOP + 1,
                generation => generation,
            };
        }
        let moved = new.external_addr != held.external_addr;
        if moved && new.external_addr != [0; 4] {
            let mut between = held;
            between.external_addr = [0; 4];
            self.write_config(&between)?;
            self.keep_only(new.external_addr)?;
            info!(external = %Ipv4Addr::from(new.external_addr), "external address changed");
        }
        if new != held {
            self.write_config(&new)?;
        }
        if moved && new.external_addr != [0; 4] {
            // A packet that had read the old address may have made one more entry after the first pass.
            self.keep_only(new.external_addr)?;
        }
        Ok(())
    }

    fn write_config(&mut self, config: &Config) -> Result<(), DataPlaneError> {
        let outcome = self.tables.maps.config.set(0, config, 0);
        outcome
            .map_err(to_io)
            .map_err(refused("write the configuration"))
    }

    fn keep_only(&mut self, addr: [u8; 4]) -> Result<(), DataPlaneError> {
        self.tables
            .run_sweep(
                SweepMode::KeepOnlyAddress,
                EndpointKey::new(addr, [0; 2], 0),
            )
            .map(|_| ())
            .map_err(refused("end what used the old address"))
    }

    /// Makes the entries of the CPE's own services those that are wanted.
    fn follow_services(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        let wanted = services(config);
        if self.applied.services.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let failed = refused("open the ports of the router's own services");
        self.applied.services = None;
        for (key, value) in self.tables.list(Side::Ext).map_err(&failed)? {
            if value.flags & MappingFlags::STATIC != 0 && !wanted.contains(&key) {
                self.tables.delete(Side::Ext, &key).map_err(&failed)?;
            }
        }
        for key in &wanted {
            let held = self.tables.get(Side::Ext, key).map_err(&failed)?;
            let value = service_value(key, self.clock.now());
            if held.is_some_and(|held| held.flags == value.flags && held.kind == value.kind) {
                continue;
            }
            if held.is_some_and(|held| held.kind == MappingKind::Explicit as u8) {
                warn!(
                    port = u16::from_be_bytes(key.port),
                    "a service of this router takes a port that a mapping holds"
                );
            }
            self.tables
                .put(Side::Ext, key, &value, Expect::Anything)
                .map_err(&failed)?;
            if held.is_some() {
                self.tables.end_sessions(key).map_err(&failed)?;
            }
        }
        self.applied.services = Some(wanted);
        Ok(())
    }
}

impl DataPlane for KernelPlane {
    fn configure(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        self.tick_clock()?;
        let next_hops_changed = self.applied.next_hops != Some(config.next_hops)
            || self.applied.ports.as_ref() != Some(&config.ports);
        let outcomes = [
            self.follow_ports(config),
            self.follow_stations(config),
            self.follow_addresses(config, next_hops_changed),
            self.follow_services(config),
        ];
        outcomes.into_iter().collect::<Result<(), _>>()?;
        self.applied.next_hops = Some(config.next_hops);
        Ok(())
    }

    fn write(&mut self, entry: &NatEntry) -> Result<(), DataPlaneError> {
        self.tick_clock()?;
        pair::write(&mut self.tables, entry, &self.clock)
    }

    fn remove(&mut self, entry: &NatEntry) -> Result<(), DataPlaneError> {
        pair::remove(&mut self.tables, entry)
    }

    fn observe(&self) -> Result<Vec<NatEntry>, DataPlaneError> {
        pair::observe(&self.tables, &self.clock)
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

    fn sweep(&mut self) -> Result<u64, DataPlaneError> {
        self.tick_clock()?;
        let done = self
            .tables
            .run_sweep(SweepMode::Age, EndpointKey::default())
            .map_err(refused("sweep the tables"))?;
        Ok(u64::from(done.sessions_left / 2))
    }

    fn sessions(&self, limit: usize) -> Result<Vec<Session>, DataPlaneError> {
        let endpoint = |key: EndpointKey| (Ipv4Addr::from(key.addr), u16::from_be_bytes(key.port));
        let all = self.tables.maps.sessions.iter();
        all.filter_map(|item| match item {
            // One of the two entries tells the whole flow.
            Ok((_, value)) if value.flags & SessionFlags::INBOUND != 0 => None,
            Ok((key, value)) => {
                let (internal, external) = value.endpoints(&key);
                Some(Ok(Session {
                    protocol: key.proto,
                    internal: endpoint(internal),
                    external: endpoint(external),
                    remote: endpoint(value.reverse_key(key.proto).source()),
                }))
            }
            Err(error) => Some(Err(to_io(error))),
        })
        .take(limit)
        .collect::<io::Result<_>>()
        .map_err(refused("list the sessions"))
    }
}

impl KernelTables {
    fn run_sweep(&mut self, mode: SweepMode, external: EndpointKey) -> io::Result<SweepRequest> {
        let request = SweepRequest {
            mode: mode as u32,
            external,
            ..SweepRequest::default()
        };
        self.maps.sweep.set(0, request, 0).map_err(to_io)?;
        run(&self.tools.sweep)?;
        self.maps.sweep.get(&0, 0).map_err(to_io)
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

    fn end_sessions(&mut self, external: &EndpointKey) -> io::Result<()> {
        self.run_sweep(SweepMode::EndSessionsOf, *external)
            .map(|_| ())
    }

    fn list(&self, side: Side) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        let all = self.table(side).iter();
        all.collect::<Result<_, _>>().map_err(to_io)
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

fn iface_value(port: &Port) -> (u32, IfaceValue) {
    let role = match port.role {
        Role::Lan => KernelRole::Lan,
        Role::Wan => KernelRole::Wan,
    };
    let value = IfaceValue {
        role: role as u32,
        l3: port.bridge.unwrap_or(port.ifindex),
        mac: port.mac,
        pad: [0; 2],
    };
    (port.ifindex, value)
}

fn station(entry: &FdbEntry) -> (FdbKey, u32) {
    let key = FdbKey {
        bridge: entry.bridge,
        mac: entry.mac,
        pad: [0; 2],
    };
    (key, entry.port)
}

/// Devices that frames may be redirected to. A driver that cannot run XDP cannot send what another driver
/// redirects to it either; among generic ones the network core does it.
fn receivers(attached: &BTreeSet<Attachment>) -> BTreeSet<u32> {
    let xdp = || attached.iter().filter(|a| a.is_xdp());
    let all_generic = xdp().all(|a| a.mode == Mode::Generic);
    xdp()
        .filter(|a| all_generic || a.mode == Mode::Native)
        .map(|a| a.ifindex)
        .collect()
}

fn replace_devices(maps: &mut Maps, wanted: &BTreeSet<u32>) -> io::Result<()> {
    let held: Vec<u32> = maps
        .devmap
        .keys()
        .collect::<Result<_, _>>()
        .map_err(to_io)?;
    for index in held.iter().filter(|index| !wanted.contains(index)) {
        match maps.devmap.remove(*index).map_err(to_io) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    for index in wanted {
        // Also those that are there: an index may be a new device by now.
        maps.devmap
            .insert(*index, *index, None, 0)
            .map_err(maps::device_to_io)?;
    }
    Ok(())
}

fn wan_index(ports: &[Port]) -> u32 {
    let mut wan = ports.iter().filter(|port| port.role == Role::Wan);
    wan.next().map_or(0, |port| port.ifindex)
}

fn lan_prefixes(prefixes: &[(Ipv4Addr, u8)]) -> ([Prefix; limits::LAN_PREFIXES], u32) {
    if prefixes.len() > limits::LAN_PREFIXES {
        warn!(
            "{} LAN prefixes are configured, only the first {} are translated",
            prefixes.len(),
            limits::LAN_PREFIXES
        );
    }
    let mut slots = [NO_PREFIX; limits::LAN_PREFIXES];
    let mut used = 0;
    for (slot, (addr, len)) in slots.iter_mut().zip(prefixes) {
        let bits = u32::from(*addr) & u32::from_be_bytes(mask(*len));
        *slot = Prefix {
            addr: bits.to_be_bytes(),
            mask: mask(*len),
        };
        used += 1;
    }
    (slots, used)
}

/// Keys of the CPE's own services: none without an address.
fn services(config: &PlaneConfig) -> BTreeSet<EndpointKey> {
    let key = |addr: Ipv4Addr, protocol: Protocol, port: u16| {
        EndpointKey::new(addr.octets(), port.to_be_bytes(), protocol.number())
    };
    let ports = config.host_ports.iter();
    config
        .external_addr
        .into_iter()
        .flat_map(|addr| ports.clone().map(move |(p, port)| key(addr, *p, *port)))
        .collect()
}

fn service_value(key: &EndpointKey, now: u32) -> MappingValue {
    MappingValue {
        addr: key.addr,
        port: key.port,
        kind: MappingKind::Host as u8,
        filter: Filter::EndpointIndependent as u8,
        last_used: now,
        flags: MappingFlags::STATIC,
        ..MappingValue::default()
    }
}

/// Removes everything an iwf daemon has left in `bpffs_dir`: links, programs, maps, qdiscs, and the file
/// system if iwf mounted it. Works with and without a daemon running, and any number of times.
///
/// # Errors
/// A pin could not be removed. What could be is gone.
pub fn detach(bpffs_dir: &Path) -> Result<()> {
    super::detach::detach(bpffs_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::dataplane::attach::Hook;

    #[test]
    fn native_frames_are_never_redirected_to_a_generic_device() {
        let on = |ifindex, mode| Attachment {
            ifindex,
            hook: Hook::Lan,
            mode,
        };
        let tc = Attachment {
            ifindex: 9,
            hook: Hook::Egress,
            mode: Mode::Tcx,
        };
        let of = |list: &[Attachment]| receivers(&list.iter().copied().collect());
        assert_eq!(
            of(&[on(1, Mode::Native), on(2, Mode::Generic), tc]),
            BTreeSet::from([1])
        );
        assert_eq!(
            of(&[on(1, Mode::Generic), on(2, Mode::Generic), tc]),
            BTreeSet::from([1, 2])
        );
    }

    #[test]
    fn host_bits_of_a_prefix_do_not_count_and_the_surplus_is_left_out() {
        let many: Vec<_> = (0..10).map(|n| (Ipv4Addr::new(10, n, 0, 1), 16)).collect();
        let (slots, used) = lan_prefixes(&many);
        assert_eq!(usize::try_from(used), Ok(limits::LAN_PREFIXES));
        assert_eq!(slots[7].addr, [10, 7, 0, 0]);
        assert!(slots[7].contains([10, 7, 200, 1]));
        let (slots, used) = lan_prefixes(&[]);
        assert_eq!((used, slots[0]), (0, NO_PREFIX));
    }
}
