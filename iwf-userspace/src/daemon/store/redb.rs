//! The store on redb.
//!
//! One commit is one write transaction with one sync: whatever is committed together is stored together or not at
//! all, and so are a mapping and the generation counter. The tables:
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number: `format`, `format_again` (every bit of it turned), `boot_id`, `last_generation`, `last_pinhole` if any was given, and `update_id` unless it is 0 |
//! | `mappings` | generation | the record as JSON, its fields versioned by `format` |
//! | `marks` | server, protocol and port of a lease | the mark as JSON |
//! | `pinholes` | id | the record as JSON; an older daemon leaves it alone, and its records end by themselves |
//! | `identities` | `user NAME` or `cp UUID` | the entry of the access list as JSON; an older daemon knows no access list and leaves it alone |
//! | `epochs` | server address | `<epoch> <millisecond it was seen>` |

use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ::redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, Table, TableDefinition,
};

use super::{Counts, Store, StoreError, migrate, next_boot_id};
use crate::iwf::StoreChange;
use crate::mapping::pinholes::PinholeRecord;
use crate::mapping::record::{LeaseKey, MappingRecord, Mark};
use crate::proto::protection::Change;
use crate::types::access::{Identity, Who};
use crate::types::{Epoch, UnixTime};

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(super) const MAPPINGS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("mappings");
pub(super) const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");
const PINHOLES: TableDefinition<'_, u16, &[u8]> = TableDefinition::new("pinholes");
const IDENTITIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("identities");
const EPOCHS: TableDefinition<'_, &str, &str> = TableDefinition::new("epochs");

/// Version of what the tables hold. Steps when an older daemon would misread it; [`super::migrate`] knows the
/// way from each older one.
pub(super) const FORMAT: u64 = 3;

/// Page cache of the database, in octets. Everything is read once at start and rarely after.
const CACHE: usize = 1 << 20;

/// Largest store file taken for ours; 65,535 mappings need about a quarter of it.
const MAX_FILE: u64 = 256 << 20;

/// An open store. Holds the lock of its directory until dropped.
#[derive(Debug)]
pub struct RedbStore {
    medium: Box<dyn Medium>,
    /// `None` after a failed commit: redb refuses further work then until the file is opened again.
    db: Option<Database>,
    lock: Option<File>,
    counts: Counts,
}

/// Where the octets are.
pub(super) trait Medium: fmt::Debug + Send {
    /// How many there are.
    fn size(&self) -> u64;

    /// The format of what is there, if that can be told without writing.
    fn format(&self) -> Option<u64>;

    /// Opens the database. Only a new store may be made where there is none.
    fn open(&self, builder: &Builder, may_make: bool) -> Result<Database, DatabaseError>;
}

impl Medium for PathBuf {
    fn size(&self) -> u64 {
        std::fs::metadata(self).map_or(0, |m| m.len())
    }

    fn format(&self) -> Option<u64> {
        // A file that was not closed in good order is not opened this way; nothing is lost by repairing it.
        let db = builder().open_read_only(self).ok()?;
        let meta = db.begin_read().ok()?.open_table(META).ok()?;
        stated_format(&meta).ok()?
    }

    fn open(&self, builder: &Builder, may_make: bool) -> Result<Database, DatabaseError> {
        if may_make {
            builder.create(self)
        } else {
            builder.open(self)
        }
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

/// Writes the present format. From 3 on it is there twice, so that damage is not taken for a newer daemon's store, which
/// nobody may touch.
pub(super) fn stamp(meta: &mut Table<'_, &str, u64>) -> Result<(), ::redb::StorageError> {
    meta.insert("format", FORMAT)?;
    meta.insert("format_again", !FORMAT)?;
    Ok(())
}

/// The format that a store says it has, if it says so twice or has one that was stated once.
pub(super) fn stated_format(
    meta: &impl ReadableTable<&'static str, u64>,
) -> Result<Option<u64>, ::redb::StorageError> {
    let format = meta.get("format")?.map(|format| format.value());
    let again = meta.get("format_again")?.map(|again| !again.value());
    Ok(format.filter(|format| match again {
        Some(again) => again == *format,
        None => *format < 3,
    }))
}

/// What the tables held.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) mappings: Vec<MappingRecord>,
    pub(super) marks: Vec<Mark>,
    pub(super) boot_id: u32,
    pub(super) last_generation: u32,
    pub(super) epochs: Vec<(IpAddr, Epoch, u64)>,
    pub(super) update_id: u32,
    pub(super) pinholes: Vec<PinholeRecord>,
    pub(super) last_pinhole: u16,
    pub(super) identities: Vec<Identity>,
    /// The file had damage that redb could mend, perhaps by going back to an older state.
    pub(super) mended: bool,
    /// The format it had, if that was an older one.
    pub(super) migrated_from: Option<u64>,
}

/// Why a file could not be opened.
pub(super) enum Unusable {
    /// It does not hold a store of ours in good order; another try will not either.
    Damaged(String),
    /// A newer daemon wrote it, in this format.
    Newer(u64),
    /// The machine would not let us (no space, read only): not the file's fault.
    Failed(StoreError),
}

impl RedbStore {
    /// Opens or makes the file, checks every checksum in it, reads all of it, brings it to the present format and
    /// advances the boot id.
    pub(super) fn open(
        medium: impl Medium + 'static,
        now: UnixTime,
    ) -> Result<(Self, Contents), Unusable> {
        if medium.size() > MAX_FILE {
            return Err(Unusable::Damaged(format!("larger than {MAX_FILE} octets")));
        }
        if let Some(newer) = medium.format().filter(|format| *format > FORMAT) {
            return Err(Unusable::Newer(newer));
        }
        let mut db = medium
            .open(&builder(), true)
            .map_err(|e| unreadable("open", e))?;
        let sound = db.check_integrity().map_err(|e| unreadable("check", e))?;
        let migrated_from = migrate::run(&db)?;
        let mut contents = read(&db)?;
        (contents.mended, contents.migrated_from) = (!sound, migrated_from);
        contents.boot_id = next_boot_id(contents.boot_id, now);
        write_start(&db, &contents).map_err(|e| unwritable("write to", e))?;
        let store = Self {
            medium: Box::new(medium),
            db: Some(db),
            lock: None,
            counts: Counts::default(),
        };
        Ok((store, contents))
    }

