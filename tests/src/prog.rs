//! Runs the packet programs without a network: maps in, frame in, verdict, frame and every change out.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya::programs::{
    Program, ProgramError, ProgramFd, RawTracePoint, RawTracePointRunOptions, SchedClassifier,
    TestRun as _, TestRunOptions, Xdp,
};
use aya::{Ebpf, EbpfLoader, Pod};
use iwf_common::config::{Config, FdbKey, IfaceValue};
use iwf_common::event::EventBudget;
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::flow6::{
    EndpointKey6, EndpointValue6, FragmentKey6, FragmentValue6, PinholeKey, PinholeValue,
    SessionKey6, SessionValue6,
};
use iwf_common::fragment::HeldFragment;
use iwf_common::host::{HostKey, HostValue};
use iwf_common::nat::{EndpointKey, FilterList, MappingValue, PeerKey, PeerValue};
use iwf_common::refusal::{RefusedPacket, Side};
use iwf_common::tick::ClockSample;
use iwf_common::{names, reason};

use crate::empty;

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The program's return value: an XDP or a tc action.
    pub action: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Average time of one run, as the kernel measured it.
    pub nanos: u64,
}

/// Everything the programs can change, for comparing before with after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// SESSIONS.
    pub sessions: BTreeMap<SessionKey, SessionValue>,
    /// MAPPINGS_INT.
    pub internal: BTreeMap<EndpointKey, MappingValue>,
    /// MAPPINGS_EXT.
    pub external: BTreeMap<EndpointKey, MappingValue>,
    /// PEERS.
    pub peers: BTreeMap<PeerKey, PeerValue>,
    /// SESSIONS6.
    pub sessions6: BTreeMap<SessionKey6, SessionValue6>,
    /// ENDPOINTS6.
    pub endpoints6: BTreeMap<EndpointKey6, EndpointValue6>,
    /// FRAGMENTS6.
    pub fragments6: BTreeMap<FragmentKey6, FragmentValue6>,
    /// PINHOLES.
    pub pinholes: BTreeMap<PinholeKey, PinholeValue>,
    /// Counters that are not 0, by name.
    pub counters: BTreeMap<&'static str, u64>,
}

/// How often something was added, removed and changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Keys that are new.
    pub added: usize,
    /// Keys that are gone.
    pub removed: usize,
    /// Values that are not what they were, apart from the tick of the last use and the packets counted.
    pub changed: usize,
}

impl Change {
    fn between<K: Ord, V: PartialEq>(
        before: &BTreeMap<K, V>,
        after: &BTreeMap<K, V>,
        same: impl Fn(&V, &V) -> bool,
    ) -> Self {
        let changed = |(key, value)| after.get(key).is_some_and(|now| !same(value, now));
        Self {
            added: after.keys().filter(|key| !before.contains_key(key)).count(),
            removed: before.keys().filter(|key| !after.contains_key(key)).count(),
            changed: before.iter().filter(|entry| changed(*entry)).count(),
        }
    }
}

/// Everything that differs between two states. Equal to an expected one, it also says what did not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Counters by name, with what was added to them.
    pub counters: BTreeMap<&'static str, u64>,
    /// SESSIONS.
    pub sessions: Change,
    /// MAPPINGS_INT.
    pub internal: Change,
    /// MAPPINGS_EXT.
    pub external: Change,
    /// PEERS.
    pub peers: Change,
    /// SESSIONS6. What counts packets is no change.
    pub sessions6: Change,
    /// ENDPOINTS6.
    pub endpoints6: Change,
    /// FRAGMENTS6.
    pub fragments6: Change,
    /// PINHOLES.
    pub pinholes: Change,
}

