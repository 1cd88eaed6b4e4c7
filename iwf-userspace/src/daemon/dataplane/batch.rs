//! Reads and writes many entries of a map with one system call. aya has nothing for that.
//!
//! Read before editing: bpf(2), BPF_MAP_LOOKUP_BATCH and BPF_MAP_UPDATE_BATCH (Linux 5.6 and later).
//!
//! A read ends when it has as many entries as it may have, and on the way to them the kernel looks at one bucket after
//! the other without a pause: in a large table that is nearly empty, at millions. Therefore [`Walked`] asks for the
//! fewer entries the further apart they are. A bound on buckets is not to be had from the kernel.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::Pod;

/// linux/bpf.h.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

/// Entries that [`BatchMap::select`] reads with one call.
const SELECTED: usize = 1024;

/// The part of `union bpf_attr` for batches.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map of keys `K` and values `V`.
#[derive(Debug)]
pub(crate) struct BatchMap<K, V> {
    fd: OwnedFd,
    capacity: u32,
    types: PhantomData<(K, V)>,
}

/// Where a walk through a map is. The kernel's word, of 4 octets for hash maps and arrays alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// Before the first entry.
    #[default]
    Start,
    /// After some.
    At(u32),
    /// After the last.
    End,
}

/// Entries that were read together.
#[derive(Debug)]
pub(crate) struct Slice<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    len: usize,
}

impl<K: Pod + Default, V: Pod + Default> Slice<K, V> {
    /// Room for `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            keys: vec![K::default(); capacity],
            values: vec![V::default(); capacity],
            len: 0,
        }
    }

    /// How many were read.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What was read.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.keys.iter().zip(&self.values).take(self.len)
    }

    fn grow(&mut self, to: usize) {
        if self.keys.len() < to {
            self.keys.resize(to, K::default());
            self.values.resize(to, V::default());
        }
    }
}

/// Buckets that one read of a [`Walked`] looks at, about: some tens of microseconds.
const PLACES: usize = 1 << 16;
/// Entries that a read asks for at least: as many as hardly any bucket has.
const FEWEST: usize = 4;

/// A hash map that is walked through in reads of bounded work.
#[derive(Debug)]
pub(crate) struct Walked<K, V> {
    map: BatchMap<K, V>,
    slice: Slice<K, V>,
    most: usize,
    /// Entries that the next read asks for.
    next: usize,
}

impl<K: Pod + Default, V: Pod + Default> Walked<K, V> {
    /// Walks through `map`, `most` entries at a time.
    ///
    /// # Errors
    /// As [`BatchMap::new`].
    pub(crate) fn new(map: &aya::maps::MapData, most: usize) -> io::Result<Self> {
        Ok(Self {
            map: BatchMap::new(map)?,
            slice: Slice::new(most),
            most,
            next: FEWEST.min(most),
        })
    }

    /// Every entry that fits.
    ///
    /// # Errors
    /// As [`BatchMap::read`].
    pub(crate) fn select(&self, fits: impl Fn(&V) -> bool) -> io::Result<Vec<(K, V)>> {
        self.map.select(fits)
    }

    /// How many entries the map has room for.
    pub(crate) fn capacity(&self) -> u32 {
        self.map.capacity()
    }

    /// Reads on from `cursor`; see [`BatchMap::read`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn read(&mut self, cursor: &mut Cursor) -> io::Result<&Slice<K, V>> {
        let from = *cursor;
        self.map.read_some(cursor, &mut self.slice, self.next)?;
        if from != Cursor::End {
            let places = self.place(*cursor).saturating_sub(self.place(from));
            self.next = ask_for(self.slice.len, places, self.most);
        }
        Ok(&self.slice)
    }

    fn place(&self, cursor: Cursor) -> usize {
        let place = match cursor {
            Cursor::Start => 0,
            Cursor::At(bucket) => bucket,
            // The kernel has the next power of two of buckets.
            Cursor::End => self.map.capacity.next_power_of_two(),
        };
        usize::try_from(place).unwrap_or(usize::MAX)
    }
}

/// How many entries the next read asks for, when the last one has found `found` in `places` buckets.
fn ask_for(found: usize, places: usize, most: usize) -> usize {
    let within = found.saturating_mul(PLACES) / places.max(1);
    within.clamp(FEWEST.min(most), most)
}