    /// Keeps the lock for as long as the store lives.
    pub(super) fn hold(&mut self, lock: File) {
        self.lock = Some(lock);
    }

    /// A transaction that has failed closes the database; the next one opens it again.
    fn write(
        &mut self,
        change: impl FnOnce(&Database) -> Result<(), ::redb::Error>,
    ) -> Result<(), ::redb::Error> {
        let db = match self.db.take() {
            Some(db) => db,
            None => self.medium.open(&builder(), false)?,
        };
        change(&db)?;
        self.db = Some(db);
        Ok(())
    }

    fn count(&mut self, changes: usize, done: Result<(), ::redb::Error>) -> Result<(), StoreError> {
        if done.is_ok() {
            self.counts.commits += 1;
            self.counts.changes += u64::try_from(changes).unwrap_or(u64::MAX);
        } else {
            self.counts.failures += 1;
        }
        done.map_err(|e| store_error("commit", e))
    }
}

impl Store for RedbStore {
    fn commit(&mut self, changes: &[StoreChange]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let done = self.write(|db| write_changes(db, changes));
        self.count(changes.len(), done)
    }

    fn keep_boot_id(&mut self, boot_id: u32) -> Result<(), StoreError> {
        let done = self.write(|db| write_boot_id(db, boot_id));
        self.count(1, done)
    }

    fn counts(&self) -> Counts {
        self.counts
    }
}

fn read(db: &Database) -> Result<Contents, Unusable> {
    let mut contents = Contents::default();
    let txn = db.begin_read().map_err(|e| unreadable("read", e))?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        // A new file; one of another program has other tables.
        Err(::redb::TableError::TableDoesNotExist(_)) => {
            let tables = txn
                .list_tables()
                .map_err(|e| unreadable("read", e))?
                .count();
            return if tables == 0 {
                Ok(contents)
            } else {
                Err(Unusable::Damaged("it is not a store of iwfd".to_owned()))
            };
        }
        Err(e) => return Err(unreadable("read", e)),
    };
    let number = |key: &str| -> Result<u64, Unusable> {
        let value = meta.get(key).map_err(|e| unreadable("read", e))?;
        value
            .map(|v| v.value())
            .ok_or_else(|| Unusable::Damaged(format!("it lacks {key}")))
    };
    let narrow = |key: &str| -> Result<u32, Unusable> {
        u32::try_from(number(key)?).map_err(|_| Unusable::Damaged(format!("{key} is out of range")))
    };
    contents.boot_id = narrow("boot_id")?;
    contents.last_generation = narrow("last_generation")?;
    // Stores of earlier daemons of this format have none.
    let update_id = meta.get("update_id").map_err(|e| unreadable("read", e))?;
    contents.update_id = u32::try_from(update_id.map_or(0, |v| v.value()))
        .map_err(|_| Unusable::Damaged("update_id is out of range".to_owned()))?;

