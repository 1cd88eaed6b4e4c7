//! The pinned maps as typed handles, and the conversions between their values and the core's types.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use aya::Pod;
use aya::maps::{
    Array, DevMapHash, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, RingBuf,
    xdp::XdpMapError,
};
use iwf_common::config::{Config, FdbKey, IdleTimes, IfaceValue};
use iwf_common::event::EventBudget;
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::flow6::{
    EndpointKey6, EndpointValue6, FragmentKey6, FragmentValue6, PinholeKey, PinholeValue,
    SessionKey6, SessionValue6,
};
use iwf_common::fragment::{FragmentKey, FragmentValue};
use iwf_common::host::{HostKey, HostValue, Totals};
use iwf_common::nat::{
    EndpointKey, Filter, FilterEntry, FilterList, MappingFlags, MappingKind, MappingValue, PeerKey,
    PeerValue, mask,
};
use iwf_common::softwire::{Softwire, SoftwireHop};
use iwf_common::sweep::{SweepItem, SweepRequest};
use iwf_common::tick::ClockSample;
use iwf_common::{limits, names, reason};

use super::clock::Clock;
use super::fragments::{Firsts, FragmentTables};
use super::pins::PinSet;
use super::refusals::{RefusalTables, Refusals};
use super::sweep::{SweepMaps, Sweeper};
use super::{DataPlaneError, HALF_WRITTEN};
use crate::daemon::config::Timeouts;
use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, InternalEndpoint, InternalPort, NatEntry, Protocol,
    RemoteList, RemotePeer, RemotePrefix,
};

/// Sizes that the configuration decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Entries of SESSIONS: two per session.
    pub(super) session_entries: u32,
    /// Entries of SESSIONS6: two per session. ENDPOINTS6 has half as many.
    pub(super) session6_entries: u32,
    /// Entries of each mapping table.
    pub(super) mappings: u32,
}

