//! What is worth an event, in the words of `iwfctl events`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use iwf_common::event::EventKind as Told;
use iwf_common::reason::DropReason;
use tracing::{debug, info, warn};

use super::super::clock;
use super::super::control::events::{EventKind, EventRow, Source};
use super::super::dataplane::inspect::{Station, Transport};
use super::super::dataplane::{DataPlane, PlaneEvent};
use super::super::reconciler::Repair;
use super::super::store::Store;
use super::Shell;
use crate::iwf::policy::Why;
use crate::iwf::{Notice, ServerState, Speaks};
use crate::mapping::Mapping;
use crate::types::{Generation, Instant, NatEntry, UnixTime};
use crate::wire::pcp::ResultCode;
use crate::wire::soap;

/// What a control point wants to change, for the case that it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    action: &'static str,
    caller: IpAddr,
    protocol: Option<Transport>,
    internal: Option<SocketAddr>,
    external_port: Option<u16>,
    /// Why it is going to be refused.
    pub(super) why: Option<Why>,
}

/// Actions that change mappings. Others are not worth an event.
const CHANGES: [&str; 7] = [
    "AddPortMapping",
    "AddAnyPortMapping",
    "DeletePortMapping",
    "DeletePortMappingRange",
    "AddPinhole",
    "UpdatePinhole",
    "DeletePinhole",
];

impl Wish {
    /// Only numbers and addresses are kept of what a LAN host wrote.
    pub(super) fn of(caller: IpAddr, call: &soap::Call) -> Option<Self> {
        let action = CHANGES.into_iter().find(|action| *action == call.action)?;
        let text = |name: &str| {
            let args = call.args.iter();
            args.clone()
                .find(|(found, _)| found == name)
                .map(|(_, value)| value.trim())
        };
        let port = |name| text(name).and_then(|text| text.parse::<u16>().ok());
        let is_pinhole = action.ends_with("Pinhole");
        let (client, at, protocol) = if is_pinhole {
            ("InternalClient", "InternalPort", "Protocol")
        } else {
            ("NewInternalClient", "NewInternalPort", "NewProtocol")
        };
        let client = text(client).and_then(|text| text.parse::<IpAddr>().ok());
        Some(Self {
            action,
            caller,
            protocol: text(protocol).and_then(|text| text.parse().ok()),
            internal: client.zip(port(at)).map(SocketAddr::from),
            external_port: port("NewExternalPort"),
            why: None,
        })
    }

    fn refused(&self, error: soap::UpnpError) -> EventRow {
        let port = self
            .external_port
            .map_or_else(String::new, |port| format!(" of external port {port}"));
        let why = self.why.as_ref();
        let why = why.map_or_else(String::new, |why| format!(": {}", why.text));
        EventRow {
            protocol: self.protocol,
            internal: Some(self.internal.unwrap_or((self.caller, 0).into())),
            detail: format!(
                "{}{port} refused: {} {}{why}",
                self.action, error.code, error.description
            ),
            decided_by: self.why.as_ref().and_then(|why| why.decided_by.clone()),
            ..control(if self.action.ends_with("Pinhole") {
                EventKind::PinholeRefused
            } else {
                EventKind::MappingRefused
            })
        }
    }
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// Hears what the packet programs have told.
    pub fn hear(&mut self) {
        let wall = clock::wall();
        for event in self.plane.events() {
            let row = row(&event, wall);
            let show = |endpoint: Option<SocketAddr>| endpoint.map(tracing::field::display);
            debug!(
                protocol = event.protocol,
                internal = show(row.internal),
                external = show(row.external),
                remote = show(row.remote),
                "{}",
                row.kind
            );
            self.journal.write(row);
        }
    }

    /// In the log, one of a kind in a while: a control point may ask as often as it likes.
    pub(super) fn tell_refused(&mut self, wish: &Wish, error: soap::UpnpError, now: Instant) {
        let row = wish.refused(error);
        if let Some(others) = self
            .refusals_told
            .admit(wish.caller, row.decided_by.as_deref(), now)
        {
            info!(caller = %wish.caller, others, "{}", row.detail);
        }
        self.journal.write(row);
    }

    pub(super) fn tell_mapping(&self, kind: EventKind, mapping: &Mapping) {
        let carrier = mapping.upstream.and(mapping.claim.endpoint());
        let carrier = carrier.map_or_else(String::new, |at| format!(", at the carrier {at}"));
        self.journal.write(EventRow {
            detail: format!("generation {}{carrier}", mapping.generation),
            ..about(kind, &mapping.nat_entry())
        });
    }

    pub(super) fn tell_entry(&self, kind: EventKind, entry: &NatEntry) {
        self.journal.write(EventRow {
            detail: format!("generation {}", entry.generation),
            ..about(kind, entry)
        });
    }

    pub(super) fn tell_text(&self, kind: EventKind, remote: Option<SocketAddr>, detail: String) {
        self.journal.write(EventRow {
            remote,
            detail,
            ..control(kind)
        });
    }

