//! A new life: what the store kept becomes mappings again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Iwf, Saved, StoreChange};
use crate::mapping::Owner;
use crate::mapping::record::{MappingRecord, Mark};
use crate::proto::pcp_client;
use crate::reconcile::plan::EXPIRY_TOLERANCE;
use crate::types::{Generation, Instant, NatEntry, UnixTime};

/// A wall clock that is further behind what is stored has not been set.
const SLACK_SECS: u64 = 60;
/// A lease that has no longer to go may end before its server has answered, and would be given up then.
const TOO_SHORT: Duration = Duration::from_secs(60);

impl Iwf {
    /// Takes over what the store kept. Called once, before any input.
    ///
    /// Nothing is sent for leases that are still good, and the kernel is not touched: the reconciler compares
    /// what it holds with [`Iwf::desired`]. A kernel entry of a mapping is proof of its leases, by a clock that nobody
    /// sets; without one a lease is good as long as the stored end says, which renewals may have moved since. A lease
    /// that does not look good is asked for again at once, with the nonce that the server knows.
    pub fn restore(&mut self, saved: Saved, now: Instant) {
        self.last_generation = saved.last_generation;
        self.view.resume(saved.update_id);
        let (pinholes, held_pinholes) = (saved.pinholes.clone(), &saved.held_pinholes);
        self.restore_pinholes(pinholes, held_pinholes, saved.last_pinhole, now);
        self.restore_access(saved.identities.clone());
        let wall = self.clock.unix(now);
        let is_set = wall.as_secs() + SLACK_SECS >= newest(&saved).as_secs();
        for (server, epoch, seen) in saved.epochs {
            let ago = wall.as_secs().saturating_sub(seen.as_secs());
            self.tell(pcp_client::Input::History { server, epoch, ago }, now);
        }
        let mut marks = self.restore_marks(saved.marks, now);
        let held: BTreeMap<_, _> = saved.held.iter().map(|e| (e.generation, e)).collect();
        for record in saved.mappings {
            self.last_generation = self.last_generation.max(record.generation.0);
            let mut proof = held.get(&record.generation).map(|entry| **entry);
            proof = proof.filter(|entry| {
                (entry.protocol, entry.external, entry.internal)
                    == (record.protocol, record.nat1, record.internal)
            });
            let mark = record.lease_key().and_then(|key| marks.remove(&key));
            match mark {
                // It was being deleted, and nobody was told yet what came of that.
                Some(mark) if vouched(&record, &mark) && mark.ending => {
                    self.end_mark(&mark, now);
                    self.persist(StoreChange::Delete(record.generation), None);
                }
                Some(mark) => {
                    self.marks.lapse(mark.key());
                    self.restore_mapping(record, proof, is_set, now);
                }
                None => self.restore_mapping(record, proof, is_set, now),
            }
        }
        for mark in marks.values() {
            self.end_mark(mark, now);
        }
        self.pump(now);
    }

    fn restore_mapping(
        &mut self,
        record: MappingRecord,
        proof: Option<NatEntry>,
        is_set: bool,
        now: Instant,
    ) {
        let external = record.external;
        let asked = record.upstream.is_some_and(|lease| lease.asked);
        let mut mapping = record.mapping(&self.clock, now);
        let proven = proof.and_then(|entry| entry.expires);
        if let Some(lease) = &mut mapping.upstream {
            match proven {
                // The kernel's entry stood on the lease before it.
                _ if asked => lease.expires = now,
                Some(at) => {
                    // The entry ends with the shorter of the two leases.
                    let shorter = at + EXPIRY_TOLERANCE < lease.expires.min(mapping.lease_ends);
                    if lease.expires < at || shorter {
                        lease.expires = at;
                    }
                }
                None if !is_set || lease.expires < now + TOO_SHORT => lease.expires = now,
                None => {}
            }
        }
        if let (Some(at), Owner::ControlPoint) = (proven, mapping.owner) {
            mapping.lease_ends = mapping.lease_ends.max(at);
        }
        let generation = mapping.generation;
        let adopted = mapping.upstream.map(|lease| pcp_client::Input::Adopt {
            want: self.want(&mapping, lease.server, mapping.claim.port, now),
            lease,
            external,
        });
        // A record that contradicts another one was made by nobody; the older of the two stands.
        let over = mapping.lease_ends <= now || self.table.put(mapping).is_err();
        if let Some(adopted) = adopted {
            self.tell(adopted, now);
        }
        if over {
            self.view.lost();
            self.discard(generation, now);
        } else {
            self.view.restored(generation);
        }
    }

    fn discard(&mut self, generation: Generation, now: Instant) {
        self.tell(pcp_client::Input::Abandon(generation), now);
        self.persist(StoreChange::Delete(generation), None);
    }
}

/// Whether a record and a mark are of one lease.
fn vouched(record: &MappingRecord, mark: &Mark) -> bool {
    let lease = record.upstream.map(|lease| (lease.via, lease.nonce));
    lease == Some((mark.via, mark.nonce))
}

/// The latest moment that something was certainly stored at.
fn newest(saved: &Saved) -> UnixTime {
    let promised = saved.mappings.iter().filter_map(|record| {
        let of_control_point = record.owner == Owner::ControlPoint;
        let requested = u64::from(record.requested.0);
        of_control_point
            .then(|| UnixTime::from_secs(record.lease_ends.as_secs().saturating_sub(requested)))
    });
    let seen = saved.epochs.iter().map(|(_, _, seen)| *seen);
    let latest = promised.chain(seen).max_by_key(|at| at.as_millis());
    latest.unwrap_or(UnixTime::from_secs(0))
}
