//! Brings the tables of an older daemon to the present format, step by step, in one transaction: a power cut leaves
//! either the old format or the present one.
//!
//! | format | differs from the one before |
//! |---|---|
//! | 1 | |
//! | 2 | every record names its owner; the end of a lease may be one that renewals have moved since, so that a daemon of format 1 would give leases up that are good |
//! | 3 | there are marks of what servers may hold besides; a record may name a lease that was only asked for, which a daemon of format 2 would believe |

use ::redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};
use serde_json::Value;

use super::redb::{
    FORMAT, MAPPINGS, MARKS, META, Unusable, stamp, stated_format, unreadable, unwritable,
};

/// Migrates if there is a need; returns the format that was found then.
pub(super) fn run(db: &Database) -> Result<Option<u64>, Unusable> {
    let found = match format(db)? {
        None | Some(FORMAT) => return Ok(None),
        Some(newer) if newer > FORMAT => return Err(Unusable::Newer(newer)),
        Some(older) => older,
    };
    let txn = db.begin_write().map_err(|e| unwritable("migrate", e))?;
    for version in found..FORMAT {
        match version {
            1 => to_2(&txn)?,
            2 => to_3(&txn)?,
            unknown => {
                return Err(Unusable::Damaged(format!("there is no format {unknown}")));
            }
        }
    }
    let stamped = || -> Result<(), ::redb::Error> { Ok(stamp(&mut txn.open_table(META)?)?) };
    stamped().map_err(|e| unwritable("migrate", e))?;
    txn.commit().map_err(|e| unwritable("migrate", e))?;
    Ok(Some(found))
}

/// `None` for a new file, and for one that is not ours.
fn format(db: &Database) -> Result<Option<u64>, Unusable> {
    let txn = db.begin_read().map_err(|e| unreadable("read", e))?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(::redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(e) => return Err(unreadable("read", e)),
    };
    match stated_format(&meta).map_err(|e| unreadable("read", e))? {
        Some(format) => Ok(Some(format)),
        None => Err(Unusable::Damaged("it states no format".to_owned())),
    }
}

/// The first daemons knew no owner but control points.
fn to_2(txn: &WriteTransaction) -> Result<(), Unusable> {
    let mut mappings = txn
        .open_table(MAPPINGS)
        .map_err(|e| unreadable("read", e))?;
    let mut changed = Vec::new();
    for row in mappings.iter().map_err(|e| unreadable("read", e))? {
        let (key, value) = row.map_err(|e| unreadable("read", e))?;
        let damaged = |e| Unusable::Damaged(format!("mapping {}: {e}", key.value()));
        let mut record: Value = serde_json::from_slice(value.value()).map_err(damaged)?;
        let Some(fields) = record.as_object_mut() else {
            return Err(Unusable::Damaged(format!(
                "mapping {}: no record",
                key.value()
            )));
        };
        if fields.contains_key("owner") {
            continue;
        }
        fields.insert("owner".to_owned(), Value::from("ControlPoint"));
        changed.push((key.value(), serde_json::to_vec(&record).map_err(damaged)?));
    }
    for (key, value) in changed {
        let stored = mappings.insert(key, value.as_slice());
        stored.map_err(|e| unwritable("migrate", e))?;
    }
    Ok(())
}

/// Daemons before that remembered nothing of what no mapping stands on.
fn to_3(txn: &WriteTransaction) -> Result<(), Unusable> {
    txn.open_table(MARKS)
        .map_err(|e| unwritable("migrate", e))?;
    Ok(())
}
