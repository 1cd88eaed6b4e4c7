//! The services served here, as data.
//!
//! Read before editing: WANIPConnection:2 sections 2.3 and 2.5, WANIPConnection:1, WANCommonInterfaceConfig:1,
//! Layer3Forwarding:1, DeviceProtection:1. Optional actions that are not listed are answered with 401.
#![forbid(unsafe_code)]

use super::scpd::{Action, Argument, DataType, Direction, Service, Variable};

/// Every service in every version that can be called.
pub static ALL: [&Service; 6] = [
    &DEVICE_PROTECTION,
    &LAYER3_FORWARDING,
    &WAN_COMMON_INTERFACE_CONFIG,
    &WAN_IP_CONNECTION_1,
    &WAN_IP_CONNECTION_2,
    &WAN_IPV6_FIREWALL_CONTROL,
];

/// Who may do what that not everybody may.
pub static DEVICE_PROTECTION: Service = Service {
    kind: "DeviceProtection",
    version: 1,
    id: "DeviceProtection1",
    path: "DeviceProtection",
    not_offered: &[],
    actions: &[
        action(
            "SendSetupMessage",
            &[
                input("ProtocolType", "A_ARG_TYPE_String"),
                input("InMessage", "A_ARG_TYPE_Base64"),
                output("OutMessage", "A_ARG_TYPE_Base64"),
            ],
        ),
        action(
            "GetSupportedProtocols",
            &[output("ProtocolList", "SupportedProtocols")],
        ),
        action(
            "GetAssignedRoles",
            &[output("RoleList", "A_ARG_TYPE_String")],
        ),
        action(
            "GetRolesForAction",
            &[
                input("DeviceUDN", "A_ARG_TYPE_String"),
                input("ServiceId", "A_ARG_TYPE_String"),
                input("ActionName", "A_ARG_TYPE_String"),
                output("RoleList", "A_ARG_TYPE_String"),
                output("RestrictedRoleList", "A_ARG_TYPE_String"),
            ],
        ),
        action(
            "GetUserLoginChallenge",
            &[
                input("ProtocolType", "A_ARG_TYPE_String"),
                input("Name", "A_ARG_TYPE_String"),
                output("Salt", "A_ARG_TYPE_Base64"),
                output("Challenge", "A_ARG_TYPE_Base64"),
            ],
        ),
        action(
            "UserLogin",
            &[
                input("ProtocolType", "A_ARG_TYPE_String"),
                input("Challenge", "A_ARG_TYPE_Base64"),
                input("Authenticator", "A_ARG_TYPE_Base64"),
            ],
        ),
        action("UserLogout", &[]),
        action("GetACLData", &[output("ACL", "A_ARG_TYPE_ACL")]),
        action(
            "AddIdentityList",
            &[
                input("IdentityList", "A_ARG_TYPE_IdentityList"),
                output("IdentityListResult", "A_ARG_TYPE_IdentityList"),
            ],
        ),
        action(
            "RemoveIdentity",
            &[input("Identity", "A_ARG_TYPE_Identity")],
        ),
        action(
            "SetUserLoginPassword",
            &[
                input("ProtocolType", "A_ARG_TYPE_String"),
                input("Name", "A_ARG_TYPE_String"),
                input("Stored", "A_ARG_TYPE_Base64"),
                input("Salt", "A_ARG_TYPE_Base64"),
            ],
        ),
        action(
            "AddRolesForIdentity",
            &[
                input("Identity", "A_ARG_TYPE_Identity"),
                input("RoleList", "A_ARG_TYPE_String"),
            ],
        ),
        action(
            "RemoveRolesForIdentity",
            &[
                input("Identity", "A_ARG_TYPE_Identity"),
                input("RoleList", "A_ARG_TYPE_String"),
            ],
        ),
    ],
    variables: &[
        evented("SetupReady", DataType::Boolean),
        plain("SupportedProtocols", DataType::String),
        plain("A_ARG_TYPE_ACL", DataType::String),
        plain("A_ARG_TYPE_IdentityList", DataType::String),
        plain("A_ARG_TYPE_Identity", DataType::String),
        plain("A_ARG_TYPE_Base64", DataType::Base64),
        plain("A_ARG_TYPE_String", DataType::String),
    ],
};

