//! Who may do more than everybody, for the owner.

use super::super::control::{IdentityRow, Protection, Response};
use super::super::dataplane::DataPlane;
use super::super::store::Store;
use super::{Facts, Shell};
use crate::types::access::{Identity, Who};

impl<P: DataPlane, S: Store> Shell<P, S> {
    pub(super) fn protection(&self, facts: &Facts) -> Response {
        let Some(protection) = self.core.protection() else {
            return Response::Error(
                "DeviceProtection is off; set device_protection.enabled and restart iwfd"
                    .to_owned(),
            );
        };
        let row = |identity: &Identity| {
            let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let logins = match &identity.who {
                Who::User(name) => protection.logins().filter(|of| of == name).count(),
                Who::ControlPoint(_) => 0,
            };
            IdentityRow {
                kind: match identity.who {
                    Who::User(_) => "user",
                    Who::ControlPoint(_) => "control-point",
                }
                .to_owned(),
                id: identity.who.to_string(),
                name: filled(&identity.name),
                alias: identity.alias.clone(),
                roles: identity
                    .roles
                    .to_string()
                    .split_ascii_whitespace()
                    .map(str::to_owned)
                    .collect(),
                introduced: identity.introduced,
                password: identity.verifier.is_some(),
                logins,
            }
        };
        let listeners = facts.listeners.iter();
        Response::Protection(Protection {
            device: protection.settings().certificate.to_string(),
            listeners: listeners.filter_map(|listener| listener.secure).collect(),
            connections: self.open.count(),
            identities: protection.identities().map(row).collect(),
        })
    }
}
