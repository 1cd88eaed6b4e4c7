//! Explicit mappings in two tables that packets read while we write.
//!
//! MAPPINGS_EXT decides (see `iwf_common::nat`): it is written first, so that an answer finds its way before
//! the first packet goes out, and removed last. Nothing here knows the kernel; [`Tables`] does.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use iwf_common::nat::{EndpointKey, MappingKind, MappingValue};

use super::DataPlaneError;
use super::clock::Clock;
use super::maps::{explicit_value, external_key, internal_key, nat_entry, refused};
use crate::types::NatEntry;

/// One of the two mapping tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// Keyed by the external endpoint.
    Ext,
    /// Keyed by the internal endpoint.
    Int,
}

/// What [`Tables::put`] may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Nothing under that key.
    Nothing,
    /// Anything, which is overwritten.
    Anything,
}

/// The two mapping tables and the sessions that depend on them.
pub(super) trait Tables {
    /// The value of `key`.
    fn get(&self, side: Side, key: &EndpointKey) -> io::Result<Option<MappingValue>>;
    /// Sets the value of `key`; `EEXIST` if something is there against the expectation, `E2BIG` or `ENOMEM`
    /// if there is no room.
    fn put(
        &mut self,
        side: Side,
        key: &EndpointKey,
        value: &MappingValue,
        expect: Expect,
    ) -> io::Result<()>;
    /// Removes `key`; absent is fine.
    fn delete(&mut self, side: Side, key: &EndpointKey) -> io::Result<()>;
    /// Ends every session of an external endpoint.
    fn end_sessions(&mut self, external: &EndpointKey) -> io::Result<()>;
    /// Everything in a table.
    fn list(&self, side: Side) -> io::Result<Vec<(EndpointKey, MappingValue)>>;
}

/// How often a key that packets take away under our hands is tried again.
const TRIES: usize = 8;

/// Writes a mapping; see [`super::DataPlane::write`].
pub(super) fn write(
    tables: &mut impl Tables,
    entry: &NatEntry,
    clock: &Clock,
) -> Result<(), DataPlaneError> {
    let (ext, int) = (external_key(entry), internal_key(entry));
    let read = refused("read a mapping");
    for _ in 0..TRIES {
        let old_ext = tables.get(Side::Ext, &ext).map_err(&read)?;
        let old_int = tables.get(Side::Int, &int).map_err(&read)?;
        if old_ext.is_some_and(|held| !gives_way(&held, &int, clock)) {
            return Err(DataPlaneError::InUse);
        }
        if let Some(held) = old_int
            && !gives_way(&held, &ext, clock)
            && is_paired(tables, &held, &int).map_err(&read)?
        {
            return Err(DataPlaneError::InUse);
        }

        let mut to_int = explicit_value(entry, int, clock);
        if let Some(held) = old_ext.filter(|held| held.endpoint(int.proto) == int) {
            to_int.last_used = held.last_used;
        }
        let expect = |old: Option<MappingValue>| match old {
            None => Expect::Nothing,
            Some(_) => Expect::Anything,
        };
        match tables.put(Side::Ext, &ext, &to_int, expect(old_ext)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
            outcome => outcome.map_err(|error| no_room(error, "MAPPINGS_EXT"))?,
        }
        let to_ext = explicit_value(entry, ext, clock);
        match tables.put(Side::Int, &int, &to_ext, expect(old_int)) {
            Ok(()) => return displace(tables, (ext, old_ext), (int, old_int)),
            Err(error) => {
                undo(tables, &ext, old_ext)?;
                // A packet has mapped the internal endpoint meanwhile: to something that must be displaced.
                if error.raw_os_error() != Some(libc::EEXIST) {
                    return Err(no_room(error, "MAPPINGS_INT"));
                }
            }
        }
    }
    Err(DataPlaneError::InUse)
}

/// Removes a mapping; see [`super::DataPlane::remove`].
pub(super) fn remove(tables: &mut impl Tables, entry: &NatEntry) -> Result<(), DataPlaneError> {
    let (ext, int) = (external_key(entry), internal_key(entry));
    let read = refused("read a mapping");
    let erase = refused("remove a mapping");
    let ours = |held: Option<MappingValue>, other: EndpointKey| {
        held.is_some_and(|held| is_explicit(&held) && held.endpoint(other.proto) == other)
    };
    let in_int = ours(tables.get(Side::Int, &int).map_err(&read)?, ext);
    let in_ext = ours(tables.get(Side::Ext, &ext).map_err(&read)?, int);
    if in_int {
        tables.delete(Side::Int, &int).map_err(&erase)?;
    }
    if in_ext {
        tables.delete(Side::Ext, &ext).map_err(&erase)?;
    }
    if in_int || in_ext {
        tables
            .end_sessions(&ext)
            .map_err(refused("end the sessions of a mapping"))?;
    }
    Ok(())
}

