//! Damaged files, and files of other daemons.

use std::os::unix::fs::PermissionsExt;

use ::redb::{Database, TableDefinition};
use proptest::prelude::*;
use serde_json::json;

use super::tests::{NOW, Scratch, filled, mark, record, works};
use super::*;

/// Something that happens to a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Truncate(usize),
    Fill(usize, usize, u8),
    Copy(usize, usize, usize),
    Append(Vec<u8>),
}

impl Damage {
    fn apply(&self, octets: &mut Vec<u8>) {
        let len = octets.len();
        match self {
            Self::Flip(at, bit) => octets[at % len] ^= 1 << (bit % 8),
            Self::Truncate(at) => octets.truncate(at % len),
            Self::Fill(at, count, with) => {
                let at = at % len;
                octets[at..(at + count).min(len)].fill(*with);
            }
            Self::Copy(from, to, count) => {
                let (from, to) = (from % len, to % len);
                let count = (*count).min(len - from.max(to));
                octets.copy_within(from..from + count, to);
            }
            Self::Append(more) => octets.extend(more),
        }
    }
}

/// Mostly where redb keeps what matters most: at the beginning of the file and of its pages.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![
        0usize..512,
        (0usize..64, 0usize..64).prop_map(|(page, at)| page * 4096 + at),
        0usize..64 * 4096,
        any::<prop::sample::Index>().prop_map(|at| at.index(1 << 30)),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (place(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => place().prop_map(Damage::Truncate),
        1 => (place(), 1usize..9000, prop_oneof![Just(0u8), Just(0xff)])
            .prop_map(|(at, count, with)| Damage::Fill(at, count, with)),
        1 => (place(), place(), 1usize..9000).prop_map(|(a, b, n)| Damage::Copy(a, b, n)),
        1 => prop::collection::vec(any::<u8>(), 1..9000).prop_map(Damage::Append),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// The daemon starts, with records that were stored once or without any, and its store works.
    #[test]
    fn no_damage_stops_the_start(damage in prop::collection::vec(damage(), 1..3)) {
        let scratch = Scratch::new();
        let kept = filled(&scratch);
        let mut octets = fs::read(scratch.file()).unwrap();
        for one in &damage {
            if !octets.is_empty() {
                one.apply(&mut octets);
            }
        }
        fs::write(scratch.file(), &octets).unwrap();
        let (store, snapshot) = open(&scratch.0, NOW).unwrap();
        let aside = scratch.damaged();
        prop_assert!(aside <= 1);
        if aside == 1 {
            prop_assert!(snapshot.mappings.is_empty());
        }
        for mapping in &snapshot.mappings {
            prop_assert_eq!(mapping, &record(mapping.generation.0), "invented");
        }
        prop_assert!(snapshot.mappings.len() <= kept.len() + 1);
        works(store, &scratch);
    }
}

#[test]
fn what_is_no_file_or_an_empty_one_does_not_stop_the_start() {
    let scratch = Scratch::new();
    fs::write(scratch.file(), b"").unwrap();
    let (store, _) = open(&scratch.0, NOW).unwrap();
    assert_eq!(scratch.damaged(), 0, "there was nothing to keep");
    works(store, &scratch);

    // More often than there is room for what was set aside.
    for _ in 0..=salvage::MAX_KEPT {
        fs::remove_file(scratch.file()).unwrap();
        fs::create_dir(scratch.file()).unwrap();
        fs::write(scratch.file().join("inside"), b"x").unwrap();
        let (store, snapshot) = open(&scratch.0, NOW).unwrap();
        assert!(snapshot.mappings.is_empty());
        works(store, &scratch);
    }
    assert_eq!(
        scratch.damaged(),
        usize::try_from(salvage::MAX_KEPT).unwrap()
    );

    // A link that leads nowhere good.
    fs::remove_file(scratch.file()).unwrap();
    std::os::unix::fs::symlink("/proc/self/mem", scratch.file()).unwrap();
    let (store, _) = open(&scratch.0, NOW).unwrap();
    works(store, &scratch);
}

#[test]
fn a_file_that_may_not_be_read_is_set_aside() {
    let scratch = Scratch::new();
    filled(&scratch);
    fs::set_permissions(scratch.file(), fs::Permissions::from_mode(0o000)).unwrap();
    let (store, snapshot) = open(&scratch.0, NOW).unwrap();
    // Root reads it all the same.
    assert!(scratch.damaged() == 1 || !snapshot.mappings.is_empty());
    works(store, &scratch);
}

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const MAPPINGS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("mappings");
const EPOCHS: TableDefinition<'_, &str, &str> = TableDefinition::new("epochs");

/// The tables as the first daemons wrote them.
fn write_format_1(scratch: &Scratch, format: u64) {
    let db = Database::create(scratch.file()).unwrap();
    let txn = db.begin_write().unwrap();
    {
        let mut meta = txn.open_table(META).unwrap();
        // Which the first two formats lacked.
        if format >= redb::FORMAT {
            meta.insert("format_again", !format).unwrap();
        }
        for (name, value) in [("format", format), ("boot_id", 5), ("last_generation", 9)] {
            meta.insert(name, value).unwrap();
        }
        let mut mappings = txn.open_table(MAPPINGS).unwrap();
        for generation in [3u32, 8] {
            let mut json = serde_json::to_value(record(generation)).unwrap();
            // The first daemons did not say; later ones of the same format did.
            if generation == 3 {
                json.as_object_mut().unwrap().remove("owner").unwrap();
            } else {
                json["owner"] = json!("Configuration");
            }
            let octets = serde_json::to_vec(&json).unwrap();
            mappings.insert(generation, octets.as_slice()).unwrap();
        }
        let mut epochs = txn.open_table(EPOCHS).unwrap();
        epochs.insert("100.64.0.1", "77 1800000000000").unwrap();
    }
    txn.commit().unwrap();
}

#[test]
fn an_older_format_is_migrated() {
    let scratch = Scratch::new();
    write_format_1(&scratch, 1);
    let mut of_configuration = record(8);
    of_configuration.owner = crate::mapping::Owner::Configuration;
    for _ in 0..2 {
        let (_store, snapshot) = open(&scratch.0, NOW).unwrap();
        assert_eq!(snapshot.mappings, [record(3), of_configuration.clone()]);
        assert_eq!(snapshot.last_generation, 9);
        assert_eq!(snapshot.epochs.len(), 1);
    }
    assert_eq!(scratch.damaged(), 0);
    let db = Database::open(scratch.file()).unwrap();
    let txn = ::redb::ReadableDatabase::begin_read(&db).unwrap();
    let format = txn.open_table(META).unwrap().get("format").unwrap();
    assert_eq!(format.unwrap().value(), redb::FORMAT);
}

/// Format 2 has owners and no marks; what it kept is there, and marks can be written.
#[test]
fn format_2_is_migrated_and_then_has_marks() {
    let scratch = Scratch::new();
    write_format_1(&scratch, 2);
    {
        let db = Database::open(scratch.file()).unwrap();
        let txn = db.begin_write().unwrap();
        let octets = serde_json::to_vec(&without_asked(3)).unwrap();
        let mut mappings = txn.open_table(MAPPINGS).unwrap();
        mappings.insert(3, octets.as_slice()).unwrap();
        drop(mappings);
        txn.commit().unwrap();
    }
    let (mut store, snapshot) = open(&scratch.0, NOW).unwrap();
    assert_eq!(snapshot.mappings[0], record(3));
    assert_eq!(snapshot.mappings.len(), 2);
    assert_eq!(snapshot.marks, []);
    let changes = [StoreChange::Mark(mark(40_000)), StoreChange::Mark(mark(7))];
    store.commit(&changes).unwrap();
    drop(store);
    let (mut store, snapshot) = open(&scratch.0, NOW).unwrap();
    assert_eq!(snapshot.marks.len(), 2);
    assert!(snapshot.marks.contains(&mark(7)));
    store.commit(&[StoreChange::Unmark(mark(7).key())]).unwrap();
    drop(store);
    assert_eq!(open(&scratch.0, NOW).unwrap().1.marks, [mark(40_000)]);
    assert_eq!(scratch.damaged(), 0);
}

/// A record as daemons of format 2 wrote it.
fn without_asked(generation: u32) -> serde_json::Value {
    let mut json = serde_json::to_value(record(generation)).unwrap();
    let upstream = json["upstream"].as_object_mut().unwrap();
    upstream.remove("asked").unwrap();
    json
}

/// A mark that contradicts what it is filed under is damage like any other.
#[test]
fn a_mark_under_another_name_is_damage() {
    let scratch = Scratch::new();
    drop(open(&scratch.0, NOW).unwrap());
    {
        let db = Database::open(scratch.file()).unwrap();
        let txn = db.begin_write().unwrap();
        let octets = serde_json::to_vec(&mark(7)).unwrap();
        let table = TableDefinition::<&str, &[u8]>::new("marks");
        let mut marks = txn.open_table(table).unwrap();
        marks
            .insert("100.64.0.1:5351 TCP 8", octets.as_slice())
            .unwrap();
        drop(marks);
        txn.commit().unwrap();
    }
    let (store, snapshot) = open(&scratch.0, NOW).unwrap();
    assert_eq!(snapshot.marks, []);
    assert_eq!(scratch.damaged(), 1);
    works(store, &scratch);
}

/// The power may go at any operation of the migration: the next start has the same mappings.
#[test]
fn a_migration_is_done_or_not_done() {
    let scratch = Scratch::new();
    write_format_1(&scratch, 1);
    let old = fs::read(scratch.file()).unwrap();
    let disk = disk::Disk::holding(old.clone());
    assert!(redb::RedbStore::open(disk.clone(), NOW).is_ok());
    let mut left = old;
    for op in disk.log() {
        op.apply(&mut left);
        let again = disk::Disk::holding(left.clone());
        let Ok((_, contents)) = redb::RedbStore::open(again, NOW) else {
            panic!("not opened after {op:?}");
        };
        let generations: Vec<_> = contents.mappings.iter().map(|m| m.generation.0).collect();
        assert_eq!(generations, [3, 8]);
    }
}

#[test]
fn a_format_that_never_was_is_damage() {
    let scratch = Scratch::new();
    write_format_1(&scratch, 0);
    let (store, snapshot) = open(&scratch.0, NOW).unwrap();
    assert!(snapshot.mappings.is_empty());
    assert_eq!(scratch.damaged(), 1);
    works(store, &scratch);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    write_format_1(&scratch, redb::FORMAT + 1);
    let before = fs::read(scratch.file()).unwrap();
    for _ in 0..5 {
        let error = open(&scratch.0, NOW).unwrap_err();
        assert!(matches!(error, OpenError::Newer { .. }), "{error}");
        assert!(error.to_string().contains("newer iwfd"), "{error}");
    }
    assert!(fs::read(scratch.file()).unwrap() == before, "not one octet");
    assert_eq!(scratch.damaged(), 0);
    assert!(!scratch.0.join("store.opening").exists());
}

#[test]
fn a_bent_format_number_is_damage_and_no_newer_store() {
    for bent in [redb::FORMAT ^ 8, redb::FORMAT ^ 1] {
        let scratch = Scratch::new();
        drop(filled(&scratch));
        let db = Database::open(scratch.file()).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(META)
            .unwrap()
            .insert("format", bent)
            .unwrap();
        txn.commit().unwrap();
        drop(db);
        let (store, snapshot) = open(&scratch.0, NOW).unwrap();
        assert!(snapshot.mappings.is_empty());
        assert_eq!(scratch.damaged(), 1);
        works(store, &scratch);
    }
}