impl Sizes {
    /// Maps whose size is not the one in the object.
    pub(super) fn overrides(&self) -> [(&'static str, u32); 5] {
        [
            (names::SESSIONS6, self.session6_entries),
            (names::ENDPOINTS6, self.session6_entries / 2),
            (names::SESSIONS, self.session_entries),
            (names::MAPPINGS_INT, self.mappings),
            (names::MAPPINGS_EXT, self.mappings),
        ]
    }

    /// Key size, value size and entries every pinned map must have. The device map's value depends on the
    /// kernel and the rings have none; they are left out.
    fn expected(&self) -> [(&'static str, usize, usize, u32); 26] {
        const INDEX: usize = size_of::<u32>();
        let mapping = (size_of::<EndpointKey>(), size_of::<MappingValue>());
        [
            (names::CONFIG, INDEX, size_of::<Config>(), 1),
            (
                names::IFACES,
                INDEX,
                size_of::<IfaceValue>(),
                limits::IFACES,
            ),
            (
                names::BRIDGE_FDB,
                size_of::<FdbKey>(),
                INDEX,
                limits::BRIDGE_FDB,
            ),
            (names::COUNTERS, INDEX, size_of::<u64>(), reason::SLOTS),
            (
                names::HOSTS,
                size_of::<HostKey>(),
                size_of::<HostValue>(),
                limits::HOSTS,
            ),
            (names::TOTALS, INDEX, size_of::<Totals>(), 1),
            (names::PAIRED, 4, 4, limits::PAIRED),
            (names::MAPPINGS_EXT, mapping.0, mapping.1, self.mappings),
            (names::MAPPINGS_INT, mapping.0, mapping.1, self.mappings),
            (
                names::FILTERS,
                mapping.0,
                size_of::<FilterList>(),
                limits::FILTERS,
            ),
            (
                names::PEERS,
                size_of::<PeerKey>(),
                size_of::<PeerValue>(),
                limits::PEERS,
            ),
            (
                names::SESSIONS,
                size_of::<SessionKey>(),
                size_of::<SessionValue>(),
                self.session_entries,
            ),
            (
                names::SESSIONS6,
                size_of::<SessionKey6>(),
                size_of::<SessionValue6>(),
                self.session6_entries,
            ),
            (
                names::ENDPOINTS6,
                size_of::<EndpointKey6>(),
                size_of::<EndpointValue6>(),
                self.session6_entries / 2,
            ),
            (
                names::FRAGMENTS6,
                size_of::<FragmentKey6>(),
                size_of::<FragmentValue6>(),
                limits::FRAGMENTS6,
            ),
            (
                names::PINHOLES,
                size_of::<PinholeKey>(),
                size_of::<PinholeValue>(),
                limits::PINHOLES,
            ),
            (names::PINHOLE_HOSTS, 16, INDEX, limits::PINHOLES),
            (names::EVENT_BUDGET, INDEX, size_of::<EventBudget>(), 1),
            (names::SWEEP, INDEX, size_of::<SweepRequest>(), 1),
            (
                names::SWEEP_ITEMS,
                INDEX,
                size_of::<SweepItem>(),
                limits::SWEEP_ITEMS,
            ),
            (names::CLOCK, INDEX, size_of::<ClockSample>(), 1),
            (
                names::FRAGMENTS,
                size_of::<FragmentKey>(),
                size_of::<FragmentValue>(),
                limits::FRAGMENTS,
            ),
            (names::HELD_BUDGET, INDEX, size_of::<EventBudget>(), 1),
            (names::REFUSED_BUDGET, INDEX, size_of::<EventBudget>(), 2),
            (names::SOFTWIRE, INDEX, size_of::<Softwire>(), 1),
            (names::SOFTWIRE_HOP, INDEX, size_of::<SoftwireHop>(), 1),
        ]
    }

    /// Why the pinned maps of `set` cannot be adopted, if they cannot: one is missing or has another shape.
    /// The loader reuses a pin by its name alone, so this is the only check there is.
    pub(super) fn misfit(&self, set: &PinSet) -> Option<String> {
        for name in names::PINNED_MAPS {
            if let Err(error) = MapInfo::from_pin(set.map(name)) {
                return Some(format!("map {name} cannot be opened: {error}"));
            }
        }
        self.expected()
            .into_iter()
            .find_map(|(name, key, value, entries)| {
                let info = MapInfo::from_pin(set.map(name)).ok()?;
                let is = (
                    info.key_size() as usize,
                    info.value_size() as usize,
                    info.max_entries(),
                );
                (is != (key, value, entries)).then(|| {
                    format!(
                        "map {name} has key, value, entries {is:?} instead of {:?}",
                        (key, value, entries)
                    )
                })
            })
    }
}

/// Open pinned maps.
pub(super) struct Maps {
    pub(super) config: Array<MapData, Config>,
    pub(super) softwire: Array<MapData, Softwire>,
    pub(super) ifaces: HashMap<MapData, u32, IfaceValue>,
    pub(super) devmap: DevMapHash<MapData>,
    pub(super) fdb: HashMap<MapData, FdbKey, u32>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) ext: HashMap<MapData, EndpointKey, MappingValue>,
    pub(super) int: HashMap<MapData, EndpointKey, MappingValue>,
    pub(super) filters: HashMap<MapData, EndpointKey, FilterList>,
    pub(super) hosts: HashMap<MapData, HostKey, HostValue>,
    pub(super) paired: HashMap<MapData, [u8; 4], [u8; 4]>,
    pub(super) sessions6: HashMap<MapData, SessionKey6, SessionValue6>,
    pub(super) pinholes: HashMap<MapData, PinholeKey, PinholeValue>,
    pub(super) pinhole_hosts: HashMap<MapData, [u8; 16], u32>,
    pub(super) sweeper: Sweeper,
    pub(super) clock: Array<MapData, ClockSample>,
    pub(super) events: RingBuf<MapData>,
}

impl Maps {
    /// Opens the maps of a set that [`Sizes::misfit`] has nothing against.
    pub(super) fn open(set: &PinSet) -> Result<Self> {
        Ok(Self {
            config: typed(set, names::CONFIG)?,
            softwire: typed(set, names::SOFTWIRE)?,
            ifaces: typed(set, names::IFACES)?,
            devmap: typed(set, names::DEVMAP)?,
            fdb: typed(set, names::BRIDGE_FDB)?,
            counters: typed(set, names::COUNTERS)?,
            ext: typed(set, names::MAPPINGS_EXT)?,
            int: typed(set, names::MAPPINGS_INT)?,
            filters: typed(set, names::FILTERS)?,
            hosts: typed(set, names::HOSTS)?,
            paired: typed(set, names::PAIRED)?,
            sessions6: typed(set, names::SESSIONS6)?,
            pinholes: typed(set, names::PINHOLES)?,
            pinhole_hosts: typed(set, names::PINHOLE_HOSTS)?,
            sweeper: sweeper(set).context("open the maps to sweep")?,
            clock: typed(set, names::CLOCK)?,
            events: typed(set, names::EVENTS)?,
        })
    }
}

/// Opens what is needed to hold fragments.
pub(super) fn fragments(set: &PinSet, hz: u32, now: u32) -> Result<FragmentTables> {
    Ok(FragmentTables {
        ring: typed(set, names::FRAGMENTS_HELD)?,
        firsts: Firsts {
            first: typed(set, names::FRAGMENTS)?,
            first6: typed(set, names::FRAGMENTS6)?,
            config: typed(set, names::CONFIG)?,
            hz,
            now,
        },
    })
}

/// Opens what is needed to answer refused packets.
pub(super) fn refusals(set: &PinSet) -> Result<RefusalTables> {
    Ok(RefusalTables {
        ring: typed(set, names::REFUSED)?,
        tables: Refusals {
            sessions: typed(set, names::SESSIONS)?,
            sessions6: typed(set, names::SESSIONS6)?,
            config: typed(set, names::CONFIG)?,
            counters: typed(set, names::COUNTERS)?,
        },
    })
}

/// Opens a pinned map once more.
pub(super) fn typed<M: TryFrom<Map, Error = MapError>>(set: &PinSet, name: &str) -> Result<M> {
    let open = || -> Result<M, MapError> {
        M::try_from(Map::from_map_data(MapData::from_pin(set.map(name))?)?)
    };
    open().with_context(|| format!("open map {name}"))
}

/// Has descriptors of its own: aya's typed maps do not show theirs.
fn sweeper(set: &PinSet) -> Result<Sweeper> {
    let open = |name| MapData::from_pin(set.map(name)).with_context(|| format!("open map {name}"));
    let maps = SweepMaps {
        sessions: &open(names::SESSIONS)?,
        external: &open(names::MAPPINGS_EXT)?,
        internal: &open(names::MAPPINGS_INT)?,
        sessions6: &open(names::SESSIONS6)?,
        endpoints6: &open(names::ENDPOINTS6)?,
        peers: &open(names::PEERS)?,
        hosts: &open(names::HOSTS)?,
        totals: &open(names::TOTALS)?,
        request: &open(names::SWEEP)?,
        items: &open(names::SWEEP_ITEMS)?,
    };
    Ok(Sweeper::new(&maps)?)
}

/// Reads the value of `key`; `None` if there is none.
pub(super) fn lookup<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    key: &K,
) -> io::Result<Option<V>> {
    match map.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(to_io(error)),
    }
}

