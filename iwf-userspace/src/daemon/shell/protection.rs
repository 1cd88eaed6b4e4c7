//! Who may do more than everybody, for the owner.

use tracing::info;

use super::super::control::{IdentityRow, IntroductionRow, Protection, Response};
use super::super::dataplane::DataPlane;
use super::super::store::Store;
use super::{Facts, Shell};
use crate::daemon::control::events::EventKind;
use crate::proto::protection::Told;
use crate::types::Instant;
use crate::types::access::{Identity, Who};

impl<P: DataPlane, S: Store> Shell<P, S> {
    pub(super) fn protection(&self, facts: &Facts, now: Instant) -> Response {
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
            introduction: protection.introduction().map(|standing| IntroductionRow {
                left_seconds: standing.until.saturating_duration_since(now).as_secs(),
                wrong_pins: standing.wrong,
                control_point: standing.peer.map(|id| id.to_string()),
            }),
            identities: protection.identities().map(row).collect(),
        })
    }

    /// A name that a control point gives itself is not repeated here.
    pub(super) fn tell_introduction(&self, told: Told) {
        let (kind, host, detail) = match told {
            Told::Introduced {
                control_point,
                host,
            } => {
                info!(%control_point, %host, "control point introduced");
                let detail = format!("{control_point} may do what Basic may");
                (EventKind::ControlPointIntroduced, host, detail)
            }
            Told::WrongPin {
                control_point,
                host,
                left: 0,
            } => {
                info!(%control_point, %host, "wrong PIN; it is not good any more");
                let detail = format!("{control_point} tried a wrong PIN; it is not good any more");
                (EventKind::IntroductionLocked, host, detail)
            }
            Told::WrongPin {
                control_point,
                host,
                left,
            } => {
                info!(%control_point, %host, left, "wrong PIN");
                let detail = format!("{control_point} tried a wrong PIN; {left} more may be tried");
                (EventKind::IntroductionFailed, host, detail)
            }
            Told::RanOut {
                control_point,
                host,
            } => {
                info!(%control_point, %host, "introduction not finished in time");
                let detail = format!("{control_point} did not finish in time");
                (EventKind::IntroductionFailed, host, detail)
            }
        };
        self.tell_host(kind, host, detail);
    }
}
