//! One walk through the tables: where it is, what it remembers, and what of an entry makes it worth judging.
#![forbid(unsafe_code)]

use std::collections::{HashMap, hash_map};

use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::nat::{EndpointKey, Filter, MappingFlags, MappingKind, MappingValue};
use iwf_common::sweep::{self, SweepItem, SweepRequest, SweepTask};
use iwf_common::tcp::{self, Shown};
use iwf_common::tick;

use super::super::batch::{Cursor, Slice};
use super::Totals;
use super::judge::Judge;
use super::recount::{Ending, Recount};

const TCP: u8 = 6;

/// One walk through the tables.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) as_of: u32,
    pub(super) slices: u32,
    pub(super) phase: Phase,
    pub(super) mappings: HashMap<EndpointBits, Held>,
    pub(super) recount: Recount,
    pub(super) totals: Totals,
}

#[derive(Debug)]
pub(super) enum Phase {
    Hosts(Cursor),
    Mappings(Cursor),
    Sessions(Cursor),
    Internals(Cursor),
    Judging(hash_map::IntoIter<EndpointBits, Held>),
    Sessions6(Cursor),
    Endpoints6(Cursor),
    Peers(Cursor),
    Recounting(Ending),
    AddingUp,
    /// What was marked last waits for its removal.
    Resting,
    Over,
}

/// An endpoint as one word.
pub(super) type EndpointBits = u64;

/// What a pass remembers of an entry of MAPPINGS_EXT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    internal: EndpointBits,
    last_used: u32,
    /// The newest use that sessions told of.
    pub(super) used: u32,
    expires: u32,
    kind: u8,
    /// Its filter asks which addresses it has sent to.
    by_address: bool,
    is_static: bool,
}

impl Pass {
    pub(super) fn new(now: u32) -> Self {
        Self {
            as_of: now,
            slices: 0,
            phase: Phase::Hosts(Cursor::Start),
            mappings: HashMap::new(),
            recount: Recount::default(),
            totals: Totals::default(),
        }
    }

    pub(super) fn add(&mut self, judged: &SweepRequest) {
        let totals = &mut self.totals;
        totals.sessions_ended += u64::from(judged.sessions_ended);
        totals.sessions_left = totals
            .sessions_left
            .saturating_sub(u64::from(judged.sessions_over));
        totals.sessions_removed += u64::from(judged.sessions_removed);
        totals.mappings_removed += u64::from(judged.mappings_removed);
        totals.mappings_left = totals
            .mappings_left
            .saturating_sub(u64::from(judged.mappings_removed.div_ceil(2)));
    }

    pub(super) fn take_mappings(
        &mut self,
        slice: &Slice<EndpointKey, MappingValue>,
        judge: &Judge<'_>,
    ) {
        for (external, value) in slice.iter() {
            self.totals.mappings_left += 1;
            self.totals.met.count_mapping(value.kind);
            let held = Held {
                internal: bits(&value.endpoint(external.proto)),
                last_used: value.last_used,
                used: value.last_used,
                expires: value.expires,
                kind: value.kind,
                by_address: value.filter_in_force(judge.config.filter)
                    == Filter::AddressDependent as u8,
                is_static: value.flags & MappingFlags::STATIC != 0,
            };
            self.mappings.insert(bits(external), held);
        }
    }

