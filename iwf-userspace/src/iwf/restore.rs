//! A new life: what the store kept becomes mappings again.

use super::{Iwf, Saved, StoreChange};
use crate::mapping::record::MappingRecord;
use crate::proto::pcp_client;
use crate::types::{Generation, Instant};

impl Iwf {
    /// Takes over what the store kept. Called once, before any input.
    ///
    /// Nothing is sent for leases that are still good, and the kernel is not touched: the reconciler compares
    /// what it holds with [`Iwf::desired`].
    pub fn restore(&mut self, saved: Saved, now: Instant) {
        self.last_generation = saved.last_generation;
        let wall = self.clock.unix(now);
        for (server, epoch, seen) in saved.epochs {
            let ago = wall.as_secs().saturating_sub(seen.as_secs());
            self.tell(pcp_client::Input::History { server, epoch, ago }, now);
        }
        for record in saved.mappings {
            self.last_generation = self.last_generation.max(record.generation.0);
            self.restore_mapping(record, now);
        }
        self.pump(now);
    }

    fn restore_mapping(&mut self, record: MappingRecord, now: Instant) {
        let external = record.external;
        let mapping = record.mapping(&self.clock, now);
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
            self.discard(generation, now);
        }
    }

    fn discard(&mut self, generation: Generation, now: Instant) {
        self.tell(pcp_client::Input::Abandon(generation), now);
        self.persist(StoreChange::Delete(generation), None);
    }
}
