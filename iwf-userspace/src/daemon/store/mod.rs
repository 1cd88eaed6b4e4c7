//! The embedded transactional store: everything a restart needs.
//!
//! [`open`] locks the state directory, so that no second daemon works on it, and never refuses to start over a
//! damaged file: such a file is set aside for inspection and an empty store takes its place. What the file
//! held is lost then; the reconciler removes the kernel entries nobody vouches for and leases upstream run out.
//! Only what a newer daemon has written is neither read nor set aside: that is for its owner to decide.

#[cfg(test)]
pub mod disk;
#[cfg(test)]
pub mod fake;
mod identity;
#[cfg(feature = "device-protection")]
pub mod key;
mod migrate;
pub mod redb;
mod salvage;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::iwf::StoreChange;
use crate::mapping::pinholes::PinholeRecord;
use crate::mapping::record::{MappingRecord, Mark};
use crate::types::access::Identity;
use crate::types::{Epoch, UnixTime};

/// What the store held at start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every mapping, by rising generation.
    pub mappings: Vec<MappingRecord>,
    /// What servers may hold besides what mappings stand on.
    pub marks: Vec<Mark>,
    /// UPnP BOOTID to use from now on (already stored, larger than any before).
    pub boot_id: u32,
    /// Identity of the device: base of every UDN, stable for ever.
    pub device_uuid: String,
    /// The largest generation ever used.
    pub last_generation: u32,
    /// Last epoch seen per server, with the wall-clock millisecond it was seen.
    pub epochs: Vec<(IpAddr, Epoch, u64)>,
    /// SystemUpdateID to go on with.
    pub update_id: u32,
    /// Every pinhole, by rising id.
    pub pinholes: Vec<PinholeRecord>,
    /// The id of a pinhole that was given last.
    pub last_pinhole: u16,
    /// The access list.
    pub identities: Vec<Identity>,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space left, or a quota.
    #[error("no space left for the store")]
    Full,
    /// The database reported an error.
    #[error("store failed to {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// The report.
        #[source]
        source: Box<::redb::Error>,
    },
}

/// Why the store could not be opened. A damaged file is no reason.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon holds the lock.
    #[error(
        "another iwfd works on {}; stop it, or give this one its own paths.state_dir", .0.display()
    )]
    Locked(PathBuf),
    /// The directory or a file in it cannot be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A newer daemon has written the store.
    #[error(
        "{} was written by a newer iwfd (format {found}, this one knows {known}); start that one, or move the file away \
         to begin without the mappings in it",
        path.display()
    )]
    Newer {
        /// The file, which was not touched.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format that this daemon knows.
        known: u64,
    },
    /// The store cannot be made, not even an empty one.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Durable changes: when `commit` returns, a power cut loses nothing of them.
pub trait Store {
    /// Applies changes durably, in their order, all or none of them.
    ///
    /// # Errors
    /// No room, or the database failed. Whether the changes are stored is not known then: a disk that fails to confirm
    /// may have written. Who needs to know writes again what should be there.
    fn commit(&mut self, changes: &[StoreChange]) -> Result<(), StoreError>;

    /// Durably makes this the BOOTID that the next life's is larger than.
    ///
    /// # Errors
    /// As for [`commit`](Self::commit).
    fn keep_boot_id(&mut self, boot_id: u32) -> Result<(), StoreError>;

    /// What was done since the start.
    fn counts(&self) -> Counts;
}

/// What a store has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions, each with one sync.
    pub commits: u64,
    /// Changes in them.
    pub changes: u64,
    /// Transactions that failed.
    pub failures: u64,
}

/// UPnP Device Architecture 1.1 clause 1.2: grows with each start and whenever addresses come or go. The wall clock keeps
/// it growing when the store was lost; it fits in 31 bits as the field demands.
pub fn next_boot_id(before: u32, now: UnixTime) -> u32 {
    let clock = u32::try_from(now.as_secs()).unwrap_or(u32::MAX) & 0x7fff_ffff;
    if before >= 0x7fff_ffff {
        return clock.max(1);
    }
    (before + 1).max(clock)
}

/// Locks `state_dir` (made if absent), opens the store in it and reads all of it. `now` is the wall clock.
///
/// # Errors
/// The directory cannot be used or is another daemon's, or there is no room for an empty store.
pub fn open(state_dir: &Path, now: UnixTime) -> Result<(redb::RedbStore, Snapshot), OpenError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(failed("make the directory", state_dir))?;
    let lock = lock(state_dir)?;
    let device_uuid = identity::load_or_make(state_dir)?;
    let (store, contents) = salvage::open(state_dir, lock, now)?;
    let snapshot = Snapshot {
        mappings: contents.mappings,
        marks: contents.marks,
        boot_id: contents.boot_id,
        device_uuid,
        last_generation: contents.last_generation,
        epochs: contents.epochs,
        update_id: contents.update_id,
        pinholes: contents.pinholes,
        last_pinhole: contents.last_pinhole,
        identities: contents.identities,
    };
    Ok((store, snapshot))
}

fn lock(state_dir: &Path) -> Result<File, OpenError> {
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("open the lock", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(state_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes a rename or a new file in `dir` survive a power cut.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
