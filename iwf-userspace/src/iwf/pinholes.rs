//! WANIPv6FirewallControl:1: pinholes from their call to their end.
//!
//! Read before editing: WANIPv6FirewallControl:1 section 2.5; requirements FW6.
//!
//! The order is that of mappings without a server: store, kernel, reply, and the other way round when something goes. The
//! upstream has no part in it (FW6-007).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv6Addr;
use std::time::Duration;

use iwf_common::flow6::{Scope, scope};

use super::departed::Departure;
use super::{Effect, EffectError, Iwf, Notice, RequestId, StoreChange, Ticket};
use crate::mapping::pinholes::{MAX_LEASE, Opening, PinholeRecord, Pinholes};
use crate::mapping::policy::{PolicyError, Quota};
use crate::mapping::rules::Decider;
use crate::proto::firewall::{self, Action, Flows};
use crate::proto::igd::Refusal;
use crate::types::caller::{Caller, Mac};
use crate::types::pinhole::Pinhole;
use crate::types::prefix::in_prefix6;
use crate::types::{Instant, Lifetime};
use crate::wire::soap::{self, UpnpError, firewall as errors};

/// How long a prefix may be gone before its pinholes are: an interface is taken down and up again in less. Nothing is let
/// in meanwhile.
const ASTRAY: Duration = Duration::from_secs(60);
/// How long after a failure the store is written again.
const STORE_AGAIN: Duration = Duration::from_secs(5);
/// Calls that wait for the change before them on the same pinhole; more are refused.
const MAX_WAITING: usize = 64;

/// What is known of the LAN's IPv6. Complete, never a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lan6 {
    /// Its prefixes.
    pub prefixes: Vec<(Ipv6Addr, u8)>,
    /// Addresses of this machine, on whatever interface.
    pub own: BTreeSet<Ipv6Addr>,
    /// Of each prefix, also of those inside of others, the interface that it is on or routed to; 0: several.
    pub interfaces: BTreeMap<(Ipv6Addr, u8), u32>,
}

impl Lan6 {
    /// The interface of the narrowest prefix that an address is in.
    fn interface_of(&self, addr: Ipv6Addr) -> Option<u32> {
        let containing = self
            .interfaces
            .iter()
            .filter(|((network, len), _)| in_prefix6(addr, *network, *len));
        let narrowest = containing.max_by_key(|((_, len), _)| *len);
        narrowest.map(|(_, interface)| *interface)
    }
}

/// Why a pinhole is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A control point asked for it.
    Deleted,
    /// Its lease is over.
    Expired,
    /// Its prefix is not the LAN's any more.
    PrefixGone,
    /// The owner's rules deny it.
    Denied(Decider),
    /// Its device has left.
    Departed(Departure),
}

/// A change of one pinhole that is not complete.
#[derive(Clone, Copy, Debug)]
enum Change {
    Open(RequestId),
    Extend {
        request: RequestId,
        before: Opening,
        answer: Answer,
    },
    Close(Option<RequestId>, Ending),
}

/// What is answered to a lease that is extended.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// To AddPinhole.
    Id,
    /// To UpdatePinhole.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    change: Change,
    /// The store has it, the kernel is next.
    stored: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    id: u16,
    request: RequestId,
    caller: Caller,
    action: Action,
}

/// Pinholes and what is being done about them.
#[derive(Debug, Default)]
pub(super) struct Firewall {
    table: Pinholes,
    lan: Option<Lan6>,
    jobs: BTreeMap<u16, Job>,
    /// Whose change an outcome belongs to; `None`: of nobody who waits.
    tickets: BTreeMap<Ticket, u16>,
    waiting: VecDeque<Waiting>,
    /// Questions for packets, and whether only for whether there were any.
    counting: BTreeMap<RequestId, bool>,
    /// Those whose record may be other than it should.
    unsaved: BTreeSet<u16>,
    store_at: Option<Instant>,
}

