//! Runs among changes: each change is made to table and kernel together between two turns, as the shell does, or to the
//! kernel alone, as drift.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Bound;

use proptest::prelude::*;

use super::super::plan::Plan;
use super::*;
use crate::mapping::policy::Limits;
use crate::mapping::table::Table;
use crate::mapping::tests::mapping;
use crate::mapping::{Mapping, State};
use crate::types::{ExternalEndpoint, ExternalPort, Instant, Protocol};

type Key = (Protocol, ExternalEndpoint);

/// A kernel with the data plane's rules, that shows two entries at a time.
#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<Key, NatEntry>,
    shown: Option<Key>,
    repairs: Vec<(Kind, NatEntry)>,
    looked: Cell<usize>,
}

impl Model {
    fn write(&mut self, entry: &NatEntry) {
        let held = self.entries.entry(key(entry)).or_insert(*entry);
        // Another pair of endpoints is in the way.
        if held.internal == entry.internal {
            *held = *entry;
        }
    }

    fn remove(&mut self, entry: &NatEntry) {
        let held = self.entries.get(&key(entry));
        if held.is_some_and(|held| held.internal == entry.internal) {
            self.entries.remove(&key(entry));
        }
    }
}

impl Kernel for Model {
    type Error = Infallible;

    fn some(&mut self) -> Result<Seen, Infallible> {
        let from = self.shown.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.entries.range((from, Bound::Unbounded));
        let shown: Vec<_> = rest.by_ref().take(2).map(|(_, entry)| *entry).collect();
        let more = rest.next().is_some();
        self.shown = shown.last().map(key).filter(|_| more);
        Ok(Seen {
            entries: shown,
            more,
        })
    }

    fn find(&self, like: &NatEntry) -> Result<Option<NatEntry>, Infallible> {
        self.looked.set(self.looked.get() + 1);
        let held = self.entries.get(&key(like)).copied();
        Ok(held.filter(|held| held.internal == like.internal))
    }

    fn repair(&mut self, what: Kind, entry: &NatEntry) {
        self.repairs.push((what, *entry));
        match what {
            Kind::Removed => self.remove(entry),
            Kind::Created | Kind::Updated => self.write(entry),
        }
    }
}

fn key(entry: &NatEntry) -> Key {
    (entry.protocol, entry.external)
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Turn,
    Add(u16),
    Remove(u16),
    Renew(u16, u64),
    /// To another host, as another mapping.
    Move(u16, u8),
    /// It is on its way to the server, and not in the kernel yet.
    Ask(u16),
}

/// What happens to the kernel alone.
#[derive(Clone, Copy, Debug)]
enum Drift {
    Lost(u16),
    Bent(u16, u8),
    Aged(u16),
    Ends(u16),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Change(Change),
    Drift(Drift),
}

#[derive(Debug)]
struct World {
    table: Table,
    kernel: Model,
    run: Run,
    runs: usize,
    last: u32,
}

const NOW: Instant = Instant::from_millis(0);

impl World {
    fn new() -> Self {
        Self {
            table: Table::new(Limits::default()),
            kernel: Model::default(),
            run: Run::default(),
            runs: 0,
            last: 0,
        }
    }

    fn desired(&self) -> Vec<NatEntry> {
        super::super::desired::desired(&self.table, NOW)
    }

    fn turn(&mut self) {
        let Ok(more) = self
            .run
            .turn(&mut self.kernel, Wanted::new(&self.table, NOW));
        if !more {
            self.run = Run::default();
            self.runs += 1;
        }
    }

    fn at(&self, port: u16) -> Option<Mapping> {
        let port = ExternalPort::new(port)?;
        self.table.by_nat1(Protocol::Tcp, port).cloned()
    }

    fn add(&mut self, port: u16, host: u8, state: State) {
        self.last += 1;
        let new = Mapping {
            state,
            ..mapping(self.last, host, port, port)
        };
        let entry = new.nat_entry();
        let held = self.kernel.entries.get(&key(&entry));
        // The kernel refuses, and the caller is told so.
        if held.is_some_and(|held| held.internal != entry.internal) {
            return;
        }
        if new.is_installed() {
            self.kernel.write(&entry);
        }
        self.table.put(new).expect("room");
    }