impl Delta {
    /// From one state to a later one.
    pub fn between(before: &State, after: &State) -> Self {
        let counters = after
            .counters
            .iter()
            .map(|(name, now)| (*name, now - before.counters.get(name).unwrap_or(&0)))
            .filter(|(_, more)| *more > 0)
            .collect();
        let same_session = |a: &SessionValue, b: &SessionValue| {
            *a == SessionValue {
                last_seen: a.last_seen,
                packets: a.packets,
                octets_high: a.octets_high,
                octets_low: a.octets_low,
                ..*b
            }
        };
        let same_mapping = |a: &MappingValue, b: &MappingValue| {
            *a == MappingValue {
                last_used: a.last_used,
                ..*b
            }
        };
        let same_session6 = |a: &SessionValue6, b: &SessionValue6| {
            *a == SessionValue6 {
                last_seen: a.last_seen,
                packets: a.packets,
                octets_low: a.octets_low,
                octets_high: a.octets_high,
                ..*b
            }
        };
        Self {
            sessions6: Change::between(&before.sessions6, &after.sessions6, same_session6),
            peers: Change::between(&before.peers, &after.peers, |a, b| a.internal == b.internal),
            endpoints6: Change::between(&before.endpoints6, &after.endpoints6, |_, _| true),
            fragments6: Change::between(&before.fragments6, &after.fragments6, |_, _| true),
            pinholes: Change::between(&before.pinholes, &after.pinholes, PartialEq::eq),
            counters,
            sessions: Change::between(&before.sessions, &after.sessions, same_session),
            internal: Change::between(&before.internal, &after.internal, same_mapping),
            external: Change::between(&before.external, &after.external, same_mapping),
        }
    }

    /// Only these counters, by one each; no table touched.
    pub fn counted(counters: &[&'static str]) -> Self {
        Self {
            counters: counters.iter().map(|name| (*name, 1)).collect(),
            ..Self::default()
        }
    }

    /// And so many session entries.
    #[must_use]
    pub fn sessions(mut self, added: usize) -> Self {
        self.sessions.added = added;
        self
    }

    /// And so many remote addresses.
    #[must_use]
    pub fn peers(mut self, added: usize) -> Self {
        self.peers.added = added;
        self
    }

    /// And so many IPv6 session entries.
    #[must_use]
    pub fn sessions6(mut self, added: usize) -> Self {
        self.sessions6.added = added;
        self
    }

    /// And so many IPv6 session entries changed in place.
    #[must_use]
    pub fn sessions6_changed(mut self, changed: usize) -> Self {
        self.sessions6.changed = changed;
        self
    }

    /// And so many open IPv6 endpoints.
    #[must_use]
    pub fn endpoints6(mut self, added: usize) -> Self {
        self.endpoints6.added = added;
        self
    }

    /// And so many first fragments of IPv6.
    #[must_use]
    pub fn fragments6(mut self, added: usize) -> Self {
        self.fragments6.added = added;
        self
    }

    /// And so many session entries changed in place.
    #[must_use]
    pub fn sessions_changed(mut self, changed: usize) -> Self {
        self.sessions.changed = changed;
        self
    }

    /// And so many mappings, each with an entry in both tables.
    #[must_use]
    pub fn mappings(mut self, added: usize) -> Self {
        self.internal.added = added;
        self.external.added = added;
        self
    }
}

/// The loaded object with maps of its own, freed on drop.
pub struct Plane {
    ebpf: Ebpf,
}

impl Plane {
    /// Makes the maps, with tables for `sessions` entries and `mappings` entries. Programs are loaded when they
    /// are first run, since the verifier takes its time.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(object: &[u8], sessions: u32, mappings: u32) -> Result<Self> {
        Self::load_with(object, &[], sessions, mappings)
    }

    /// The same with constants of the object set.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        object: &[u8],
        constants: &[(&'static str, u8)],
        sessions: u32,
        mappings: u32,
    ) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for (name, value) in constants {
            loader.override_global(name, value, true);
        }
        let ebpf = loader
            .map_max_entries(names::SESSIONS, sessions)
            .map_max_entries(names::SESSIONS6, sessions)
            .map_max_entries(names::ENDPOINTS6, sessions)
            .map_max_entries(names::PEERS, mappings)
            .map_max_entries(names::MAPPINGS_INT, mappings)
            .map_max_entries(names::MAPPINGS_EXT, mappings)
            .load(object)
            .context("load the maps")?;
        Ok(Self { ebpf })
    }

    /// Loads a program, if it is not.
    ///
    /// # Errors
    /// If the verifier refuses; its log is in the error.
    pub fn ready(&mut self, name: &str) -> Result<()> {
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?;
        if program.fd().is_ok() {
            return Ok(());
        }
        let loaded = if let Ok(program) = <&mut Xdp>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut SchedClassifier>::try_from(&mut *program) {
            program.load()
        } else {
            <&mut RawTracePoint>::try_from(program)?.load()
        };
        loaded.with_context(|| format!("load {name}"))
    }

