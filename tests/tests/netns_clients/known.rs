//! Known control points: what each sends, from the first search to the last call, and what has to come of it.

use iwf_tests::ssdp;

/// A control point and what it does.
pub(super) struct Client {
    /// Who it is, or what it does otherwise than others.
    pub(super) who: &'static str,
    /// As it says in what it sends over HTTP.
    pub(super) user_agent: &'static str,
    /// Its searches in their order, head and all, and the version of the tree that each leads to, if to any.
    pub(super) searches: &'static [(&'static str, Option<u8>)],
    /// Where it sends them from; 0: any port.
    pub(super) port: u16,
    /// How far it sends them.
    pub(super) ttl: u32,
    /// How it writes requests over HTTP.
    pub(super) style: Style,
    /// What it calls then, at the gateway that its last search has found.
    pub(super) calls: &'static [Call],
}

/// How a request over HTTP is written.
#[derive(Clone, Copy)]
pub(super) enum Style {
    /// As the architecture shows it.
    Plain,
    /// HTTP/1.0 without Host, the action without quotes.
    Old,
    /// Names of headers in lower case, chunked.
    Modern,
}

/// One call and what has to come of it.
pub(super) struct Call {
    pub(super) service: &'static str,
    pub(super) action: &'static str,
    /// In arguments; `OWN` is the host's address.
    pub(super) arguments: &'static [(&'static str, &'static str)],
    /// What has to be in the answer, or the error code.
    pub(super) answer: Result<&'static str, u16>,
}

const fn call(
    service: &'static str,
    action: &'static str,
    arguments: &'static [(&'static str, &'static str)],
    answer: Result<&'static str, u16>,
) -> Call {
    Call {
        service,
        action,
        arguments,
        answer,
    }
}

const IP1: &str = "WANIPConnection:1";
const IP2: &str = "WANIPConnection:2";
const PPP: &str = "WANPPPConnection:1";
const COMMON: &str = "WANCommonInterfaceConfig:1";
const L3F: &str = "Layer3Forwarding:1";

macro_rules! add {
    ($service:expr, $port:literal, $protocol:literal, $internal:literal, $lease:literal, $answer:expr) => {
        call(
            $service,
            "AddPortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", $port),
                ("NewProtocol", $protocol),
                ("NewInternalPort", $internal),
                ("NewInternalClient", "OWN"),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "replayed"),
                ("NewLeaseDuration", $lease),
            ],
            $answer,
        )
    };
}

macro_rules! named {
    ($service:expr, $action:literal, $port:literal, $protocol:literal, $answer:expr) => {
        call(
            $service,
            $action,
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", $port),
                ("NewProtocol", $protocol),
            ],
            $answer,
        )
    };
}

macro_rules! listed {
    ($service:expr, $index:literal, $answer:expr) => {
        call(
            $service,
            "GetGenericPortMappingEntry",
            &[("NewPortMappingIndex", $index)],
            $answer,
        )
    };
}

macro_rules! search {
    ($target:literal) => {
        concat!(
            "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: ",
            $target,
            "\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n\r\n"
        )
    };
}

const IGD1: &str = search!("urn:schemas-upnp-org:device:InternetGatewayDevice:1");
const IGD2: &str = search!("urn:schemas-upnp-org:device:InternetGatewayDevice:2");
const WANIP1: &str = search!("urn:schemas-upnp-org:service:WANIPConnection:1");
const ROOT: &str = search!("upnp:rootdevice");
pub(super) const ALL: &str = search!("ssdp:all");
const WINDOWS: &str = "M-SEARCH * HTTP/1.1\r\nHost:239.255.255.250:1900\r\n\
    ST:urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nMan:\"ssdp:discover\"\r\nMX:3\r\n\r\n\r\n";
const UNQUOTED: &str = "M-SEARCH * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\nMan: ssdp:discover\r\nmx: 0\r\n\
    St: urn:schemas-upnp-org:service:WANIPConnection:1\r\n\r\n";
/// There is no such service, and nothing says that there is.
const PPP_SERVICE: &str = search!("urn:schemas-upnp-org:service:WANPPPConnection:1");

const PLAIN: Client = Client {
    who: "",
    user_agent: "",
    searches: &[(IGD1, Some(1))],
    port: 0,
    ttl: 2,
    style: Style::Plain,
    calls: &[],
};

#[path = "node.rs"]
mod node;

pub(super) use node::LIBRARIES;

