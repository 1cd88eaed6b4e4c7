//! Explicit mappings in two tables that packets read while we write.
//!
//! MAPPINGS_EXT decides (see `iwf_common::nat`): it is written first, so that an answer finds its way before
//! the first packet goes out, and removed last. The list of remote prefixes that some have comes even before it
//! and goes after it. Nothing here knows the kernel; [`Tables`] does.
//!
//! Several external endpoints may lead to one internal one. The first written is the primary: MAPPINGS_INT names
//! it, so outbound packets use it. The others are in MAPPINGS_EXT only, marked as secondary. When the primary
//! goes, the oldest of them takes its place.
//!
//! An update reads what the packet programs count, in the call before it writes. What they write between those two
//! calls is lost: the tick of an outbound use, which does not matter to an explicit mapping, and nothing else,
//! because counters are only moved into mappings by the sweep, which this daemon runs itself. A hash map offers no
//! write of a part of a value.
#![forbid(unsafe_code)]

mod observe;

use std::collections::BTreeMap;
use std::io;

use iwf_common::nat::{EndpointKey, FilterList, MappingFlags, MappingKind, MappingValue};

use super::DataPlaneError;
use super::batch::Cursor;
use super::clock::Clock;
use super::maps::{explicit_value, external_key, filter_list, internal_key, refused};
use crate::types::NatEntry;

pub(super) use observe::{Walk, find, observe, observe_slice};

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
    /// Lets the sessions of a mapping end that is there no more. They are looked for later, a slice at a time.
    fn end_sessions(&mut self, external: &EndpointKey, internal: &EndpointKey);
    /// Lets the sessions of an external endpoint follow a change of its mapping: they get its expiry, and end if
    /// it no longer admits those who began them. As above, later.
    fn recheck(&mut self, external: &EndpointKey);
    /// The remote prefixes of an external endpoint.
    fn filter(&self, external: &EndpointKey) -> io::Result<Option<FilterList>>;
    /// Sets them; `E2BIG` or `ENOMEM` if there is no room.
    fn put_filter(&mut self, external: &EndpointKey, list: &FilterList) -> io::Result<()>;
    /// Removes them; absent is fine.
    fn delete_filter(&mut self, external: &EndpointKey) -> io::Result<()>;
    /// Every list there is.
    fn filters(&self) -> io::Result<BTreeMap<EndpointKey, FilterList>>;
    /// An internal endpoint has lost its mapping to a better right.
    fn displaced(&mut self, internal: EndpointKey, external: EndpointKey);
    /// At least everything in a table that packets have not made.
    fn list(&self, side: Side) -> io::Result<Vec<(EndpointKey, MappingValue)>>;
    /// The same of the next entries at `cursor`, a bounded number. What stays during a walk is read once.
    fn read(
        &mut self,
        side: Side,
        cursor: &mut Cursor,
    ) -> io::Result<Vec<(EndpointKey, MappingValue)>>;
}

/// How often a key that packets take away under our hands is tried again.
const TRIES: usize = 8;

/// Which of several external endpoints of one internal one a mapping has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    /// The one outbound packets use.
    Primary,
    /// One more.
    Secondary,
}

/// Writes a mapping; see [`super::DataPlane::write`].
pub(super) fn write(
    tables: &mut impl Tables,
    entry: &NatEntry,
    clock: &Clock,
) -> Result<(), DataPlaneError> {
    let (ext, int) = (external_key(entry), internal_key(entry));
    let read = refused("read a mapping");
    let list = filter_list(entry);
    let old_list = tables.filter(&ext).map_err(&read)?;
    for _ in 0..TRIES {
        let old_ext = tables.get(Side::Ext, &ext).map_err(&read)?;
        let old_int = tables.get(Side::Int, &int).map_err(&read)?;
        if old_ext.is_some_and(|held| !gives_way(&held, &int, clock)) {
            return Err(DataPlaneError::InUse);
        }
        let mut rank = Rank::Primary;
        if let Some(held) = old_int
            && !gives_way(&held, &ext, clock)
            && is_paired(tables, &held, &int).map_err(&read)?
        {
            if !is_explicit(&held) {
                return Err(DataPlaneError::InUse);
            }
            rank = Rank::Secondary;
        }
        if let Some(list) = &list {
            put_list(tables, &ext, list)?;
        }
        let outcome = match rank {
            Rank::Primary => write_primary(tables, entry, (ext, old_ext), (int, old_int), clock),
            Rank::Secondary => {
                write_secondary(tables, entry, (ext, old_ext), (int, old_int), clock)
            }
        };
        match outcome {
            Ok(true) => {
                if list.is_none() && old_list.is_some() {
                    tables
                        .delete_filter(&ext)
                        .map_err(refused("remove unused remote prefixes"))?;
                }
                let same_list = list == old_list;
                settle(tables, entry, (ext, old_ext), same_list, clock);
                return Ok(());
            }
            outcome => {
                if list.is_some() {
                    restore_list(tables, &ext, old_list.as_ref())?;
                }
                // Else a packet has been faster.
                outcome?;
            }
        }
    }
    Err(DataPlaneError::InUse)
}

