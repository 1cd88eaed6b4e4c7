//! What the PCP client reports.

use std::net::SocketAddr;

use super::job::{Kind, Origin, Stage};
use super::{Effect, Iwf, Mode, Notice, StoreChange};
use crate::mapping::{Lease, State};
use crate::proto::igd::Refusal;
use crate::proto::pcp_client::{self, MAX_LIFETIME};
use crate::proto::pcp_servers;
use crate::types::{ExternalEndpoint, Generation, Instant, Lifetime};
use crate::wire::pcp::ResultCode;

/// Renewals of a lease that is granted for less than this are not stored. They come so often that they would wear flash
/// out, and nothing is lost without them: the store keeps mapping, nonce and the lease that the control point was
/// promised; how long the server's lease goes on is in the kernel's entry, and where that is gone too, after a power
/// cut, the lease is asked for again with its nonce before anything is forwarded.
const STORED_FROM: Lifetime = Lifetime(6 * 3600);

impl Iwf {
    /// Acts on everything the client has to say.
    pub(super) fn pump(&mut self, now: Instant) {
        while let Some(effect) = self.client.poll_effect() {
            match effect {
                pcp_client::Effect::Send { server, payload } => {
                    self.effects
                        .push_back(Effect::SendUpstream { server, payload });
                }
                pcp_client::Effect::Granted {
                    id,
                    lease,
                    external,
                } => self.granted(id, lease, external, now),
                pcp_client::Effect::Refused {
                    id,
                    server,
                    result,
                    lifetime,
                    asked,
                } => {
                    if asked {
                        self.tell_refusal(id, server, result, false);
                    }
                    self.refused(id, result, lifetime, now);
                }
                pcp_client::Effect::Trouble { id, server, result } => {
                    self.tell_refusal(id, server, result, true);
                }
                pcp_client::Effect::GivenBack { id, server } => {
                    self.notify(Notice::GivenBack {
                        generation: id,
                        server,
                    });
                }
                pcp_client::Effect::Lost { id } => self.lost(id, now),
                pcp_client::Effect::Released { id, result } => self.released(id, result, now),
                pcp_client::Effect::EpochReset(server) => {
                    self.notify(Notice::EpochReset(server));
                }
                pcp_client::Effect::EpochSeen { server, epoch } => {
                    let change = StoreChange::Epoch {
                        server: server.ip(),
                        epoch,
                        seen: self.clock.unix(now),
                    };
                    self.persist(change, None);
                }
                pcp_client::Effect::Asking { id, trace } => self.asking(id, trace, now),
                pcp_client::Effect::Ending(trace) => self.ending(&trace),
                pcp_client::Effect::Forgotten(key, via) => self.marks.forgotten(key, via),
                pcp_client::Effect::Liveness(server) => self.liveness_changed(server, now),
                pcp_client::Effect::Spent(server) => {
                    self.select(pcp_servers::Input::Spent(server), now);
                    self.choose_mode(now);
                }
                pcp_client::Effect::Speaks(server) => {
                    let speaks = self.client.speaks(server);
                    self.notify(Notice::ServerSpeaks { server, speaks });
                }
            }
        }
        while let Some(errand) = self.client.poll_errand() {
            self.effects.push_back(Effect::Errand(errand));
        }
        let connected = self.connection_status() == "Connected";
        self.connected_since = if connected {
            self.connected_since.or(Some(now))
        } else {
            None
        };
    }

    fn tell_refusal(
        &mut self,
        generation: Generation,
        server: SocketAddr,
        result: ResultCode,
        renewal: bool,
    ) {
        self.notify(Notice::UpstreamRefused {
            generation,
            server,
            result,
            renewal,
        });
    }

