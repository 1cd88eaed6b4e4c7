//! Opening without trusting the file.
//!
//! A file that redb refuses, that fails its own checksums, or that is not ours is renamed to
//! `store.redb.damaged-<n>` and an empty one takes its place. Should a damaged file bring the process down
//! instead, a note of the attempt is left beside it, so that the second start in a row that finds one sets
//! the file aside unopened: a crash loop has at most two rounds.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use super::redb::{Contents, FORMAT, RedbStore, Unusable};
use super::{OpenError, failed, sync_dir};
use crate::types::UnixTime;

const STORE: &str = "store.redb";
const ATTEMPTS: &str = "store.opening";

/// Starts that ended while the store was being opened, after which it is set aside unopened. One may be a
/// power cut.
const MAX_ATTEMPTS: u64 = 2;

/// Damaged files kept for inspection; the oldest give way, so that the directory stays bounded.
pub(super) const MAX_KEPT: u32 = 3;

pub(super) fn open(
    state_dir: &Path,
    lock: File,
    now: UnixTime,
) -> Result<(RedbStore, Contents), OpenError> {
    let path = state_dir.join(STORE);
    let note = state_dir.join(ATTEMPTS);
    let attempts = fs::metadata(&note).map_or(0, |m| m.len());
    if attempts >= MAX_ATTEMPTS && path.exists() {
        set_aside(state_dir, &path, "the last starts ended while opening it")?;
    } else {
        // One octet per attempt.
        fs::write(
            &note,
            vec![b'.'; usize::try_from(attempts + 1).unwrap_or(1)],
        )
        .map_err(failed("write", &note))?;
    }

    // In builds that abort on panic the note takes the place of this net.
    let first = catch_unwind(AssertUnwindSafe(|| RedbStore::open(path.clone(), now)));
    let reason = match first {
        Ok(Ok(opened)) => return done(state_dir, &note, lock, opened),
        Ok(Err(Unusable::Failed(e))) => {
            fs::remove_file(&note).map_err(failed("remove", &note))?;
            return Err(e.into());
        }
        Ok(Err(Unusable::Newer(found))) => {
            fs::remove_file(&note).map_err(failed("remove", &note))?;
            return Err(OpenError::Newer {
                path,
                found,
                known: FORMAT,
            });
        }
        Ok(Err(Unusable::Damaged(reason))) => reason,
        Err(_) => "reading it panicked".to_owned(),
    };
    set_aside(state_dir, &path, &reason)?;
    match RedbStore::open(path.clone(), now) {
        Ok(opened) => done(state_dir, &note, lock, opened),
        Err(Unusable::Failed(e)) => Err(e.into()),
        Err(Unusable::Damaged(reason)) => Err(failed("make a store at", &path)(
            std::io::Error::other(reason),
        )),
        Err(Unusable::Newer(_)) => Err(failed("make a store at", &path)(std::io::Error::other(
            "somebody else writes there",
        ))),
    }
}

fn done(
    state_dir: &Path,
    note: &Path,
    lock: File,
    (mut store, contents): (RedbStore, Contents),
) -> Result<(RedbStore, Contents), OpenError> {
    if contents.mended {
        warn!("the store had damage that could be mended; it may be an older state that was found");
    }
    if let Some(from) = contents.migrated_from {
        info!(
            from,
            to = FORMAT,
            "the store was brought to the present format"
        );
    }
    fs::remove_file(note).map_err(failed("remove", note))?;
    // A file that was just made has to survive a power cut as well.
    sync_dir(state_dir).map_err(failed("sync", state_dir))?;
    store.hold(lock);
    Ok((store, contents))
}

fn set_aside(state_dir: &Path, path: &Path, reason: &str) -> Result<(), OpenError> {
    let name = |n: u32| -> PathBuf { state_dir.join(format!("{STORE}.damaged-{n}")) };
    // What is no file is no store, whoever made it; a full directory would be in the way of the next one.
    let oldest = name(MAX_KEPT);
    if oldest.is_dir() {
        fs::remove_dir_all(&oldest).map_err(failed("remove", &oldest))?;
    }
    // 1 is the newest.
    for n in (1..MAX_KEPT).rev() {
        if name(n).exists() {
            fs::rename(name(n), name(n + 1)).map_err(failed("rename", &name(n)))?;
        }
    }
    let kept = name(1);
    fs::rename(path, &kept).map_err(failed("set aside", path))?;
    sync_dir(state_dir).map_err(failed("sync", state_dir))?;
    error!(
        reason,
        kept = %kept.display(),
        "the store is damaged and was set aside; starting with no stored mappings"
    );
    Ok(())
}
