//! What is still mapped in the protocol of before when a server turns out to speak a better one.
//!
//! It stays until the same lease is granted in the new protocol, so that nothing is cut off. If that grant names the same
//! endpoint, it is the same mapping of the same box, which has been taken over: ending the old one would end it. If it
//! names another one, remote hosts use that from here on, and the old one is ended. NAT-PMP deletes by the port of our NAT,
//! so that a box with one table for both protocols may delete what it maps in PCP too: that is asked for again.
//!
//! A box that takes the old mapping for somebody else's refuses. Then the old one has to go first: it is ended, and asked
//! for again in the new protocol when it is gone, a round trip later.

use std::collections::BTreeMap;

use super::Leases;
use crate::mapping::Via;
use crate::proto::natpmp_client;
use crate::proto::pcp_client::{Effect, Handover, Input};
use crate::types::{ExternalEndpoint, Generation, Instant};

/// By lease; no more than there are leases.
#[derive(Debug, Default)]
pub(super) struct LeftBehind(BTreeMap<Generation, Left>);

#[derive(Clone, Debug)]
struct Left {
    via: Via,
    handover: Handover,
    external: ExternalEndpoint,
    until: Instant,
    /// Nobody has the lease until this is gone.
    awaited: bool,
}

impl LeftBehind {
    /// Remembers what another client takes over, if anything is mapped.
    pub(super) fn note(&mut self, handover: &Handover, via: Via, now: Instant) {
        self.0.retain(|_, left| left.awaited || left.until > now);
        if let (Some(external), Some(until)) = (handover.known, handover.grant) {
            let left = Left {
                via,
                handover: handover.clone(),
                external,
                until,
                awaited: false,
            };
            self.0.insert(handover.want.id, left);
        }
    }

    /// Whether anything is mapped in that protocol. It may be over, which is noticed with the next change.
    pub(super) fn has(&self, via: Via) -> bool {
        self.0.values().any(|left| left.via == via)
    }

    pub(super) fn next_event(&self) -> Option<Instant> {
        let awaited = self.0.values().filter(|left| left.awaited);
        awaited.map(|left| left.until).min()
    }
}

impl Leases {
    /// A lease is granted in the protocol of now.
    pub(super) fn succeeded(&mut self, id: Generation, external: ExternalEndpoint, now: Instant) {
        if let Some(left) = self.left.0.remove(&id)
            && left.external != external
        {
            self.end_left(&left, now);
        }
    }

    /// Nobody wants the lease any more.
    pub(super) fn drop_left(&mut self, id: Generation, now: Instant) {
        if let Some(left) = self.left.0.remove(&id).filter(|left| !left.awaited) {
            self.end_left(&left, now);
        }
    }

    /// Whether a lease that was refused in PCP is to be asked for again when the old mapping is gone.
    pub(super) fn takes_its_place(&mut self, id: Generation, now: Instant) -> bool {
        let Some(left) = self.left.0.get_mut(&id) else {
            return false;
        };
        if left.awaited || left.until <= now {
            self.left.0.remove(&id);
            return false;
        }
        left.awaited = true;
        let left = left.clone();
        self.end_left(&left, now);
        true
    }

    /// What could not be ended is over by itself.
    pub(super) fn give_up_left(&mut self, now: Instant) {
        while let Some(id) = self.left.0.iter().find_map(|(id, left)| {
            let over = left.awaited && left.until <= now;
            over.then_some(*id)
        }) {
            self.left.0.remove(&id);
            self.effects.push_back(Effect::Lost { id });
        }
    }

    /// An old mapping is gone.
    pub(super) fn gone(&mut self, tuple: natpmp_client::Gone, now: Instant) {
        let waits = self.left.0.iter().find_map(|(id, left)| {
            let want = &left.handover.want;
            let same = (want.server, want.protocol, want.port) == tuple;
            (left.awaited && same).then_some(*id)
        });
        if let Some(left) = waits.and_then(|id| self.left.0.remove(&id)) {
            self.take_over(left.handover, now);
        } else if let Some(id) = self.pcp.lease_of(tuple.0, tuple.1, tuple.2) {
            self.pcp.handle_input(Input::Keep(id), now);
        }
    }

    fn end_left(&mut self, left: &Left, now: Instant) {
        let want = &left.handover.want;
        let input = natpmp_client::Input::End {
            server: want.server,
            protocol: want.protocol,
            port: want.port,
            external: left.external.port,
            until: left.until,
        };
        self.fallback(left.via, input, now);
    }
}
