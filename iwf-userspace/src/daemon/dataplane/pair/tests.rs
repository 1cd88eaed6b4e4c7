//! The pair logic on tables in memory: small, so that they fill up, and able to fail at any call.

use std::net::Ipv4Addr;

use iwf_common::nat::Filter;
use iwf_common::tick::ClockSample;
use proptest::prelude::*;

use super::*;
use crate::daemon::dataplane::HALF_WRITTEN;
use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalEndpoint, InternalPort, Protocol,
    RemotePeer, RemotePrefix,
};

#[derive(Clone, Debug, Default)]
struct Memory {
    ext: BTreeMap<EndpointKey, MappingValue>,
    int: BTreeMap<EndpointKey, MappingValue>,
    capacity: usize,
    lists: BTreeMap<EndpointKey, FilterList>,
    ended: Vec<EndpointKey>,
    rechecked: Vec<EndpointKey>,
    displaced: Vec<(EndpointKey, EndpointKey)>,
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

    fn end_sessions(&mut self, external: &EndpointKey, _internal: &EndpointKey) {
        self.ended.push(*external);
    }

    fn displaced(&mut self, internal: EndpointKey, external: EndpointKey) {
        self.displaced.push((internal, external));
    }

    fn recheck(&mut self, external: &EndpointKey) {
        self.rechecked.push(*external);
    }

    fn filter(&self, external: &EndpointKey) -> io::Result<Option<FilterList>> {
        Ok(self.lists.get(external).copied())
    }

    fn put_filter(&mut self, external: &EndpointKey, list: &FilterList) -> io::Result<()> {
        self.change()?;
        if !self.lists.contains_key(external) && self.lists.len() >= self.capacity {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        self.lists.insert(*external, *list);
        Ok(())
    }

    fn delete_filter(&mut self, external: &EndpointKey) -> io::Result<()> {
        self.change()?;
        self.lists.remove(external);
        Ok(())
    }

    fn filters(&self) -> io::Result<BTreeMap<EndpointKey, FilterList>> {
        Ok(self.lists.clone())
    }

    fn list(&self, side: Side) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        let table = match side {
            Side::Ext => &self.ext,
            Side::Int => &self.int,
        };
        Ok(table.iter().map(|(k, v)| (*k, *v)).collect())
    }

    /// As a hash table: all keys of one bucket at once. The port is the bucket.
    fn read(
        &mut self,
        side: Side,
        cursor: &mut Cursor,
    ) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        let bucket = |key: &EndpointKey| u32::from(u16::from_be_bytes(key.port));
        let from = match *cursor {
            Cursor::Start => 0,
            Cursor::At(last) => last + 1,
            Cursor::End => return Ok(Vec::new()),
        };
        let table = self.table(side);
        let next = table.keys().map(bucket).filter(|b| *b >= from).min();
        let Some(next) = next else {
            *cursor = Cursor::End;
            return Ok(Vec::new());
        };
        *cursor = Cursor::At(next);
        let read = table.iter().filter(|(key, _)| bucket(key) == next);
        Ok(read.map(|(k, v)| (*k, *v)).collect())
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