    fn remove(&mut self, mapping: &Mapping) {
        self.table.remove(mapping.generation);
        self.kernel.remove(&mapping.nat_entry());
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Turn => self.turn(),
            Change::Add(port) | Change::Ask(port) if self.at(port).is_none() => {
                let asked = matches!(change, Change::Ask(_));
                let state = if asked { State::Pending } else { State::Active };
                self.add(port, 20, state);
            }
            Change::Add(_) | Change::Ask(_) => {}
            Change::Remove(port) => {
                if let Some(mapping) = self.at(port) {
                    self.remove(&mapping);
                }
            }
            Change::Renew(port, end) => {
                if let Some(mut mapping) = self.at(port) {
                    mapping.lease_ends = Instant::from_millis(end);
                    mapping.state = State::Active;
                    self.kernel.write(&mapping.nat_entry());
                    self.table.put(mapping).expect("room");
                }
            }
            Change::Move(port, host) => {
                if let Some(mapping) = self.at(port) {
                    self.remove(&mapping);
                    self.add(port, host, State::Active);
                }
            }
        }
    }

    fn drift(&mut self, drift: Drift) {
        let entry = |port, host| mapping(1000, host, port, port).nat_entry();
        match drift {
            Drift::Lost(port) => {
                self.kernel.entries.remove(&key(&entry(port, 20)));
            }
            Drift::Bent(port, host) => {
                let bent = entry(port, host);
                self.kernel.entries.insert(key(&bent), bent);
            }
            Drift::Aged(port) => {
                let held = self.kernel.entries.get_mut(&key(&entry(port, 20)));
                held.into_iter().for_each(|held| held.generation.0 += 7000);
            }
            Drift::Ends(port) => {
                let held = self.kernel.entries.get_mut(&key(&entry(port, 20)));
                held.into_iter().for_each(|held| held.expires = None);
            }
        }
    }

    fn agrees(&self) -> bool {
        let held: Vec<_> = self.kernel.entries.values().copied().collect();
        Plan::new(&held, &self.desired()).is_empty()
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        5 => Just(Change::Turn),
        3 => (1u16..8).prop_map(Change::Add),
        1 => (1u16..8).prop_map(Change::Ask),
        2 => (1u16..8).prop_map(Change::Remove),
        2 => (1u16..8, 1u64..9).prop_map(|(port, end)| Change::Renew(port, end * 10_000_000)),
        1 => (1u16..8, 20u8..23).prop_map(|(port, host)| Change::Move(port, host)),
    ]
}

fn drift() -> impl Strategy<Value = Drift> {
    prop_oneof![
        (1u16..10).prop_map(Drift::Lost),
        (1u16..10, 20u8..23).prop_map(|(port, host)| Drift::Bent(port, host)),
        (1u16..10).prop_map(Drift::Aged),
        (1u16..10).prop_map(Drift::Ends),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => change().prop_map(Step::Change),
        1 => drift().prop_map(Step::Drift),
    ]
}

proptest! {
    /// What comes, goes and changes between two turns is no drift, wherever the run is.
    #[test]
    fn changes_among_turns_are_no_drift(changes in prop::collection::vec(change(), 0..120)) {
        let mut world = World::new();
        for change in changes {
            world.change(change);
            prop_assert!(world.agrees(), "{world:?}");
            prop_assert_eq!(&world.kernel.repairs, &[]);
        }
    }

    /// What has drifted before a run begins is right when it has ended, whatever is changed meanwhile.
    #[test]
    fn a_run_repairs_what_had_drifted(
        before in prop::collection::vec(step(), 0..60),
        meanwhile in prop::collection::vec(change(), 0..30),
    ) {
        let mut world = World::new();
        for step in before {
            match step {
                Step::Change(change) => world.change(change),
                Step::Drift(drift) => world.drift(drift),
            }
        }
        // Another one begins.
        (world.run, world.kernel.shown, world.runs) = (Run::default(), None, 0);
        world.kernel.repairs.clear();
        let mut meanwhile = meanwhile.into_iter();
        while world.runs == 0 {
            world.change(Change::Turn);
            if world.runs == 0 && let Some(change) = meanwhile.next() {
                world.change(change);
            }
        }
        prop_assert!(world.agrees(), "{world:?}");
        let repairs = std::mem::take(&mut world.kernel.repairs);
        let again = |(what, entry): &(Kind, NatEntry)| (*what as u8, key(entry));
        let mut done: Vec<_> = repairs.iter().map(again).collect();
        done.sort_unstable();
        let count = done.len();
        done.dedup();
        prop_assert_eq!(done.len(), count, "nothing is repaired twice: {:?}", repairs);
    }
}

#[test]
fn a_turn_looks_at_a_bounded_number() {
    let mut world = World::new();
    world.table = Table::new(Limits {
        mappings: 1000,
        per_host: 1000,
        ..Limits::default()
    });
    for port in 1..=1000 {
        world.add(port, 20, State::Active);
    }
    let mut turns = 0;
    while world.runs == 0 {
        world.kernel.looked.set(0);
        world.turn();
        assert!(world.kernel.looked.get() <= TURN);
        turns += 1;
    }
    assert_eq!(turns, 1000 / 2 + 1000_usize.div_ceil(TURN) + 1);
    assert_eq!(world.kernel.repairs, []);
}
