//! The WAN: its address, the servers behind it, and the mode that follows from them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use iwf_common::host::{HostKey, paired};
use iwf_common::limits::POOL;

use super::job::{Kind, Origin, Stage};
use super::settings::{ModeSetting, PrivateWan};
use super::{Iwf, Mode, Notice, StoreChange, WanState};
use crate::mapping::policy::is_public;
use crate::mapping::record::WallClock;
use crate::mapping::{Claim, Mapping, State};
use crate::proto::pcp_client;
use crate::types::{Generation, Instant, LocalAddrs, UnixTime};

/// A wall clock that differs by less from what was expected was not set.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

impl Iwf {
    /// Follows a change of the WAN. Mappings outlive its being down.
    pub(super) fn wan_changed(&mut self, state: WanState, now: Instant) {
        self.wan = state;
        let local = self.wan.local();
        let before = self.last_local;
        self.last_local = LocalAddrs {
            v4: local.v4.or(before.v4),
            v6: local.v6.or(before.v6),
        };
        if let Some(addr) = self.wan.address
            && self.last_wan.replace(addr).is_some_and(|last| last != addr)
        {
            // What a server said of the old address does not hold for the new one.
            self.drop_address_query(now);
            self.forget_address();
        }
        self.client.set_router(self.igd_router(), now);
        self.tell(pcp_client::Input::Local(self.wan.local()), now);
        self.follow_servers(now);
        if self.is_translating() && self.wan.address.is_some() {
            let misplaced = |m: &&Mapping| !m.is_untranslated() && !self.is_placed(m);
            let moved: Vec<_> = self
                .table
                .iter()
                .filter(misplaced)
                .map(|m| m.generation)
                .collect();
            for generation in &moved {
                self.readdress(*generation);
            }
            self.choose_mode(now);
            // The server has not seen us there; what it granted was for the old address.
            for generation in moved {
                let leased = self.table.get(generation).and_then(|m| m.upstream);
                if leased.is_some() && !self.jobs.contains_key(&generation) {
                    self.reacquire(generation, now);
                }
            }
        }
        self.choose_mode(now);
        self.tell_new_address(before, now);
    }

    /// What was granted to a request from another address is asked for again from the one of now, with its nonce
    /// (RFC 6887 section 8.4). It is for the same LAN host as before.
    fn tell_new_address(&mut self, before: LocalAddrs, now: Instant) {
        let moved = |server: SocketAddr| {
            let (old, new) = (before.towards(server), self.last_local.towards(server));
            old.is_some() && old != new
        };
        let leased = self.table.iter().filter(|m| m.is_untranslated());
        let leased = leased.filter(|m| m.upstream.is_some_and(|lease| moved(lease.server)));
        let idle = leased.filter(|m| !self.jobs.contains_key(&m.generation));
        let moved: Vec<_> = idle.map(|m| m.generation).collect();
        for generation in moved {
            self.reacquire(generation, now);
        }
    }

    /// The external address for a mapping of `host`. A server maps the address that it is asked from, which is the first
    /// one. Where nobody is asked, all mappings of a host are at one address (RFC 4787 REQ-2), and the kernel's dynamic
    /// ones follow them.
    pub(super) fn external_for(&self, host: Ipv4Addr) -> Option<Ipv4Addr> {
        let first = self.wan.address?;
        if self.wan.pool.is_empty() || self.needs_first() {
            return Some(first);
        }
        let mut own = self.table.at_host(host);
        let held = own.find(|m| self.is_ours(m.nat1.addr));
        Some(held.map_or_else(|| self.paired(host, first), |m| m.nat1.addr))
    }

    /// What the kernel would give it.
    fn paired(&self, host: Ipv4Addr, first: Ipv4Addr) -> Ipv4Addr {
        let mut slots = [[0; 4]; POOL];
        for (slot, addr) in slots.iter_mut().zip(&self.wan.pool) {
            *slot = addr.octets();
        }
        paired(&HostKey::v4(host.octets()), first.octets(), &slots).into()
    }

    fn is_ours(&self, addr: Ipv4Addr) -> bool {
        self.wan.address == Some(addr)
            || (self.wan.address.is_some() && self.wan.pool.contains(&addr))
    }

    fn needs_first(&self) -> bool {
        matches!(self.mode, Mode::Cascaded(_))
    }

    /// Whether a mapping is at an address where it may be.
    fn is_placed(&self, mapping: &Mapping) -> bool {
        if !self.is_translating() || mapping.is_untranslated() {
            mapping.is_untranslated() != self.is_translating()
        } else if mapping.upstream.is_some() || self.needs_first() {
            self.wan.address == Some(mapping.nat1.addr)
        } else {
            self.is_ours(mapping.nat1.addr)
        }
    }

    /// Moves a mapping to an address where it may be.
    fn readdress(&mut self, generation: Generation) {
        let Some(old) = self.table.get(generation) else {
            return;
        };
        let addr = match old.upstream {
            Some(_) => self.wan.address,
            None => self.external_for(old.internal.addr),
        };
        let Some(addr) = addr else {
            return;
        };
        let mut mapping = old.clone();
        mapping.nat1.addr = addr;
        if mapping.upstream.is_none() && mapping.claim.addr.is_some() {
            mapping.claim.addr = Some(addr);
        }
        let (entry, installed) = (old.nat_entry(), old.is_installed());
        if let Some(job) = self.jobs.get_mut(&generation)
            && let Kind::Replace { before, after } = &mut job.kind
        {
            for half in [before, after] {
                half.nat1.addr = addr;
                if half.upstream.is_none() {
                    half.claim.addr = Some(addr);
                }
            }
        }
        if self.table.put(mapping).is_err() || !installed {
            return;
        }
        self.remove_nat(entry, None);
        self.rewrite(generation);
    }