    pub(super) fn tell_host(&self, kind: EventKind, host: IpAddr, detail: String) {
        self.journal.write(EventRow {
            internal: Some((host, 0).into()),
            detail,
            ..control(kind)
        });
    }

    pub(super) fn tell_drops(&self, counter: &str, packets: u64, remedy: &str) {
        self.journal.write(EventRow {
            counter: Some(counter.to_owned()),
            detail: format!("{packets} packets for lack of room; {remedy}"),
            ..control(EventKind::Drops)
        });
    }

    pub(super) fn tell_repairs(&self, repairs: &[Repair]) {
        for repair in repairs {
            let (kind, detail) = match &repair.failure {
                None => (EventKind::Repaired, repair.what.name().to_owned()),
                Some(why) => (
                    EventKind::RepairFailed,
                    format!("not {}: {why}", repair.what.name()),
                ),
            };
            self.journal.write(EventRow {
                detail,
                ..about(kind, &repair.entry)
            });
        }
    }

    /// What servers have done with mappings, beyond granting them.
    pub(super) fn tell_upstream(&self, notice: &Notice) {
        match notice {
            Notice::Moved {
                generation,
                before,
                after,
            } => {
                info!(%generation, %before, %after, "mapping has another external endpoint");
                let detail = format!("{before} is {after} now");
                self.tell_about(EventKind::MappingMoved, *generation, None, detail);
            }
            Notice::UpstreamRefused {
                generation,
                server,
                result,
                renewal,
            } => {
                if matches!(
                    result,
                    ResultCode::MalformedRequest | ResultCode::MalformedOption
                ) {
                    warn!(%generation, %server, %result, "the PCP server cannot read a request; this is a defect");
                } else {
                    info!(%generation, %server, %result, renewal, "the PCP server refused a mapping");
                }
                let what = if *renewal { "renewal: " } else { "" };
                let detail = format!("{what}{result}");
                self.tell_about(
                    EventKind::UpstreamRefused,
                    *generation,
                    Some(*server),
                    detail,
                );
            }
            Notice::GivenBack { generation, server } => {
                info!(%generation, %server, "the PCP server granted another port; given back");
                let detail = "it granted another port than the one asked for".to_owned();
                self.tell_about(EventKind::GrantReturned, *generation, Some(*server), detail);
            }
            Notice::ServerSpeaks { server, speaks } => {
                let detail = match speaks {
                    Speaks::Unknown => return,
                    Speaks::Pcp => "PCP".to_owned(),
                    Speaks::NatPmp => "NAT-PMP only".to_owned(),
                    Speaks::Igd => "UPnP only".to_owned(),
                    Speaks::OtherVersion(version) => format!("PCP version {version} only"),
                    Speaks::Nothing => "nothing: its port is closed".to_owned(),
                };
                info!(%server, speaks = detail, "PCP server");
                self.tell_text(EventKind::ServerSpeaks, Some(*server), detail);
            }
            Notice::Created(_)
            | Notice::Renewed(_)
            | Notice::Removed(_)
            | Notice::ExternalAddress(_)
            | Notice::StaticWaits { .. }
            | Notice::Refused { .. }
            | Notice::Withdrawn { .. }
            | Notice::PinholeOpened(_)
            | Notice::PinholeClosed(..)
            | Notice::Introduction(_)
            | Notice::EpochReset(_) => {}
        }
    }

    /// Tells of a mapping, if it is there, what `detail` says.
    pub(super) fn tell_about(
        &self,
        kind: EventKind,
        generation: Generation,
        remote: Option<SocketAddr>,
        detail: String,
    ) {
        let mapping = self.core.mapping(generation);
        let row = mapping.map_or_else(|| control(kind), |m| about(kind, &m.nat_entry()));
        self.journal.write(EventRow {
            remote,
            detail,
            ..row
        });
    }

    /// Servers that answer now and did not, or the other way round.
    pub(super) fn tell_servers(&mut self) {
        let now: BTreeMap<_, _> = self
            .core
            .servers()
            .iter()
            .filter_map(|server| Some((server.address, server.state?)))
            .collect();
        for (address, state) in &now {
            if self.servers_told.get(address) == Some(state) {
                continue;
            }
            let (kind, detail) = match state {
                ServerState::Unknown => continue,
                ServerState::Answering => (EventKind::ServerAnswering, "it answers"),
                ServerState::Silent => (EventKind::ServerSilent, "it does not answer"),
            };
            self.tell_text(kind, Some(*address), detail.to_owned());
        }
        self.servers_told = now;
    }
}

pub(super) fn control(kind: EventKind) -> EventRow {
    EventRow::new(clock::wall(), Source::ControlPlane, kind)
}

fn about(kind: EventKind, entry: &NatEntry) -> EventRow {
    EventRow {
        protocol: Some(Transport(entry.protocol.number())),
        internal: Some((entry.internal.addr, entry.internal.port.get()).into()),
        external: Some((entry.external.addr, entry.external.port.get()).into()),
        ..control(kind)
    }
}