/// Which connection service is the default one.
pub static LAYER3_FORWARDING: Service = Service {
    kind: "Layer3Forwarding",
    version: 1,
    id: "L3Forwarding1",
    path: "L3Forwarding",
    not_offered: &[],
    actions: &[
        action(
            "SetDefaultConnectionService",
            &[input(
                "NewDefaultConnectionService",
                "DefaultConnectionService",
            )],
        ),
        action(
            "GetDefaultConnectionService",
            &[output(
                "NewDefaultConnectionService",
                "DefaultConnectionService",
            )],
        ),
    ],
    variables: &[evented("DefaultConnectionService", DataType::String)],
};

/// The WAN link: what Windows asks for before it shows a gateway.
pub static WAN_COMMON_INTERFACE_CONFIG: Service = Service {
    kind: "WANCommonInterfaceConfig",
    version: 1,
    id: "WANCommonIFC1",
    path: "WANCommonIFC",
    not_offered: &[
        "SetEnabledForInternet",
        "GetEnabledForInternet",
        "GetWANAccessProvider",
    ],
    actions: &[
        action(
            "GetCommonLinkProperties",
            &[
                output("NewWANAccessType", "WANAccessType"),
                output("NewLayer1UpstreamMaxBitRate", "Layer1UpstreamMaxBitRate"),
                output(
                    "NewLayer1DownstreamMaxBitRate",
                    "Layer1DownstreamMaxBitRate",
                ),
                output("NewPhysicalLinkStatus", "PhysicalLinkStatus"),
            ],
        ),
        action(
            "GetTotalBytesSent",
            &[output("NewTotalBytesSent", "TotalBytesSent")],
        ),
        action(
            "GetTotalBytesReceived",
            &[output("NewTotalBytesReceived", "TotalBytesReceived")],
        ),
        action(
            "GetTotalPacketsSent",
            &[output("NewTotalPacketsSent", "TotalPacketsSent")],
        ),
        action(
            "GetTotalPacketsReceived",
            &[output("NewTotalPacketsReceived", "TotalPacketsReceived")],
        ),
        action(
            "GetMaximumActiveConnections",
            &[output(
                "NewMaximumActiveConnections",
                "MaximumActiveConnections",
            )],
        ),
        action(
            "GetActiveConnection",
            &[
                input("NewActiveConnectionIndex", "NumberOfActiveConnections"),
                output(
                    "NewActiveConnDeviceContainer",
                    "ActiveConnectionDeviceContainer",
                ),
                output("NewActiveConnectionServiceID", "ActiveConnectionServiceID"),
            ],
        ),
    ],
    variables: &[
        one_of("WANAccessType", &["DSL", "POTS", "Cable", "Ethernet"]),
        plain("Layer1UpstreamMaxBitRate", DataType::Ui4),
        plain("Layer1DownstreamMaxBitRate", DataType::Ui4),
        Variable {
            evented: true,
            ..one_of(
                "PhysicalLinkStatus",
                &["Up", "Down", "Initializing", "Unavailable"],
            )
        },
        plain("TotalBytesSent", DataType::Ui4),
        plain("TotalBytesReceived", DataType::Ui4),
        plain("TotalPacketsSent", DataType::Ui4),
        plain("TotalPacketsReceived", DataType::Ui4),
        plain("MaximumActiveConnections", DataType::Ui2),
        plain("NumberOfActiveConnections", DataType::Ui2),
        plain("ActiveConnectionDeviceContainer", DataType::String),
        plain("ActiveConnectionServiceID", DataType::String),
    ],
};

/// What the standard has of a connection that ends by itself or on demand; this one is up while the WAN is.
const NOT_OFFERED_OF_A_CONNECTION: &[&str] = &[
    "RequestTermination",
    "SetAutoDisconnectTime",
    "SetIdleDisconnectTime",
    "SetWarnDisconnectDelay",
    "GetAutoDisconnectTime",
    "GetIdleDisconnectTime",
    "GetWarnDisconnectDelay",
];

