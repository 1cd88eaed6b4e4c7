//! What subscribers are told of, and when.
//!
//! Read before editing: WANIPConnection:2 sections 2.3.23 and 2.4; requirements IGD-007, IGD-023, IGD-024, AMB-07, AMB-16.
//!
//! SystemUpdateID is stored with the change that will step it, so that it costs no commit of its own: what is stored is
//! ahead of it by the changes that are under way, and never behind.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::{Effect, Iwf, RequestId, StoreChange};
use crate::proto::gena;
use crate::types::{ExternalEndpoint, Generation, Instant};
use crate::wire;
use crate::wire::scpd::Service;
use crate::wire::services;

/// What subscribers have been told of besides values.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The device-wide external address before the present one.
    replaced: Option<Ipv4Addr>,
}

impl Iwf {
    /// A control point subscribes, renews or ends.
    pub(super) fn subscription(
        &mut self,
        request: RequestId,
        service: &'static Service,
        (host, at): (gena::Host, gena::At),
        wanted: wire::gena::Request,
        now: Instant,
    ) {
        // Nobody had to know them before the first subscription.
        let values = self.evented_values(now);
        self.gena.handle_input(gena::Input::Values(values), now);
        let input = gena::Input::Request {
            id: request.0,
            service,
            host,
            at,
            request: wanted,
        };
        self.gena.handle_input(input, now);
    }

    /// Tells subscribers what has changed, if there are any, and has sent what is due.
    pub(super) fn follow_events(&mut self, now: Instant) {
        if !self.gena.is_idle() {
            let values = self.evented_values(now);
            self.gena.handle_input(gena::Input::Values(values), now);
        }
        while let Some(effect) = self.gena.poll_effect() {
            self.effects.push_back(match effect {
                gena::Effect::Answer { id, result } => Effect::SubscriptionReply {
                    request: RequestId(id),
                    result,
                },
                gena::Effect::Send(send) => Effect::SendEvent(send),
                gena::Effect::Cancel(number) => Effect::CancelEvent { number },
            });
        }
    }

    /// The evented variables of all services, each once: of one name there is one value, the same for all subscribers
    /// (GENA-004).
    fn evented_values(&self, now: Instant) -> Vec<(&'static str, String)> {
        let mut values: Vec<(&'static str, String)> = Vec::new();
        for service in services::ALL {
            for variable in service.variables.iter().filter(|v| v.evented) {
                let name = variable.name;
                if !values.iter().any(|(known, _)| *known == name)
                    && let Some(value) = self.variable(service, name, now)
                {
                    values.push((name, value));
                }
            }
        }
        values
    }

    /// A mapping has become another one without a job.
    pub(super) fn entry_changed(&mut self, generation: Generation) {
        self.view.changed(generation);
        let change = self.update_id_to_store();
        self.persist(change, None);
    }

    /// Remote hosts reach a mapping elsewhere (AMB-16): at another port it is another entry. Subscribers hear of the
    /// device-wide address also if it has not changed (AMB-07), unless they have just been told of the change that this
    /// is a part of.
    pub(super) fn entry_moved(
        &mut self,
        generation: Generation,
        before: ExternalEndpoint,
        after: ExternalEndpoint,
        now: Instant,
    ) {
        if before.port != after.port {
            self.entry_changed(generation);
        }
        let is_known = self.told.replaced == Some(before.addr) && self.external == Some(after.addr);
        if before.addr != after.addr && !is_known {
            let again = gena::Input::Again("ExternalIPAddress");
            self.gena.handle_input(again, now);
        }
    }

    /// The device-wide external address is another one.
    pub(super) fn address_replaced(&mut self, before: Option<Ipv4Addr>) {
        self.told.replaced = before.or(self.told.replaced);
    }

    /// SystemUpdateID when everything that is under way is done.
    pub(super) fn update_id_to_store(&self) -> StoreChange {
        let under_way = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
        StoreChange::UpdateId(self.system_update_id().wrapping_add(under_way))
    }

    /// Subscriptions, and what was done with them.
    pub const fn gena(&self) -> &gena::Gena {
        &self.gena
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::iwf::Settings;
    use crate::types::UnixTime;

    #[test]
    fn every_evented_variable_has_one_value_and_one_type() {
        let now = Instant::from_millis(0);
        let iwf = Iwf::new(Settings::default(), [1; 32], UnixTime::from_secs(1), now);
        let mut types = BTreeMap::new();
        for service in services::ALL {
            for variable in service.variables.iter().filter(|v| v.evented) {
                let name = variable.name;
                assert!(iwf.variable(service, name, now).is_some(), "{name}");
                let before = types.insert(name, variable.data.name());
                assert!(
                    before.is_none_or(|before| before == variable.data.name()),
                    "{name}"
                );
            }
        }
        assert_eq!(iwf.evented_values(now).len(), types.len());
    }
}