impl<K: Pod + Default, V: Pod + Default> BatchMap<K, V> {
    /// The map behind `fd`, whose keys and values must be of these types: their sizes are compared with what the
    /// kernel says.
    ///
    /// # Errors
    /// The sizes differ, or there is no descriptor left.
    pub(crate) fn new(map: &aya::maps::MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other("a map of other types"));
        }
        Ok(Self {
            fd: map.fd().as_fd().try_clone_to_owned()?,
            capacity: info.max_entries(),
            types: PhantomData,
        })
    }

    /// How many entries it has room for.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Reads the next entries at `cursor` into `slice` and moves the cursor past them. Entries that stay in a hash
    /// map during a walk are read once; of those that come or go meanwhile some are. The kernel reads whole
    /// buckets, so the slice grows if one does not fit.
    ///
    /// # Errors
    /// The kernel is older than 5.6, or refuses.
    pub(crate) fn read(&self, cursor: &mut Cursor, slice: &mut Slice<K, V>) -> io::Result<()> {
        self.read_some(cursor, slice, slice.keys.len())
    }

    /// The same, `most` entries unless the first bucket has more.
    fn read_some(
        &self,
        cursor: &mut Cursor,
        slice: &mut Slice<K, V>,
        mut most: usize,
    ) -> io::Result<()> {
        slice.len = 0;
        let from = match *cursor {
            Cursor::Start => None,
            Cursor::At(place) => Some(place),
            Cursor::End => return Ok(()),
        };
        loop {
            slice.grow(most);
            let mut to = 0u32;
            let mut batch = Batch {
                in_batch: from.as_ref().map_or(0, address),
                out_batch: address_mut(&mut to),
                keys: slice.keys.as_mut_ptr().expose_provenance() as u64,
                values: slice.values.as_mut_ptr().expose_provenance() as u64,
                count: u32::try_from(most).map_err(io::Error::other)?,
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                elem_flags: 0,
                flags: 0,
            };
            let outcome = bpf(BPF_MAP_LOOKUP_BATCH, &mut batch);
            let read = usize::try_from(batch.count).unwrap_or(0);
            match outcome {
                Ok(()) => *cursor = Cursor::At(to),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => *cursor = Cursor::End,
                    Some(libc::ENOSPC) => {
                        most = most.max(1) * 2;
                        continue;
                    }
                    // A signal came before the first entry.
                    Some(libc::EINTR | libc::EAGAIN) => continue,
                    _ => return Err(error),
                },
            }
            slice.len = read.min(slice.keys.len());
            return Ok(());
        }
    }

    /// Every entry that fits, as [`Self::read`] finds them.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn select(&self, fits: impl Fn(&V) -> bool) -> io::Result<Vec<(K, V)>> {
        let (mut cursor, mut slice) = (Cursor::Start, Slice::new(SELECTED));
        let mut found = Vec::new();
        while cursor != Cursor::End {
            self.read(&mut cursor, &mut slice)?;
            let fitting = slice.iter().filter(|(_, value)| fits(value));
            found.extend(fitting.map(|(key, value)| (*key, *value)));
        }
        Ok(found)
    }

    /// Sets the values of all `keys`, in their order.
    ///
    /// # Errors
    /// The kernel is older than 5.6, or refuses one of them; those before it are set.
    pub(crate) fn write(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        let count = keys.len().min(values.len());
        if count == 0 {
            return Ok(());
        }
        let mut batch = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr().expose_provenance() as u64,
            values: values.as_ptr().expose_provenance() as u64,
            count: u32::try_from(count).map_err(io::Error::other)?,
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        bpf(BPF_MAP_UPDATE_BATCH, &mut batch)
    }
}

fn address(place: &u32) -> u64 {
    std::ptr::from_ref(place).expose_provenance() as u64
}

fn address_mut(place: &mut u32) -> u64 {
    std::ptr::from_mut(place).expose_provenance() as u64
}

/// bpf(2) with a batch, whose pointers must be to as many keys and values of the map as it counts.
fn bpf(command: libc::c_long, batch: &mut Batch) -> io::Result<()> {
    // SAFETY: the two callers fill in pointers to vectors or slices of at least `count` keys and values, whose
    // sizes were compared with the map's, and which outlive the call; for reading they are writable. Any octets
    // are a value of a `Pod`. `in_batch` and `out_batch` are a word of 4 octets or null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(batch),
            size_of::<Batch>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_tables_are_read_in_fewer_entries() {
        const MOST: usize = 256;
        assert_eq!(ask_for(MOST, 500, MOST), MOST);
        assert_eq!(ask_for(MOST, PLACES, MOST), MOST);
        assert_eq!(ask_for(MOST, 4 * PLACES, MOST), MOST / 4);
        assert_eq!(ask_for(1, 1 << 22, MOST), FEWEST);
        assert_eq!(ask_for(0, 0, MOST), FEWEST);
        assert_eq!(ask_for(0, 0, 1), 1);
    }
}
