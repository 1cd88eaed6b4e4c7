//! Libraries of Node.js, which write what others do not.

use super::{Client, IGD2, IP1, IP2, PLAIN, call};

macro_rules! any {
    ($protocol:literal) => {
        call(
            IP2,
            "AddAnyPortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", "4001"),
                ("NewProtocol", $protocol),
                ("NewInternalPort", "4001"),
                ("NewInternalClient", "OWN"),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "js-libp2p"),
                ("NewLeaseDuration", "3600"),
            ],
            Ok("<NewReservedPort>4001<"),
        )
    };
}

macro_rules! closed_by_node {
    ($answer:expr) => {
        call(
            IP2,
            "DeletePortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", "4001"),
                ("NewProtocol", ""),
            ],
            $answer,
        )
    };
}

macro_rules! from_nowhere {
    ($action:literal, $answer:expr $(, $more:expr)* $(,)?) => {
        call(
            IP1,
            $action,
            &[
                ("NewRemoteHost", "undefined"),
                ("NewExternalPort", "12345"),
                ("NewProtocol", "TCP"),
                $($more),*
            ],
            $answer,
        )
    };
}

pub(in super::super) const LIBRARIES: &[Client] = &[
    Client {
        who: "js-libp2p: takes any port by version 2, and closes one at a time without a protocol",
        user_agent: "node",
        searches: &[(IGD2, Some(2))],
        calls: &[
            any!("TCP"),
            any!("UDP"),
            closed_by_node!(Ok("DeletePortMappingResponse")),
            named!(IP2, "GetSpecificPortMappingEntry", "4001", "TCP", Err(714)),
            closed_by_node!(Ok("DeletePortMappingResponse")),
            closed_by_node!(Err(601)),
        ],
        ..PLAIN
    },
    Client {
        who: "a library of Node.js that is told of no remote host",
        user_agent: "axios/0.24.0",
        calls: &[
            from_nowhere!(
                "AddPortMapping",
                Ok("AddPortMappingResponse"),
                ("NewInternalPort", "54321"),
                ("NewInternalClient", "OWN"),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "node:nat:upnp"),
                ("NewLeaseDuration", "1800"),
            ),
            listed!(IP1, "0", Ok("<NewRemoteHost></NewRemoteHost>")),
            from_nowhere!("DeletePortMapping", Ok("DeletePortMappingResponse")),
        ],
        ..PLAIN
    },
];