/// Removes `key`; absent is fine.
pub(super) fn delete<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: &K) -> io::Result<()> {
    match map.remove(key).map_err(to_io) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        outcome => outcome,
    }
}

/// Everything in a map.
pub(super) fn contents<K: Pod + Ord, V: Pod>(
    map: &HashMap<MapData, K, V>,
) -> io::Result<BTreeMap<K, V>> {
    map.iter().collect::<Result<_, _>>().map_err(to_io)
}

/// Makes `map`, which holds `held`, equal to `wanted`: takes away first, so that there is room. `held` is true to
/// the map also after a failure.
pub(super) fn replace<K: Pod + Ord, V: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    held: &mut BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> io::Result<()> {
    let gone: Vec<K> = held
        .keys()
        .filter(|key| !wanted.contains_key(key))
        .copied()
        .collect();
    for key in gone {
        delete(map, &key)?;
        held.remove(&key);
    }
    for (key, value) in wanted {
        if held.get(key) != Some(value) {
            map.insert(key, value, 0).map_err(to_io)?;
            held.insert(*key, *value);
        }
    }
    Ok(())
}

/// The number the kernel gave, if it gave one.
pub(super) fn to_io(error: MapError) -> io::Error {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest are mistakes of ours without a number of the kernel's"
    )]
    match error {
        MapError::SyscallError(syscall) => syscall.io_error,
        MapError::IoError(error) => error,
        MapError::KeyNotFound | MapError::ElementNotFound => {
            io::Error::from_raw_os_error(libc::ENOENT)
        }
        other => io::Error::other(other),
    }
}