/// The connection and its mappings, version 1.
pub static WAN_IP_CONNECTION_1: Service = Service {
    kind: "WANIPConnection",
    version: 1,
    id: "WANIPConn1",
    path: "WANIPConn",
    not_offered: NOT_OFFERED_OF_A_CONNECTION,
    actions: &[
        SET_CONNECTION_TYPE,
        GET_CONNECTION_TYPE_INFO,
        REQUEST_CONNECTION,
        FORCE_TERMINATION,
        GET_STATUS_INFO,
        GET_NAT_RSIP_STATUS,
        GET_GENERIC_PORT_MAPPING_ENTRY,
        GET_SPECIFIC_PORT_MAPPING_ENTRY,
        ADD_PORT_MAPPING,
        DELETE_PORT_MAPPING,
        GET_EXTERNAL_IP_ADDRESS,
    ],
    variables: &[
        CONNECTION_TYPE,
        POSSIBLE_CONNECTION_TYPES,
        CONNECTION_STATUS,
        UPTIME,
        LAST_CONNECTION_ERROR,
        RSIP_AVAILABLE,
        NAT_ENABLED,
        EXTERNAL_IP_ADDRESS,
        PORT_MAPPING_NUMBER_OF_ENTRIES,
        PORT_MAPPING_ENABLED,
        plain("PortMappingLeaseDuration", DataType::Ui4),
        REMOTE_HOST,
        EXTERNAL_PORT,
        plain("InternalPort", DataType::Ui2),
        PORT_MAPPING_PROTOCOL,
        INTERNAL_CLIENT,
        PORT_MAPPING_DESCRIPTION,
    ],
};

/// The connection and its mappings, version 2.
pub static WAN_IP_CONNECTION_2: Service = Service {
    kind: "WANIPConnection",
    version: 2,
    id: "WANIPConn1",
    path: "WANIPConn",
    not_offered: NOT_OFFERED_OF_A_CONNECTION,
    actions: &[
        SET_CONNECTION_TYPE,
        GET_CONNECTION_TYPE_INFO,
        REQUEST_CONNECTION,
        FORCE_TERMINATION,
        GET_STATUS_INFO,
        GET_NAT_RSIP_STATUS,
        GET_GENERIC_PORT_MAPPING_ENTRY,
        GET_SPECIFIC_PORT_MAPPING_ENTRY,
        ADD_PORT_MAPPING,
        ADD_ANY_PORT_MAPPING,
        DELETE_PORT_MAPPING,
        DELETE_PORT_MAPPING_RANGE,
        GET_EXTERNAL_IP_ADDRESS,
        GET_LIST_OF_PORT_MAPPINGS,
    ],
    variables: &[
        CONNECTION_TYPE,
        POSSIBLE_CONNECTION_TYPES,
        CONNECTION_STATUS,
        UPTIME,
        LAST_CONNECTION_ERROR,
        RSIP_AVAILABLE,
        NAT_ENABLED,
        EXTERNAL_IP_ADDRESS,
        PORT_MAPPING_NUMBER_OF_ENTRIES,
        PORT_MAPPING_ENABLED,
        Variable {
            range: Some((0, MAX_LEASE)),
            ..plain("PortMappingLeaseDuration", DataType::Ui4)
        },
        REMOTE_HOST,
        EXTERNAL_PORT,
        Variable {
            range: Some((1, 65535)),
            ..plain("InternalPort", DataType::Ui2)
        },
        PORT_MAPPING_PROTOCOL,
        INTERNAL_CLIENT,
        PORT_MAPPING_DESCRIPTION,
        evented("SystemUpdateID", DataType::Ui4),
        plain("A_ARG_TYPE_Manage", DataType::Boolean),
        plain("A_ARG_TYPE_PortListing", DataType::String),
    ],
};

