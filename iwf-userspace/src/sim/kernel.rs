//! The kernel's explicit mappings, with the refusals of the real ones.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::Bound;

use crate::iwf::EffectError;
use crate::mapping::untranslated;
use crate::reconcile::plan::{Kind, Plan};
use crate::reconcile::run::{self, Seen};
use crate::types::pinhole::Pinhole;
use crate::types::{ExternalEndpoint, Instant, NatEntry, Protocol};

#[derive(Debug, Default)]
pub(super) struct Kernel {
    entries: BTreeMap<(Protocol, ExternalEndpoint), NatEntry>,
    /// External ports that belong to somebody else.
    pub(super) taken: BTreeSet<(Protocol, u16)>,
    /// Calls that fail, counted from 1, with their error.
    pub(super) faults: BTreeMap<u64, EffectError>,
    /// How many entries there may be.
    pub(super) capacity: Option<usize>,
    calls: u64,
    /// What is let in over IPv6.
    pub(super) pinholes: Vec<Pinhole>,
    /// Writes so far, by which a test tells that nothing was made anew.
    pub(super) writes: u64,
    /// Entries removed so far.
    pub(super) removals: u64,
    /// The last entry that a run of the reconciler has seen.
    seen: Option<(Protocol, ExternalEndpoint)>,
    /// What the turn of that run wants to repair.
    wishes: Vec<(Kind, NatEntry)>,
}

/// Entries that one turn of a run sees.
const SEEN: usize = 2;

impl Kernel {
    /// The number of the next call.
    pub(super) fn next_call(&self) -> u64 {
        self.calls + 1
    }

    pub(super) fn write(&mut self, entry: NatEntry) -> Result<(), EffectError> {
        self.count()?;
        let key = (entry.protocol, entry.external);
        if self
            .taken
            .contains(&(entry.protocol, entry.external.port.get()))
        {
            return Err(EffectError::InUse);
        }
        let held = self.entries.get(&key);
        if held.is_some_and(|held| held.internal != entry.internal) {
            return Err(EffectError::InUse);
        }
        if held.is_none() && self.is_full() {
            return Err(EffectError::Full);
        }
        self.writes += 1;
        self.entries.insert(key, entry);
        Ok(())
    }

    pub(super) fn set_pinholes(&mut self, pinholes: Vec<Pinhole>) -> Result<(), EffectError> {
        self.count()?;
        self.pinholes = pinholes;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.capacity
            .is_some_and(|capacity| self.entries.len() >= capacity)
    }

    /// The power goes: nothing is left.
    pub(super) fn clear(&mut self) {
        self.pinholes.clear();
        self.entries.clear();
    }

    /// The data plane's sweep takes away what has expired.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.entries
            .retain(|_, entry| entry.expires.is_none_or(|at| at > now));
    }

    pub(super) fn remove(&mut self, entry: NatEntry) -> Result<(), EffectError> {
        self.count()?;
        let key = (entry.protocol, entry.external);
        let same = |held: &NatEntry| held.internal == entry.internal;
        if self.entries.get(&key).is_some_and(same) {
            self.removals += 1;
            self.entries.remove(&key);
        }
        Ok(())
    }

    /// The data plane ends what belongs to an address that is not ours any more; of a routed LAN what is not where its
    /// host is.
    pub(super) fn readdress(&mut self, ours: &[std::net::Ipv4Addr], routed: bool) {
        self.entries.retain(|(_, external), entry| match routed {
            true => *external == untranslated(entry.internal),
            false => ours.contains(&external.addr),
        });
    }

    pub(super) fn observe(&self) -> Vec<NatEntry> {
        self.entries.values().copied().collect()
    }

    /// Entries the kernel still uses.
    pub(super) fn alive(&self, now: Instant) -> Vec<NatEntry> {
        let alive = |entry: &&NatEntry| entry.expires.is_none_or(|at| at > now);
        self.entries.values().filter(alive).copied().collect()
    }

    /// One run of the reconciler; returns what it had to do.
    pub(super) fn reconcile(&mut self, desired: &[NatEntry]) -> Plan {
        let plan = Plan::new(&self.observe(), desired);
        for entry in &plan.remove {
            self.entries.remove(&(entry.protocol, entry.external));
        }
        for entry in plan.create.iter().chain(&plan.update) {
            let key = (entry.protocol, entry.external);
            if self.entries.contains_key(&key) || !self.is_full() {
                self.entries.insert(key, *entry);
            }
        }
        plan
    }

    /// What a turn has found, and lets it be done.
    pub(super) fn take_wishes(&mut self) -> Vec<(Kind, NatEntry)> {
        std::mem::take(&mut self.wishes)
    }

    pub(super) fn repair_now(&mut self, (what, entry): (Kind, NatEntry)) {
        let key = (entry.protocol, entry.external);
        match what {
            Kind::Removed => drop(self.entries.remove(&key)),
            Kind::Created if self.is_full() => {}
            Kind::Created | Kind::Updated => drop(self.entries.insert(key, entry)),
        }
    }

    fn count(&mut self) -> Result<(), EffectError> {
        self.calls += 1;
        self.faults.remove(&self.calls).map_or(Ok(()), Err)
    }
}

/// A run of the reconciler, whose repairs wait until somebody has looked at them.
impl run::Kernel for Kernel {
    type Error = Infallible;

    fn some(&mut self) -> Result<Seen, Infallible> {
        let from = self.seen.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.entries.range((from, Bound::Unbounded));
        let seen: Vec<_> = rest.by_ref().take(SEEN).map(|(_, entry)| *entry).collect();
        let more = rest.next().is_some();
        let last = seen.last().map(|entry| (entry.protocol, entry.external));
        self.seen = last.filter(|_| more);
        Ok(Seen {
            entries: seen,
            more,
        })
    }

    fn find(&self, like: &NatEntry) -> Result<Option<NatEntry>, Infallible> {
        let held = self.entries.get(&(like.protocol, like.external)).copied();
        Ok(held.filter(|held| held.internal == like.internal))
    }

    fn repair(&mut self, what: Kind, entry: &NatEntry) {
        self.wishes.push((what, *entry));
    }
}
