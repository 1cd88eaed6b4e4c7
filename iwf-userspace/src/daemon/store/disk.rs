//! A disk in memory that remembers every operation and fails when told, for tests of what a power cut or a bad disk
//! leaves.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use ::redb::{Builder, Database, DatabaseError, StorageBackend};

use super::redb::Medium;

/// What a disk writes at once or not at all.
const SECTOR: u64 = 512;

/// One operation that changes the disk.
#[derive(Clone, Debug)]
pub enum Op {
    /// Octets at a place.
    Write(u64, Vec<u8>),
    /// Another length.
    SetLen(u64),
    /// All before is safe from then on.
    Sync,
}

/// What an operation does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ENOSPC, nothing done.
    Full,
    /// EIO, nothing done.
    Io,
    /// Half of the octets are written, then ENOSPC; of another operation, nothing.
    Short,
    /// The work is done and EIO reported all the same: a sync that failed for another reason.
    DoneButIo,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    octets: Vec<u8>,
    log: Vec<Op>,
    faults: BTreeMap<usize, Fault>,
    /// Every operation from here on fails like that.
    broken: Option<Fault>,
    done: usize,
    written: u64,
}

impl Disk {
    /// A disk that holds `octets`.
    pub fn holding(octets: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.state().octets = octets;
        disk
    }

    /// Operations so far.
    pub fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    /// How many operations there were.
    pub fn operations(&self) -> usize {
        self.state().done
    }

    /// Octets written so far.
    pub fn written(&self) -> u64 {
        self.state().written
    }

    /// What is on it.
    pub fn octets(&self) -> Vec<u8> {
        self.state().octets.clone()
    }

    /// Lets the operation with that number, counted from 0, fail.
    pub fn fail_at(&self, operation: usize, fault: Fault) {
        self.state().faults.insert(operation, fault);
    }

    /// Lets every operation from now on fail, or none.
    pub fn set_broken(&self, fault: Option<Fault>) {
        let mut state = self.state();
        state.broken = fault;
        state.faults.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    fn operate(&self, op: Op) -> io::Result<()> {
        let mut state = self.state();
        let number = state.done;
        state.done += 1;
        let fault = state.faults.remove(&number).or(state.broken);
        let (op, error) = match (fault, op) {
            (None, op) => (Some(op), None),
            (Some(Fault::Full), _) => (None, Some(io::ErrorKind::StorageFull)),
            (Some(Fault::Io), _) => (None, Some(io::ErrorKind::Other)),
            (Some(Fault::Short), Op::Write(at, mut octets)) => {
                octets.truncate(octets.len() / 2);
                let half = Op::Write(at, octets);
                (Some(half), Some(io::ErrorKind::StorageFull))
            }
            (Some(Fault::Short), _) => (None, Some(io::ErrorKind::StorageFull)),
            (Some(Fault::DoneButIo), op) => (Some(op), Some(io::ErrorKind::Other)),
        };
        if let Some(op) = op {
            if let Op::Write(_, octets) = &op {
                state.written += octets.len() as u64;
            }
            op.apply(&mut state.octets);
            state.log.push(op);
        }
        error.map_or(Ok(()), |kind| {
            Err(io::Error::new(kind, "as the test planned"))
        })
    }
}

impl Op {
    /// Does it to a disk that holds these octets.
    pub fn apply(&self, octets: &mut Vec<u8>) {
        match self {
            Self::Write(at, new) => {
                let at = usize::try_from(*at).expect("small disks");
                if octets.len() < at + new.len() {
                    octets.resize(at + new.len(), 0);
                }
                octets[at..at + new.len()].copy_from_slice(new);
            }
            Self::SetLen(len) => octets.resize(usize::try_from(*len).expect("small disks"), 0),
            Self::Sync => {}
        }
    }

    /// What a disk may do of it at a time: its sectors.
    pub fn sectors(&self) -> Vec<Self> {
        let Self::Write(at, octets) = self else {
            return vec![self.clone()];
        };
        let (mut at, mut left) = (*at, octets.as_slice());
        let mut sectors = Vec::new();
        while !left.is_empty() {
            let here = usize::try_from(SECTOR - at % SECTOR).expect("a sector");
            let (now, later) = left.split_at(here.min(left.len()));
            sectors.push(Self::Write(at, now.to_vec()));
            (at, left) = (at + now.len() as u64, later);
        }
        sectors
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().octets.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let from = usize::try_from(offset).expect("small disks");
        let octets = state.octets.get(from..from + out.len());
        out.copy_from_slice(octets.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate(Op::Write(offset, data.to_vec()))
    }
}

impl Medium for Disk {
    fn size(&self) -> u64 {
        self.state().octets.len() as u64
    }

    fn format(&self) -> Option<u64> {
        None
    }

    fn open(&self, builder: &Builder, _may_make: bool) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.clone())
    }
}