/// Pinholes of the IPv6 filter.
pub static WAN_IPV6_FIREWALL_CONTROL: Service = Service {
    kind: "WANIPv6FirewallControl",
    version: 1,
    id: "WANIPv6Firewall1",
    path: "WANIPv6Firewall",
    not_offered: &[],
    actions: &[
        action(
            "GetFirewallStatus",
            &[
                output("FirewallEnabled", "FirewallEnabled"),
                output("InboundPinholeAllowed", "InboundPinholeAllowed"),
            ],
        ),
        action(
            "GetOutboundPinholeTimeout",
            &[
                input("RemoteHost", "A_ARG_TYPE_IPv6Address"),
                input("RemotePort", "A_ARG_TYPE_Port"),
                input("InternalClient", "A_ARG_TYPE_IPv6Address"),
                input("InternalPort", "A_ARG_TYPE_Port"),
                input("Protocol", "A_ARG_TYPE_Protocol"),
                output(
                    "OutboundPinholeTimeout",
                    "A_ARG_TYPE_OutboundPinholeTimeout",
                ),
            ],
        ),
        action(
            "AddPinhole",
            &[
                input("RemoteHost", "A_ARG_TYPE_IPv6Address"),
                input("RemotePort", "A_ARG_TYPE_Port"),
                input("InternalClient", "A_ARG_TYPE_IPv6Address"),
                input("InternalPort", "A_ARG_TYPE_Port"),
                input("Protocol", "A_ARG_TYPE_Protocol"),
                input("LeaseTime", "A_ARG_TYPE_LeaseTime"),
                output("UniqueID", "A_ARG_TYPE_UniqueID"),
            ],
        ),
        action(
            "UpdatePinhole",
            &[
                input("UniqueID", "A_ARG_TYPE_UniqueID"),
                input("NewLeaseTime", "A_ARG_TYPE_LeaseTime"),
            ],
        ),
        action("DeletePinhole", &[input("UniqueID", "A_ARG_TYPE_UniqueID")]),
        action(
            "GetPinholePackets",
            &[
                input("UniqueID", "A_ARG_TYPE_UniqueID"),
                output("PinholePackets", "A_ARG_TYPE_PinholePackets"),
            ],
        ),
        action(
            "CheckPinholeWorking",
            &[
                input("UniqueID", "A_ARG_TYPE_UniqueID"),
                output("IsWorking", "A_ARG_TYPE_Boolean"),
            ],
        ),
    ],
    variables: &[
        evented("FirewallEnabled", DataType::Boolean),
        evented("InboundPinholeAllowed", DataType::Boolean),
        plain("A_ARG_TYPE_OutboundPinholeTimeout", DataType::Ui4),
        plain("A_ARG_TYPE_IPv6Address", DataType::String),
        plain("A_ARG_TYPE_Port", DataType::Ui2),
        plain("A_ARG_TYPE_Protocol", DataType::Ui2),
        Variable {
            range: Some((1, MAX_PINHOLE_LEASE)),
            ..plain("A_ARG_TYPE_LeaseTime", DataType::Ui4)
        },
        plain("A_ARG_TYPE_UniqueID", DataType::Ui2),
        plain("A_ARG_TYPE_PinholePackets", DataType::Ui4),
        plain("A_ARG_TYPE_Boolean", DataType::Boolean),
    ],
};

/// WANIPv6FirewallControl:1 section 2.3: longest lease of a pinhole in seconds.
pub const MAX_PINHOLE_LEASE: u32 = 86_400;

/// WANIPConnection:2 section 2.3.16: longest lease in seconds.
pub const MAX_LEASE: u32 = 604_800;

/// The service that a call names. Some control points call the PPP connection service of a gateway that has
/// only the IP one: its actions are the same, so it is taken for version 1 of that.
pub fn find(kind: &str, version: u8) -> Option<&'static Service> {
    let kind = match (kind, version) {
        ("WANPPPConnection", 1) => "WANIPConnection",
        (kind, _) => kind,
    };
    ALL.into_iter()
        .find(|service| service.kind == kind && service.version == version)
}

