//! The store on redb.
//!
//! One commit is one write transaction with one sync: a mapping and the generation counter change together or
//! not at all. The tables:
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number: `format`, `boot_id`, `last_generation` |
//! | `mappings` | generation | the record as JSON, its fields versioned by `format` |
//! | `epochs` | server address | `<epoch> <millisecond it was seen>` |

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ::redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Store, StoreError};
use crate::iwf::StoreChange;
use crate::mapping::record::MappingRecord;
use crate::types::{Epoch, UnixTime};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const MAPPINGS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("mappings");
const EPOCHS: TableDefinition<'_, &str, &str> = TableDefinition::new("epochs");

/// Version of what the tables hold. Steps when an older daemon would misread it.
const FORMAT: u64 = 1;

/// Page cache of the database, in octets. Everything is read once at start and rarely after.
const CACHE: usize = 1 << 20;

/// Largest store file taken for ours; 65,535 mappings need about a quarter of it.
const MAX_FILE: u64 = 256 << 20;

/// An open store. Holds the lock of its directory until dropped.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    /// `None` after a failed commit: redb refuses further work then until the file is opened again.
    db: Option<Database>,
    lock: Option<File>,
}

/// What the tables held.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) mappings: Vec<MappingRecord>,
    pub(super) boot_id: u32,
    pub(super) last_generation: u32,
    pub(super) epochs: Vec<(IpAddr, Epoch, u64)>,
}

/// Why a file could not be opened.
pub(super) enum Unusable {
    /// It does not hold a store of ours in good order; another try will not either.
    Damaged(String),
    /// The machine would not let us (no space, no permission, I/O error): not the file's fault.
    Failed(StoreError),
}

impl RedbStore {
    /// Opens or makes the file, checks every checksum in it, reads all of it and advances the boot id.
    pub(super) fn open(path: &Path, now: UnixTime) -> Result<(Self, Contents), Unusable> {
        if std::fs::metadata(path).is_ok_and(|m| m.len() > MAX_FILE) {
            return Err(Unusable::Damaged(format!("larger than {MAX_FILE} octets")));
        }
        let mut db = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|e| unusable("open", e))?;
        db.check_integrity().map_err(|e| unusable("check", e))?;
        let mut contents = read(&db)?;
        contents.boot_id = next_boot_id(contents.boot_id, now);
        write_start(&db, &contents).map_err(|e| unusable("write to", e))?;
        let store = Self {
            path: path.to_owned(),
            db: Some(db),
            lock: None,
        };
        Ok((store, contents))
    }

    /// Keeps the lock for as long as the store lives.
    pub(super) fn hold(&mut self, lock: File) {
        self.lock = Some(lock);
    }

    fn apply(&mut self, change: &StoreChange) -> Result<(), ::redb::Error> {
        let db = match self.db.take() {
            Some(db) => db,
            None => Database::builder().set_cache_size(CACHE).open(&self.path)?,
        };
        write_change(&db, change)?;
        self.db = Some(db);
        Ok(())
    }
}

impl Store for RedbStore {
    fn commit(&mut self, change: &StoreChange) -> Result<(), StoreError> {
        self.apply(change).map_err(|e| store_error("commit", e))
    }
}

/// UPnP Device Architecture 1.1 clause 1.2: grows with each start. The wall clock keeps it growing when the
/// store was lost; it fits in 31 bits as the field demands.
fn next_boot_id(stored: u32, now: UnixTime) -> u32 {
    let clock = u32::try_from(now.as_secs()).unwrap_or(u32::MAX) & 0x7fff_ffff;
    if stored >= 0x7fff_ffff {
        return clock.max(1);
    }
    (stored + 1).max(clock)
}

fn read(db: &Database) -> Result<Contents, Unusable> {
    let mut contents = Contents::default();
    let txn = db.begin_read().map_err(|e| unusable("read", e))?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        // A new file; one of another program has other tables.
        Err(::redb::TableError::TableDoesNotExist(_)) => {
            let tables = txn.list_tables().map_err(|e| unusable("read", e))?.count();
            return if tables == 0 {
                Ok(contents)
            } else {
                Err(Unusable::Damaged("it is not a store of iwfd".to_owned()))
            };
        }
        Err(e) => return Err(unusable("read", e)),
    };
    let number = |key: &str| -> Result<u64, Unusable> {
        let value = meta.get(key).map_err(|e| unusable("read", e))?;
        value
            .map(|v| v.value())
            .ok_or_else(|| Unusable::Damaged(format!("it lacks {key}")))
    };
    let format = number("format")?;
    if format != FORMAT {
        return Err(Unusable::Damaged(format!(
            "its format is {format}, this daemon knows {FORMAT}"
        )));
    }
    let narrow = |key: &str| -> Result<u32, Unusable> {
        u32::try_from(number(key)?).map_err(|_| Unusable::Damaged(format!("{key} is out of range")))
    };
    contents.boot_id = narrow("boot_id")?;
    contents.last_generation = narrow("last_generation")?;

    let mappings = txn.open_table(MAPPINGS).map_err(|e| unusable("read", e))?;
    for row in mappings.iter().map_err(|e| unusable("read", e))? {
        let (key, value) = row.map_err(|e| unusable("read", e))?;
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

    let epochs = txn.open_table(EPOCHS).map_err(|e| unusable("read", e))?;
    for row in epochs.iter().map_err(|e| unusable("read", e))? {
        let (key, value) = row.map_err(|e| unusable("read", e))?;
        let epoch = parse_epoch(key.value(), value.value())
            .ok_or_else(|| Unusable::Damaged(format!("epoch of {:?}", key.value())))?;
        contents.epochs.push(epoch);
    }
    Ok(contents)
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
        meta.insert("format", FORMAT)?;
        meta.insert("boot_id", u64::from(contents.boot_id))?;
        meta.insert("last_generation", u64::from(contents.last_generation))?;
        txn.open_table(MAPPINGS)?;
        txn.open_table(EPOCHS)?;
    }
    txn.commit()?;
    Ok(())
}

fn write_change(db: &Database, change: &StoreChange) -> Result<(), ::redb::Error> {
    let txn = db.begin_write()?;
    match change {
        StoreChange::Put(record) => {
            let value =
                serde_json::to_vec(record).map_err(|e| ::redb::Error::Io(io::Error::other(e)))?;
            let generation = record.generation.0;
            txn.open_table(MAPPINGS)?
                .insert(generation, value.as_slice())?;
            let mut meta = txn.open_table(META)?;
            let last = meta.get("last_generation")?.map_or(0, |v| v.value());
            if u64::from(generation) > last {
                meta.insert("last_generation", u64::from(generation))?;
            }
        }
        StoreChange::Delete(generation) => {
            txn.open_table(MAPPINGS)?.remove(generation.0)?;
        }
        StoreChange::Epoch {
            server,
            epoch,
            seen,
        } => {
            let (key, value) = (
                server.to_string(),
                format!("{} {}", epoch.0, seen.as_millis()),
            );
            txn.open_table(EPOCHS)?
                .insert(key.as_str(), value.as_str())?;
        }
    }
    txn.commit()?;
    Ok(())
}

/// Tells a bad file from a machine that would not let us at it.
fn unusable(action: &'static str, error: impl Into<::redb::Error>) -> Unusable {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    let error = error.into();
    let machine = match io_kind(&error) {
        Some(kind) => !matches!(kind, InvalidData | UnexpectedEof),
        None => matches!(error, ::redb::Error::DatabaseAlreadyOpen),
    };
    if machine {
        Unusable::Failed(store_error(action, error))
    } else {
        Unusable::Damaged(error.to_string())
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