    remove(&mut tables, &renewed, &clock).expect("removed");
    assert_eq!((tables.ext.len(), tables.int.len()), (0, 0));
    assert_eq!(tables.ended, [external_key(&renewed)]);
    remove(&mut tables, &renewed, &clock).expect("absent is success");
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
    for refused in [entry(1000, 11, 2), entry(68, 12, 2)] {
        let outcome = write(&mut tables, &refused, &clock);
        assert!(matches!(outcome, Err(DataPlaneError::InUse)), "{refused:?}");
    }
    remove(&mut tables, &entry(1000, 11, 2), &clock).expect("of another host");
    remove(&mut tables, &entry(68, 12, 2), &clock).expect("of the CPE");
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
    assert_eq!(tables.displaced, [(stranger, ext), (int, former)]);
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
        remove(&mut other, &half, &clock).expect("remove");
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

/// IGD-010: outbound packets keep the first external port, and get the next oldest when it goes.
#[test]
fn the_oldest_of_several_external_endpoints_is_the_primary() {
    let (mut tables, clock) = (Memory::new(8), clock());
    let all = [entry(1003, 10, 1), entry(1002, 10, 2), entry(1001, 10, 3)];
    for each in &all {
        write(&mut tables, each, &clock).expect("one more");
    }
    let (int, primary) = (internal_key(&all[0]), |tables: &Memory, int| {
        let held = tables.int.get(&int).map(|held| held.endpoint(17));
        held.map(|key: EndpointKey| u16::from_be_bytes(key.port))
    });
    let observed = |tables: &Memory| {
        let mut all = observe(tables, &clock).expect("observe");
        all.sort_by_key(|e| e.generation);
        all
    };
    assert_eq!(observed(&tables), all);
    assert_eq!(primary(&tables, int), Some(1003));
    assert_eq!((tables.ext.len(), tables.int.len()), (3, 1));
    assert_eq!(tables.ended, [], "nothing was in the way");

    // Renewals change no rank, in any order.
    for each in all.iter().rev() {
        write(&mut tables, each, &clock).expect("renewed");
    }
    assert_eq!(primary(&tables, int), Some(1003));
    remove(&mut tables, &all[0], &clock).expect("the primary");
    assert_eq!(primary(&tables, int), Some(1002), "older than the third");
    assert_eq!(observed(&tables), all[1..]);
    remove(&mut tables, &all[2], &clock).expect("a secondary");
    assert_eq!(observed(&tables), all[1..2]);
    remove(&mut tables, &all[1], &clock).expect("the last");
    assert_eq!((tables.ext.len(), tables.int.len()), (0, 0));
    let ended: Vec<_> = [&all[0], &all[2], &all[1]].map(external_key).into();
    assert_eq!(tables.ended, ended);
}

/// The kernel's sweep has taken the primary, or a daemon died before it named a successor.
#[test]
fn a_secondary_without_a_primary_is_told_and_becomes_one() {
    let (mut tables, clock) = (Memory::new(8), clock());
    let (first, second) = (entry(1003, 10, 1), entry(1002, 10, 2));
    write(&mut tables, &first, &clock).expect("first");
    write(&mut tables, &second, &clock).expect("second");
    tables.ext.remove(&external_key(&first));
    tables.int.clear();
    let half = NatEntry {
        generation: HALF_WRITTEN,
        ..second
    };
    assert_eq!(observe(&tables, &clock).expect("observe"), [half]);
    write(&mut tables, &second, &clock).expect("completed");
    assert_eq!(observe(&tables, &clock).expect("observe"), [second]);
    assert_eq!(tables.int.len(), 1);
}

/// What stands in the kernel is read as what was written, and sessions follow a mapping that lets in others.
#[test]
fn a_mapping_may_let_in_whom_its_host_has_sent_to() {
    let (mut tables, clock) = (Memory::new(2), clock());
    let stated = [
        RemotePeer::SentToHost,
        RemotePeer::SentToEndpoint,
        RemotePeer::Any,
        RemotePeer::SentToHost,
    ];
    for (changes, remote) in stated.into_iter().enumerate() {
        let entry = NatEntry {
            remote,
            ..entry(1000, 1000, 1)
        };
        for _ in 0..2 {
            write(&mut tables, &entry, &clock).expect("written");
            assert_eq!(observe(&tables, &clock).expect("observe"), [entry]);
            assert_eq!(tables.rechecked.len(), changes, "{remote:?}");
        }
    }
}

#[test]
fn a_list_of_remotes_comes_and_goes_with_its_mapping() {
    let (mut tables, clock) = (Memory::new(2), clock());
    let listed = |external, generation, hosts: &[u8]| NatEntry {
        remote: remotes(hosts),
        ..entry(external, external, generation)
    };
    let wide = listed(1000, 1, &[1, 2, 3]);
    write(&mut tables, &wide, &clock).expect("new");
    assert_eq!(observe(&tables, &clock).expect("observe"), [wide]);
    assert_eq!(tables.rechecked, [], "there was nothing before");
    write(&mut tables, &wide, &clock).expect("renewed");
    assert_eq!(tables.rechecked, [], "nothing has changed");
    let narrow = listed(1000, 1, &[1, 2]);
    write(&mut tables, &narrow, &clock).expect("narrowed");
    assert_eq!(observe(&tables, &clock).expect("observe"), [narrow]);
    let ext = external_key(&wide);
    assert_eq!(tables.rechecked, [ext]);

    // Without its list the mapping is closed, which a reconciler must see.
    let held = tables.lists.remove(&ext);
    assert_ne!(observe(&tables, &clock).expect("observe"), [narrow]);
    tables.lists.extend(held.map(|held| (ext, held)));

    // Room for lists is bounded; those that nobody needs any more do not count.
    let orphan = external_key(&entry(7777, 1, 9));
    tables.lists.insert(orphan, FilterList::default());
    write(&mut tables, &listed(1001, 2, &[4, 5]), &clock).expect("the orphan gives way");
    let third = listed(1002, 3, &[6, 7]);
    let before = tables.clone();
    let outcome = write(&mut tables, &third, &clock);
    assert!(matches!(
        outcome,
        Err(DataPlaneError::Full { map: "FILTERS" })
    ));
    assert_eq!((&tables.ext, &tables.lists), (&before.ext, &before.lists));

    let open = entry(1000, 1000, 1);
    write(&mut tables, &open, &clock).expect("opened");
    assert!(!tables.lists.contains_key(&ext));
    assert_eq!(tables.rechecked, [ext, ext]);
    remove(&mut tables, &listed(1001, 2, &[4, 5]), &clock).expect("removed");
    assert!(tables.lists.is_empty());
}

/// The data plane counts in the entry that a renewal writes anew.
#[test]
fn a_renewal_keeps_what_was_counted_and_tells_sessions_of_an_earlier_end() {
    let (mut tables, clock) = (Memory::new(8), clock());
    let mut lasting = entry(1000, 10, 1);
    lasting.expires = Some(Instant::from_millis(90_000));
    write(&mut tables, &lasting, &clock).expect("new");
    let ext = external_key(&lasting);
    let counted = tables.ext.get_mut(&ext).expect("written");
    (counted.packets_in, counted.octets_in) = (3, 300);
    (counted.packets_out, counted.octets_out) = (4, 400);
    counted.last_used = 7;
    lasting.expires = Some(Instant::from_millis(100_000));
    write(&mut tables, &lasting, &clock).expect("prolonged");
    assert_eq!(tables.rechecked, []);
    lasting.expires = Some(Instant::from_millis(80_000));
    write(&mut tables, &lasting, &clock).expect("shortened");
    assert_eq!(tables.rechecked, [ext]);
    let held = tables.ext.get(&ext).expect("there");
    assert_eq!((held.packets_in, held.octets_in), (3, 300));
    assert_eq!((held.packets_out, held.octets_out), (4, 400));
    assert_eq!(held.last_used, 7);
    assert_eq!(tables.ended, []);
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
        prop_assert_eq!(in_slices(&mut tables, &clock), observe(&tables, &clock).expect("observe"));
        reconcile(&mut tables, &wanted, &clock).expect("after the restart");
        prop_assert_eq!(observe(&tables, &clock).expect("observe"), wanted.clone());
    }
}

