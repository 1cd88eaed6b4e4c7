//! Power cuts at every operation of the disk, and disks that fail at every one.

#![expect(
    clippy::print_stdout,
    reason = "prints the figures of docs/operating.md"
)]

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::disk::{Disk, Fault, Op};
use super::redb::{Contents, RedbStore, Unusable};
use super::tests::{NOW, record};
use super::*;
use crate::types::{Generation, MappingNonce};

/// What a disk may have kept of the operations after its last sync: so many samples for each power cut.
const SAMPLES: u32 = 6;

fn start(disk: &Disk) -> (RedbStore, Contents) {
    match RedbStore::open(disk.clone(), NOW) {
        Ok(opened) => opened,
        Err(Unusable::Damaged(reason)) => panic!("damaged: {reason}"),
        Err(Unusable::Newer(format)) => panic!("newer: {format}"),
        Err(Unusable::Failed(error)) => panic!("{error:?}"),
    }
}

/// The record of a generation, with a nonce of its own.
fn own(generation: u32, round: u8) -> MappingRecord {
    let mut record = record(generation);
    let lease = record.upstream.as_mut().expect("it has one");
    lease.nonce = MappingNonce([generation as u8; 12]);
    record.description = format!("round {round}");
    record
}

/// Mappings made, changed and removed, alone and several at a time.
fn history() -> Vec<Vec<StoreChange>> {
    let put = |n, round| StoreChange::Put(own(n, round));
    let delete = |n| StoreChange::Delete(Generation(n));
    let mut history: Vec<Vec<_>> = (1..=12).map(|n| vec![put(n, 0)]).collect();
    history.push((13..=40).map(|n| put(n, 0)).collect());
    history.push(vec![StoreChange::Epoch {
        server: [100, 64, 0, 1].into(),
        epoch: Epoch(77),
        seen: NOW,
    }]);
    history.extend((1..=12).step_by(2).map(|n| vec![delete(n), put(n + 1, 1)]));
    history.push((20..=40).map(delete).collect());
    history.extend((41..=44).map(|n| vec![put(n, 2)]));
    history
}

