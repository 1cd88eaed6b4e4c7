//! Looks at the real maps, by handles of its own.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{HashMap, MapData};
use iwf_common::config::{Config, ConfigFlags};
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::flow6::{
    FragmentKey6, FragmentValue6, PinholeKey, PinholeValue, SessionFlags6, SessionKey6,
    SessionValue6,
};
use iwf_common::fragment::{FragmentKey, FragmentValue};
use iwf_common::host::{HostKey, HostValue};
use iwf_common::nat::{EndpointKey, Filter, FilterList, MappingFlags, MappingKind, MappingValue};
use iwf_common::tcp::Shown;
use iwf_common::{names, sweep, tick};

use super::super::batch::{BatchMap, Cursor, Slice};
use super::super::inspect::{
    DynamicFilter, DynamicRow, Ends, HostRow, Inspector, Kind, SessionFilter, SessionRow, State,
    Station, TableRow, Take, Transport, Usage, Way,
};
use super::super::maps::{self, refused};
use super::super::pins::PinSet;
use super::super::{DataPlaneError, clock::Clock};
use crate::daemon::clock as boot_clock;
use crate::types::{Generation, Instant};

/// Entries read at once: some tenths of a millisecond.
const SLICE: usize = 512;
/// The longest rest after a slice.
const REST: Duration = Duration::from_millis(5);

const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// Handles of the tables that can be looked at.
pub(super) struct KernelInspector {
    sessions: Table<SessionKey, SessionValue>,
    sessions6: Table<SessionKey6, SessionValue6>,
    external: BatchMap<EndpointKey, MappingValue>,
    hosts: BatchMap<HostKey, HostValue>,
    filters: BatchMap<EndpointKey, FilterList>,
    pinholes: BatchMap<PinholeKey, PinholeValue>,
    fragments: BatchMap<FragmentKey, FragmentValue>,
    fragments6: BatchMap<FragmentKey6, FragmentValue6>,
    config: Config,
    moment: Moment,
}

/// A table to walk and to look into.
struct Table<K, V> {
    walk: BatchMap<K, V>,
    look: HashMap<MapData, K, V>,
}

/// A tick and when it was.
#[derive(Clone, Copy)]
struct Moment {
    tick: u32,
    at: Instant,
    hz: u32,
}