    let mappings = txn
        .open_table(MAPPINGS)
        .map_err(|e| unreadable("read", e))?;
    for row in mappings.iter().map_err(|e| unreadable("read", e))? {
        let (key, value) = row.map_err(|e| unreadable("read", e))?;
        let record: MappingRecord = serde_json::from_slice(value.value())
            .map_err(|e| Unusable::Damaged(format!("mapping {}: {e}", key.value())))?;
        if record.generation.0 != key.value() || key.value() > contents.last_generation {
            return Err(Unusable::Damaged(format!(
                "mapping {} contradicts its key or the counter",
                key.value()
            )));
        }
        contents.mappings.push(record);
    }

    let marks = txn.open_table(MARKS).map_err(|e| unreadable("read", e))?;
    for row in marks.iter().map_err(|e| unreadable("read", e))? {
        let (key, value) = row.map_err(|e| unreadable("read", e))?;
        let mark: Mark = serde_json::from_slice(value.value())
            .map_err(|e| Unusable::Damaged(format!("mark {:?}: {e}", key.value())))?;
        if mark_key(mark.key()) != key.value() {
            return Err(Unusable::Damaged(format!(
                "mark {:?} contradicts its key",
                key.value()
            )));
        }
        contents.marks.push(mark);
    }
    let last_pinhole = meta
        .get("last_pinhole")
        .map_err(|e| unreadable("read", e))?;
    let last_pinhole = last_pinhole.map_or(0, |last| last.value());
    contents.last_pinhole = u16::try_from(last_pinhole)
        .map_err(|_| Unusable::Damaged("last_pinhole is out of range".to_owned()))?;
    contents.pinholes = read_pinholes(&txn)?;
    contents.identities = read_identities(&txn)?;

    let epochs = txn.open_table(EPOCHS).map_err(|e| unreadable("read", e))?;
    for row in epochs.iter().map_err(|e| unreadable("read", e))? {
        let (key, value) = row.map_err(|e| unreadable("read", e))?;
        let epoch = parse_epoch(key.value(), value.value())
            .ok_or_else(|| Unusable::Damaged(format!("epoch of {:?}", key.value())))?;
        contents.epochs.push(epoch);
    }
    Ok(contents)
}

fn mark_key(key: LeaseKey) -> String {
    let (server, protocol, port) = (key.server, key.protocol, key.port);
    match key.behalf {
        None => format!("{server} {protocol} {port}"),
        Some(host) => format!("{server} {protocol} {port} {host}"),
    }
}