pub(super) const CLIENTS: &[Client] = &[
    Client {
        who: "Windows, which asks all of this before it shows a gateway",
        user_agent: "Microsoft-Windows/10.0 UPnP/1.0 Microsoft-UPnP-Device-Host/1.0",
        searches: &[(WINDOWS, Some(1))],
        ttl: 4,
        calls: &[
            call(
                L3F,
                "GetDefaultConnectionService",
                &[],
                Ok(":WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1"),
            ),
            call(
                IP1,
                "GetConnectionTypeInfo",
                &[],
                Ok("<NewConnectionType>IP_Routed<"),
            ),
            call(IP1, "GetNATRSIPStatus", &[], Ok("<NewNATEnabled>1<")),
            call(COMMON, "GetTotalBytesSent", &[], Ok("NewTotalBytesSent")),
            call(
                COMMON,
                "GetTotalBytesReceived",
                &[],
                Ok("NewTotalBytesReceived"),
            ),
            call(
                COMMON,
                "GetTotalPacketsSent",
                &[],
                Ok("NewTotalPacketsSent"),
            ),
            call(
                COMMON,
                "GetTotalPacketsReceived",
                &[],
                Ok("NewTotalPacketsReceived"),
            ),
            call(
                COMMON,
                "GetCommonLinkProperties",
                &[],
                Ok("<NewPhysicalLinkStatus>Up<"),
            ),
            call(
                IP1,
                "GetStatusInfo",
                &[],
                Ok("<NewConnectionStatus>Connected<"),
            ),
            call(
                IP1,
                "GetExternalIPAddress",
                &[],
                Ok("<NewExternalIPAddress>100.64.0.2<"),
            ),
            add!(
                IP1,
                "7001",
                "UDP",
                "7001",
                "0",
                Ok("AddPortMappingResponse")
            ),
            listed!(IP1, "0", Ok("<NewExternalPort>7001<")),
            listed!(IP1, "1", Err(713)),
            named!(
                IP1,
                "DeletePortMapping",
                "7001",
                "UDP",
                Ok("DeletePortMappingResponse")
            ),
        ],
        ..PLAIN
    },
    Client {
        who: "Windows XP",
        user_agent: "Mozilla/4.0 (compatible; UPnP/1.0; Windows 9x)",
        searches: &[(WINDOWS, Some(1)), (ROOT, Some(1))],
        calls: &[call(
            IP1,
            "GetStatusInfo",
            &[],
            Ok("<NewConnectionStatus>Connected<"),
        )],
        ..PLAIN
    },
    Client {
        who: "Xbox: its port again and again, with a lease without end",
        user_agent: "Xbox/2.0.17559.0 UPnP/1.0 Xbox/2.0.17559.0",
        searches: &[(ROOT, Some(1)), (IGD1, Some(1))],
        calls: &[
            add!(
                IP1,
                "3074",
                "UDP",
                "3074",
                "0",
                Ok("AddPortMappingResponse")
            ),
            add!(
                IP1,
                "3074",
                "UDP",
                "3074",
                "0",
                Ok("AddPortMappingResponse")
            ),
            named!(
                IP1,
                "GetSpecificPortMappingEntry",
                "3074",
                "UDP",
                Ok("<NewInternalPort>3074<")
            ),
            listed!(IP1, "1", Err(713)),
            named!(
                IP1,
                "DeletePortMapping",
                "3074",
                "UDP",
                Ok("DeletePortMappingResponse")
            ),
        ],
        ..PLAIN
    },
    Client {
        who: "PlayStation: looks whether the port is free, takes it, and goes to another one at a conflict",
        user_agent: "PlayStation 4 UPnP/1.0",
        calls: &[
            named!(IP1, "GetSpecificPortMappingEntry", "9308", "UDP", Err(714)),
            add!(
                IP1,
                "9308",
                "UDP",
                "9308",
                "0",
                Ok("AddPortMappingResponse")
            ),
            named!(
                IP1,
                "GetSpecificPortMappingEntry",
                "9308",
                "UDP",
                Ok("<NewEnabled>1<")
            ),
            add!(IP1, "6199", "UDP", "9309", "0", Err(718)),
            add!(
                IP1,
                "9309",
                "UDP",
                "9309",
                "0",
                Ok("AddPortMappingResponse")
            ),
            named!(
                IP1,
                "DeletePortMapping",
                "9308",
                "UDP",
                Ok("DeletePortMappingResponse")
            ),
            named!(
                IP1,
                "DeletePortMapping",
                "9309",
                "UDP",
                Ok("DeletePortMappingResponse")
            ),
        ],
        ..PLAIN
    },
    Client {
        who: "searches for everything, one after the other, and uses version 2",
        user_agent: "Debian/12, UPnP/1.1, MiniUPnPc/2.2.4",
        searches: &[
            (ROOT, Some(1)),
            (PPP_SERVICE, None),
            (WANIP1, Some(1)),
            (IGD1, Some(1)),
            (IGD2, Some(2)),
        ],
        calls: &[
            call(
                IP2,
                "AddAnyPortMapping",
                &[
                    ("NewRemoteHost", ""),
                    // Held by another host.
                    ("NewExternalPort", "6199"),
                    ("NewProtocol", "UDP"),
                    ("NewInternalPort", "7101"),
                    ("NewInternalClient", "OWN"),
                    ("NewEnabled", "1"),
                    ("NewPortMappingDescription", "replayed"),
                    ("NewLeaseDuration", "600"),
                ],
                Ok("<NewReservedPort>"),
            ),
            call(
                IP2,
                "GetListOfPortMappings",
                &[
                    ("NewStartPort", "0"),
                    ("NewEndPort", "65535"),
                    ("NewProtocol", "UDP"),
                    ("NewManage", "1"),
                    ("NewNumberOfPorts", "1000"),
                ],
                Ok("<NewPortListing><![CDATA[<p:PortMappingList "),
            ),
            call(
                IP2,
                "DeletePortMappingRange",
                &[
                    ("NewStartPort", "1024"),
                    ("NewEndPort", "65535"),
                    ("NewProtocol", "UDP"),
                    ("NewManage", "0"),
                ],
                Ok("DeletePortMappingRangeResponse"),
            ),
        ],
        ..PLAIN
    },
    Client {
        who: "reads a listing as the standard writes it",
        user_agent: "GUPnP/1.6.3 DLNADOC/1.50",
        searches: &[(IGD2, Some(2))],
        calls: &[
            add!(
                IP2,
                "7201",
                "TCP",
                "7201",
                "600",
                Ok("AddPortMappingResponse")
            ),
            call(
                IP2,
                "GetListOfPortMappings",
                &[
                    ("NewStartPort", "7201"),
                    ("NewEndPort", "7201"),
                    ("NewProtocol", "TCP"),
                    ("NewManage", "0"),
                    ("NewNumberOfPorts", "0"),
                ],
                Ok("<NewPortListing>&lt;p:PortMappingList "),
            ),
            named!(
                IP2,
                "DeletePortMapping",
                "7201",
                "TCP",
                Ok("DeletePortMappingResponse")
            ),
        ],
        ..PLAIN
    },
    Client {
        who: "a torrent client: both protocols, and another port of its own the next time",
        user_agent: "",
        searches: &[(ALL, Some(1)), (IGD1, Some(1))],
        style: Style::Old,
        calls: &[
            add!(
                IP1,
                "6881",
                "TCP",
                "6881",
                "0",
                Ok("AddPortMappingResponse")
            ),
            add!(
                IP1,
                "6881",
                "UDP",
                "6881",
                "0",
                Ok("AddPortMappingResponse")
            ),
            add!(
                IP1,
                "6881",
                "TCP",
                "6882",
                "0",
                Ok("AddPortMappingResponse")
            ),
            named!(
                IP1,
                "GetSpecificPortMappingEntry",
                "6881",
                "TCP",
                Ok("<NewInternalPort>6882<")
            ),
            listed!(IP1, "0", Ok("<NewExternalPort>6881<")),
            listed!(IP1, "1", Ok("<NewExternalPort>6881<")),
            listed!(IP1, "2", Err(713)),
            named!(
                IP1,
                "DeletePortMapping",
                "6881",
                "TCP",
                Ok("DeletePortMappingResponse")
            ),
            named!(
                IP1,
                "DeletePortMapping",
                "6881",
                "UDP",
                Ok("DeletePortMappingResponse")
            ),
            named!(IP1, "DeletePortMapping", "6881", "UDP", Err(714)),
        ],
        ..PLAIN
    },
    Client {
        who: "a VPN that takes the root device for granted and the PPP service for the connection",
        user_agent: "Go-http-client/1.1",
        searches: &[(ROOT, Some(1))],
        style: Style::Modern,
        calls: &[
            call(
                PPP,
                "GetExternalIPAddress",
                &[],
                Ok("<NewExternalIPAddress>100.64.0.2<"),
            ),
            add!(
                PPP,
                "41641",
                "UDP",
                "41641",
                "7200",
                Ok("AddPortMappingResponse")
            ),
            named!(
                PPP,
                "DeletePortMapping",
                "41641",
                "UDP",
                Ok("DeletePortMappingResponse")
            ),
        ],
        ..PLAIN
    },
    Client {
        who: "a script that searches from the port of discovery, without quotes and at once",
        user_agent: "python",
        searches: &[(UNQUOTED, Some(1))],
        port: ssdp::PORT,
        ttl: 32,
        calls: &[call(
            IP1,
            "GetExternalIPAddress",
            &[],
            Ok("<NewExternalIPAddress>"),
        )],
        ..PLAIN
    },
];
