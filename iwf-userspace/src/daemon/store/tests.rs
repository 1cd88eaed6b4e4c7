use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::fake::MemoryStore;
use super::*;
use crate::mapping::record::UpstreamLease;
use crate::mapping::{Owner, Via};
use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, InternalEndpoint, InternalPort, Lifetime,
    MappingNonce, Protocol, RemotePeer,
};

pub(super) const NOW: UnixTime = UnixTime::from_secs(1_000_000);

/// A directory of one test, removed when dropped.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("iwf-store-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.0.join("store.redb")
    }

    pub(super) fn damaged(&self) -> usize {
        let names = fs::read_dir(&self.0).unwrap();
        names
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains("damaged")
            })
            .count()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the directory is this test's own");
    }
}

pub(super) fn record(generation: u32) -> MappingRecord {
    let addr = [192, 168, 1, 10].into();
    let external = ExternalEndpoint {
        addr: [100, 64, 0, 2].into(),
        port: ExternalPort::new(40_000).unwrap(),
    };
    MappingRecord {
        generation: Generation(generation),
        protocol: Protocol::Udp,
        internal: InternalEndpoint {
            addr,
            port: InternalPort::new(5000).unwrap(),
        },
        nat1: external,
        external,
        remote: RemotePeer::Any,
        description: "game \u{1f3ae}".to_owned(),
        requested: Lifetime(3600),
        lease_ends: UnixTime::from_secs(1_003_600),
        any_port: false,
        owner: Owner::ControlPoint,
        upstream: Some(UpstreamLease {
            server: "100.64.0.1:5351".parse().unwrap(),
            via: Via::Pcp,
            nonce: MappingNonce([7; 12]),
            expires: UnixTime::from_secs(1_000_120),
            asked: false,
        }),
    }
}

/// The mark of a lease at that port of our NAT.
pub(super) fn mark(port: u16) -> Mark {
    Mark {
        server: "100.64.0.1:5351".parse().unwrap(),
        via: Via::Pcp,
        protocol: Protocol::Tcp,
        behalf: None,
        port: ExternalPort::new(port).unwrap(),
        nonce: MappingNonce([9; 12]),
        ending: port < 1024,
        until: UnixTime::from_secs(1_086_400),
    }
}

/// A file with some history: 40 mappings made, every third removed.
pub(super) fn filled(scratch: &Scratch) -> Vec<MappingRecord> {
    let (mut store, _) = open(&scratch.0, NOW).unwrap();
    for n in 1..=40 {
        store.commit(&[StoreChange::Put(record(n))]).unwrap();
    }
    for n in (3..=40).step_by(3) {
        store.commit(&[StoreChange::Delete(Generation(n))]).unwrap();
    }
    (1..=40).filter(|n| n % 3 != 0).map(record).collect()
}

#[test]
fn what_was_committed_is_there_again() {
    let scratch = Scratch::new();
    let kept = filled(&scratch);
    let (_store, first) = open(&scratch.0, NOW).unwrap();
    assert_eq!(first.mappings, kept);
    assert_eq!(first.last_generation, 40);
    drop(_store);
    let (_store, second) = open(&scratch.0, NOW).unwrap();
    assert_eq!(second.mappings, first.mappings);
    assert_eq!(second.device_uuid, first.device_uuid);
    assert!(second.boot_id > first.boot_id);
    assert_eq!(scratch.damaged(), 0);
}

#[test]
fn generation_counter_outlives_the_mapping() {
    let scratch = Scratch::new();
    let (mut store, _) = open(&scratch.0, NOW).unwrap();
    store.commit(&[StoreChange::Put(record(9))]).unwrap();
    store.commit(&[StoreChange::Delete(Generation(9))]).unwrap();
    drop(store);
    assert_eq!(open(&scratch.0, NOW).unwrap().1.last_generation, 9);
}

#[test]
fn second_daemon_on_the_same_directory_is_refused() {
    let scratch = Scratch::new();
    let (_store, _) = open(&scratch.0, NOW).unwrap();
    let error = open(&scratch.0, NOW).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    assert!(error.to_string().contains("paths.state_dir"));
}

#[test]
fn truncation_at_any_point_gives_the_old_or_an_empty_store() {
    let scratch = Scratch::new();
    let kept = filled(&scratch);
    let whole = fs::read(scratch.file()).unwrap();
    // Every cut inside the header, then one in each kibibyte.
    let cuts = (0..512)
        .step_by(31)
        .chain((512..whole.len()).step_by(32_768));
    for cut in cuts {
        fs::write(scratch.file(), &whole[..cut]).unwrap();
        let (store, snapshot) = open(&scratch.0, NOW).unwrap();
        assert!(
            snapshot.mappings.is_empty() || snapshot.mappings == kept,
            "cut at {cut}: {} mappings",
            snapshot.mappings.len()
        );
        works(store, &scratch);
    }
}