/// As [`to_io`], for device maps.
pub(super) fn device_to_io(error: XdpMapError) -> io::Error {
    match error {
        XdpMapError::MapError(error) => to_io(error),
        XdpMapError::ChainedProgramNotSupported => io::Error::other(error),
    }
}

/// Shorthand for a refusal of the kernel's.
pub(super) fn refused(action: &'static str) -> impl Fn(io::Error) -> DataPlaneError {
    move |source| DataPlaneError::Kernel { action, source }
}

/// Idle times in ticks.
pub(super) fn idle_times(timeouts: &Timeouts, hz: u32) -> IdleTimes {
    let ticks = |time: Duration| {
        u32::try_from(time.as_secs())
            .unwrap_or(u32::MAX)
            .saturating_mul(hz)
    };
    IdleTimes {
        udp: ticks(timeouts.udp_idle),
        tcp_established: ticks(timeouts.tcp_established),
        tcp_transitory: ticks(timeouts.tcp_transitory),
        icmp: ticks(timeouts.icmp_query),
    }
}

/// The external side of an explicit mapping as a key.
pub(super) fn external_key(entry: &NatEntry) -> EndpointKey {
    EndpointKey::new(
        entry.external.addr.octets(),
        entry.external.port.get().to_be_bytes(),
        entry.protocol.number(),
    )
}

/// The internal side of an explicit mapping as a key.
pub(super) fn internal_key(entry: &NatEntry) -> EndpointKey {
    EndpointKey::new(
        entry.internal.addr.octets(),
        entry.internal.port.get().to_be_bytes(),
        entry.protocol.number(),
    )
}

/// The value both tables carry for a mapping, with `other` as the side it names.
pub(super) fn explicit_value(entry: &NatEntry, other: EndpointKey, clock: &Clock) -> MappingValue {
    let (remote_addr, remote_mask, flags) = match entry.remote {
        RemotePeer::Any | RemotePeer::SentToHost | RemotePeer::SentToEndpoint => {
            ([0; 4], mask(0), 0)
        }
        RemotePeer::Host(addr) => (addr.octets(), mask(32), 0),
        RemotePeer::List(_) => ([0; 4], mask(0), MappingFlags::FILTER_LIST),
    };
    MappingValue {
        addr: other.addr,
        port: other.port,
        kind: MappingKind::Explicit as u8,
        filter: match entry.remote {
            RemotePeer::Any | RemotePeer::Host(_) | RemotePeer::List(_) => {
                Filter::EndpointIndependent as u8
            }
            RemotePeer::SentToHost => Filter::AddressDependent as u8,
            RemotePeer::SentToEndpoint => Filter::AddressAndPortDependent as u8,
        },
        generation: entry.generation.0,
        expires: clock.deadline(entry.expires),
        last_used: clock.now(),
        remote_addr,
        remote_mask,
        flags,
        ..MappingValue::default()
    }
}

const _: () = assert!(RemoteList::MAX == limits::FILTER_ENTRIES);