    fn granted(&mut self, id: Generation, lease: Lease, external: ExternalEndpoint, now: Instant) {
        if self.probe_granted(id, now) || self.address_granted(id, external, now) {
            return;
        }
        self.marks.arrived(id);
        self.learn_address(external.addr);
        let Some(job) = self.jobs.get_mut(&id) else {
            return self.renewed(id, lease, external, now);
        };
        if let Kind::Replace { after, .. } = &mut job.kind {
            (after.upstream, after.claim) = (Some(lease), external.into());
        }
        let waits = job.stage == Stage::Upstream && !matches!(job.kind, Kind::Remove);
        if waits
            && matches!(job.kind, Kind::Create)
            && let Err(refusal) = self.judge_grant(id, external.port)
        {
            // The owner has closed a port that the server gave out.
            if let Some(job) = self.jobs.remove(&id) {
                self.undo_create(id, job, refusal, now);
            }
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if matches!(job.kind, Kind::Create) && !self.update_lease(id, lease, external) {
            // The server gave out a port that another mapping of ours has, at another address of its pool.
            if let Some(job) = self.jobs.remove(&id) {
                self.undo_create(id, job, Refusal::PortTaken, now);
            }
            return;
        }
        if waits {
            self.store(id);
        }
    }

    /// A lease was confirmed, or came back: store and kernel follow it.
    fn renewed(&mut self, id: Generation, lease: Lease, external: ExternalEndpoint, now: Instant) {
        let Some(before) = self.table.get(id).map(|m| (m.upstream, m.claim)) else {
            return self.tell(pcp_client::Input::Abandon(id), now);
        };
        if !self.update_lease(id, lease, external) {
            return self.remove(id, Origin::Nobody, now);
        }
        let Some(mapping) = self.table.get(id) else {
            return;
        };
        let entry = mapping.nat_entry();
        let same = |lease: Option<Lease>| lease.map(|lease| (lease.server, lease.nonce));
        let moves_the_end_only =
            (same(before.0), before.1) == (same(mapping.upstream), mapping.claim);
        let is_short = lease.expires < now + STORED_FROM.duration();
        if (!moves_the_end_only || !is_short)
            && let Some(record) = self.record(mapping)
        {
            self.persist(StoreChange::Put(record), None);
        }
        self.write_nat(entry, None);
        self.notify(Notice::Renewed(id));
        if let Some(before) = before.1.endpoint().filter(|before| *before != external) {
            self.notify(Notice::Moved {
                generation: id,
                before,
                after: external,
            });
            self.entry_moved(id, before, external, now);
            self.review_mapping(id, now);
        }
    }

    /// Whether the table took the lease: another mapping may have that external port.
    fn update_lease(&mut self, id: Generation, lease: Lease, external: ExternalEndpoint) -> bool {
        let Some(mut mapping) = self.table.get(id).cloned() else {
            return false;
        };
        (mapping.upstream, mapping.claim) = (Some(lease), external.into());
        self.table.put(mapping).is_ok()
    }

    fn refused(&mut self, id: Generation, result: ResultCode, lifetime: Lifetime, now: Instant) {
        if self.probe_refused(id, now) || self.address_refused(id, now) {
            return;
        }
        let waits = self
            .jobs
            .get(&id)
            .is_some_and(|job| job.stage == Stage::Upstream && !matches!(job.kind, Kind::Remove));
        if !waits {
            return;
        }
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        let refusal = Refusal::Upstream(result);
        match &job.kind {
            Kind::Create => {
                if result == ResultCode::NotAuthorized
                    && let Some(mapping) = self.table.get(id)
                    && !mapping.is_untranslated()
                {
                    let key = (mapping.protocol, mapping.nat1.port);
                    let until = now + lifetime.min(MAX_LIFETIME).duration();
                    self.barred.insert(key, until);
                }
                self.undo_create(id, job, refusal, now);
            }
            Kind::Replace { .. } => self.undo_replace(id, job, refusal, now),
            Kind::Remove => {}
        }
    }

    /// A lease has ended by itself: the mapping goes.
    fn lost(&mut self, id: Generation, now: Instant) {
        if self.probe_refused(id, now) || self.address_lost(id) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return self.remove(id, Origin::Nobody, now);
        };
        job.lost = true;
        if job.stage != Stage::Upstream {
            return;
        }
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        match &job.kind {
            Kind::Create => self.undo_create(id, job, Refusal::Unreachable, now),
            Kind::Replace { .. } => self.undo_replace(id, job, Refusal::Unreachable, now),
            Kind::Remove => {
                self.jobs.insert(id, job);
                self.unstore(id);
            }
        }
    }

    fn released(&mut self, id: Generation, result: Result<(), ResultCode>, now: Instant) {
        let waits = self
            .jobs
            .get(&id)
            .is_some_and(|job| job.stage == Stage::Upstream && matches!(job.kind, Kind::Remove));
        if !waits {
            return;
        }
        match result {
            Ok(()) => self.unstore(id),
            Err(code) => {
                if let Some(job) = self.jobs.remove(&id) {
                    self.table.set_state(id, State::Active);
                    self.still_there(id);
                    self.finish(id, job, Err(Refusal::Upstream(code)), now);
                }
            }
        }
    }

    /// Gets the lease of a mapping back, or gets one for a mapping that had none.
    pub(super) fn reacquire(&mut self, id: Generation, now: Instant) {
        let Some(mapping) = self.table.get(id) else {
            return;
        };
        // While the WAN is down the client waits with it.
        let server = match (self.mode, mapping.upstream) {
            (Mode::Cascaded(server) | Mode::NoNat(server), _) => server,
            (Mode::Down | Mode::NoServer, Some(lease)) => lease.server,
            (Mode::Local, _) | (Mode::Down | Mode::NoServer, None) => return,
        };
        let Some(external) = mapping.claim.endpoint() else {
            return;
        };
        let want = self.want(mapping, server, Some(external.port), now);
        let lease = mapping.upstream;
        let input = pcp_client::Input::Reacquire {
            same_server: lease.is_some_and(|lease| self.is_one_server(lease.server, server)),
            want,
            external,
        };
        self.tell(input, now);
    }
}