/// What slices show, one after the other, and what they have in common with looking each up.
fn in_slices(tables: &mut Memory, clock: &Clock) -> Vec<NatEntry> {
    let mut walk = Walk::default();
    let mut all = Vec::new();
    loop {
        let seen = observe_slice(tables, &mut walk, clock).expect("a slice");
        for entry in &seen.entries {
            assert_eq!(find(tables, entry, clock).expect("find"), Some(*entry));
        }
        all.extend(seen.entries);
        if !seen.more {
            all.sort_unstable();
            return all;
        }
    }
}

fn reconcile(
    tables: &mut Memory,
    wanted: &[NatEntry],
    clock: &Clock,
) -> Result<(), DataPlaneError> {
    let observed = observe(tables, clock)?;
    for stale in observed.iter().filter(|e| !wanted.contains(e)) {
        remove(tables, stale, clock)?;
    }
    for missing in wanted.iter().filter(|e| !observed.contains(e)) {
        write(tables, missing, clock)?;
    }
    Ok(())
}

/// A table in which no external endpoint has two mappings, sorted as [`observe`] sorts.
fn distinct(pairs: Vec<(u16, u16)>, first_generation: u32) -> Vec<NatEntry> {
    let mut entries: Vec<NatEntry> = Vec::new();
    for ((ext, int), generation) in pairs.into_iter().zip(first_generation..) {
        let new = entry(ext, int, generation);
        if !entries.iter().any(|e| e.external == new.external) {
            entries.push(new);
        }
    }
    entries.sort();
    entries
}

/// 11.22.33.x for each x.
fn remotes(hosts: &[u8]) -> RemotePeer {
    let prefix = |host: &u8| RemotePrefix::new(Ipv4Addr::new(11, 22, 33, *host), 32, 0);
    let prefixes: Vec<_> = hosts.iter().filter_map(prefix).collect();
    RemotePeer::of(&prefixes).expect("few")
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
