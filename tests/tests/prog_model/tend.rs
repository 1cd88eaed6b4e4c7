//! What the daemon does with the tables: it writes mappings, removes them, and sweeps. And how time passes for them.

use std::collections::BTreeMap;
use std::io;

use anyhow::Result;
use iwf_common::config::Config;
use iwf_common::flow::SessionFlags;
use iwf_common::nat::{Filter, FilterEntry, FilterList, MappingFlags, MappingValue, mask};
use iwf_common::{limits, names, tick};
use iwf_userspace::daemon::dataplane::sweep::{self, Judge, Sweeper};

use super::compare::{at, bound_of, key_of};
use super::drive::{Driver, HZ};
use super::nat::{Bound, Endpoint, Filtering, Remote, Remotes, TCP, Terms, Time};
use crate::bed::explicit;

impl Driver<'_> {
    pub(crate) fn map(
        &mut self,
        external: Bound,
        internal: Endpoint,
        remotes: Remotes,
        life: Option<u32>,
    ) -> Result<()> {
        let expires = life.map(|life| self.nat.now + Time::from(life * HZ));
        let held = self.nat.by_external.get(&external).cloned();
        let inner = (external.0, internal);
        let other = self.nat.by_internal.get(&inner).copied();
        if !self.nat.map(external, internal, Terms { remotes, expires }) {
            return Ok(());
        }
        // What the daemon does.
        self.generation += 1;
        // The list before the mapping. One that no mapping needs any more is nobody's.
        if let Remotes::Listed(remotes) = remotes {
            let list = filter_list(remotes);
            self.bed.plane.set_filter(key_of(external), list)?;
        }
        let mut value = MappingValue {
            generation: self.generation,
            ..explicit(
                (internal.addr, internal.port),
                life.map_or(0, |life| {
                    self.bed
                        .now()
                        .map_or(1, |now| now.wrapping_add(life * HZ).max(1))
                }),
            )
        };
        let (filter, host, flags) = filter_facts(remotes);
        (value.filter, value.flags) = (filter as u8, flags);
        if let Some(host) = host {
            (value.remote_addr, value.remote_mask) = (host, mask(32));
        }
        let same = held.as_ref().filter(|held| held.internal == internal);
        if same.is_some() {
            let old = self.state.external[&key_of(external)];
            value.last_used = old.last_used;
            (value.packets_out, value.octets_out) = (old.packets_out, old.octets_out);
            (value.packets_in, value.octets_in) = (old.packets_in, old.octets_in);
        }
        let at = (external.1.addr, external.1.port);
        self.bed.map_at(external.0, at, value)?;
        if let Some(other) = other.filter(|other| *other != external.1) {
            let other = (external.0, other);
            self.bed
                .plane
                .remove_mapping(names::MAPPINGS_EXT, key_of(other))?;
            self.end_sessions(other)?;
        }
        if let Some(held) = held {
            if held.internal == internal {
                return self.end_sessions(external);
            }
            let loser = (external.0, held.internal);
            self.bed
                .plane
                .remove_mapping(names::MAPPINGS_INT, key_of(loser))?;
            self.end_sessions(external)?;
        }
        Ok(())
    }

    pub(crate) fn unmap(&mut self, external: Bound) -> Result<()> {
        let internal = (external.0, self.nat.by_external[&external].internal);
        let plane = &mut self.bed.plane;
        plane.remove_mapping(names::MAPPINGS_INT, key_of(internal))?;
        plane.remove_mapping(names::MAPPINGS_EXT, key_of(external))?;
        self.end_sessions(external)?;
        self.nat.unmap(external);
        Ok(())
    }

    /// Hosts with mappings that were asked for have one address for all.
    pub(crate) fn pair(&mut self) -> Result<()> {
        let explicit = self.nat.by_external.iter();
        let explicit = explicit.filter(|(_, mapping)| mapping.explicit.is_some());
        let now: BTreeMap<_, _> = explicit
            .map(|((_, external), mapping)| (mapping.internal.addr, external.addr))
            .collect();
        for host in self
            .nat
            .paired
            .keys()
            .filter(|host| !now.contains_key(*host))
        {
            self.bed.plane.remove_paired(*host)?;
        }
        for (host, addr) in &now {
            self.bed.plane.set_paired(*host, *addr)?;
        }
        self.nat.paired = now;
        Ok(())
    }

    /// One write, with a new generation.
    pub(crate) fn move_to(&mut self, addresses: &[[u8; 4]]) -> Result<()> {
        self.bed.reconfigure(|config| {
            set_addresses(config, addresses);
            config.next_hop_generation += 1;
        })?;
        self.nat.move_to(addresses.to_vec());
        Ok(())
    }

    /// Ends what stands on addresses that are gone.
    pub(crate) fn leave_gone(&mut self) -> Result<()> {
        self.settle(|sweeper, judge| sweeper.keep_ours(judge))
    }

    fn end_sessions(&mut self, external: Bound) -> Result<()> {
        self.settle(|sweeper, _| {
            sweeper.recheck(key_of(external), None);
            Ok(())
        })
    }

    /// Begins to end sessions, and does not stop before it is done.
    fn settle(
        &mut self,
        begin: impl FnOnce(&mut Sweeper, &Judge<'_>) -> io::Result<()>,
    ) -> Result<()> {
        let (plane, sweeper) = (&mut self.bed.plane, &mut self.sweeper);
        let (config, now) = (plane.config()?, plane.clock()?.jiffies as u32);
        let program = plane.tc_program(names::RUN_SWEEP)?;
        let run = |count| sweep::run_items(program, count);
        let judge = Judge {
            run: &run,
            config: &config,
            now,
        };
        begin(sweeper, &judge)?;
        while sweeper.is_settling() {
            sweeper.settle(&judge)?;
        }
        Ok(())
    }

    /// As often as there is something to do.
    pub(crate) fn sweep(&mut self) -> Result<()> {
        loop {
            let mut skew = 0;
            let peers: Vec<_> = self.state.peers.keys().copied().collect();
            let totals = loop {
                let (plane, sweeper) = (&mut self.bed.plane, &mut self.sweeper);
                let (config, now) = (plane.config()?, plane.clock()?.jiffies as u32);
                let program = plane.tc_program(names::RUN_SWEEP)?;
                let run = |count| sweep::run_items(program, count);
                let judge = Judge {
                    run: &run,
                    config: &config,
                    now: now.wrapping_add(skew),
                };
                if let Some(totals) = sweeper.step(&judge)?.done {
                    break totals;
                }
                // What was ended rests for some ticks before it is removed: they are let pass instead of waited for.
                self.state = self.bed.plane.state()?;
                self.let_pass(1)?;
                skew += 1;
            };
            self.state = self.bed.plane.state()?;
            let changed = totals.sessions_ended + totals.sessions_removed + totals.mappings_removed;
            // A filter may go by them.
            let same_peers = peers.iter().eq(self.state.peers.keys());
            if changed == 0 && same_peers && !self.is_something_ended()? {
                break;
            }
        }
        self.adopt_peers()?;
        self.nat.sweep();
        self.compare()
    }

    /// The sweep may note whom a connection has led to that it ends in the same pass: that goes by the order it reads.
    fn adopt_peers(&mut self) -> Result<()> {
        let now = self.bed.now()?;
        for (key, value) in &self.state.peers {
            if key.external.proto == TCP {
                let age = Time::from(tick::age(now, value.last_used));
                let used = self.nat.now.saturating_sub(age);
                let host = at(value.internal.addr, value.internal.port);
                let peer = (bound_of(&key.external), key.remote);
                let (_, last) = self.nat.peers.entry(peer).or_insert((host, used));
                *last = used.max(*last);
            }
        }
        Ok(())
    }

    /// Whether there are ended sessions that may be removed. On a busy machine a pass may have come too early for them.
    fn is_something_ended(&mut self) -> Result<bool> {
        let now = self.bed.now()?;
        Ok(self.state.sessions.values().any(|value| {
            let kept = value.flags & SessionFlags::HAIRPIN != 0
                && tick::age(now, value.last_seen) <= limits::GRACE * HZ;
            value.flags & SessionFlags::ENDED != 0 && !kept
        }))
    }

    /// For the tables and for the model.
    pub(crate) fn let_pass(&mut self, ticks: u32) -> Result<()> {
        self.nat.now += Time::from(ticks);
        let earlier = |deadline: u32| match deadline {
            0 => 0,
            deadline => deadline.wrapping_sub(ticks).max(1),
        };
        let plane = &mut self.bed.plane;
        for (key, value) in &mut self.state.peers {
            value.last_used = value.last_used.wrapping_sub(ticks);
            plane.set_peer(*key, *value)?;
        }
        for (key, value) in &mut self.state.fragments {
            value.tick = value.tick.wrapping_sub(ticks);
            plane.set_fragment(*key, *value)?;
        }
        for (key, value) in &mut self.state.sessions {
            value.last_seen = value.last_seen.wrapping_sub(ticks);
            value.deadline = earlier(value.deadline);
            plane.set_session(*key, *value)?;
        }
        for (map, entries) in [
            (names::MAPPINGS_EXT, &mut self.state.external),
            (names::MAPPINGS_INT, &mut self.state.internal),
        ] {
            for (key, value) in entries {
                value.last_used = value.last_used.wrapping_sub(ticks);
                value.expires = earlier(value.expires);
                plane.set_mapping(map, *key, *value)?;
            }
        }
        Ok(())
    }
}

