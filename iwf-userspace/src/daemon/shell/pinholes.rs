//! Pinholes: those of the configuration and those of control points together.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tracing::{info, warn};

use super::super::control::events::{EventKind, EventRow};
use super::super::control::{PinholeRow, Response};
use super::super::dataplane::inspect::{Station, Transport};
use super::super::dataplane::{DataPlane, DataPlaneError, Pinhole};
use super::super::reconciler::Outcome;
use super::super::store::Store;
use super::telling::control;
use super::{Shell, listing};
use crate::iwf::pinholes::Ending;
use crate::mapping::pinholes::Opening;
use crate::reconcile::pinholes::{Difference, differences};
use crate::types::Instant;

/// How old a count of packets may be that a control point gets: counting walks through all IPv6 sessions, and a LAN host
/// may ask as often as it likes.
const COUNT_AGE: Duration = Duration::from_secs(1);

/// What is let in over IPv6 unasked.
#[derive(Debug, Default)]
pub(super) struct Pinholes {
    /// By the configuration.
    pub(super) stated: Vec<Pinhole>,
    /// Packets by id, as they were then.
    counted: Option<(Instant, BTreeMap<u16, u64>)>,
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// Everything that the kernel should hold.
    pub(super) fn wanted_pinholes(&self) -> Vec<Pinhole> {
        self.with_stated(self.core.desired_pinholes())
    }

    /// What is asked for that the configuration has as well stays the configuration's.
    fn with_stated(&self, mut asked: Vec<Pinhole>) -> Vec<Pinhole> {
        let stated = &self.pinholes.stated;
        asked.retain(|pinhole| !stated.iter().any(|held| held.lets_in_as(pinhole)));
        asked.extend(stated);
        asked
    }

    pub(super) fn write_pinholes(&mut self, asked: Vec<Pinhole>) -> Result<(), DataPlaneError> {
        let all = self.with_stated(asked);
        self.plane.set_pinholes(&all)
    }

    pub(super) fn pinhole_differences(&self) -> Result<Vec<Difference>, DataPlaneError> {
        let held = self.plane.observe_pinholes()?;
        Ok(differences(&held, &self.wanted_pinholes()))
    }

    /// Compares kernel and table, and repairs the kernel.
    pub(super) fn reconcile_pinholes(&mut self) -> Result<Outcome, DataPlaneError> {
        let found = self.pinhole_differences()?;
        let mut outcome = Outcome::default();
        if found.is_empty() {
            return Ok(outcome);
        }
        let repaired = self.plane.set_pinholes(&self.wanted_pinholes());
        for difference in &found {
            let (pinhole, counter) = match difference {
                Difference::Missing(pinhole) => (pinhole, &mut outcome.created),
                Difference::Foreign(pinhole) => (pinhole, &mut outcome.removed),
                Difference::Differs(pinhole) => (pinhole, &mut outcome.updated),
            };
            let kind = match &repaired {
                Ok(()) => {
                    *counter += 1;
                    info!(%difference, "repaired");
                    EventKind::Repaired
                }
                Err(error) => {
                    outcome.failed += 1;
                    warn!(%difference, %error, "not repaired");
                    EventKind::RepairFailed
                }
            };
            self.journal.write(EventRow {
                detail: difference.to_string(),
                ..about(kind, pinhole)
            });
        }
        Ok(outcome)
    }

    /// Packets that have come in by a pinhole, a moment ago at most.
    pub(super) fn pinhole_packets(&mut self, id: u16, now: Instant) -> Option<u64> {
        let fresh = |(at, _): &&(Instant, _)| now.saturating_duration_since(*at) < COUNT_AGE;
        let counted = self.pinholes.counted.as_ref().filter(fresh);
        if let Some(packets) = counted.and_then(|(_, counts)| counts.get(&id)) {
            return Some(*packets);
        }
        match self.plane.pinhole_packets() {
            Ok(counts) => {
                let counts: BTreeMap<u16, u64> = counts.into_iter().collect();
                let packets = counts.get(&id).copied();
                self.pinholes.counted = Some((now, counts));
                // One that is the configuration's as well has no count of its own.
                Some(packets.unwrap_or(0))
            }
            Err(error) => {
                warn!(%error, "cannot count the packets of pinholes");
                None
            }
        }
    }

    pub(super) fn pinhole_rows(&self, now: Instant) -> Response {
        let rows = || -> Result<Vec<PinholeRow>, DataPlaneError> {
            let held = self.plane.observe_pinholes()?;
            let packets: BTreeMap<u16, u64> = self.plane.pinhole_packets()?.into_iter().collect();
            let row = |pinhole: &Pinhole, opening: Option<&Opening>| PinholeRow {
                id: pinhole.id,
                is_static: opening.is_none(),
                internal: pinhole.internal,
                internal_port: pinhole.internal_port,
                remote: pinhole.remote,
                remote_port: pinhole.remote_port,
                protocol: pinhole.protocol.map(Transport),
                host: opening
                    .and_then(|opening| opening.host)
                    .map(|mac| Station(mac).to_string()),
                lease_left_seconds: pinhole
                    .expires
                    .map(|end| end.saturating_duration_since(now).as_secs()),
                packets: packets.get(&pinhole.id).copied().unwrap_or(0),
                kernel: held.iter().any(|p| p.lets_in_as(pinhole)),
            };
            let asked = self.core.pinholes().map(|o| row(&o.pinhole, Some(o)));
            let stated = self.pinholes.stated.iter().map(|p| row(p, None));
            let mut rows: Vec<_> = asked.chain(stated).collect();
            rows.sort_by_key(|row| row.id);
            Ok(rows)
        };
        rows().map_or_else(listing::failed, Response::Pinholes)
    }

    pub(super) fn tell_opened(&self, pinhole: &Pinhole) {
        info!(
            id = pinhole.id,
            internal = %pinhole.internal,
            port = pinhole.internal_port,
            protocol = pinhole.protocol,
            "pinhole opened"
        );
        self.journal.write(about(EventKind::PinholeOpened, pinhole));
    }

    pub(super) fn tell_closed(&self, pinhole: &Pinhole, why: Ending) {
        let why = match why {
            Ending::Deleted => "deleted".to_owned(),
            Ending::Expired => "its lease is over".to_owned(),
            Ending::PrefixGone => "its prefix is not the LAN's any more".to_owned(),
            Ending::Departed(why) => why.to_string(),
            Ending::Denied(by) => format!("{} denies it", self.core.rules().label(by)),
        };
        info!(id = pinhole.id, internal = %pinhole.internal, why, "pinhole closed");
        let row = about(EventKind::PinholeClosed, pinhole);
        self.journal.write(EventRow {
            detail: format!("{}: {why}", row.detail),
            ..row
        });
    }
}

fn about(kind: EventKind, pinhole: &Pinhole) -> EventRow {
    let end = |addr: IpAddr, port: Option<u16>| SocketAddr::new(addr, port.unwrap_or(0));
    EventRow {
        protocol: pinhole.protocol.map(Transport),
        internal: Some(end(pinhole.internal.into(), pinhole.internal_port)),
        remote: pinhole
            .remote
            .map(|addr| end(addr.into(), pinhole.remote_port)),
        detail: format!("pinhole {}", pinhole.id),
        ..control(kind)
    }
}