/// What the packet programs told at that age, as of `wall`.
fn row(event: &PlaneEvent, wall: UnixTime) -> EventRow {
    let age = u64::try_from(event.age.as_millis()).unwrap_or(u64::MAX);
    let time = UnixTime::from_millis(wall.as_millis().saturating_sub(age));
    let (kind, counter) = match event.kind {
        Some(Told::MappingCreated) => (EventKind::DynamicCreated, None),
        Some(Told::MappingDisplaced) => (EventKind::MappingDisplaced, None),
        Some(Told::MappingsFull) => (EventKind::MappingsFull, Some(DropReason::MappingsFull)),
        Some(Told::SessionsFull) if event.station.is_some() => {
            (EventKind::SessionsFull, Some(DropReason::Sessions6Full))
        }
        Some(Told::SessionsFull) => (EventKind::SessionsFull, Some(DropReason::SessionsFull)),
        Some(Told::PortsExhausted) => (EventKind::PortsExhausted, Some(DropReason::PortsExhausted)),
        Some(Told::NextHopUnresolved) => (EventKind::NextHopUnresolved, None),
        Some(Told::HostSessions) => (EventKind::HostSessions, Some(DropReason::HostSessions)),
        Some(Told::HostMappings) => (EventKind::HostMappings, Some(DropReason::HostMappings)),
        Some(Told::HostsFull) => (EventKind::HostsFull, Some(DropReason::HostsFull)),
        None => (EventKind::Other, None),
    };
    let other_end = event.external.map(SocketAddr::V4);
    let (external, remote) = if kind == EventKind::NextHopUnresolved {
        (None, other_end)
    } else {
        (other_end, None)
    };
    EventRow {
        protocol: event.internal.map(|_| Transport(event.protocol)),
        internal: event.internal,
        station: event.station.map(Station),
        external,
        remote,
        counter: counter.map(|reason| reason.name().to_owned()),
        ..EventRow::new(time, Source::DataPlane, kind)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_the_programs_told_has_the_time_it_happened_at() {
        let event = PlaneEvent {
            kind: Some(Told::SessionsFull),
            age: Duration::from_millis(1500),
            protocol: 6,
            internal: "192.168.1.10:5000".parse().ok(),
            station: None,
            external: None,
        };
        let row = row(&event, UnixTime::from_millis(10_000));
        assert_eq!(row.time.0, UnixTime::from_millis(8500));
        assert_eq!(row.kind, EventKind::SessionsFull);
        assert_eq!(row.counter.as_deref(), Some("drop_sessions_full"));
        assert_eq!(row.internal, "192.168.1.10:5000".parse().ok());
    }

    #[test]
    fn of_ipv6_another_counter_tells_how_many() {
        let event = PlaneEvent {
            kind: Some(Told::SessionsFull),
            age: Duration::ZERO,
            protocol: 6,
            internal: "[2a0b:1:2:3::10]:5000".parse().ok(),
            station: Some([2, 0, 0x5e, 0x10, 0, 0xff]),
            external: None,
        };
        let row = row(&event, UnixTime::from_secs(1));
        assert_eq!(row.counter.as_deref(), Some("drop_sessions6_full"));
        assert_eq!(row.station, Some(Station([2, 0, 0x5e, 0x10, 0, 0xff])));
        assert_eq!(row.internal, "[2a0b:1:2:3::10]:5000".parse().ok());
    }

    #[test]
    fn the_other_end_of_an_unknown_next_hop_is_remote() {
        let event = PlaneEvent {
            kind: Some(Told::NextHopUnresolved),
            age: Duration::ZERO,
            protocol: 17,
            internal: "192.168.1.10:5000".parse().ok(),
            station: None,
            external: "11.22.33.9:53".parse().ok(),
        };
        let row = row(&event, UnixTime::from_secs(1));
        assert_eq!(
            (row.external, row.remote),
            (None, "11.22.33.9:53".parse().ok())
        );
    }

    #[test]
    fn of_a_wish_only_numbers_are_kept() {
        let args = [
            ("NewExternalPort", "5000"),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", "8080"),
            ("NewInternalClient", "192.168.1.11"),
            ("NewPortMappingDescription", "\u{1b}[2J"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut call = soap::Call {
            service: "WANIPConnection".to_owned(),
            version: 1,
            action: "AddPortMapping".to_owned(),
            args: args.map(owned).to_vec(),
        };
        let caller = IpAddr::from([192, 168, 1, 10]);
        let event = Wish::of(caller, &call)
            .unwrap()
            .refused(soap::UpnpError::ACTION_FAILED);
        assert_eq!(
            event.detail,
            "AddPortMapping of external port 5000 refused: 501 Action Failed"
        );
        assert_eq!(event.protocol, Some(Transport(17)));
        assert_eq!(event.internal, "192.168.1.11:8080".parse().ok());
        call.args.clear();
        let event = Wish::of(caller, &call)
            .unwrap()
            .refused(soap::UpnpError::ACTION_FAILED);
        assert_eq!(event.internal, "192.168.1.10:0".parse().ok());
        call.action = "GetExternalIPAddress".to_owned();
        assert_eq!(Wish::of(caller, &call), None);
    }
}