/// The mappings after each number of commits.
fn states(history: &[Vec<StoreChange>]) -> Vec<Vec<MappingRecord>> {
    let mut store = fake::MemoryStore::default();
    let mut states = vec![Vec::new()];
    for changes in history {
        store.commit(changes).expect("it does not fail");
        states.push(store.records.values().cloned().collect());
    }
    states
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_acknowledged() {
    let history = history();
    let states = states(&history);
    let disk = Disk::default();
    let (mut store, _) = start(&disk);
    // Operations after which a commit was acknowledged.
    let mut acknowledged = vec![disk.log().len()];
    for changes in &history {
        store.commit(changes).expect("a good disk");
        acknowledged.push(disk.log().len());
    }
    let log = disk.log();
    let mut rng = StdRng::seed_from_u64(3);
    let mut cuts = 0;
    // Before the first commit there is nothing to lose; what such a file is worth is asked elsewhere.
    for cut in acknowledged[0]..=log.len() {
        let commits = acknowledged.iter().filter(|at| **at <= cut).count() - 1;
        let good = [Some(&states[commits]), states.get(commits + 1)];
        for left in leftovers(&log[..cut], log.get(cut), &mut rng) {
            let (_, contents) = start(&Disk::holding(left));
            assert!(
                good.contains(&Some(&contents.mappings)),
                "cut at {cut} of {}, after {commits} commits: {} mappings",
                log.len(),
                contents.mappings.len()
            );
            let newest = contents.mappings.iter().map(|m| m.generation.0).max();
            assert!(contents.last_generation >= newest.unwrap_or(0));
            cuts += 1;
        }
    }
    assert!(cuts > 1000, "{cuts} cuts");
}

/// What may be on the disk if the power goes after `done` and amid `next`.
fn leftovers(done: &[Op], next: Option<&Op>, rng: &mut StdRng) -> Vec<Vec<u8>> {
    let synced = done
        .iter()
        .rposition(|op| matches!(op, Op::Sync))
        .map_or(0, |at| at + 1);
    let mut safe = Vec::new();
    for op in &done[..synced] {
        op.apply(&mut safe);
    }
    let all = |octets: &[u8]| {
        let mut octets = octets.to_vec();
        for op in &done[synced..] {
            op.apply(&mut octets);
        }
        octets
    };
    // What SIGKILL leaves, and nothing of what was not synced.
    let mut left = vec![all(&safe), safe.clone()];
    if let Some(Op::Write(at, octets)) = next {
        let mut torn = all(&safe);
        Op::Write(*at, octets[..rng.random_range(0..octets.len())].to_vec()).apply(&mut torn);
        left.push(torn);
    }
    // Any of the sectors, in any order: of two that overlap the disk may keep the older one.
    let pending: Vec<Op> = done[synced..].iter().flat_map(Op::sectors).collect();
    for sample in 0..SAMPLES {
        let mut octets = safe.clone();
        let mut kept: Vec<_> = pending
            .iter()
            .filter(|_| rng.random_range(0..SAMPLES) > sample)
            .collect();
        for n in (1..kept.len()).rev() {
            kept.swap(n, rng.random_range(0..=n));
        }
        for op in kept {
            op.apply(&mut octets);
        }
        left.push(octets);
    }
    left
}

/// Whatever operation fails in whatever way: what was acknowledged is there, what was not is complete or absent, and
/// the store works again when the disk does.
#[test]
fn a_disk_that_fails_at_any_operation_is_survived() {
    let history = history();
    let operations = {
        let disk = Disk::default();
        let (mut store, _) = start(&disk);
        let first = disk.operations();
        for changes in &history {
            store.commit(changes).expect("a good disk");
        }
        first..disk.operations()
    };
    for fault in [Fault::Full, Fault::Io, Fault::Short, Fault::DoneButIo] {
        for at in operations.clone() {
            fails_at(&history, at, fault);
        }
    }
}

fn fails_at(history: &[Vec<StoreChange>], at: usize, fault: Fault) {
    let disk = Disk::default();
    let (mut store, _) = start(&disk);
    disk.fail_at(at, fault);
    let mut acknowledged = fake::MemoryStore::default();
    let mut failures = 0;
    for changes in history {
        while let Err(error) = store.commit(changes) {
            failures += 1;
            assert!(failures < 5, "{fault:?} at {at}: {error:?}");
            // What the process would leave now.
            let mut after = fake::MemoryStore::default();
            after.records.clone_from(&acknowledged.records);
            after.commit(changes).expect("it does not fail");
            let (_, left) = start(&Disk::holding(disk.octets()));
            let left: Vec<_> = left.mappings.iter().collect();
            assert!(
                left == acknowledged.records.values().collect::<Vec<_>>()
                    || left == after.records.values().collect::<Vec<_>>(),
                "{fault:?} at {at}"
            );
        }
        acknowledged.commit(changes).expect("it does not fail");
    }
    drop(store);
    let (store, contents) = start(&disk);
    let kept: Vec<_> = contents.mappings.iter().collect();
    assert_eq!(
        kept,
        acknowledged.records.values().collect::<Vec<_>>(),
        "{fault:?} at {at}"
    );
    drop(store);
}

#[test]
fn a_disk_that_stays_full_is_reported_each_time_and_forgotten_when_it_is_not() {
    let disk = Disk::default();
    let (mut store, _) = start(&disk);
    store.commit(&[StoreChange::Put(own(1, 0))]).expect("room");
    disk.set_broken(Some(Fault::Full));
    for n in 2..6 {
        let refused = store.commit(&[StoreChange::Put(own(n, 0))]);
        assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    }
    disk.set_broken(None);
    store.commit(&[StoreChange::Put(own(7, 0))]).expect("room");
    assert_eq!(store.counts().failures, 4);
    drop(store);
    let (_, contents) = start(&disk);
    assert_eq!(contents.mappings, [own(1, 0), own(7, 0)]);
}

/// The figures of docs/operating.md: what a change costs the flash, alone and with others.
#[test]
fn a_change_costs_a_bounded_number_of_octets() {
    for count in [10, 1000, 10_000] {
        let disk = Disk::default();
        let (mut store, _) = start(&disk);
        let all: Vec<_> = (1..=count).map(|n| StoreChange::Put(own(n, 0))).collect();
        let before = disk.written();
        store.commit(&all).expect("room");
        let fill = disk.written() - before;
        let before = (disk.written(), syncs(&disk));
        for n in 0..50 {
            let changed = own(n * 97 % count + 1, 1);
            store.commit(&[StoreChange::Put(changed)]).expect("room");
        }
        let (one, sync) = ((disk.written() - before.0) / 50, syncs(&disk) - before.1);
        let before = disk.written();
        let some: Vec<_> = (0..50)
            .map(|n| StoreChange::Put(own(n * 97 % count + 1, 2)))
            .collect();
        store.commit(&some).expect("room");
        let together = (disk.written() - before) / 50;
        println!(
            "{count} mappings: {fill} octets to store all at once, {one} for one change, {together} each of 50 at once, \
             file {} octets",
            disk.octets().len()
        );
        assert_eq!(sync, 50, "one sync each");
        assert!(one <= 64 * 1024, "{count}: {one} octets");
        assert!(together < one, "{count}: {together} octets");
    }
}

fn syncs(disk: &Disk) -> usize {
    let log = disk.log();
    log.iter().filter(|op| matches!(op, Op::Sync)).count()
}
