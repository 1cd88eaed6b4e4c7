//! The pair logic on tables in memory: small, so that they fill up, and able to fail at any call.

use std::net::Ipv4Addr;

use iwf_common::nat::Filter;
use iwf_common::tick::ClockSample;
use proptest::prelude::*;

use super::*;
use crate::daemon::dataplane::HALF_WRITTEN;
use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalEndpoint, InternalPort, Protocol,
    RemotePeer,
};

#[derive(Clone, Debug, Default)]
struct Memory {
    ext: BTreeMap<EndpointKey, MappingValue>,
    int: BTreeMap<EndpointKey, MappingValue>,
    capacity: usize,
    ended: Vec<EndpointKey>,
    /// The call after which nothing works any more, as after a kill.
    dies_after: Option<usize>,
    /// A mapping that a packet makes right after the next change of the external table.
    intruder: Option<(EndpointKey, EndpointKey)>,
    calls: usize,
}

impl Memory {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            ..Self::default()
        }
    }

    fn table(&mut self, side: Side) -> &mut BTreeMap<EndpointKey, MappingValue> {
        match side {
            Side::Ext => &mut self.ext,
            Side::Int => &mut self.int,
        }
    }

    fn change(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.dies_after {
            Some(n) if self.calls > n => Err(io::Error::from_raw_os_error(libc::EPERM)),
            _ => Ok(()),
        }
    }

    /// A mapping as packets make it.
    fn dynamic(&mut self, ext: EndpointKey, int: EndpointKey) {
        let value = |other: EndpointKey| MappingValue {
            addr: other.addr,
            port: other.port,
            kind: MappingKind::Dynamic as u8,
            filter: Filter::AddressAndPortDependent as u8,
            ..MappingValue::default()
        };
        self.ext.insert(ext, value(int));
        self.int.insert(int, value(ext));
    }
}

impl Tables for Memory {
    fn get(&self, side: Side, key: &EndpointKey) -> io::Result<Option<MappingValue>> {
        let table = match side {
            Side::Ext => &self.ext,
            Side::Int => &self.int,
        };
        Ok(table.get(key).copied())
    }