fn read_pinholes(txn: &::redb::ReadTransaction) -> Result<Vec<PinholeRecord>, Unusable> {
    let pinholes = match txn.open_table(PINHOLES) {
        Ok(pinholes) => pinholes,
        // Of a daemon that knew none.
        Err(::redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(e) => return Err(unreadable("read", e)),
    };
    let mut records = Vec::new();
    for row in pinholes.iter().map_err(|e| unreadable("read", e))? {
        let (key, value) = row.map_err(|e| unreadable("read", e))?;
        let record: PinholeRecord = serde_json::from_slice(value.value())
            .map_err(|e| Unusable::Damaged(format!("pinhole {}: {e}", key.value())))?;
        if record.id != key.value() {
            let what = format!("pinhole {} contradicts its key", key.value());
            return Err(Unusable::Damaged(what));
        }
        records.push(record);
    }
    Ok(records)
}

fn identity_key(who: &Who) -> String {
    match who {
        Who::User(name) => format!("user {name}"),
        Who::ControlPoint(id) => format!("cp {id}"),
    }
}

fn read_identities(txn: &::redb::ReadTransaction) -> Result<Vec<Identity>, Unusable> {
    let identities = match txn.open_table(IDENTITIES) {
        Ok(identities) => identities,
        // Of a daemon that knew none.
        Err(::redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(e) => return Err(unreadable("read", e)),
    };
    let mut read = Vec::new();
    for row in identities.iter().map_err(|e| unreadable("read", e))? {
        let (key, value) = row.map_err(|e| unreadable("read", e))?;
        let identity: Identity = serde_json::from_slice(value.value())
            .map_err(|e| Unusable::Damaged(format!("identity {:?}: {e}", key.value())))?;
        if identity_key(&identity.who) != key.value() {
            let what = format!("identity {:?} contradicts its key", key.value());
            return Err(Unusable::Damaged(what));
        }
        read.push(identity);
    }
    Ok(read)
}

fn parse_epoch(server: &str, value: &str) -> Option<(IpAddr, Epoch, u64)> {
    let (epoch, seen) = value.split_once(' ')?;
    Some((
        server.parse().ok()?,
        Epoch(epoch.parse().ok()?),
        seen.parse().ok()?,
    ))
}

fn write_start(db: &Database, contents: &Contents) -> Result<(), ::redb::Error> {
    let txn = db.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        stamp(&mut meta)?;
        meta.insert("boot_id", u64::from(contents.boot_id))?;
        meta.insert("last_generation", u64::from(contents.last_generation))?;
        txn.open_table(MAPPINGS)?;
        txn.open_table(MARKS)?;
        txn.open_table(PINHOLES)?;
        txn.open_table(IDENTITIES)?;
        txn.open_table(EPOCHS)?;
    }
    txn.commit()?;
    Ok(())
}

fn write_boot_id(db: &Database, boot_id: u32) -> Result<(), ::redb::Error> {
    let txn = db.begin_write()?;
    txn.open_table(META)?
        .insert("boot_id", u64::from(boot_id))?;
    txn.commit()?;
    Ok(())
}

fn write_changes(db: &Database, changes: &[StoreChange]) -> Result<(), ::redb::Error> {
    let txn = db.begin_write()?;
    {
        let mut mappings = txn.open_table(MAPPINGS)?;
        let mut meta = txn.open_table(META)?;
        let before = meta.get("last_generation")?.map_or(0, |v| v.value());
        let mut last = before;
        let mut update_id = None;
        for change in changes {
            match change {
                StoreChange::Put(record) => {
                    let value = encode(record)?;
                    mappings.insert(record.generation.0, value.as_slice())?;
                    last = last.max(u64::from(record.generation.0));
                }
                StoreChange::Delete(generation) => {
                    mappings.remove(generation.0)?;
                }
                StoreChange::Mark(mark) => {
                    let value = encode(mark)?;
                    txn.open_table(MARKS)?
                        .insert(mark_key(mark.key()).as_str(), value.as_slice())?;
                }
                StoreChange::Unmark(key) => {
                    txn.open_table(MARKS)?.remove(mark_key(*key).as_str())?;
                }
                StoreChange::UpdateId(id) => update_id = Some(*id),
                StoreChange::PutPinhole(record) => {
                    let value = encode(record)?;
                    let mut pinholes = txn.open_table(PINHOLES)?;
                    let is_new = pinholes.insert(record.id, value.as_slice())?.is_none();
                    if is_new {
                        meta.insert("last_pinhole", u64::from(record.id))?;
                    }
                }
                StoreChange::DeletePinhole(id) => {
                    txn.open_table(PINHOLES)?.remove(*id)?;
                }
                StoreChange::Access(changes) => {
                    let mut identities = txn.open_table(IDENTITIES)?;
                    for change in changes {
                        match change {
                            Change::Put(identity) => {
                                let value = encode(identity)?;
                                identities.insert(
                                    identity_key(&identity.who).as_str(),
                                    value.as_slice(),
                                )?;
                            }
                            Change::Remove(who) => {
                                identities.remove(identity_key(who).as_str())?;
                            }
                        }
                    }
                }
                StoreChange::Epoch {
                    server,
                    epoch,
                    seen,
                } => {
                    let key = server.to_string();
                    let value = format!("{} {}", epoch.0, seen.as_millis());
                    txn.open_table(EPOCHS)?
                        .insert(key.as_str(), value.as_str())?;
                }
            }
        }
        if last > before {
            meta.insert("last_generation", last)?;
        }
        if let Some(id) = update_id {
            meta.insert("update_id", u64::from(id))?;
        }
    }
    txn.commit()?;
    Ok(())
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, ::redb::Error> {
    serde_json::to_vec(value).map_err(|e| ::redb::Error::Io(io::Error::other(e)))
}

/// What reading came to. The machine may stand in the way; anything else, an I/O error of the medium included, is
/// the file's and will be so at the next try.
pub(super) fn unreadable(action: &'static str, error: impl Into<::redb::Error>) -> Unusable {
    use io::ErrorKind::{OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let error = error.into();
    let machine = if let ::redb::Error::Io(error) = &error {
        matches!(
            error.kind(),
            OutOfMemory | QuotaExceeded | ReadOnlyFilesystem | StorageFull
        ) || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
    } else {
        matches!(error, ::redb::Error::DatabaseAlreadyOpen)
    };
    if machine {
        Unusable::Failed(store_error(action, error))
    } else {
        Unusable::Damaged(error.to_string())
    }
}

/// What writing came to. Nothing is wrong with what could be read.
pub(super) fn unwritable(action: &'static str, error: impl Into<::redb::Error>) -> Unusable {
    let error = error.into();
    if matches!(error, ::redb::Error::Corrupted(_)) {
        Unusable::Damaged(error.to_string())
    } else {
        Unusable::Failed(store_error(action, error))
    }
}

fn store_error(action: &'static str, error: ::redb::Error) -> StoreError {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    if matches!(io_kind(&error), Some(StorageFull | QuotaExceeded)) {
        return StoreError::Full;
    }
    StoreError::Database {
        action,
        source: Box::new(error),
    }
}

fn io_kind(error: &::redb::Error) -> Option<io::ErrorKind> {
    if let ::redb::Error::Io(error) = error {
        Some(error.kind())
    } else {
        None
    }
}
