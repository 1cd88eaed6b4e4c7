//! Leases go from one client to another when a server turns out to speak another protocol.

use std::net::SocketAddr;

use super::lease::{Insist, Lease, Phase, Purpose};
use super::{Effect, PcpClient, Want};
use crate::types::{ExternalEndpoint, Instant};

/// A lease on its way from one client to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The terms.
    pub want: Want,
    /// What was assigned last.
    pub known: Option<ExternalEndpoint>,
    /// When what was granted ends.
    pub grant: Option<Instant>,
    /// How far it got.
    pub stage: Stage,
}

/// How far a lease got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Somebody waits for it.
    Asked,
    /// It was there.
    Held,
    /// Somebody waits for its end.
    Releasing,
}

impl Handover {
    /// What was granted until `expires`.
    pub fn held(want: Want, external: ExternalEndpoint, expires: Instant) -> Self {
        Self {
            want,
            known: Some(external),
            grant: Some(expires),
            stage: Stage::Held,
        }
    }
}

impl PcpClient {
    /// Gives away everything at a server. What was to be deleted there is forgotten: it was granted by a server that
    /// is no more.
    pub fn hand_over(&mut self, server: SocketAddr) -> Vec<Handover> {
        let of_server = self.leases.iter().filter(|(_, l)| l.want.server == server);
        let ids: Vec<_> = of_server.map(|(id, _)| *id).collect();
        let ended: Vec<_> = self.ended.iter().map(|(tuple, _)| *tuple).collect();
        for tuple in ended.into_iter().filter(|tuple| tuple.0 == server) {
            self.forget_ended(tuple);
        }
        let leases = ids.into_iter().filter_map(|id| self.take_out(id));
        let leases: Vec<_> = leases.collect();
        for lease in &leases {
            self.forgotten(lease.tuple());
        }
        self.settle();
        leases
            .into_iter()
            .map(|lease| Handover {
                want: lease.want,
                known: lease.known,
                grant: lease.grant,
                stage: match lease.phase {
                    Phase::Requesting {
                        purpose: Purpose::Answer,
                        ..
                    } => Stage::Asked,
                    Phase::Requesting { .. } | Phase::Bound { .. } => Stage::Held,
                    Phase::Releasing { .. } => Stage::Releasing,
                },
            })
            .collect()
    }

    pub(super) fn take_over(&mut self, handover: Handover, now: Instant) {
        let Handover {
            want,
            known,
            grant,
            stage,
        } = handover;
        let id = want.id;
        match stage {
            Stage::Asked => self.request(want, now),
            Stage::Held => {
                let nonce = self.nonce_for(want.tuple());
                let insist = match known {
                    Some(_) => Insist::Endpoint,
                    None => Insist::Port,
                };
                let mut lease = Lease::new(want, nonce, insist, Purpose::Restore, now);
                (lease.known, lease.grant) = (known, grant.filter(|end| *end > now));
                self.asking(&lease, now);
                self.insert(lease);
                self.line_up(id);
                self.handle_timeout(now);
            }
            Stage::Releasing => {
                let result = Ok(());
                self.effects.push_back(Effect::Released { id, result });
            }
        }
    }
}