    fn put(
        &mut self,
        side: Side,
        key: &EndpointKey,
        value: &MappingValue,
        expect: Expect,
    ) -> io::Result<()> {
        self.change()?;
        let capacity = self.capacity;
        let table = self.table(side);
        let there = table.contains_key(key);
        if there && expect == Expect::Nothing {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        if !there && table.len() >= capacity {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        table.insert(*key, *value);
        if side == Side::Ext
            && let Some((ext, int)) = self.intruder.take()
        {
            self.dynamic(ext, int);
        }
        Ok(())
    }

    fn delete(&mut self, side: Side, key: &EndpointKey) -> io::Result<()> {
        self.change()?;
        self.table(side).remove(key);
        Ok(())
    }

    fn end_sessions(&mut self, external: &EndpointKey) -> io::Result<()> {
        self.change()?;
        self.ended.push(*external);
        Ok(())
    }

    fn list(&self, side: Side) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        let table = match side {
            Side::Ext => &self.ext,
            Side::Int => &self.int,
        };
        Ok(table.iter().map(|(k, v)| (*k, *v)).collect())
    }
}

#[test]
fn a_mapping_is_written_whole_renewed_in_place_and_removed() {
    let (mut tables, clock) = (Memory::new(8), clock());
    write(&mut tables, &entry(1000, 10, 1), &clock).expect("new");
    assert_eq!(
        observe(&tables, &clock).expect("observe"),
        [entry(1000, 10, 1)]
    );
    let mut renewed = entry(1000, 10, 1);
    renewed.expires = Some(Instant::from_millis(90_000));
    renewed.remote = RemotePeer::Host(Ipv4Addr::new(11, 22, 33, 4));
    write(&mut tables, &renewed, &clock).expect("renewed");
    assert_eq!(observe(&tables, &clock).expect("observe"), [renewed]);
    assert_eq!(tables.ended, [], "its sessions live on");

    remove(&mut tables, &renewed).expect("removed");
    assert_eq!((tables.ext.len(), tables.int.len()), (0, 0));
    assert_eq!(tables.ended, [external_key(&renewed)]);
    remove(&mut tables, &renewed).expect("absent is success");
    assert_eq!(tables.ended.len(), 1);
}

#[test]
fn other_explicit_and_host_entries_stay() {
    let (mut tables, clock) = (Memory::new(8), clock());
    write(&mut tables, &entry(1000, 10, 1), &clock).expect("new");
    let host = external_key(&entry(68, 68, 0));
    tables.dynamic(host, host);
    if let Some(value) = tables.ext.get_mut(&host) {
        value.kind = MappingKind::Host as u8;
    }
    let before = tables.clone();
    for refused in [entry(1000, 11, 2), entry(1001, 10, 2), entry(68, 12, 2)] {
        let outcome = write(&mut tables, &refused, &clock);
        assert!(matches!(outcome, Err(DataPlaneError::InUse)), "{refused:?}");
    }
    remove(&mut tables, &entry(1000, 11, 2)).expect("of another host");
    remove(&mut tables, &entry(68, 12, 2)).expect("of the CPE");
    assert_eq!((tables.ext, tables.int), (before.ext, before.int));
}

#[test]
fn an_expired_mapping_is_in_nobodys_way() {
    let (mut tables, clock) = (Memory::new(8), clock());
    let mut over = entry(1000, 10, 1);
    over.expires = Some(Instant::from_millis(1));
    write(&mut tables, &over, &clock).expect("over already");
    write(&mut tables, &entry(1000, 11, 2), &clock).expect("the next owner");
    assert_eq!(
        observe(&tables, &clock).expect("observe"),
        [entry(1000, 11, 2)]
    );
}

#[test]
fn dynamic_mappings_give_way_with_their_sessions() {
    let (mut tables, clock) = (Memory::new(8), clock());
    let new = entry(1000, 10, 1);
    let (ext, int) = (external_key(&new), internal_key(&new));
    let stranger = internal_key(&entry(1000, 99, 0));
    let former = external_key(&entry(5000, 10, 0));
    tables.dynamic(ext, stranger);
    tables.dynamic(former, int);
    write(&mut tables, &new, &clock).expect("explicit wins");
    assert_eq!(observe(&tables, &clock).expect("observe"), [new]);
    assert_eq!((tables.ext.len(), tables.int.len()), (1, 1));
    assert_eq!(tables.ended, [ext, former]);
}

#[test]
fn a_packet_between_the_two_writes_is_displaced_too() {
    let (mut tables, clock) = (Memory::new(8), clock());
    let new = entry(1000, 10, 1);
    let meanwhile = external_key(&entry(5000, 10, 0));
    tables.intruder = Some((meanwhile, internal_key(&new)));
    write(&mut tables, &new, &clock).expect("explicit wins");
    assert_eq!(observe(&tables, &clock).expect("observe"), [new]);
    assert_eq!((tables.ext.len(), tables.int.len()), (1, 1));
    assert_eq!(tables.ended, [meanwhile]);
}

#[test]
fn a_full_table_refuses_and_is_as_before() {
    let clock = clock();
    let mut tables = Memory::new(1);
    write(&mut tables, &entry(1000, 10, 1), &clock).expect("fits");
    let before = tables.clone();
    let outcome = write(&mut tables, &entry(1001, 11, 2), &clock);
    assert!(matches!(outcome, Err(DataPlaneError::Full { .. })));
    assert_eq!((&tables.ext, &tables.int), (&before.ext, &before.int));

    // Only the second half does not fit: the first is taken back.
    let mut tables = Memory::new(1);
    tables.dynamic(
        external_key(&entry(1001, 11, 0)),
        internal_key(&entry(0x77, 99, 0)),
    );
    let before = tables.clone();
    let outcome = write(&mut tables, &entry(1001, 11, 2), &clock);
    assert!(matches!(outcome, Err(DataPlaneError::Full { .. })));
    assert_eq!((&tables.ext, &tables.int), (&before.ext, &before.int));
}

#[test]
fn half_a_mapping_is_told_and_can_be_removed_or_completed() {
    let clock = clock();
    for side in [Side::Ext, Side::Int] {
        let mut tables = Memory::new(8);
        write(&mut tables, &entry(1000, 10, 1), &clock).expect("new");
        tables.table(side).clear();
        let mut half = entry(1000, 10, 1);
        half.generation = HALF_WRITTEN;
        assert_eq!(observe(&tables, &clock).expect("observe"), [half]);
        let mut other = tables.clone();
        remove(&mut other, &half).expect("remove");
        assert_eq!((other.ext.len(), other.int.len()), (0, 0));
        write(&mut tables, &entry(1000, 10, 1), &clock).expect("complete");
        assert_eq!(
            observe(&tables, &clock).expect("observe"),
            [entry(1000, 10, 1)]
        );
    }
}

#[test]
fn a_leftover_of_an_internal_endpoint_is_in_nobodys_way() {
    let (mut tables, clock) = (Memory::new(8), clock());
    write(&mut tables, &entry(1000, 10, 1), &clock).expect("new");
    tables.ext.clear();
    write(&mut tables, &entry(2000, 10, 2), &clock).expect("the leftover gives way");
    assert_eq!(
        observe(&tables, &clock).expect("observe"),
        [entry(2000, 10, 2)]
    );
}

proptest! {
    /// Whatever the tables hold and wherever a run is killed, one more run of the reconciler's steps (remove
    /// what is not wanted, write what is missing) leads to what is wanted.
    #[test]
    fn random_tables_converge_after_a_kill_anywhere(
        dynamic in proptest::collection::vec((1u16..8, 1u16..8), 0..6),
        held in proptest::collection::vec((1u16..8, 1u16..8), 0..6),
        wanted in proptest::collection::vec((1u16..8, 1u16..8), 0..6),
        killed in 0usize..20,
    ) {
        let clock = clock();
        let mut tables = Memory::new(64);
        for (ext, int) in dynamic {
            let e = entry(ext, int, 0);
            let taken = tables.ext.contains_key(&external_key(&e)) || tables.int.contains_key(&internal_key(&e));
            if !taken {
                tables.dynamic(external_key(&e), internal_key(&e));
            }
        }
        let wanted = distinct(wanted, 100);
        reconcile(&mut tables, &distinct(held, 1), &clock).expect("first table");
        tables.dies_after = Some(tables.calls + killed);
        let _killed = reconcile(&mut tables, &wanted, &clock);
        tables.dies_after = None;
        reconcile(&mut tables, &wanted, &clock).expect("after the restart");
        prop_assert_eq!(observe(&tables, &clock).expect("observe"), wanted.clone());
    }
}

fn reconcile(
    tables: &mut Memory,
    wanted: &[NatEntry],
    clock: &Clock,
) -> Result<(), DataPlaneError> {
    let observed = observe(tables, clock)?;
    for stale in observed.iter().filter(|e| !wanted.contains(e)) {
        remove(tables, stale)?;
    }
    for missing in wanted.iter().filter(|e| !observed.contains(e)) {
        write(tables, missing, clock)?;
    }
    Ok(())
}

/// A table in which no endpoint has two mappings, sorted as [`observe`] sorts.
fn distinct(pairs: Vec<(u16, u16)>, first_generation: u32) -> Vec<NatEntry> {
    let mut entries: Vec<NatEntry> = Vec::new();
    for ((ext, int), generation) in pairs.into_iter().zip(first_generation..) {
        let new = entry(ext, int, generation);
        let clashes = entries
            .iter()
            .any(|e| e.external == new.external || e.internal == new.internal);
        if !clashes {
            entries.push(new);
        }
    }
    entries.sort();
    entries
}

fn clock() -> Clock {
    let sample = ClockSample {
        jiffies: 15_000,
        boot_ns: 60_000_000_000,
    };
    Clock::new(250, sample)
}

fn entry(external: u16, internal: u16, generation: u32) -> NatEntry {
    NatEntry {
        protocol: Protocol::Udp,
        external: ExternalEndpoint {
            addr: Ipv4Addr::new(100, 64, 0, 2),
            port: ExternalPort::new(external).expect("not 0"),
        },
        internal: InternalEndpoint {
            addr: Ipv4Addr::new(192, 168, 1, 2),
            port: InternalPort::new(internal).expect("not 0"),
        },
        remote: RemotePeer::Any,
        generation: Generation(generation),
        expires: None,
    }
}