/// An endpoint with what was found there.
type Found = (EndpointKey, Option<MappingValue>);

/// False: something has come in between, and all is as it was.
fn write_primary(
    tables: &mut impl Tables,
    entry: &NatEntry,
    (ext, old_ext): Found,
    (int, old_int): Found,
    clock: &Clock,
) -> Result<bool, DataPlaneError> {
    if !put_ext(
        tables,
        explicit_value(entry, int, clock),
        (ext, old_ext),
        int,
    )? {
        return Ok(false);
    }
    let mut to_ext = explicit_value(entry, ext, clock);
    // Whether there are others stays true whoever is the first of them.
    if let Some(held) = old_int.filter(is_explicit) {
        to_ext.flags |= held.flags & MappingFlags::SECONDARY;
    }
    match tables.put(Side::Int, &int, &to_ext, expect(old_int)) {
        Ok(()) => {
            displace(tables, Side::Ext, (ext, old_ext), int)?;
            displace(tables, Side::Int, (int, old_int), ext)?;
            Ok(true)
        }
        Err(error) => {
            undo(tables, &ext, old_ext)?;
            // A packet has mapped the internal endpoint meanwhile: to something that must be displaced.
            if error.raw_os_error() == Some(libc::EEXIST) {
                Ok(false)
            } else {
                Err(no_room(error, "MAPPINGS_INT"))
            }
        }
    }
}

/// As [`write_primary`]. That there are others is noted with the primary first: a successor is looked for only then.
fn write_secondary(
    tables: &mut impl Tables,
    entry: &NatEntry,
    (ext, old_ext): Found,
    (int, old_int): Found,
    clock: &Clock,
) -> Result<bool, DataPlaneError> {
    if let Some(mut primary) = old_int
        && primary.flags & MappingFlags::SECONDARY == 0
    {
        primary.flags |= MappingFlags::SECONDARY;
        tables
            .put(Side::Int, &int, &primary, Expect::Anything)
            .map_err(|error| no_room(error, "MAPPINGS_INT"))?;
    }
    let mut to_int = explicit_value(entry, int, clock);
    to_int.flags |= MappingFlags::SECONDARY;
    if !put_ext(tables, to_int, (ext, old_ext), int)? {
        return Ok(false);
    }
    displace(tables, Side::Ext, (ext, old_ext), int)?;
    Ok(true)
}

/// Writes an entry of MAPPINGS_EXT with what has been counted there. False: somebody else has it now.
fn put_ext(
    tables: &mut impl Tables,
    mut to_int: MappingValue,
    (ext, old_ext): Found,
    int: EndpointKey,
) -> Result<bool, DataPlaneError> {
    let now = tables
        .get(Side::Ext, &ext)
        .map_err(refused("read a mapping"))?;
    if let Some(held) = now.filter(|held| held.endpoint(int.proto) == int) {
        keep_use(&mut to_int, &held);
    }
    match tables.put(Side::Ext, &ext, &to_int, expect(old_ext)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(no_room(error, "MAPPINGS_EXT")),
    }
}

/// What packets and sweeps have noted stays when the rest is written anew.
fn keep_use(new: &mut MappingValue, held: &MappingValue) {
    new.last_used = held.last_used;
    new.packets_out = held.packets_out;
    new.octets_out = held.octets_out;
    new.packets_in = held.packets_in;
    new.octets_in = held.octets_in;
}

const fn expect(old: Option<MappingValue>) -> Expect {
    match old {
        None => Expect::Nothing,
        Some(_) => Expect::Anything,
    }
}

/// After an update in place: what sessions remember of the mapping follows it, if it has become less.
fn settle(
    tables: &mut impl Tables,
    entry: &NatEntry,
    (ext, old_ext): Found,
    same_list: bool,
    clock: &Clock,
) {
    let int = internal_key(entry);
    let Some(held) = old_ext.filter(|held| is_explicit(held) && held.endpoint(int.proto) == int)
    else {
        return;
    };
    let new = explicit_value(entry, int, clock);
    let remotes = |value: &MappingValue| (value.remote_addr, value.remote_mask, value.filter);
    let sooner = new.expires != 0
        && (held.expires == 0 || new.expires.wrapping_sub(held.expires).cast_signed() < 0);
    if sooner || !same_list || remotes(&held) != remotes(&new) {
        tables.recheck(&ext);
    }
}

/// Writes a list. Those of mappings that the kernel has swept away are in nobody's way: they are removed when there
/// is no room.
fn put_list(
    tables: &mut impl Tables,
    ext: &EndpointKey,
    list: &FilterList,
) -> Result<(), DataPlaneError> {
    let full = |error: io::Error| no_room(error, "FILTERS");
    match tables.put_filter(ext, list) {
        Err(error) if is_full(&error) => {
            purge_lists(tables).map_err(refused("remove unused remote prefixes"))?;
            tables.put_filter(ext, list).map_err(full)
        }
        outcome => outcome.map_err(full),
    }
}