/// How the tables say whom a mapping lets in: its filter, the only host, its flags.
pub(crate) const fn filter_facts(remotes: Remotes) -> (Filter, Option<[u8; 4]>, u32) {
    match remotes {
        Remotes::Everybody => (Filter::EndpointIndependent, None, 0),
        Remotes::Host(host) => (Filter::EndpointIndependent, Some(host), 0),
        Remotes::Listed(_) => (Filter::EndpointIndependent, None, MappingFlags::FILTER_LIST),
        Remotes::SentTo(filtering) => (filter_of(filtering), None, 0),
    }
}

pub(crate) const fn filter_of(filtering: Filtering) -> Filter {
    match filtering {
        Filtering::EndpointIndependent => Filter::EndpointIndependent,
        Filtering::AddressDependent => Filter::AddressDependent,
        Filtering::AddressAndPortDependent => Filter::AddressAndPortDependent,
    }
}

fn filter_list(remotes: &[Remote]) -> FilterList {
    let mut list = FilterList::default();
    for (entry, remote) in list.entries.iter_mut().zip(remotes) {
        *entry = FilterEntry {
            addr: remote.addr,
            mask: mask(remote.len),
            port: remote.port.unwrap_or_default().to_be_bytes(),
            pad: [0; 2],
        };
        list.len += 1;
    }
    list
}

pub(crate) fn set_addresses(config: &mut Config, addresses: &[[u8; 4]]) {
    config.pool = [[0; 4]; limits::POOL];
    if let [first, others @ ..] = addresses {
        config.external_addr = *first;
        for (slot, addr) in config.pool.iter_mut().rev().zip(others) {
            *slot = *addr;
        }
    }
}