#[test]
fn garbage_and_foreign_files_are_set_aside() {
    let foreign = Scratch::new();
    {
        let db = ::redb::Database::create(foreign.file()).unwrap();
        let txn = db.begin_write().unwrap();
        let table = ::redb::TableDefinition::<u8, u8>::new("else");
        txn.open_table(table).unwrap().insert(1, 2).unwrap();
        txn.commit().unwrap();
    }
    let foreign = fs::read(foreign.file()).unwrap();
    let samples: [&[u8]; 4] = [b"x", b"SQLite format 3\0 and so on", &[0; 70_000], &foreign];
    for sample in samples {
        let scratch = Scratch::new();
        fs::write(scratch.file(), sample).unwrap();
        let (store, snapshot) = open(&scratch.0, NOW).unwrap();
        assert!(snapshot.mappings.is_empty());
        assert_eq!(scratch.damaged(), 1, "{:?}", &sample[..1]);
        // redb marks what it opens as its own; anything else is kept untouched.
        let left = fs::read(scratch.0.join("store.redb.damaged-1")).unwrap();
        assert!(sample.starts_with(b"redb") || left == sample);
        works(store, &scratch);
    }
}

#[test]
fn flipped_bits_never_stop_the_start() {
    let scratch = Scratch::new();
    let kept = filled(&scratch);
    let whole = fs::read(scratch.file()).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    for round in 0..100 {
        let mut bent = whole.clone();
        // Half of them in the header and first pages, where it hurts.
        let span = if round % 2 == 0 { 8192 } else { whole.len() };
        let at = rng.random_range(0..span);
        bent[at] ^= 1 << rng.random_range(0..8);
        fs::write(scratch.file(), &bent).unwrap();
        let (store, snapshot) = open(&scratch.0, NOW).unwrap();
        assert!(
            snapshot.mappings.len() <= kept.len(),
            "round {round}, octet {at}: {} mappings",
            snapshot.mappings.len()
        );
        for mapping in &snapshot.mappings {
            assert_eq!(
                *mapping,
                record(mapping.generation.0),
                "round {round}, octet {at}"
            );
        }
        drop(store);
    }
    assert!(scratch.damaged() <= usize::try_from(salvage::MAX_KEPT).unwrap());
}

#[test]
fn identity_survives_the_store_and_the_boot_id_grows() {
    let scratch = Scratch::new();
    let (store, before) = open(&scratch.0, NOW).unwrap();
    drop(store);
    fs::write(scratch.file(), b"gone").unwrap();
    let (_store, after) = open(&scratch.0, UnixTime::from_secs(NOW.as_secs() + 5)).unwrap();
    assert_eq!(after.device_uuid, before.device_uuid);
    assert!(after.boot_id > before.boot_id);
}

#[test]
fn a_boot_id_that_was_announced_is_behind_the_next_life() {
    let scratch = Scratch::new();
    let (mut store, before) = open(&scratch.0, NOW).unwrap();
    // Addresses have come and gone faster than the clock goes, and the clock has been set back.
    store.keep_boot_id(before.boot_id + 9).unwrap();
    drop(store);
    let (_store, after) = open(&scratch.0, UnixTime::from_secs(5)).unwrap();
    assert_eq!(after.boot_id, before.boot_id + 10);
    assert_eq!(scratch.damaged(), 0);
}

#[test]
fn starts_that_ended_inside_the_open_set_the_file_aside() {
    let scratch = Scratch::new();
    filled(&scratch);
    fs::write(scratch.0.join("store.opening"), b".").unwrap();
    let (store, snapshot) = open(&scratch.0, NOW).unwrap();
    assert!(
        !snapshot.mappings.is_empty(),
        "one may have been a power cut"
    );
    drop(store);
    fs::write(scratch.0.join("store.opening"), b"..").unwrap();
    let (_store, snapshot) = open(&scratch.0, NOW).unwrap();
    assert!(snapshot.mappings.is_empty());
    assert_eq!(scratch.damaged(), 1);
    assert!(!scratch.0.join("store.opening").exists());
}

#[test]
fn fake_fails_the_call_it_was_told() {
    let mut store = MemoryStore::failing_at(2);
    store.commit(&[StoreChange::Put(record(1))]).unwrap();
    assert!(matches!(
        store.commit(&[StoreChange::Put(record(2))]),
        Err(StoreError::Full)
    ));
    store.commit(&[StoreChange::Put(record(3))]).unwrap();
    assert_eq!(store.records.len(), 2);
}

/// The store takes changes and has them after reopening.
pub(super) fn works(mut store: redb::RedbStore, scratch: &Scratch) {
    store.commit(&[StoreChange::Put(record(100))]).unwrap();
    drop(store);
    let (_store, snapshot) = open(&scratch.0, NOW).unwrap();
    assert!(snapshot.mappings.contains(&record(100)));
}
