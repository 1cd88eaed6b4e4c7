//! The Internet Gateway Device's actions: from calls to what is wanted, and from outcomes to answers.
//!
//! Read before editing: WANIPConnection:2 section 2.5; RFC 6970 sections 4 and 5; requirements IGD, IGD1, AMB.
//!
//! Nothing here has state: a call is judged as far as it can be without the mapping table, the rest is `iwf`'s.
#![forbid(unsafe_code)]

mod args;
mod entries;
mod link;
mod range;
mod refusal;

use std::net::Ipv4Addr;

use crate::mapping::PortChoice;
use crate::types::{ExternalPort, InternalEndpoint, Lifetime, Protocol, RemotePeer};
use crate::wire::scpd::Service;
use crate::wire::services;
use crate::wire::soap::{Call, UpnpError};

pub use args::is_any_host;
pub use entries::{Seen, generic_entry, specific_entry};
pub use link::{AccessType, LinkCounters, TOTALS, common_link_properties, total};
pub use range::{MAX_LISTED, PortRange, in_range, listing};
pub use refusal::{Operation, Refusal, upnp_error};

/// What a control point asks for. Its arguments are good in themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// SetConnectionType.
    SetConnectionType,
    /// GetConnectionTypeInfo.
    GetConnectionTypeInfo,
    /// RequestConnection.
    RequestConnection,
    /// ForceTermination.
    ForceTermination,
    /// GetStatusInfo.
    GetStatusInfo,
    /// GetNATRSIPStatus.
    GetNatRsipStatus,
    /// GetExternalIPAddress.
    GetExternalIpAddress,
    /// GetGenericPortMappingEntry.
    GetGeneric {
        /// From 0.
        index: u16,
    },
    /// GetSpecificPortMappingEntry.
    GetSpecific(EntryKey),
    /// AddPortMapping or AddAnyPortMapping.
    Add(NewMapping),
    /// DeletePortMapping.
    Delete(EntryKey),
    /// DeletePortMapping without a protocol.
    DeleteEither {
        /// Who may come in.
        remote: RemotePeer,
        /// Outermost external port.
        port: u16,
    },
    /// DeletePortMappingRange.
    DeleteRange(PortRange),
    /// GetListOfPortMappings.
    List {
        /// Which ones.
        range: PortRange,
        /// How many at most.
        limit: usize,
    },
    /// GetMaximumActiveConnections.
    GetMaximumActiveConnections,
    /// GetActiveConnection.
    GetActiveConnection {
        /// From 0.
        index: u16,
    },
    /// QueryStateVariable.
    Query {
        /// The service whose variable it is.
        service: &'static Service,
        /// Its name.
        variable: &'static str,
    },
    /// GetCommonLinkProperties.
    GetCommonLinkProperties,
    /// GetTotalBytesSent and the like.
    GetTotal(Total),
    /// GetDefaultConnectionService.
    GetDefaultConnectionService,
    /// SetDefaultConnectionService.
    SetDefaultConnectionService {
        /// The service it names.
        service: String,
    },
}

/// What names a mapping to control points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryKey {
    /// Who may come in.
    pub remote: RemotePeer,
    /// Outermost external port; 0 names none.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// A mapping to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMapping {
    /// Who may come in.
    pub remote: RemotePeer,
    /// Outermost external port; `None` for no preference (AddAnyPortMapping only).
    pub external: Option<ExternalPort>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The LAN host's endpoint.
    pub internal: InternalEndpoint,
    /// Whether NewEnabled is set.
    pub enabled: bool,
    /// Cut to what is kept.
    pub description: String,
    /// After the rules for 0.
    pub lease: Lifetime,
    /// Whether another external port will do.
    pub choice: PortChoice,
}

/// A counter of WANCommonInterfaceConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    /// Octets sent.
    BytesSent,
    /// Octets received.
    BytesReceived,
    /// Packets sent.
    PacketsSent,
    /// Packets received.
    PacketsReceived,
}