impl Firewall {
    pub(super) fn next_event(&self) -> Option<Instant> {
        let astray = self.table.iter().filter_map(|held| held.astray_since);
        let astray = astray.map(|since| since + ASTRAY).min();
        // What is being changed is looked at again when that is done.
        let ends = self.table.next_end().filter(|_| self.jobs.is_empty());
        [ends, astray.filter(|_| self.jobs.is_empty()), self.store_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// What the kernel should hold.
    fn desired(&self) -> Vec<Pinhole> {
        let there = self.table.iter();
        let open = there.filter(|held| held.stored && held.astray_since.is_none());
        open.map(|held| held.pinhole).collect()
    }
}

impl Iwf {
    /// The pinholes of control points that the kernel should hold.
    pub fn desired_pinholes(&self) -> Vec<Pinhole> {
        self.firewall.desired()
    }

    /// Every pinhole of control points that the store has.
    pub fn pinholes(&self) -> impl Iterator<Item = &Opening> {
        self.firewall.table.iter().filter(|held| held.stored)
    }

    /// Takes over what the store kept. The kernel's entry of a pinhole is proof of its end, by a clock that nobody sets.
    pub(super) fn restore_pinholes(
        &mut self,
        records: Vec<PinholeRecord>,
        held: &[Pinhole],
        last: u16,
        now: Instant,
    ) {
        self.firewall.table.continue_after(last);
        for record in records {
            let mut opening = record.opening(&self.clock, now);
            let proof = held.iter().find(|p| p.id == record.id);
            let proof = proof.filter(|p| p.lets_in_as(&opening.pinhole));
            if let Some(ends) = proof.and_then(|p| p.expires) {
                opening.ends = ends.min(now + MAX_LEASE.duration());
                opening.pinhole.expires = Some(opening.ends);
            }
            let over = opening.ends <= now || self.settings.firewall.admits().is_err();
            if over || self.firewall.table.same(&opening.pinhole).is_some() {
                self.store_pinhole(StoreChange::DeletePinhole(record.id), None);
            } else {
                self.firewall.table.put(opening);
            }
        }
    }

    pub(super) fn lan6_changed(&mut self, lan: Lan6, now: Instant) {
        self.firewall.lan = Some(lan);
        let changed: Vec<_> = self
            .firewall
            .table
            .iter()
            .filter_map(|held| {
                let inside = self.is_of_lan(held.pinhole.internal);
                (inside == held.astray_since.is_some()).then_some(Opening {
                    astray_since: (!inside).then_some(now),
                    ..*held
                })
            })
            .collect();
        if changed.is_empty() {
            return;
        }
        for opening in changed {
            self.firewall.table.put(opening);
        }
        self.write_pinholes(None);
    }

    /// Whether it was told already.
    pub(super) const fn has_lan6(&self) -> bool {
        self.firewall.lan.is_some()
    }

    /// Nothing is known of the LAN before it is told.
    pub(super) fn is_of_lan(&self, addr: Ipv6Addr) -> bool {
        let Some(lan) = &self.firewall.lan else {
            return true;
        };
        let mut prefixes = lan.prefixes.iter();
        prefixes.any(|(network, len)| in_prefix6(addr, *network, *len))
    }

    /// A control point called the service.
    pub(super) fn firewall_call(
        &mut self,
        request: RequestId,
        caller: Caller,
        call: &soap::Call,
        now: Instant,
    ) {
        match firewall::parse(call) {
            Ok(action) => self.firewall_action(request, caller, action, now),
            Err(error) => self.reply(request, Err(error)),
        }
    }

    fn firewall_action(
        &mut self,
        request: RequestId,
        caller: Caller,
        action: Action,
        now: Instant,
    ) {
        let done = match action {
            Action::Status => Ok(Some(self.firewall_status())),
            Action::OutboundTimeout(flows) => {
                let timeout = self.settings.firewall.outbound_timeout(&flows);
                timeout.map(|t| Some(vec![("OutboundPinholeTimeout", t.0.to_string())]))
            }
            Action::Add(flows, lease) => self.add_pinhole(request, &caller, flows, lease, now),
            Action::Update(id, _)
            | Action::Delete(id)
            | Action::Packets(id)
            | Action::Check(id) => self.own_pinhole(&caller, id).and_then(|held| {
                if self.firewall.jobs.contains_key(&id) {
                    return self.wait(id, request, caller, action).map(|()| None);
                }
                match action {
                    Action::Update(_, lease) => {
                        self.extend(request, held, lease, Answer::Nothing, now);
                    }
                    Action::Delete(_) => self.close(id, Some(request), Ending::Deleted),
                    Action::Packets(_) | Action::Check(_) => {
                        let check = matches!(action, Action::Check(_));
                        self.firewall.counting.insert(request, check);
                        self.effects.push_back(Effect::CountPinhole { request, id });
                    }
                    Action::Status | Action::OutboundTimeout(_) | Action::Add(..) => {}
                }
                Ok(None)
            }),
        };
        match done {
            Ok(Some(out)) => self.reply(request, Ok(out)),
            // Answered later.
            Ok(None) => {}
            Err(error) => self.reply(request, Err(error)),
        }
    }

    /// The two variables that subscribers are told of as well.
    pub(super) fn firewall_status(&self) -> Vec<(&'static str, String)> {
        let firewall = &self.settings.firewall;
        let flag = |on: bool| if on { "1" } else { "0" }.to_owned();
        vec![
            ("FirewallEnabled", flag(firewall.enabled)),
            ("InboundPinholeAllowed", flag(firewall.pinholes)),
        ]
    }

    fn add_pinhole(
        &mut self,
        request: RequestId,
        caller: &Caller,
        flows: Flows,
        lease: Lifetime,
        now: Instant,
    ) -> Result<Option<Vec<(&'static str, String)>>, UpnpError> {
        self.settings.firewall.admits()?;
        let mut pinhole = self.settings.firewall.pinhole(&flows)?;
        let may = self.may_open(caller, &pinhole);
        let may = may.and_then(|()| self.judge_pinhole(caller, &pinhole));
        let quota = may.map_err(|error| {
            self.explain(request, Refusal::Policy(error));
            UpnpError::ACTION_NOT_AUTHORIZED
        })?;
        if let Some(held) = self.firewall.table.same(&pinhole).copied() {
            let id = held.pinhole.id;
            if self.firewall.jobs.contains_key(&id) {
                let action = Action::Add(flows, lease);
                return self
                    .wait(id, request, caller.clone(), action)
                    .map(|()| None);
            }
            self.extend(request, held, lease, Answer::Id, now);
            return Ok(None);
        }
        let per_host = self.settings.firewall.per_host;
        let (most, full) = match quota {
            Some((most, by)) if most < per_host => (most, Quota::Rule(by)),
            Some(_) | None => (per_host, Quota::Pinholes),
        };
        let table = &mut self.firewall.table;
        let id = table.new_id(pinhole.internal, caller.mac, most);
        pinhole.id = id.map_err(|_| {
            self.explain(request, Refusal::Quota(full));
            errors::PINHOLE_SPACE_EXHAUSTED
        })?;
        let ends = now + lease.duration();
        pinhole.expires = Some(ends);
        let opening = Opening {
            pinhole,
            ends,
            host: caller.mac,
            stored: false,
            astray_since: None,
        };
        self.firewall.table.put(opening);
        self.begin(Change::Open(request), opening);
        Ok(None)
    }

    /// FW6-004: for its own address, and from the lowest port for hosts on. Any port, where the owner allows it, includes
    /// those below.
    pub(super) fn may_open(&self, caller: &Caller, pinhole: &Pinhole) -> Result<(), PolicyError> {
        let Some(lan) = &self.firewall.lan else {
            return Err(PolicyError::NotLan);
        };
        let internal = pinhole.internal;
        let policy = &self.settings.policy;
        let rights = self.rights(caller);
        let of_host = scope(&internal.octets()) == Scope::Global
            && self.is_of_lan(internal)
            && !lan.own.contains(&internal);
        let low = pinhole
            .internal_port
            .is_some_and(|port| port < policy.lowest_port(rights));
        let is_on_link = || caller.link.is_some() && caller.link == lan.interface_of(internal);
        let own = caller.is(internal.into());
        if !of_host {
            Err(PolicyError::NotLan)
        } else if low {
            Err(PolicyError::PortTooLow)
        } else if !own && !policy.acts_for_others(rights, is_on_link) {
            Err(policy.not_for(rights))
        } else {
            Ok(())
        }
    }

    /// The pinhole of this id, if the caller may have it: it is at its address, or it was the same host that asked. On
    /// another link than the pinhole's the same MAC address is not known to be the same host.
    fn own_pinhole(&self, caller: &Caller, id: u16) -> Result<Opening, UpnpError> {
        self.settings.firewall.admits()?;
        let held = self.firewall.table.get(id);
        let held = held.copied().ok_or(errors::NO_SUCH_ENTRY)?;
        let internal = held.pinhole.internal;
        let lan = self.firewall.lan.as_ref();
        let interface = lan.and_then(|lan| lan.interface_of(internal));
        let is_on_link = caller.link.is_some() && caller.link == interface;
        let elsewhere = interface.is_some_and(|known| known != 0) && !is_on_link;
        let same_host = held.host.is_some() && held.host == caller.mac && !elsewhere;
        let own = same_host || caller.is(internal.into());
        let policy = &self.settings.policy;
        if own || policy.acts_for_others(self.rights(caller), || is_on_link) {
            Ok(held)
        } else {
            Err(UpnpError::ACTION_NOT_AUTHORIZED)
        }
    }

    fn wait(
        &mut self,
        id: u16,
        request: RequestId,
        caller: Caller,
        action: Action,
    ) -> Result<(), UpnpError> {
        if self.firewall.waiting.len() >= MAX_WAITING {
            return Err(UpnpError::ACTION_FAILED);
        }
        self.firewall.waiting.push_back(Waiting {
            id,
            request,
            caller,
            action,
        });
        Ok(())
    }

    /// Another lease, from now.
    fn extend(
        &mut self,
        request: RequestId,
        before: Opening,
        lease: Lifetime,
        answer: Answer,
        now: Instant,
    ) {
        let mut after = before;
        after.ends = now + lease.duration();
        after.pinhole.expires = Some(after.ends);
        self.firewall.table.put(after);
        let change = Change::Extend {
            request,
            before,
            answer,
        };
        self.begin(change, after);
    }

    fn begin(&mut self, change: Change, opening: Opening) {
        let id = opening.pinhole.id;
        let stored = false;
        self.firewall.jobs.insert(id, Job { change, stored });
        let record = PinholeRecord::new(&opening, &self.clock);
        self.store_pinhole(StoreChange::PutPinhole(record), Some(id));
    }

    /// How many pinholes a host has.
    pub(super) fn pinholes_of(&self, internal: Ipv6Addr, host: Option<Mac>) -> usize {
        self.firewall.table.of_host(internal, host)
    }

    pub(super) fn has_pinhole_job(&self, id: u16) -> bool {
        self.firewall.jobs.contains_key(&id)
    }

    pub(super) fn close(&mut self, id: u16, request: Option<RequestId>, why: Ending) {
        let job = Job {
            change: Change::Close(request, why),
            stored: false,
        };
        self.firewall.jobs.insert(id, job);
        self.store_pinhole(StoreChange::DeletePinhole(id), Some(id));
    }

    /// Ends what is over, and writes what could not be stored.
    pub(super) fn end_pinholes(&mut self, now: Instant) {
        let Firewall { table, jobs, .. } = &self.firewall;
        let astray = table.iter().filter(|held| {
            let since = held.astray_since;
            since.is_some_and(|since| since + ASTRAY <= now)
        });
        let over = table.iter().filter(|held| held.ends <= now);
        let mut due: BTreeMap<u16, Ending> = BTreeMap::new();
        due.extend(astray.map(|held| (held.pinhole.id, Ending::PrefixGone)));
        due.extend(over.map(|held| (held.pinhole.id, Ending::Expired)));
        due.retain(|id, _| !jobs.contains_key(id));
        for (id, why) in due {
            self.close(id, None, why);
        }
        if self.firewall.store_at.is_some_and(|at| at <= now) {
            self.firewall.store_at = None;
            for id in std::mem::take(&mut self.firewall.unsaved) {
                if self.firewall.jobs.contains_key(&id) {
                    continue;
                }
                let held = self.firewall.table.get(id);
                let record = held.map(|held| PinholeRecord::new(held, &self.clock));
                let change = record.map_or(StoreChange::DeletePinhole(id), StoreChange::PutPinhole);
                self.store_pinhole(change, None);
            }
        }
    }

    fn store_pinhole(&mut self, change: StoreChange, job: Option<u16>) {
        let ticket = self.new_ticket();
        let of = match &change {
            StoreChange::PutPinhole(record) => Some(record.id),
            StoreChange::DeletePinhole(id) => Some(*id),
            StoreChange::Put(_)
            | StoreChange::Delete(_)
            | StoreChange::UpdateId(_)
            | StoreChange::Mark(_)
            | StoreChange::Unmark(_)
            | StoreChange::Access(_)
            | StoreChange::Epoch { .. } => None,
        };
        if let Some(id) = job.or(of) {
            self.firewall.tickets.insert(ticket, id);
        }
        self.effects.push_back(Effect::Persist { ticket, change });
    }

    fn write_pinholes(&mut self, job: Option<u16>) {
        let ticket = self.new_ticket();
        if let Some(id) = job {
            self.firewall.tickets.insert(ticket, id);
        }
        let pinholes = self.firewall.desired();
        self.effects
            .push_back(Effect::WritePinholes { ticket, pinholes });
    }

    /// The outcome of an effect; `false`: it is not of this.
    pub(super) fn pinhole_done(
        &mut self,
        ticket: Ticket,
        result: Result<(), EffectError>,
        now: Instant,
    ) -> bool {
        let Some(id) = self.firewall.tickets.remove(&ticket) else {
            return false;
        };
        let Some(job) = self.firewall.jobs.remove(&id) else {
            // Nobody waits for it.
            if result.is_err() {
                self.store_pinhole_later(id, now);
            }
            return true;
        };
        match (job.stored, result) {
            (false, Ok(())) => {
                let held = self.firewall.table.get(id).copied();
                if let Some(mut opening) = held {
                    opening.stored = !matches!(job.change, Change::Close(..));
                    self.firewall.table.put(opening);
                }
                let stored = true;
                self.firewall.jobs.insert(id, Job { stored, ..job });
                self.write_pinholes(Some(id));
                return true;
            }
            (true, Ok(())) => self.changed(id, job.change),
            (stored, Err(error)) => self.not_changed(id, job.change, stored, error, now),
        }
        self.resume_waiting(id, now);
        // The policy may have changed meanwhile.
        self.review_pinhole(id);
        true
    }

    fn changed(&mut self, id: u16, change: Change) {
        match change {
            Change::Open(request) => {
                if let Some(held) = self.firewall.table.get(id) {
                    let notice = Notice::PinholeOpened(held.pinhole);
                    self.notify(notice);
                }
                self.reply(request, Ok(given(id)));
            }
            Change::Extend {
                request, answer, ..
            } => {
                let out = match answer {
                    Answer::Id => given(id),
                    Answer::Nothing => Vec::new(),
                };
                self.reply(request, Ok(out));
            }
            Change::Close(request, why) => {
                self.closed(id, why);
                if let Some(request) = request {
                    self.reply(request, Ok(Vec::new()));
                }
            }
        }
    }

    fn not_changed(
        &mut self,
        id: u16,
        change: Change,
        stored: bool,
        error: EffectError,
        now: Instant,
    ) {
        match change {
            Change::Open(request) => {
                self.firewall.table.remove(id);
                self.store_truth(id, stored, now);
                let full = stored && error == EffectError::Full;
                let error = if full {
                    errors::PINHOLE_SPACE_EXHAUSTED
                } else {
                    UpnpError::ACTION_FAILED
                };
                self.reply(request, Err(error));
            }
            Change::Extend {
                request, before, ..
            } => {
                self.firewall.table.put(before);
                self.store_truth(id, stored, now);
                self.reply(request, Err(UpnpError::ACTION_FAILED));
            }
            Change::Close(Some(request), _) => {
                if let Some(mut held) = self.firewall.table.get(id).copied() {
                    held.stored = true;
                    self.firewall.table.put(held);
                }
                self.store_truth(id, stored, now);
                self.reply(request, Err(UpnpError::ACTION_FAILED));
            }
            // Nobody is told that it stays; the reconciler sees to the kernel.
            Change::Close(None, why) => {
                self.closed(id, why);
                if !stored {
                    self.store_pinhole_later(id, now);
                }
            }
        }
    }

    /// Stores what has been undone: at once if the store works.
    fn store_truth(&mut self, id: u16, store_works: bool, now: Instant) {
        self.firewall.unsaved.insert(id);
        let wait = if store_works {
            Duration::ZERO
        } else {
            STORE_AGAIN
        };
        let at = now + wait;
        self.firewall.store_at = Some(self.firewall.store_at.map_or(at, |held| held.min(at)));
    }

    /// The wall clock was set: the stored ends are others.
    pub(super) fn store_pinholes_again(&mut self, now: Instant) {
        let ids: Vec<_> = self.pinholes().map(|held| held.pinhole.id).collect();
        for id in ids {
            self.store_truth(id, true, now);
        }
    }

    fn store_pinhole_later(&mut self, id: u16, now: Instant) {
        self.store_truth(id, false, now);
    }

    fn closed(&mut self, id: u16, why: Ending) {
        if let Some(gone) = self.firewall.table.remove(id) {
            self.notify(Notice::PinholeClosed(gone.pinhole, why));
        }
    }

    /// The calls that waited for a change come next, in their order.
    fn resume_waiting(&mut self, id: u16, now: Instant) {
        let (ready, waiting): (Vec<Waiting>, VecDeque<Waiting>) = {
            let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.firewall.waiting)
                .into_iter()
                .partition(|call| call.id == id);
            (ready, waiting.into())
        };
        self.firewall.waiting = waiting;
        for call in ready {
            self.firewall_action(call.request, call.caller, call.action, now);
        }
    }

    /// How many packets have come in by a pinhole; `None`: the kernel does not tell.
    pub(super) fn pinhole_counted(&mut self, request: RequestId, packets: Option<u64>) {
        let Some(check) = self.firewall.counting.remove(&request) else {
            return;
        };
        let result = match (packets, check) {
            (None, _) => Err(UpnpError::ACTION_FAILED),
            (Some(0), true) => Err(errors::NO_TRAFFIC_RECEIVED),
            (Some(_), true) => Ok(vec![("IsWorking", "1".to_owned())]),
            // The counter wraps, as those of the link do.
            (Some(packets), false) => {
                let packets = packets % (1 << 32);
                Ok(vec![("PinholePackets", packets.to_string())])
            }
        };
        self.reply(request, result);
    }
}

fn given(id: u16) -> Vec<(&'static str, String)> {
    vec![("UniqueID", id.to_string())]
}