/// Lists the explicit mappings; see [`super::DataPlane::observe`].
pub(super) fn observe(
    tables: &impl Tables,
    clock: &Clock,
) -> Result<Vec<NatEntry>, DataPlaneError> {
    let list = |side| -> Result<BTreeMap<EndpointKey, MappingValue>, DataPlaneError> {
        let all = tables.list(side).map_err(refused("list the mappings"))?;
        Ok(all.into_iter().filter(|(_, v)| is_explicit(v)).collect())
    };
    let (by_ext, by_int) = (list(Side::Ext)?, list(Side::Int)?);
    let mut entries = BTreeSet::new();
    for (ext, to_int) in &by_ext {
        let int = to_int.endpoint(ext.proto);
        let whole = by_int
            .get(&int)
            .is_some_and(|to_ext| to_ext.endpoint(int.proto) == *ext && same_facts(to_int, to_ext));
        entries.extend(nat_entry(*ext, int, to_int, whole, clock));
    }
    for (int, to_ext) in &by_int {
        let ext = to_ext.endpoint(int.proto);
        let paired = by_ext
            .get(&ext)
            .is_some_and(|to_int| to_int.endpoint(ext.proto) == *int);
        if !paired {
            entries.extend(nat_entry(ext, *int, to_ext, false, clock));
        }
    }
    Ok(entries.into_iter().collect())
}

fn is_explicit(value: &MappingValue) -> bool {
    value.kind == MappingKind::Explicit as u8
}

/// Whether what is held may be overwritten by an explicit mapping whose other side is `other`.
fn gives_way(held: &MappingValue, other: &EndpointKey, clock: &Clock) -> bool {
    let host = held.kind == MappingKind::Host as u8;
    let same = held.endpoint(other.proto) == *other;
    !host && (!is_explicit(held) || same || held.expired(clock.now()))
}

/// Whether MAPPINGS_EXT confirms an entry of MAPPINGS_INT. One that it does not is a leftover.
fn is_paired(tables: &impl Tables, held: &MappingValue, int: &EndpointKey) -> io::Result<bool> {
    let back = tables.get(Side::Ext, &held.endpoint(int.proto))?;
    Ok(back.is_some_and(|back| back.endpoint(int.proto) == *int))
}

fn same_facts(a: &MappingValue, b: &MappingValue) -> bool {
    let facts = |v: &MappingValue| (v.generation, v.expires, v.remote_addr, v.remote_mask);
    facts(a) == facts(b)
}

fn undo(
    tables: &mut impl Tables,
    ext: &EndpointKey,
    old: Option<MappingValue>,
) -> Result<(), DataPlaneError> {
    match old {
        Some(old) => tables.put(Side::Ext, ext, &old, Expect::Anything),
        None => tables.delete(Side::Ext, ext),
    }
    .map_err(refused("undo a half-written mapping"))
}

/// Takes away what a new mapping pushed aside: the other halves and the sessions.
fn displace(
    tables: &mut impl Tables,
    (ext, old_ext): (EndpointKey, Option<MappingValue>),
    (int, old_int): (EndpointKey, Option<MappingValue>),
) -> Result<(), DataPlaneError> {
    let failed = refused("displace a dynamic mapping");
    if let Some(loser) = old_ext.map(|held| held.endpoint(ext.proto))
        && loser != int
    {
        let half = tables.get(Side::Int, &loser).map_err(&failed)?;
        if half.is_some_and(|half| half.endpoint(loser.proto) == ext) {
            tables.delete(Side::Int, &loser).map_err(&failed)?;
        }
        tables.end_sessions(&ext).map_err(&failed)?;
    }
    if let Some(loser) = old_int.map(|held| held.endpoint(int.proto))
        && loser != ext
    {
        let half = tables.get(Side::Ext, &loser).map_err(&failed)?;
        if half.is_some_and(|half| half.endpoint(loser.proto) == int) {
            tables.delete(Side::Ext, &loser).map_err(&failed)?;
        }
        tables.end_sessions(&loser).map_err(&failed)?;
    }
    Ok(())
}

fn no_room(error: io::Error, map: &'static str) -> DataPlaneError {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOMEM | libc::ENOSPC) => DataPlaneError::Full { map },
        _ => DataPlaneError::Kernel {
            action: "write a mapping",
            source: error,
        },
    }
}

#[cfg(test)]
mod tests;