/// Reads a call: service and action (401), arguments (402, 600, 601), then their values in the order of
/// igd-service section 3.3.
pub fn parse(call: &Call, caller: Ipv4Addr) -> Result<Action, UpnpError> {
    let service = services::find(&call.service, call.version).ok_or(UpnpError::INVALID_ACTION)?;
    if call.is_query() {
        let name = args::text(call, "varName")?.trim();
        let variable = service.variable(name).ok_or(UpnpError::INVALID_VAR)?;
        let variable = variable.name;
        return Ok(Action::Query { service, variable });
    }
    let action = service.check(call)?;
    match action.name {
        "SetConnectionType" => {
            args::connection_type(call, service).map(|()| Action::SetConnectionType)
        }
        "GetConnectionTypeInfo" => Ok(Action::GetConnectionTypeInfo),
        "RequestConnection" => Ok(Action::RequestConnection),
        "ForceTermination" => Ok(Action::ForceTermination),
        "GetStatusInfo" => Ok(Action::GetStatusInfo),
        "GetNATRSIPStatus" => Ok(Action::GetNatRsipStatus),
        "GetExternalIPAddress" => Ok(Action::GetExternalIpAddress),
        "GetGenericPortMappingEntry" => Ok(Action::GetGeneric {
            index: args::ui2(call, "NewPortMappingIndex")?,
        }),
        "GetSpecificPortMappingEntry" => Ok(Action::GetSpecific(args::entry_key(call)?)),
        "AddPortMapping" => args::new_mapping(call, caller, PortChoice::Exact).map(Action::Add),
        "AddAnyPortMapping" => args::new_mapping(call, caller, PortChoice::Any).map(Action::Add),
        "DeletePortMapping" => args::entry_to_delete(call),
        "DeletePortMappingRange" => args::port_range(call).map(Action::DeleteRange),
        "GetListOfPortMappings" => Ok(Action::List {
            range: args::port_range(call)?,
            limit: match args::ui2(call, "NewNumberOfPorts")? {
                0 => MAX_LISTED,
                limit => MAX_LISTED.min(limit.into()),
            },
        }),
        "GetMaximumActiveConnections" => Ok(Action::GetMaximumActiveConnections),
        "GetActiveConnection" => Ok(Action::GetActiveConnection {
            index: args::ui2(call, "NewActiveConnectionIndex")?,
        }),
        "GetCommonLinkProperties" => Ok(Action::GetCommonLinkProperties),
        "GetTotalBytesSent" => Ok(Action::GetTotal(Total::BytesSent)),
        "GetTotalBytesReceived" => Ok(Action::GetTotal(Total::BytesReceived)),
        "GetTotalPacketsSent" => Ok(Action::GetTotal(Total::PacketsSent)),
        "GetTotalPacketsReceived" => Ok(Action::GetTotal(Total::PacketsReceived)),
        "GetDefaultConnectionService" => Ok(Action::GetDefaultConnectionService),
        "SetDefaultConnectionService" => Ok(Action::SetDefaultConnectionService {
            service: args::text(call, "NewDefaultConnectionService")?.to_owned(),
        }),
        // The tables offer nothing else; an action they gain is refused until it is handled here.
        _ => Err(UpnpError::INVALID_ACTION),
    }
}

/// Which rules hold for a call: those of version 1 or of later versions of its service.
pub const fn is_version_1(call: &Call) -> bool {
    call.version <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{firewall, protection};

    #[test]
    fn every_action_of_the_tables_is_handled() {
        // Those of these two are read elsewhere.
        let elsewhere = [firewall::SERVICE, protection::SERVICE];
        let here = |service: &&Service| !elsewhere.contains(&service.kind);
        for service in services::ALL.into_iter().filter(here) {
            for action in service.actions {
                let call = Call {
                    service: service.kind.to_owned(),
                    version: service.version,
                    action: action.name.to_owned(),
                    args: action
                        .inputs()
                        .map(|i| (i.name.to_owned(), value(i.name)))
                        .collect(),
                };
                let parsed = parse(&call, Ipv4Addr::new(192, 168, 1, 20));
                assert!(parsed.is_ok(), "{} {parsed:?}", action.name);
            }
        }
    }

    fn value(argument: &str) -> String {
        match argument {
            "NewProtocol" => "TCP",
            "NewRemoteHost" => "",
            "NewInternalClient" => "192.168.1.20",
            "NewPortMappingDescription" => "x",
            "NewConnectionType" => "IP_Routed",
            _ => "1",
        }
        .to_owned()
    }

    #[test]
    fn unknown_services_and_actions_are_401_and_optional_ones_602() {
        let call = |service: &str, version, action: &str| Call {
            service: service.to_owned(),
            version,
            action: action.to_owned(),
            args: Vec::new(),
        };
        for call in [
            call("WANIPConnection", 1, "AddAnyPortMapping"),
            call("WANIPConnection", 2, "Nonsense"),
            call("WANIPConnection", 3, "GetStatusInfo"),
            call("Nonsense", 1, "GetStatusInfo"),
        ] {
            let result = parse(&call, Ipv4Addr::new(192, 168, 1, 20));
            assert_eq!(result, Err(UpnpError::INVALID_ACTION), "{call:?}");
        }
        let missing = Err(UpnpError::OPTIONAL_ACTION_NOT_IMPLEMENTED);
        for call in [
            call("WANIPConnection", 1, "GetIdleDisconnectTime"),
            call("WANIPConnection", 2, "RequestTermination"),
            call("WANCommonInterfaceConfig", 1, "GetWANAccessProvider"),
        ] {
            let result = parse(&call, Ipv4Addr::new(192, 168, 1, 20));
            assert_eq!(result, missing, "{call:?}");
        }
    }
}
