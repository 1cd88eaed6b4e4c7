//! DeletePortMappingRange: gone here in one step, and told to the server in the background (AMB-12).
#![forbid(unsafe_code)]

use super::job::Origin;
use super::soap_calls::Call;
use super::{Iwf, RequestId};
use crate::mapping::{Mapping, Owner};
use crate::proto::igd::{self, Operation, PortRange, Refusal};
use crate::types::{Generation, Instant};
use crate::wire::soap::UpnpError;

/// A range that is being removed. There is one for each call, and the queue of calls is bounded.
#[derive(Debug)]
pub(super) struct Removal {
    call: Call,
    /// Mappings that are still in the store or in the kernel.
    left: usize,
    /// Whether one of them could not be taken out of the kernel.
    failed: bool,
}

impl Iwf {
    /// Lists a range.
    pub(super) fn list(&mut self, call: &Call, range: &PortRange, limit: usize, now: Instant) {
        // upnpc asks for everything in this way, and everything that it may have is from the lowest port on.
        let first = match range.first {
            0 | 1 => {
                let lowest = self.settings.policy.lowest_port(call.rights);
                lowest.min(range.last)
            }
            first => first,
        };
        let range = PortRange { first, ..*range };
        let result = self.range(call, &range, now).and_then(|mut found| {
            found.truncate(limit);
            if found.is_empty() {
                Err(UpnpError::PORT_MAPPING_NOT_FOUND)
            } else {
                Ok(vec![igd::listing(&found, now)])
            }
        });
        self.reply(call.request, result);
    }

    /// Removes what the caller has in a range. Success is answered when no packet of any of the mappings gets
    /// through any more; the server hears of each in its turn, until it has confirmed or the lease is over.
    pub(super) fn delete_range(&mut self, call: Call, range: &PortRange, now: Instant) {
        let found = match self.range(&call, range, now) {
            Ok(found) => found,
            Err(error) => return self.reply(call.request, Err(error)),
        };
        // What the configuration states is left out, as all that the caller may not delete.
        let deletable = |mapping: &&Mapping| mapping.owner == Owner::ControlPoint;
        let found: Vec<Generation> = found
            .into_iter()
            .filter(deletable)
            .map(|mapping| mapping.generation)
            .collect();
        if found.is_empty() {
            return self.reply(call.request, Err(UpnpError::PORT_MAPPING_NOT_FOUND));
        }
        // All or none: what is being changed is waited for first.
        let busy = found.iter().find(|of| self.jobs.contains_key(of)).copied();
        if let Some(busy) = busy {
            return self.defer(busy, call);
        }
        self.view.gone(&found);
        let request = call.request;
        let removal = Removal {
            call,
            left: found.len(),
            failed: false,
        };
        self.removals.insert(request, removal);
        for generation in found {
            self.remove(generation, Origin::Range(request), now);
        }
    }

    /// One mapping of a range is gone from here.
    pub(super) fn removed_of_range(&mut self, request: RequestId, outcome: Result<(), Refusal>) {
        let Some(removal) = self.removals.get_mut(&request) else {
            return;
        };
        removal.left = removal.left.saturating_sub(1);
        removal.failed |= outcome.is_err();
        if removal.left > 0 {
            return;
        }
        if let Some(removal) = self.removals.remove(&request) {
            if removal.failed {
                self.refuse(&removal.call, Operation::Delete, Refusal::Failed);
            } else {
                self.reply(request, Ok(Vec::new()));
            }
        }
    }

    /// What a caller may have of a range. Low ports are nobody's to ask for (IGD-021).
    fn range(
        &self,
        call: &Call,
        range: &PortRange,
        now: Instant,
    ) -> Result<Vec<&Mapping>, UpnpError> {
        let policy = &self.settings.policy;
        if range.first < policy.lowest_port(call.rights) {
            return Err(UpnpError::ACTION_NOT_AUTHORIZED);
        }
        let seen = self.seen_by(call.party());
        Ok(igd::in_range(&self.table, seen, range, now))
    }
}
