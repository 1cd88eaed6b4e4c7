//! What explicit mappings there are: all at once, some at a time, or one.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use iwf_common::nat::{EndpointKey, FilterList, MappingFlags, MappingValue};

use super::{Side, Tables, is_explicit, same_facts};
use crate::daemon::dataplane::DataPlaneError;
use crate::daemon::dataplane::batch::Cursor;
use crate::daemon::dataplane::clock::Clock;
use crate::daemon::dataplane::maps::{external_key, internal_key, nat_entry, refused};
use crate::reconcile::run::Seen;
use crate::types::NatEntry;

/// Lists the explicit mappings; see [`crate::daemon::dataplane::DataPlane::observe`].
pub(in super::super) fn observe(
    tables: &impl Tables,
    clock: &Clock,
) -> Result<Vec<NatEntry>, DataPlaneError> {
    let failed = refused("list the mappings");
    let list = |side| -> io::Result<BTreeMap<EndpointKey, MappingValue>> {
        let all = tables.list(side)?;
        Ok(all.into_iter().filter(|(_, v)| is_explicit(v)).collect())
    };
    let whole = || -> io::Result<BTreeSet<NatEntry>> {
        let snapshot = Snapshot {
            ext: list(Side::Ext)?,
            int: list(Side::Int)?,
            lists: tables.filters()?,
        };
        let mut entries = BTreeSet::new();
        for (ext, to_int) in &snapshot.ext {
            entries.extend(by_external(&snapshot, *ext, to_int, clock)?);
        }
        for (int, to_ext) in &snapshot.int {
            entries.extend(leftover(&snapshot, *int, to_ext, clock)?);
        }
        Ok(entries)
    };
    Ok(whole().map_err(failed)?.into_iter().collect())
}

/// Where a walk through both tables is.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Walk {
    side: Side,
    cursor: Cursor,
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            side: Side::Ext,
            cursor: Cursor::Start,
        }
    }
}

/// Reads on; see [`crate::daemon::dataplane::DataPlane::observe_slice`].
pub(in super::super) fn observe_slice(
    tables: &mut impl Tables,
    walk: &mut Walk,
    clock: &Clock,
) -> Result<Seen, DataPlaneError> {
    let mut slice = || -> io::Result<Seen> {
        let read = tables.read(walk.side, &mut walk.cursor)?;
        let live = Live(tables);
        let mut entries = Vec::new();
        for (key, value) in read.iter().filter(|(_, value)| is_explicit(value)) {
            let entry = match walk.side {
                Side::Ext => by_external(&live, *key, value, clock)?,
                Side::Int => leftover(&live, *key, value, clock)?,
            };
            entries.extend(entry);
        }
        let ended = walk.cursor == Cursor::End;
        if ended && walk.side == Side::Ext {
            *walk = Walk {
                side: Side::Int,
                cursor: Cursor::Start,
            };
            return Ok(Seen {
                entries,
                more: true,
            });
        }
        Ok(Seen {
            entries,
            more: !ended,
        })
    };
    slice().map_err(refused("list some mappings"))
}

/// Looks one up; see [`crate::daemon::dataplane::DataPlane::find`].
pub(in super::super) fn find(
    tables: &impl Tables,
    like: &NatEntry,
    clock: &Clock,
) -> Result<Option<NatEntry>, DataPlaneError> {
    let (ext, int) = (external_key(like), internal_key(like));
    let live = Live(tables);
    let find = || -> io::Result<Option<NatEntry>> {
        let to_int = live.explicit(Side::Ext, &ext)?;
        if let Some(to_int) = to_int.filter(|held| held.endpoint(ext.proto) == int) {
            return by_external(&live, ext, &to_int, clock);
        }
        let to_ext = live.explicit(Side::Int, &int)?;
        match to_ext.filter(|held| held.endpoint(int.proto) == ext) {
            Some(to_ext) => leftover(&live, int, &to_ext, clock),
            None => Ok(None),
        }
    };
    find().map_err(refused("look a mapping up"))
}

/// Both tables, explicit mappings only.
trait Look {
    fn explicit(&self, side: Side, key: &EndpointKey) -> io::Result<Option<MappingValue>>;
    fn list(&self, external: &EndpointKey) -> io::Result<Option<FilterList>>;
}

/// As they were at one time.
struct Snapshot {
    ext: BTreeMap<EndpointKey, MappingValue>,
    int: BTreeMap<EndpointKey, MappingValue>,
    lists: BTreeMap<EndpointKey, FilterList>,
}

impl Look for Snapshot {
    fn explicit(&self, side: Side, key: &EndpointKey) -> io::Result<Option<MappingValue>> {
        let table = match side {
            Side::Ext => &self.ext,
            Side::Int => &self.int,
        };
        Ok(table.get(key).copied())
    }

    fn list(&self, external: &EndpointKey) -> io::Result<Option<FilterList>> {
        Ok(self.lists.get(external).copied())
    }
}

/// As they are.
struct Live<'a, T>(&'a T);

impl<T: Tables> Look for Live<'_, T> {
    fn explicit(&self, side: Side, key: &EndpointKey) -> io::Result<Option<MappingValue>> {
        Ok(self.0.get(side, key)?.filter(is_explicit))
    }

    fn list(&self, external: &EndpointKey) -> io::Result<Option<FilterList>> {
        self.0.filter(external)
    }
}

/// The mapping of an entry of MAPPINGS_EXT.
fn by_external(
    look: &impl Look,
    ext: EndpointKey,
    to_int: &MappingValue,
    clock: &Clock,
) -> io::Result<Option<NatEntry>> {
    let int = to_int.endpoint(ext.proto);
    let secondary = to_int.flags & MappingFlags::SECONDARY != 0;
    let whole = match look.explicit(Side::Int, &int)? {
        None => false,
        Some(to_ext) => {
            let first = to_ext.endpoint(int.proto);
            if first == ext {
                !secondary && same_facts(to_int, &to_ext)
            } else {
                secondary
                    && to_ext.flags & MappingFlags::SECONDARY != 0
                    && confirms(look, &first, &int)?
            }
        }
    };
    let list = match to_int.flags & MappingFlags::FILTER_LIST {
        0 => None,
        _ => look.list(&ext)?,
    };
    Ok(nat_entry(ext, int, to_int, list.as_ref(), whole, clock))
}

/// What an entry of MAPPINGS_INT is half of, if MAPPINGS_EXT does not confirm it.
fn leftover(
    look: &impl Look,
    int: EndpointKey,
    to_ext: &MappingValue,
    clock: &Clock,
) -> io::Result<Option<NatEntry>> {
    let ext = to_ext.endpoint(int.proto);
    if confirms(look, &ext, &int)? {
        return Ok(None);
    }
    Ok(nat_entry(ext, int, to_ext, None, false, clock))
}

fn confirms(look: &impl Look, ext: &EndpointKey, int: &EndpointKey) -> io::Result<bool> {
    let to_int = look.explicit(Side::Ext, ext)?;
    Ok(to_int.is_some_and(|to_int| to_int.endpoint(ext.proto) == *int))
}