impl Moment {
    fn now(&self) -> u32 {
        let millis = boot_clock::now()
            .saturating_duration_since(self.at)
            .as_millis();
        let ticks = millis * u128::from(self.hz) / 1000;
        self.tick
            .wrapping_add(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    fn seconds(&self, ticks: u32) -> u64 {
        u64::from(ticks / self.hz.max(1))
    }
}

impl KernelInspector {
    pub(super) fn open(set: &PinSet, config: Config, clock: &Clock) -> Result<Self> {
        Ok(Self {
            sessions: table(set, names::SESSIONS)?,
            sessions6: table(set, names::SESSIONS6)?,
            external: batch(set, names::MAPPINGS_EXT)?,
            hosts: batch(set, names::HOSTS)?,
            filters: batch(set, names::FILTERS)?,
            pinholes: batch(set, names::PINHOLES)?,
            fragments: batch(set, names::FRAGMENTS)?,
            fragments6: batch(set, names::FRAGMENTS6)?,
            config,
            moment: Moment {
                tick: clock.now(),
                at: boot_clock::now(),
                hz: clock.hz(),
            },
        })
    }

    fn session(
        &self,
        filter: &SessionFilter,
        key: &SessionKey,
        value: &SessionValue,
    ) -> io::Result<Option<SessionRow>> {
        // One of the two entries tells the whole flow. Ended ones only wait to be removed.
        if value.flags & (SessionFlags::INBOUND | SessionFlags::ENDED) != 0 {
            return Ok(None);
        }
        let (internal, external) = value.endpoints(key);
        let ends = Ends {
            protocol: Transport(key.proto),
            internal: endpoint(internal),
            external: Some(endpoint(external)),
            remote: endpoint(key.destination()),
        };
        if !filter.admits_ends(&ends) {
            return Ok(None);
        }
        let reverse = value.reverse_key(key.proto);
        let back = maps::lookup(&self.sessions.look, &reverse)?
            .filter(|back| back.reverse_key(key.proto) == *key);
        let hairpin = value.flags & SessionFlags::HAIRPIN != 0;
        if hairpin && back.is_some_and(|back| !is_first(key, value, &reverse, &back)) {
            return Ok(None);
        }
        let back = back.unwrap_or_default();
        let packets = [value.packets, back.packets];
        let idle_time = sweep::idle_time(&self.config.idle, key.proto, value.shown(), back.shown());
        let times = self.times([value.shown(), back.shown()], idle_time, value.deadline);
        Ok(Some(SessionRow {
            protocol: ends.protocol,
            internal: ends.internal,
            external: ends.external,
            remote: ends.remote,
            began: Some(if !hairpin && value.flags & SessionFlags::INVITED != 0 {
                Way::In
            } else {
                Way::Out
            }),
            state: State::of(ends.protocol, [value.shown(), back.shown()], packets),
            packets_out: value.packets.into(),
            octets_out: value.octets(),
            packets_in: back.packets.into(),
            octets_in: back.octets(),
            idle_seconds: times.0,
            left_seconds: times.1,
            mapping: Some(if value.flags & SessionFlags::HOST != 0 {
                Kind::Router
            } else if value.flags & SessionFlags::EXPLICIT != 0 {
                Kind::Explicit
            } else {
                Kind::Dynamic
            }),
            hairpin,
            pinhole: None,
        }))
    }

    fn session6(
        &self,
        filter: &SessionFilter,
        key: &SessionKey6,
        value: &SessionValue6,
    ) -> io::Result<Option<SessionRow>> {
        if value.flags & (SessionFlags6::INBOUND | SessionFlags6::ENDED) != 0 {
            return Ok(None);
        }
        let ends = Ends {
            protocol: Transport(key.proto),
            internal: endpoint6(key.src, key.src_port),
            external: None,
            remote: endpoint6(key.dst, key.dst_port),
        };
        if !filter.admits_ends(&ends) {
            return Ok(None);
        }
        let back = maps::lookup(&self.sessions6.look, &key.reverse())?.unwrap_or_default();
        let idle_time = sweep::idle_time6(&self.config, key.proto, value, &back);
        let shown = [value.shown(), back.shown()];
        let times = self.times(shown, idle_time, value.deadline);
        Ok(Some(SessionRow {
            protocol: ends.protocol,
            internal: ends.internal,
            external: None,
            remote: ends.remote,
            began: self.began6(key.proto, value.pinhole),
            state: State::of(ends.protocol, shown, [value.packets, back.packets]),
            packets_out: value.packets.into(),
            octets_out: value.octets(),
            packets_in: back.packets.into(),
            octets_in: back.octets(),
            idle_seconds: times.0,
            left_seconds: times.1,
            mapping: None,
            hairpin: false,
            pinhole: (value.pinhole != 0).then_some(value.pinhole),
        }))
    }

    /// A session does not remember it. It began by a pinhole, or from the LAN, unless strangers come in without one.
    fn began6(&self, proto: u8, pinhole: u16) -> Option<Way> {
        if pinhole != 0 {
            return Some(Way::In);
        }
        let config = &self.config;
        let filtered = config.flags & ConfigFlags::IPV6_FILTER != 0;
        let closed = config.filter6 == Filter::AddressAndPortDependent as u8
            || proto == ICMPV6
            || (proto == TCP && config.flags & ConfigFlags::IPV6_OPEN_TCP == 0);
        (filtered && closed).then_some(Way::Out)
    }

    /// Seconds of silence, and seconds left.
    fn times(&self, shown: [Shown; 2], idle_time: u32, deadline: u32) -> (u64, u64) {
        let now = self.moment.now();
        let [one, other] = shown.map(|shown| tick::age(now, shown.last));
        let silence = one.min(other);
        let mut left = idle_time.saturating_sub(silence);
        if deadline != 0 {
            left = left.min(tick::age(deadline, now));
        }
        (self.moment.seconds(silence), self.moment.seconds(left))
    }

    fn mapping(&self, external: &EndpointKey, value: &MappingValue) -> Option<DynamicRow> {
        let kind = if value.kind == MappingKind::Dynamic as u8 {
            Kind::Dynamic
        } else if value.kind == MappingKind::Host as u8 {
            Kind::Router
        } else {
            return None;
        };
        let silence = tick::age(self.moment.now(), value.last_used);
        let none = Shown::default();
        let idle_time = sweep::idle_time(&self.config.idle, external.proto, none, none);
        let ends = value.flags & MappingFlags::STATIC == 0;
        Some(DynamicRow {
            protocol: Transport(external.proto),
            kind,
            internal: endpoint(value.endpoint(external.proto)),
            external: endpoint(*external),
            idle_seconds: self.moment.seconds(silence),
            left_seconds: ends.then(|| self.moment.seconds(idle_time.saturating_sub(silence))),
        })
    }

    fn read_usage(&self) -> io::Result<BTreeMap<Generation, Usage>> {
        // As many as there are explicit mappings, which the configuration bounds.
        let mut accounts: BTreeMap<EndpointKey, Account> = BTreeMap::new();
        walk_all(&self.external, |external, value| {
            if value.kind == MappingKind::Explicit as u8 {
                let account = Account {
                    internal: value.endpoint(external.proto),
                    generation: Generation(value.generation),
                    usage: Usage {
                        packets_out: value.packets_out,
                        octets_out: value.octets_out,
                        packets_in: value.packets_in,
                        octets_in: value.octets_in,
                    },
                };
                accounts.insert(*external, account);
            }
        })?;
        // Ended ones as well: they have not told their mapping yet.
        walk_all(&self.sessions.walk, |key, value| {
            let (internal, external) = value.endpoints(key);
            if let Some(account) = accounts.get_mut(&external)
                && account.internal == internal
            {
                account.add(value);
            }
        })?;
        let usage = accounts
            .into_values()
            .map(|account| (account.generation, account.usage));
        Ok(usage.collect())
    }

    fn read_hosts(&self) -> io::Result<Vec<HostRow>> {
        let mut rows = Vec::new();
        walk_all(&self.hosts, |key, value| {
            let addr = Ipv6Addr::from(key.addr);
            let host = IpAddr::V6(addr).to_canonical();
            let silence = tick::age(self.moment.now(), value.last_used);
            rows.push(HostRow {
                sessions: value.sessions,
                sessions_limit: match host {
                    IpAddr::V4(_) => self.config.host_sessions.into(),
                    IpAddr::V6(_) => self.config.host_sessions6.into(),
                },
                station: key.mac().map(Station),
                host,
                mappings: value.mappings,
                mappings_limit: self.config.host_mappings.into(),
                external: Some(Ipv4Addr::from(value.external)).filter(|a| !a.is_unspecified()),
                idle_seconds: self.moment.seconds(silence),
            });
        })?;
        Ok(rows)
    }
}

impl Inspector for KernelInspector {
    fn sessions(
        &mut self,
        filter: &SessionFilter,
        take: Take<'_, SessionRow>,
    ) -> Result<(), DataPlaneError> {
        let mut show = |row: io::Result<Option<SessionRow>>| {
            Ok(match row?.filter(|row| filter.admits(row)) {
                Some(row) => take(row),
                None => ControlFlow::Continue(()),
            })
        };
        let failed = refused("list the sessions");
        let all = walk(&self.sessions.walk, |key, value| {
            show(self.session(filter, key, value))
        });
        if all.map_err(&failed)?.is_break() {
            return Ok(());
        }
        let all = walk(&self.sessions6.walk, |key, value| {
            show(self.session6(filter, key, value))
        });
        all.map(|_| ()).map_err(failed)
    }

    fn dynamic(
        &mut self,
        filter: &DynamicFilter,
        take: Take<'_, DynamicRow>,
    ) -> Result<(), DataPlaneError> {
        let all = walk(&self.external, |external, value| {
            let row = self.mapping(external, value);
            Ok(match row.filter(|row| filter.admits(row)) {
                Some(row) => take(row),
                None => ControlFlow::Continue(()),
            })
        });
        all.map(|_| ()).map_err(refused("list the mappings"))
    }

    fn usage(&mut self) -> Result<BTreeMap<Generation, Usage>, DataPlaneError> {
        self.read_usage()
            .map_err(refused("count what went through the mappings"))
    }

    fn hosts(&mut self) -> Result<Vec<HostRow>, DataPlaneError> {
        self.read_hosts().map_err(refused("list the hosts"))
    }

    fn small_tables(&mut self) -> Result<Vec<TableRow>, DataPlaneError> {
        let count = || -> io::Result<Vec<TableRow>> {
            Ok(vec![
                occupancy("filters", &self.filters)?,
                occupancy("pinholes", &self.pinholes)?,
                occupancy("fragments", &self.fragments)?,
                occupancy("fragments6", &self.fragments6)?,
            ])
        };
        count().map_err(refused("count the entries of a table"))
    }
}

/// What went through one explicit mapping.
struct Account {
    internal: EndpointKey,
    generation: Generation,
    usage: Usage,
}

impl Account {
    fn add(&mut self, value: &SessionValue) {
        let (packets, octets) = if value.flags & SessionFlags::INBOUND != 0 {
            (&mut self.usage.packets_in, &mut self.usage.octets_in)
        } else {
            (&mut self.usage.packets_out, &mut self.usage.octets_out)
        };
        *packets += u64::from(value.packets);
        *octets += value.octets();
    }
}

/// Of the two entries of a hairpinned session, neither of which comes from the WAN: that of the host that began. Where
/// the other host had sent as well, nothing tells, and the smaller key is as good.
fn is_first(
    key: &SessionKey,
    value: &SessionValue,
    reverse: &SessionKey,
    back: &SessionValue,
) -> bool {
    let invited = |value: &SessionValue| value.flags & SessionFlags::INVITED != 0;
    match (invited(value), invited(back)) {
        (true, false) => false,
        (false, true) => true,
        (true, true) | (false, false) => key <= reverse,
    }
}

fn endpoint(key: EndpointKey) -> SocketAddr {
    let port = u16::from_be_bytes(key.port);
    SocketAddr::new(Ipv4Addr::from(key.addr).into(), port)
}

fn endpoint6(addr: [u8; 16], port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(addr).into(), u16::from_be_bytes(port))
}

fn batch<K: Pod + Default, V: Pod + Default>(set: &PinSet, name: &str) -> Result<BatchMap<K, V>> {
    let open = || -> Result<_> { Ok(BatchMap::new(&MapData::from_pin(set.map(name))?)?) };
    open().with_context(|| format!("open map {name}"))
}

fn table<K: Pod + Default, V: Pod + Default>(set: &PinSet, name: &str) -> Result<Table<K, V>> {
    Ok(Table {
        walk: batch(set, name)?,
        look: maps::typed(set, name)?,
    })
}

/// Shows every entry.
fn walk_all<K: Pod + Default, V: Pod + Default>(
    map: &BatchMap<K, V>,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    walk(map, |key, value| {
        each(key, value);
        Ok(ControlFlow::Continue(()))
    })
    .map(|_| ())
}

/// Shows every entry until one is enough, in slices, with a rest after each that is as long as the work was.
fn walk<K: Pod + Default, V: Pod + Default>(
    map: &BatchMap<K, V>,
    mut each: impl FnMut(&K, &V) -> io::Result<ControlFlow<()>>,
) -> io::Result<ControlFlow<()>> {
    let mut slice = Slice::new(SLICE);
    let mut cursor = Cursor::Start;
    while cursor != Cursor::End {
        let began = boot_clock::now();
        map.read(&mut cursor, &mut slice)?;
        for (key, value) in slice.iter() {
            if each(key, value)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if cursor != Cursor::End {
            let worked = boot_clock::now().saturating_duration_since(began);
            std::thread::sleep(worked.min(REST));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn occupancy<K: Pod + Default, V: Pod + Default>(
    name: &str,
    map: &BatchMap<K, V>,
) -> io::Result<TableRow> {
    let mut entries = 0;
    walk_all(map, |_, _| entries += 1)?;
    Ok(TableRow::new(name, entries, Some(map.capacity().into())))
}