const SET_CONNECTION_TYPE: Action = action(
    "SetConnectionType",
    &[input("NewConnectionType", "ConnectionType")],
);
const GET_CONNECTION_TYPE_INFO: Action = action(
    "GetConnectionTypeInfo",
    &[
        output("NewConnectionType", "ConnectionType"),
        output("NewPossibleConnectionTypes", "PossibleConnectionTypes"),
    ],
);
const REQUEST_CONNECTION: Action = action("RequestConnection", &[]);
const FORCE_TERMINATION: Action = action("ForceTermination", &[]);
const GET_STATUS_INFO: Action = action(
    "GetStatusInfo",
    &[
        output("NewConnectionStatus", "ConnectionStatus"),
        output("NewLastConnectionError", "LastConnectionError"),
        output("NewUptime", "Uptime"),
    ],
);
const GET_NAT_RSIP_STATUS: Action = action(
    "GetNATRSIPStatus",
    &[
        output("NewRSIPAvailable", "RSIPAvailable"),
        output("NewNATEnabled", "NATEnabled"),
    ],
);
const GET_GENERIC_PORT_MAPPING_ENTRY: Action = action(
    "GetGenericPortMappingEntry",
    &[
        input("NewPortMappingIndex", "PortMappingNumberOfEntries"),
        output("NewRemoteHost", "RemoteHost"),
        output("NewExternalPort", "ExternalPort"),
        output("NewProtocol", "PortMappingProtocol"),
        output("NewInternalPort", "InternalPort"),
        output("NewInternalClient", "InternalClient"),
        output("NewEnabled", "PortMappingEnabled"),
        output("NewPortMappingDescription", "PortMappingDescription"),
        output("NewLeaseDuration", "PortMappingLeaseDuration"),
    ],
);
const GET_SPECIFIC_PORT_MAPPING_ENTRY: Action = action(
    "GetSpecificPortMappingEntry",
    &[
        input("NewRemoteHost", "RemoteHost"),
        input("NewExternalPort", "ExternalPort"),
        input("NewProtocol", "PortMappingProtocol"),
        output("NewInternalPort", "InternalPort"),
        output("NewInternalClient", "InternalClient"),
        output("NewEnabled", "PortMappingEnabled"),
        output("NewPortMappingDescription", "PortMappingDescription"),
        output("NewLeaseDuration", "PortMappingLeaseDuration"),
    ],
);
const ADD_PORT_MAPPING: Action = action(
    "AddPortMapping",
    &[
        input("NewRemoteHost", "RemoteHost"),
        input("NewExternalPort", "ExternalPort"),
        input("NewProtocol", "PortMappingProtocol"),
        input("NewInternalPort", "InternalPort"),
        input("NewInternalClient", "InternalClient"),
        input("NewEnabled", "PortMappingEnabled"),
        input("NewPortMappingDescription", "PortMappingDescription"),
        input("NewLeaseDuration", "PortMappingLeaseDuration"),
    ],
);
const ADD_ANY_PORT_MAPPING: Action = action(
    "AddAnyPortMapping",
    &[
        input("NewRemoteHost", "RemoteHost"),
        input("NewExternalPort", "ExternalPort"),
        input("NewProtocol", "PortMappingProtocol"),
        input("NewInternalPort", "InternalPort"),
        input("NewInternalClient", "InternalClient"),
        input("NewEnabled", "PortMappingEnabled"),
        input("NewPortMappingDescription", "PortMappingDescription"),
        input("NewLeaseDuration", "PortMappingLeaseDuration"),
        output("NewReservedPort", "ExternalPort"),
    ],
);
const DELETE_PORT_MAPPING: Action = action(
    "DeletePortMapping",
    &[
        input("NewRemoteHost", "RemoteHost"),
        input("NewExternalPort", "ExternalPort"),
        input("NewProtocol", "PortMappingProtocol"),
    ],
);
const DELETE_PORT_MAPPING_RANGE: Action = action(
    "DeletePortMappingRange",
    &[
        input("NewStartPort", "ExternalPort"),
        input("NewEndPort", "ExternalPort"),
        input("NewProtocol", "PortMappingProtocol"),
        input("NewManage", "A_ARG_TYPE_Manage"),
    ],
);
const GET_LIST_OF_PORT_MAPPINGS: Action = action(
    "GetListOfPortMappings",
    &[
        input("NewStartPort", "ExternalPort"),
        input("NewEndPort", "ExternalPort"),
        input("NewProtocol", "PortMappingProtocol"),
        input("NewManage", "A_ARG_TYPE_Manage"),
        input("NewNumberOfPorts", "PortMappingNumberOfEntries"),
        output("NewPortListing", "A_ARG_TYPE_PortListing"),
    ],
);
const GET_EXTERNAL_IP_ADDRESS: Action = action(
    "GetExternalIPAddress",
    &[output("NewExternalIPAddress", "ExternalIPAddress")],
);