    pub(super) fn take_sessions(
        &mut self,
        slice: &Slice<SessionKey, SessionValue>,
        judge: &Judge<'_>,
        items: &mut Vec<SweepItem>,
    ) {
        self.totals.met.sessions += slice.len() as u64;
        for (key, value) in slice.iter() {
            let (internal, external) = value.endpoints(key);
            let ended = value.flags & SessionFlags::ENDED != 0;
            self.recount.meet_session(key, value);
            if ended {
                // Nobody remembered it: the daemon was restarted, or there were too many.
                items.push(SweepItem::session(SweepTask::RemoveSession, *key));
                continue;
            }
            self.totals.sessions_left += 1;
            let config = judge.config;
            let mut over = sweep::may_be_over(judge.now, config.hz, &config.idle, key, value)
                || !judge.owns(key, value);
            match self.mappings.get_mut(&bits(&external)) {
                Some(held) if held.internal == bits(&internal) => {
                    if !over {
                        held.note_use(key, value, judge.now);
                    }
                    let out = SessionFlags::INBOUND | SessionFlags::HOST;
                    if held.by_address && value.flags & out == 0 {
                        items.push(SweepItem::session(SweepTask::NotePeer, *key));
                    }
                    // A hairpin session has the earlier deadline of two mappings.
                    over |=
                        value.deadline != held.expires && value.flags & SessionFlags::HAIRPIN == 0;
                    let explicit = held.kind == MappingKind::Explicit as u8;
                    over |= !explicit && value.flags & SessionFlags::EXPLICIT != 0;
                }
                Some(_) | None => over = true,
            }
            if over {
                items.push(SweepItem::session(SweepTask::JudgeSession, *key));
            }
        }
    }

    pub(super) fn take_internals(
        &mut self,
        slice: &Slice<EndpointKey, MappingValue>,
        items: &mut Vec<SweepItem>,
    ) {
        for (internal, value) in slice.iter() {
            self.recount.meet_mapping(internal, value);
            let external = bits(&value.endpoint(internal.proto));
            let confirmed = self
                .mappings
                .get(&external)
                .is_some_and(|held| held.internal == bits(internal));
            if !confirmed {
                let task = SweepTask::JudgeInternal;
                items.push(SweepItem::endpoint(task, *internal, 0));
            }
        }
    }
}

impl Held {
    /// A live session keeps its mapping (RFC 4787 REQ-6): any packet of a connection that its host takes part in, else
    /// only what goes out. The entry of the direction out tells.
    fn note_use(&mut self, key: &SessionKey, value: &SessionValue, now: u32) {
        if value.flags & SessionFlags::INBOUND != 0 {
            return;
        }
        let invited = value.flags & SessionFlags::INVITED != 0;
        let used = if key.proto != TCP {
            value.last_seen
        } else if tcp::uses_mapping(value.tcp, invited) {
            now
        } else {
            return;
        };
        if tick::age(used, self.used) > 0 {
            self.used = used;
        }
    }

    pub(super) fn may_be_over(
        &self,
        external: &EndpointKey,
        as_of: u32,
        judge: &Judge<'_>,
    ) -> bool {
        if self.is_static {
            return false;
        }
        if !judge.admits(address(self.internal), external.addr) {
            return true;
        }
        if self.kind == MappingKind::Explicit as u8 {
            return tick::deadline_passed(judge.now, self.expires);
        }
        let none = Shown::default();
        let idle = sweep::idle_time(&judge.config.idle, external.proto, none, none);
        tick::age(as_of, self.used) > idle
    }

    /// Whether the table should hear of the last use: it is a second or more behind.
    pub(super) fn is_used(&self, judge: &Judge<'_>) -> bool {
        tick::age(self.used, self.last_used) >= judge.config.hz.max(1)
    }
}

/// The address among them.
const fn address(bits: EndpointBits) -> [u8; 4] {
    let [a, b, c, d, ..] = bits.to_ne_bytes();
    [a, b, c, d]
}

pub(in super::super) fn bits(endpoint: &EndpointKey) -> EndpointBits {
    let [a, b, c, d] = endpoint.addr;
    let [high, low] = endpoint.port;
    u64::from_ne_bytes([a, b, c, d, high, low, endpoint.proto, 0])
}

pub(super) fn endpoint(bits: EndpointBits) -> EndpointKey {
    let [a, b, c, d, high, low, proto, _] = bits.to_ne_bytes();
    EndpointKey::new([a, b, c, d], [high, low], proto)
}
