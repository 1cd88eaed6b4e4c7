//! Who translates IPv4, and where mappings are in our NAT because of it.
//!
//! Read before editing: RFC 6970 section 5.4, RFC 7084 section 4.4.2 (DLW-2, DLW-3), RFC 8585 section 3.2.2.
//!
//! Where the provider's device translates, a mapping is its LAN host's own endpoint in our NAT (which lets in what is
//! mapped, and changes nothing), and a lease on behalf of that host at the server. When that changes at run time,
//! mappings move from the one form to the other, with their external ports.

use super::job::{Kind, Origin};
use super::settings::{Asking, ModeSetting, Translation};
use super::{Iwf, Mode};
use crate::mapping::{Claim, Mapping, State, untranslated};
use crate::proto::igd::Refusal;
use crate::proto::pcp_client;
use crate::types::{ExternalEndpoint, Generation, Instant};

impl Iwf {
    /// Who translates now.
    pub fn translation(&self) -> Translation {
        match self.settings.mode {
            ModeSetting::NoNat => Translation::Routed,
            // With an address of its own IPv4 does not need the tunnel (RFC 7084 DLW-3), and private sources must not
            // leave by it.
            ModeSetting::DsLite | ModeSetting::Auto if self.wan.address.is_some() => {
                Translation::Here
            }
            ModeSetting::DsLite => Translation::DsLite,
            ModeSetting::Auto if self.wan.address6.is_some() && self.discovered.aftr.is_some() => {
                Translation::DsLite
            }
            ModeSetting::Auto | ModeSetting::Cascaded | ModeSetting::Local => Translation::Here,
        }
    }

    /// Whether requests may name LAN hosts.
    pub fn trusts_upstream(&self) -> bool {
        self.settings.third_party
    }

    /// Whether our NAT does.
    pub(super) fn is_translating(&self) -> bool {
        self.translation() == Translation::Here
    }

    /// Whether the WAN has what IPv4 takes.
    pub(super) fn is_up(&self) -> bool {
        let (v4, v6) = (self.wan.address.is_some(), self.wan.address6.is_some());
        match self.translation() {
            Translation::Here => v4,
            Translation::Routed => v4 || v6,
            Translation::DsLite => v6,
        }
    }

    /// Whether a mapping has a place in our NAT.
    pub(super) fn is_placeable(&self) -> bool {
        !self.is_translating() || self.wan.address.is_some()
    }

    /// Follows the configuration.
    pub(super) fn set_asking(&mut self, asking: Asking, now: Instant) {
        let Asking {
            mode,
            servers,
            discovery,
            third_party,
        } = asking;
        let trusts = self.settings.third_party != third_party;
        (self.settings.mode, self.settings.servers) = (mode, servers);
        (self.settings.discovery, self.settings.third_party) = (discovery, third_party);
        if trusts {
            self.tell(pcp_client::Input::Trusted(third_party), now);
            self.statics.retry_now(now);
        }
        self.follow_servers(now);
        if trusts {
            self.follow_all(now);
        }
    }

    /// Ends what stands in the way when somebody else translates now; `true` if so.
    pub(super) fn follow_translation(&mut self, now: Instant) -> bool {
        let translation = self.translation();
        let before = std::mem::replace(&mut self.translation, translation);
        let translates = |who| who == Translation::Here;
        if translates(before) == translates(translation) {
            return false;
        }
        self.client.set_translating(translates(translation), now);
        self.client.set_router(self.igd_router(), now);
        self.drop_probes(now);
        self.drop_address_query(now);
        self.end_replacements(now);
        // What is on its way out is in the kernel until it is gone.
        let leaving = self.jobs.iter();
        let leaving = leaving
            .filter(|(_, job)| job.next_event().is_some() && matches!(job.kind, Kind::Remove));
        let leaving: Vec<_> = leaving.map(|(generation, _)| *generation).collect();
        for generation in leaving {
            self.change_form(generation, now);
        }
        true
    }

    /// Every mapping on which nothing is under way goes where it belongs.
    pub(super) fn follow_all(&mut self, now: Instant) {
        let idle: Vec<_> = self
            .table
            .iter()
            .filter(|m| m.state == State::Active && !self.jobs.contains_key(&m.generation))
            .map(|m| m.generation)
            .collect();
        for generation in idle {
            self.follow_one(generation, now);
        }
    }