const CONNECTION_TYPE: Variable = one_of(
    "ConnectionType",
    &["Unconfigured", "IP_Routed", "IP_Bridged"],
);
// A list in one string, so that no single value of ConnectionType is its allowed value.
const POSSIBLE_CONNECTION_TYPES: Variable = evented("PossibleConnectionTypes", DataType::String);
const CONNECTION_STATUS: Variable = Variable {
    evented: true,
    ..one_of(
        "ConnectionStatus",
        &[
            "Unconfigured",
            "Connecting",
            "Connected",
            "PendingDisconnect",
            "Disconnecting",
            "Disconnected",
        ],
    )
};
const UPTIME: Variable = plain("Uptime", DataType::Ui4);
const LAST_CONNECTION_ERROR: Variable = one_of(
    "LastConnectionError",
    &[
        "ERROR_NONE",
        "ERROR_COMMAND_ABORTED",
        "ERROR_NOT_ENABLED_FOR_INTERNET",
        "ERROR_ISP_DISCONNECT",
        "ERROR_USER_DISCONNECT",
        "ERROR_IDLE_DISCONNECT",
        "ERROR_FORCED_DISCONNECT",
        "ERROR_NO_CARRIER",
        "ERROR_IP_CONFIGURATION",
        "ERROR_UNKNOWN",
    ],
);
const RSIP_AVAILABLE: Variable = plain("RSIPAvailable", DataType::Boolean);
const NAT_ENABLED: Variable = plain("NATEnabled", DataType::Boolean);
const EXTERNAL_IP_ADDRESS: Variable = evented("ExternalIPAddress", DataType::String);
const PORT_MAPPING_NUMBER_OF_ENTRIES: Variable =
    evented("PortMappingNumberOfEntries", DataType::Ui2);
const PORT_MAPPING_ENABLED: Variable = plain("PortMappingEnabled", DataType::Boolean);
const REMOTE_HOST: Variable = plain("RemoteHost", DataType::String);
const EXTERNAL_PORT: Variable = plain("ExternalPort", DataType::Ui2);
const PORT_MAPPING_PROTOCOL: Variable = one_of("PortMappingProtocol", &["TCP", "UDP"]);
const INTERNAL_CLIENT: Variable = plain("InternalClient", DataType::String);
const PORT_MAPPING_DESCRIPTION: Variable = plain("PortMappingDescription", DataType::String);

const fn action(name: &'static str, arguments: &'static [Argument]) -> Action {
    Action { name, arguments }
}

const fn input(name: &'static str, variable: &'static str) -> Argument {
    Argument {
        name,
        direction: Direction::In,
        variable,
    }
}

const fn output(name: &'static str, variable: &'static str) -> Argument {
    Argument {
        name,
        direction: Direction::Out,
        variable,
    }
}

const fn plain(name: &'static str, data: DataType) -> Variable {
    Variable {
        name,
        data,
        evented: false,
        allowed: &[],
        range: None,
    }
}

const fn evented(name: &'static str, data: DataType) -> Variable {
    Variable {
        evented: true,
        ..plain(name, data)
    }
}

const fn one_of(name: &'static str, allowed: &'static [&'static str]) -> Variable {
    Variable {
        allowed,
        ..plain(name, DataType::String)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_closed() {
        for service in ALL {
            for action in service.actions {
                for argument in action.arguments {
                    let variable = service.variable(argument.variable);
                    assert!(variable.is_some(), "{} {}", action.name, argument.name);
                }
                let outputs_last = action
                    .arguments
                    .is_sorted_by_key(|argument| argument.direction == Direction::Out);
                assert!(outputs_last, "{}", action.name);
            }
            for variable in service.variables {
                let used = service
                    .actions
                    .iter()
                    .flat_map(|action| action.arguments)
                    .any(|argument| argument.variable == variable.name);
                assert!(used || variable.evented, "{}", variable.name);
            }
        }
    }
}