fn purge_lists(tables: &mut impl Tables) -> io::Result<()> {
    for ext in tables.filters()?.into_keys() {
        let mapping = tables.get(Side::Ext, &ext)?;
        if mapping.is_none_or(|held| held.flags & MappingFlags::FILTER_LIST == 0) {
            tables.delete_filter(&ext)?;
        }
    }
    Ok(())
}

fn restore_list(
    tables: &mut impl Tables,
    ext: &EndpointKey,
    old: Option<&FilterList>,
) -> Result<(), DataPlaneError> {
    match old {
        Some(old) => tables.put_filter(ext, old),
        None => tables.delete_filter(ext),
    }
    .map_err(refused("undo a half-written mapping"))
}

/// Removes a mapping; see [`super::DataPlane::remove`].
pub(super) fn remove(
    tables: &mut impl Tables,
    entry: &NatEntry,
    clock: &Clock,
) -> Result<(), DataPlaneError> {
    let (ext, int) = (external_key(entry), internal_key(entry));
    let read = refused("read a mapping");
    let erase = refused("remove a mapping");
    let ours = |held: &MappingValue, other: EndpointKey| {
        is_explicit(held) && held.endpoint(other.proto) == other
    };
    let in_int = tables.get(Side::Int, &int).map_err(&read)?;
    let in_int = in_int.filter(|held| ours(held, ext));
    let in_ext = tables.get(Side::Ext, &ext).map_err(&read)?;
    let in_ext = in_ext.filter(|held| ours(held, int));
    if let Some(primary) = in_int {
        let heir = match primary.flags & MappingFlags::SECONDARY {
            0 => None,
            _ => heir(tables, &ext, &int, clock).map_err(&read)?,
        };
        match heir {
            Some(heir) => succeed(tables, heir, &int).map_err(&erase)?,
            None => tables.delete(Side::Int, &int).map_err(&erase)?,
        }
    }
    if in_ext.is_some() {
        tables.delete(Side::Ext, &ext).map_err(&erase)?;
    }
    if in_int.is_some() || in_ext.is_some() {
        tables.delete_filter(&ext).map_err(&erase)?;
        tables.end_sessions(&ext, &int);
    }
    Ok(())
}

/// The oldest other external endpoint of `int`, and its entry.
fn heir(
    tables: &impl Tables,
    ext: &EndpointKey,
    int: &EndpointKey,
    clock: &Clock,
) -> io::Result<Option<(EndpointKey, MappingValue)>> {
    let all = tables.list(Side::Ext)?.into_iter();
    let others = all.filter(|(key, value)| {
        key != ext
            && key.proto == int.proto
            && is_explicit(value)
            && value.endpoint(int.proto) == *int
            && !value.expired(clock.now())
    });
    Ok(others.min_by_key(|(key, value)| (value.generation, *key)))
}

/// Makes a secondary mapping the primary one. In one step for packets: there is no moment without a mapping of the
/// internal endpoint, in which a packet would make one.
fn succeed(
    tables: &mut impl Tables,
    (ext, mut to_int): (EndpointKey, MappingValue),
    int: &EndpointKey,
) -> io::Result<()> {
    let to_ext = MappingValue {
        addr: ext.addr,
        port: ext.port,
        // There may be more; a needless search for them does no harm.
        flags: to_int.flags | MappingFlags::SECONDARY,
        packets_out: 0,
        octets_out: 0,
        packets_in: 0,
        octets_in: 0,
        ..to_int
    };
    tables.put(Side::Int, int, &to_ext, Expect::Anything)?;
    to_int.flags &= !MappingFlags::SECONDARY;
    tables.put(Side::Ext, &ext, &to_int, Expect::Anything)
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
    let listed = |v: &MappingValue| v.flags & MappingFlags::FILTER_LIST;
    let facts = |v: &MappingValue| {
        let lifetime = (v.generation, v.expires);
        let remotes = (v.remote_addr, v.remote_mask, listed(v));
        (lifetime, v.filter, remotes)
    };
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

/// Takes away what a new mapping pushed aside at one of its endpoints: the other half and the sessions. `partner` is its
/// endpoint of the other side.
fn displace(
    tables: &mut impl Tables,
    side: Side,
    (key, old): Found,
    partner: EndpointKey,
) -> Result<(), DataPlaneError> {
    let failed = refused("displace a mapping");
    let Some(loser) = old.map(|held| held.endpoint(key.proto)) else {
        return Ok(());
    };
    if loser == partner {
        return Ok(());
    }
    let (other, ext, int) = match side {
        Side::Ext => (Side::Int, key, loser),
        Side::Int => (Side::Ext, loser, key),
    };
    let half = tables.get(other, &loser).map_err(&failed)?;
    if half.is_some_and(|half| half.endpoint(loser.proto) == key) {
        tables.delete(other, &loser).map_err(&failed)?;
    }
    tables.end_sessions(&ext, &int);
    tables.displaced(int, ext);
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::E2BIG | libc::ENOMEM | libc::ENOSPC)
    )
}

fn no_room(error: io::Error, map: &'static str) -> DataPlaneError {
    if is_full(&error) {
        return DataPlaneError::Full { map };
    }
    DataPlaneError::Kernel {
        action: "write a mapping",
        source: error,
    }
}

#[cfg(test)]
mod tests;