    /// The same for one of them.
    pub(super) fn follow_one(&mut self, generation: Generation, now: Instant) {
        let Some(mapping) = self.table.get(generation) else {
            return;
        };
        if mapping.is_untranslated() == self.is_translating() {
            self.convert(generation, now);
        } else {
            let server = mapping.upstream.map(|lease| lease.server);
            self.follow_mode(generation, server, now);
            self.follow_terms(generation, now);
        }
    }

    /// After a change of a mapping, during which somebody else may have begun to translate.
    pub(super) fn follow_terms_of_now(&mut self, generation: Generation, now: Instant) {
        let mapping = self.table.get(generation);
        match mapping.map(|mapping| mapping.is_untranslated() == self.is_translating()) {
            Some(true) => self.convert(generation, now),
            Some(false) => self.follow_terms(generation, now),
            None => {}
        }
    }

    /// A lease that the server knows by another internal endpoint than the mapping has now is asked for by that one.
    fn follow_terms(&mut self, generation: Generation, now: Instant) {
        let leased = self.table.get(generation);
        let leased = leased.and_then(|mapping| Some((mapping, mapping.upstream?)));
        let Some((mapping, lease)) = leased else {
            return;
        };
        let want = self.want(mapping, lease.server, mapping.claim.port, now);
        if self.client.keeps_otherwise(&want) {
            self.reacquire(generation, now);
        }
    }

    /// What a server was asked for a mapping as it was is not what is wanted now.
    fn end_replacements(&mut self, now: Instant) {
        let under_way: Vec<_> = self
            .jobs
            .iter()
            .filter(|(_, job)| {
                job.next_event().is_some() && matches!(job.kind, Kind::Replace { .. })
            })
            .map(|(generation, _)| *generation)
            .collect();
        for generation in under_way {
            if let Some(job) = self.jobs.remove(&generation) {
                self.undo_replace(generation, job, Refusal::Unreachable, now);
            }
        }
    }

    /// Gives a mapping its other form, and asks for its lease anew, as the server knew it by another internal endpoint.
    fn convert(&mut self, generation: Generation, now: Instant) {
        if !self.change_form(generation, now) {
            return;
        }
        if self.mode != Mode::Local {
            return self.reacquire(generation, now);
        }
        self.tell(pcp_client::Input::Abandon(generation), now);
        let Some(mut mapping) = self.table.get(generation).cloned() else {
            return;
        };
        (mapping.upstream, mapping.claim) = (None, Claim::from(mapping.nat1));
        match self.table.put(mapping) {
            Ok(()) => self.rewrite(generation),
            Err(_) => self.remove(generation, Origin::Nobody, now),
        }
    }

    /// Moves a mapping within our NAT; its external port stays. `false`: there is no place for it, or not yet.
    fn change_form(&mut self, generation: Generation, now: Instant) -> bool {
        let Some(mut mapping) = self.table.get(generation).cloned() else {
            return false;
        };
        let nat1 = match self.is_translating() {
            false => Some(untranslated(mapping.internal)),
            true => self.translated(&mapping, now),
        };
        // Without an address it waits for one.
        let Some(nat1) = nat1 else {
            return false;
        };
        let entry = mapping.nat_entry();
        mapping.nat1 = nat1;
        if self.table.put(mapping).is_err() {
            // Two mappings of one endpoint have no room where nothing is translated.
            if !self.jobs.contains_key(&generation) {
                self.remove(generation, Origin::Nobody, now);
            }
            return false;
        }
        self.remove_nat(entry, None);
        self.rewrite(generation);
        true
    }

    /// A place in our NAT for a mapping that had none.
    fn translated(&mut self, mapping: &Mapping, now: Instant) -> Option<ExternalEndpoint> {
        let (protocol, wanted) = (mapping.protocol, mapping.claim.port);
        if self.mode == Mode::Local {
            let addr = self.external_for(mapping.internal.addr)?;
            return Some(ExternalEndpoint {
                addr,
                port: wanted?,
            });
        }
        let addr = self.wan.address?;
        let port = self.upstream_port(protocol, wanted, mapping.internal.port, now)?;
        Some(ExternalEndpoint { addr, port })
    }
}