/// The list of a mapping that needs one.
pub(super) fn filter_list(entry: &NatEntry) -> Option<FilterList> {
    let RemotePeer::List(remotes) = entry.remote else {
        return None;
    };
    let mut list = FilterList::default();
    for (slot, prefix) in list.entries.iter_mut().zip(remotes.iter()) {
        *slot = FilterEntry {
            addr: prefix.addr().octets(),
            mask: mask(prefix.prefix_len()),
            port: prefix.port().to_be_bytes(),
            pad: [0; 2],
        };
        list.len += 1;
    }
    Some(list)
}

/// Whom a list admits; `None` if it is none the core could have made.
fn listed(list: &FilterList) -> Option<RemotePeer> {
    let entries = list.entries.get(..usize::try_from(list.len).ok()?)?;
    let prefix = |entry: &FilterEntry| {
        let bits = u32::from_be_bytes(entry.mask).leading_ones();
        let len = u8::try_from(bits).ok()?;
        RemotePrefix::new(entry.addr.into(), len, u16::from_be_bytes(entry.port))
    };
    let prefixes: Vec<_> = entries.iter().map(prefix).collect::<Option<_>>()?;
    let remote = RemotePeer::of(&prefixes).ok()?;
    matches!(remote, RemotePeer::List(_)).then_some(remote)
}

/// The mapping between `external` and `internal` whose facts `value` and `list` carry; `None` if it is none the
/// core could have made. Without the list it needs, it is not whole.
pub(super) fn nat_entry(
    external: EndpointKey,
    internal: EndpointKey,
    value: &MappingValue,
    list: Option<&FilterList>,
    whole: bool,
    clock: &Clock,
) -> Option<NatEntry> {
    let port = |key: EndpointKey| u16::from_be_bytes(key.port);
    let by_list = value.flags & MappingFlags::FILTER_LIST != 0;
    let list = list.filter(|_| by_list).and_then(listed);
    let whole = whole && by_list == list.is_some();
    Some(NatEntry {
        protocol: Protocol::from_number(external.proto)?,
        external: ExternalEndpoint {
            addr: Ipv4Addr::from(external.addr),
            port: ExternalPort::new(port(external))?,
        },
        internal: InternalEndpoint {
            addr: Ipv4Addr::from(internal.addr),
            port: InternalPort::new(port(internal))?,
        },
        remote: if let Some(remote) = list {
            remote
        } else if value.filter == Filter::AddressDependent as u8 {
            RemotePeer::SentToHost
        } else if value.filter == Filter::AddressAndPortDependent as u8 {
            RemotePeer::SentToEndpoint
        } else if value.remote_mask == mask(0) {
            RemotePeer::Any
        } else {
            RemotePeer::Host(Ipv4Addr::from(value.remote_addr))
        },
        generation: if whole {
            Generation(value.generation)
        } else {
            HALF_WRITTEN
        },
        expires: clock.instant(value.expires),
    })
}

/// Reads the build id of a complete set; `None` if the set is not complete.
pub(super) fn read_build_id(set: &PinSet) -> Option<[u8; 16]> {
    let open = || -> Result<[u8; 16]> {
        let map = Map::from_map_data(MapData::from_pin(set.meta())?)?;
        let meta: Array<MapData, [u8; 16]> = map.try_into()?;
        Ok(meta.get(&0, 0)?)
    };
    open().ok()
}

/// Marks a set complete, made from the object with this build id.
pub(super) fn write_build_id(set: &PinSet, build_id: [u8; 16]) -> Result<()> {
    let path = set.meta();
    if path.exists() {
        let map = Map::from_map_data(MapData::from_pin(&path)?)?;
        let mut meta: Array<MapData, [u8; 16]> = map.try_into()?;
        return Ok(meta.set(0, build_id, 0)?);
    }
    let mut meta: Array<MapData, [u8; 16]> = Array::create(1, 0)?;
    meta.set(0, build_id, 0)?;
    meta.pin(&path)
        .map_err(|error| anyhow!(error).context(format!("pin {}", path.display())))
}