    /// A program that is [ready](Self::ready), for a map of programs.
    ///
    /// # Errors
    /// If it is not.
    pub fn fd(&self, name: &str) -> Result<&ProgramFd> {
        let program = self.ebpf.program(name);
        Ok(program
            .with_context(|| format!("no program {name}"))?
            .fd()?)
    }

    /// Instructions the verifier went through for a program that is [ready](Self::ready).
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn verified(&self, name: &str) -> Result<u32> {
        let program = self.ebpf.program(name).context("program")?;
        let count = program.info()?.verified_instruction_count();
        count.context("the kernel does not count")
    }

    /// Names of all programs of the object.
    pub fn programs(&self) -> Vec<String> {
        let names = self.ebpf.programs();
        names.map(|(name, _)| name.to_owned()).collect()
    }

    /// Runs an XDP program that is [ready](Self::ready) on a frame that came in by `ingress`, an interface of the
    /// caller's namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn xdp(&self, name: &str, frame: &[u8], ingress: u32, repeat: u32) -> Result<Ran> {
        let program: &Xdp = self
            .ebpf
            .program(name)
            .context("program")?
            .try_into()
            .context("an XDP program")?;
        let len = u32::try_from(frame.len())?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = words(&[0, len, 0, ingress, 0, 0]);
        let mut out = vec![0; frame.len()];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (ingress != 0).then_some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).context("run")?;
        ensure!(
            result.data_size_out == len,
            "the program changed the length"
        );
        Ok(Ran {
            action: result.return_value,
            frame: out,
            nanos: u64::try_from(result.duration.as_nanos())?,
        })
    }

    /// Runs a tc program that is [ready](Self::ready) on a packet that came in by `ingress` (0: made here) and is to
    /// be sent in segments of `segment` octets (0: as it is).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn tc(&self, name: &str, frame: &[u8], ingress: u32, segment: u32) -> Result<Ran> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .context("program")?
            .try_into()
            .context("a tc program")?;
        // struct __sk_buff: ingress_ifindex is its tenth word; the kernel takes it for a run as `skb_iif`. The last
        // but three is gso_size.
        let mut context = [0; 48];
        context[9] = ingress;
        context[44] = segment;
        let context = words(&context);
        let mut out = vec![0; frame.len()];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (ingress != 0 || segment != 0).then_some(&context),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).context("run")?;
        Ok(Ran {
            action: result.return_value,
            frame: out,
            nanos: u64::try_from(result.duration.as_nanos())?,
        })
    }

    /// A map that is an array or a hash table.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn map_data(&self, name: &str) -> Result<&MapData> {
        let map = self.map(name)?;
        let (Map::Array(data) | Map::HashMap(data)) = map else {
            bail!("{name} is of another kind");
        };
        Ok(data)
    }

    /// A tc program that is [ready](Self::ready).
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tc_program(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self.ebpf.program(name).context("no such program")?;
        Ok(program.try_into()?)
    }

    /// Reads CONFIG.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn config(&mut self) -> Result<Config> {
        Ok(self.array(names::CONFIG)?.get(&0, 0)?)
    }

    /// Reads both clocks.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn clock(&mut self) -> Result<ClockSample> {
        self.run(names::RUN_CLOCK)?;
        Ok(self.array(names::CLOCK)?.get(&0, 0)?)
    }

    /// Writes CONFIG.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn configure(&mut self, config: Config) -> Result<()> {
        Ok(self.array(names::CONFIG)?.set(0, config, 0)?)
    }

    /// Enters an interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_iface(&mut self, ifindex: u32, value: IfaceValue) -> Result<()> {
        self.put(names::IFACES, ifindex, value)
    }

    /// Writes the remote prefixes of a mapping, by its external endpoint.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_filter(&mut self, key: EndpointKey, list: FilterList) -> Result<()> {
        self.put(names::FILTERS, key, list)
    }

    /// Enters a station behind a bridge port.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_station(&mut self, key: FdbKey, port: u32) -> Result<()> {
        self.put(names::BRIDGE_FDB, key, port)
    }

    /// Lets frames be redirected to an interface of the caller's namespace.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn set_device(&mut self, ifindex: u32) -> Result<()> {
        let map = self.ebpf.map_mut(names::DEVMAP).context("DEVMAP")?;
        let mut map = aya::maps::DevMapHash::try_from(map)?;
        Ok(map.insert(ifindex, ifindex, None, 0)?)
    }

    /// Takes an interface out again.
    ///
    /// # Errors
    /// If it was not in.
    pub fn remove_device(&mut self, ifindex: u32) -> Result<()> {
        let map = self.ebpf.map_mut(names::DEVMAP).context("DEVMAP")?;
        let mut map = aya::maps::DevMapHash::try_from(map)?;
        Ok(map.remove(ifindex)?)
    }

    /// Removes a session entry.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_session(&mut self, key: SessionKey) -> Result<()> {
        let map = self.ebpf.map_mut(names::SESSIONS).context("SESSIONS")?;
        let mut map: BpfHashMap<_, SessionKey, SessionValue> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&key)?)
    }

    /// Writes a session entry.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_session(&mut self, key: SessionKey, value: SessionValue) -> Result<()> {
        self.put(names::SESSIONS, key, value)
    }

    /// Writes a remote address that a mapping has sent to.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_peer(&mut self, key: PeerKey, value: PeerValue) -> Result<()> {
        self.put(names::PEERS, key, value)
    }

    /// Writes an IPv6 session entry.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_session6(&mut self, key: SessionKey6, value: SessionValue6) -> Result<()> {
        self.put(names::SESSIONS6, key, value)
    }

    /// Writes an open IPv6 endpoint.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_endpoint6(&mut self, key: EndpointKey6, value: EndpointValue6) -> Result<()> {
        self.put(names::ENDPOINTS6, key, value)
    }

    /// Writes a pinhole, and that its host has one of its shape.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_pinhole(&mut self, key: PinholeKey, value: PinholeValue) -> Result<()> {
        let hosts = self.ebpf.map_mut(names::PINHOLE_HOSTS).context("map")?;
        let mut hosts: BpfHashMap<_, [u8; 16], u32> = BpfHashMap::try_from(hosts)?;
        let shapes = hosts.get(&key.internal, 0).unwrap_or(0);
        hosts.insert(key.internal, shapes | 1 << key.shape, 0)?;
        self.put(names::PINHOLES, key, value)
    }

    /// Removes a pinhole; that its host has its shape stays.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_pinhole(&mut self, key: PinholeKey) -> Result<()> {
        let map = self.ebpf.map_mut(names::PINHOLES).context("PINHOLES")?;
        let mut map: BpfHashMap<_, PinholeKey, PinholeValue> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&key)?)
    }

    /// Lets `ago` ticks pass for first fragments.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn age_fragments6(&mut self, ago: u32) -> Result<()> {
        for (key, mut value) in self.state()?.fragments6 {
            value.since = value.since.wrapping_sub(ago);
            self.put(names::FRAGMENTS6, key, value)?;
        }
        Ok(())
    }

    /// Writes an entry of MAPPINGS_EXT or MAPPINGS_INT.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_mapping(&mut self, map: &str, key: EndpointKey, value: MappingValue) -> Result<()> {
        self.put(map, key, value)
    }

    /// Removes an entry of MAPPINGS_EXT or MAPPINGS_INT.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_mapping(&mut self, map: &str, key: EndpointKey) -> Result<()> {
        let map = self.ebpf.map_mut(map).context("map")?;
        let mut map: BpfHashMap<_, EndpointKey, MappingValue> = BpfHashMap::try_from(map)?;
        Ok(map.remove(&key)?)
    }

    /// Everything in HOSTS.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn hosts(&self) -> Result<BTreeMap<HostKey, HostValue>> {
        self.entries(names::HOSTS)
    }

    /// Writes an entry of HOSTS.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_host(&mut self, key: HostKey, value: HostValue) -> Result<()> {
        self.put(names::HOSTS, key, value)
    }

    /// Says that the other mappings of a LAN host follow its explicit ones to an external address.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_paired(&mut self, host: [u8; 4], external: [u8; 4]) -> Result<()> {
        self.put(names::PAIRED, host, external)
    }

    /// Empties every hash and every ring, and lets the programs write as much into the rings as at first. They stay
    /// loaded: for another test, without another verification.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn empty(&mut self) -> Result<()> {
        for (name, map) in self.ebpf.maps_mut() {
            empty::hash(map).with_context(|| format!("empty {name}"))?;
            if matches!(map, Map::RingBuf(_)) {
                let mut ring = RingBuf::try_from(map)?;
                while ring.next().is_some() {}
            }
        }
        let full = vec![EventBudget::default(); aya::util::nr_cpus().map_err(|(_, error)| error)?];
        for name in [
            names::EVENT_BUDGET,
            names::HELD_BUDGET,
            names::REFUSED_BUDGET,
        ] {
            let map = self.ebpf.map_mut(name).context(name)?;
            let mut budget = PerCpuArray::<_, EventBudget>::try_from(map)?;
            for slot in 0..budget.len() {
                budget.set(slot, PerCpuValues::try_from(full.clone())?, 0)?;
            }
        }
        Ok(())
    }

    /// The next fragment of FRAGMENTS_HELD: the IPv4 packet.
    ///
    /// # Errors
    /// If the ring cannot be read.
    pub fn held(&mut self) -> Result<Option<Vec<u8>>> {
        let map = self.ebpf.map_mut(names::FRAGMENTS_HELD).context("ring")?;
        let mut ring = RingBuf::try_from(map)?;
        let Some(record) = ring.next() else {
            return Ok(None);
        };
        let at = std::mem::offset_of!(HeldFragment, len);
        let len = u16::from_ne_bytes([record[at], record[at + 1]]);
        let packet = &record[std::mem::offset_of!(HeldFragment, packet)..];
        Ok(Some(packet[..usize::from(len)].to_vec()))
    }

    /// The next packet of REFUSED: where it was met, and its head.
    ///
    /// # Errors
    /// If the ring cannot be read.
    pub fn refused(&mut self) -> Result<Option<(Side, Vec<u8>)>> {
        let map = self.ebpf.map_mut(names::REFUSED).context("ring")?;
        let mut ring = RingBuf::try_from(map)?;
        let Some(record) = ring.next() else {
            return Ok(None);
        };
        let word = |at: usize| {
            let octets = record[at..].first_chunk().context("a whole record")?;
            Ok::<_, anyhow::Error>(u32::from_ne_bytes(*octets))
        };
        let side = word(std::mem::offset_of!(RefusedPacket, side))?;
        let len = usize::try_from(word(std::mem::offset_of!(RefusedPacket, len))?)?;
        let head = &record[std::mem::offset_of!(RefusedPacket, packet)..][..len];
        Ok(Some((
            Side::from_number(side).context("a side")?,
            head.to_vec(),
        )))
    }

    /// Everything the programs can change.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn state(&self) -> Result<State> {
        let counters = PerCpuArray::<_, u64>::try_from(self.map(names::COUNTERS)?)?;
        let mut by_name = BTreeMap::new();
        for (slot, name) in reason::all() {
            let total: u64 = counters.get(&slot, 0)?.iter().sum();
            if total > 0 {
                by_name.insert(name, total);
            }
        }
        Ok(State {
            sessions: self.entries(names::SESSIONS)?,
            internal: self.entries(names::MAPPINGS_INT)?,
            external: self.entries(names::MAPPINGS_EXT)?,
            peers: self.entries(names::PEERS)?,
            sessions6: self.entries(names::SESSIONS6)?,
            endpoints6: self.entries(names::ENDPOINTS6)?,
            fragments6: self.entries(names::FRAGMENTS6)?,
            pinholes: self.entries(names::PINHOLES)?,
            counters: by_name,
        })
    }

    fn run(&mut self, name: &str) -> Result<()> {
        self.ready(name)?;
        let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
        let result = program
            .test_run(RawTracePointRunOptions::new())
            .with_context(|| format!("run {name}"))?;
        ensure!(
            result.return_value == 0,
            "{name} failed: {}",
            result.return_value
        );
        Ok(())
    }

    fn map(&self, name: &str) -> Result<&Map> {
        self.ebpf
            .map(name)
            .with_context(|| format!("no map {name}"))
    }

    fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }

    fn put<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        let mut map: BpfHashMap<_, K, V> = BpfHashMap::try_from(map)?;
        Ok(map.insert(key, value, 0)?)
    }

    fn entries<K: Pod + Ord, V: Pod>(&self, name: &str) -> Result<BTreeMap<K, V>> {
        let map: BpfHashMap<_, K, V> = BpfHashMap::try_from(self.map(name)?)?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    Ok(ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()?)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