    /// Stores a mapping and tells the kernel, outside of any job.
    pub(super) fn rewrite(&mut self, generation: Generation) {
        let Some(mapping) = self.table.get(generation) else {
            return;
        };
        let entry = mapping.nat_entry();
        if let Some(record) = self.record(mapping) {
            self.persist(StoreChange::Put(record), None);
        }
        self.write_nat(entry, None);
    }

    fn forget_address(&mut self) {
        if let Some(before) = self.external.take() {
            self.address_replaced(Some(before));
            self.notify(Notice::ExternalAddress(None));
        }
    }

    /// Follows what was learned of the servers.
    pub(super) fn choose_mode(&mut self, now: Instant) {
        let turned = self.follow_translation(now);
        let (before, mode) = (self.mode, self.mode_now());
        self.mode = mode;
        if let (Mode::Local, Some(addr)) = (mode, self.wan.address) {
            self.learn_address(addr);
        }
        if !turned && (before == mode || mode == Mode::Down) {
            return;
        }
        if (before == Mode::Local && mode.server().is_some()) || before == Mode::NoServer {
            self.forget_address();
        }
        if before.server().is_some() {
            self.drop_probes(now);
            self.drop_address_query(now);
        }
        self.restart_creations(now);
        self.statics.retry_now(now);
        self.follow_all(now);
    }

    /// A change of mode loses no mapping: a local one gets a lease, a leased one becomes local.
    pub(super) fn follow_mode(
        &mut self,
        generation: Generation,
        server: Option<SocketAddr>,
        now: Instant,
    ) {
        match (self.mode, server) {
            (Mode::NoNat(_), None) => self.reacquire(generation, now),
            (Mode::Cascaded(_), None) => {
                if self
                    .table
                    .get(generation)
                    .is_some_and(|m| !self.is_placed(m))
                {
                    self.readdress(generation);
                }
                self.reacquire(generation, now);
            }
            // A lease at a server that is still there goes on there.
            (Mode::Cascaded(_) | Mode::NoNat(_), Some(server)) => {
                if !self.selection.contains(server) {
                    self.reacquire(generation, now);
                }
            }
            (Mode::Local, Some(_)) => {
                self.tell(pcp_client::Input::Abandon(generation), now);
                let Some(mut mapping) = self.table.get(generation).cloned() else {
                    return;
                };
                mapping.upstream = None;
                mapping.claim = Claim::from(mapping.nat1);
                if self.table.put(mapping).is_ok() {
                    self.rewrite(generation);
                    self.entry_changed(generation);
                } else {
                    self.remove(generation, Origin::Nobody, now);
                }
            }
            (Mode::Local, None) | (Mode::NoServer | Mode::Down, _) => {}
        }
    }

    /// Begins the creations anew that wait for a server which is no longer the one to ask.
    fn restart_creations(&mut self, now: Instant) {
        let waiting: Vec<_> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.stage == Stage::Upstream && matches!(job.kind, Kind::Create))
            .map(|(generation, _)| *generation)
            .collect();
        for generation in waiting {
            if let Some(job) = self.jobs.remove(&generation) {
                self.table.remove(generation);
                self.tell(pcp_client::Input::Abandon(generation), now);
                if let Origin::ControlPoint(call) = job.origin {
                    self.dispatch(call, now);
                }
                self.resume(generation, now);
            }
        }
    }

    /// The mode that follows from settings, WAN and servers.
    fn mode_now(&self) -> Mode {
        if !self.is_up() {
            return Mode::Down;
        }
        if !self.is_translating() {
            return self.pick_server().map_or(Mode::NoServer, Mode::NoNat);
        }
        match self.settings.mode {
            ModeSetting::Local => return Mode::Local,
            ModeSetting::Auto | ModeSetting::DsLite if self.wan.address.is_some_and(is_public) => {
                return Mode::Local;
            }
            ModeSetting::Auto
            | ModeSetting::Cascaded
            | ModeSetting::NoNat
            | ModeSetting::DsLite => {}
        }
        match (self.pick_server(), self.settings.private_wan) {
            (Some(server), _) => Mode::Cascaded(server),
            (None, _) if self.is_undecided() => Mode::NoServer,
            (None, PrivateWan::MapLocally) => Mode::Local,
            (None, PrivateWan::Refuse) => Mode::NoServer,
        }
    }

    /// Follows the wall clock. Records carry its time, so they are written again when it was set.
    pub(super) fn set_clock(&mut self, wall: UnixTime, now: Instant) {
        if self.clock.unix(now).as_secs().abs_diff(wall.as_secs()) <= CLOCK_SLACK.as_secs() {
            return;
        }
        self.clock = WallClock::new(wall, now);
        let records: Vec<_> = self
            .table
            .iter()
            .filter(|m| m.state == State::Active)
            .filter_map(|m| self.record(m))
            .collect();
        for record in records {
            self.persist(StoreChange::Put(record), None);
        }
        self.store_pinholes_again(now);
    }
}
