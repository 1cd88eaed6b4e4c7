//! What known control points do, from the first search to the last call, as data: each is played as octets to a running
//! daemon and has to get what makes it work. What they have in common stands in [`play`].

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::igd::{self, Answer, Gateway};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::ssdp::{self, Question};
use iwf_tests::topology::{GATEWAY, LAN1, LAN2, WAN};
use iwf_tests::wait;

/// Some control points wait no longer for the first answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A control point and what it does.
struct Client {
    /// Who it is, or what it does otherwise than others.
    who: &'static str,
    /// As it says in what it sends over HTTP.
    user_agent: &'static str,
    /// Its searches in their order, head and all, and the version of the tree that each leads to, if to any.
    searches: &'static [(&'static str, Option<u8>)],
    /// Where it sends them from; 0: any port.
    port: u16,
    /// How far it sends them.
    ttl: u32,
    /// How it writes requests over HTTP.
    style: Style,
    /// What it calls then, at the gateway that its last search has found.
    calls: &'static [Call],
}

/// How a request over HTTP is written.
#[derive(Clone, Copy)]
enum Style {
    /// As the architecture shows it.
    Plain,
    /// HTTP/1.0 without Host, the action without quotes.
    Old,
    /// Names of headers in lower case, chunked, the connection kept.
    Modern,
}

/// One call and what has to come of it.
struct Call {
    service: &'static str,
    action: &'static str,
    /// In arguments; `OWN` is the host's address.
    arguments: &'static [(&'static str, &'static str)],
    /// What has to be in the answer, or the error code.
    answer: Result<&'static str, u16>,
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
const ALL: &str = search!("ssdp:all");
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

const CLIENTS: &[Client] = &[
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

/// Searches, reads the description as that control point, and finds the control URL of each service it calls.
fn play(host: &Namespace, own: Ipv4Addr, client: &Client) -> Result<()> {
    let mut found = None;
    for (search, version) in client.searches {
        let question = Question {
            from: (own.into(), client.port),
            to: ssdp::GROUP,
            ttl: client.ttl,
            octets: search.as_bytes(),
        };
        // Answers to a search for everything are spread over MX.
        let patience = if *search == ALL { 3 } else { 1 } * PATIENCE;
        let answer = ssdp::ask(host, "eth0", &question, patience * wait::patience())?;
        let Some(version) = version else {
            ensure!(answer.is_none(), "{search}: {answer:?}");
            continue;
        };
        let answer = answer.with_context(|| format!("no answer to {search}"))?;
        let sent = search
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("st"))
            .map(|(_, value)| value.trim());
        let is_all = sent == Some("ssdp:all");
        ensure!(is_all || answer.header("ST") == sent, "{answer:?}");
        // Whoever compares with its default router has to find it there.
        let expected = format!("http://{GATEWAY}:5000/igd{version}/desc.xml");
        ensure!(answer.header("LOCATION") == Some(&expected), "{answer:?}");
        found = Some(*version);
    }
    let version = found.context("found nothing")?;
    let path = format!("/igd{version}/desc.xml");
    let description = send(host, &request(client, "GET", &path, "", ""))?.ok()?;
    let text = &description.text;
    ensure!(
        text.contains("<presentationURL>/</presentationURL>"),
        "{text}"
    );
    let root = format!("InternetGatewayDevice:{version}</deviceType>");
    ensure!(text.contains(&root), "{text}");
    ensure!(version == 2 || !text.contains(":2<"), "{text}");
    for step in client.calls {
        let answer = step
            .make(host, client, text, own)
            .with_context(|| format!("{} {:?}", step.action, step.arguments))?;
        match step.answer {
            Ok(expected) => ensure!(
                answer.status == 200 && answer.text.contains(expected),
                "{}: no {expected} in {}",
                step.action,
                answer.text
            ),
            Err(code) => ensure!(
                answer.error() == Some(code),
                "{}: not {code}: {}",
                step.action,
                answer.text
            ),
        }
    }
    Ok(())
}

fn send(host: &Namespace, octets: &[u8]) -> Result<Answer> {
    igd::exchange(host, SocketAddrV4::new(GATEWAY, 5000), octets)
}

impl Call {
    fn make(
        &self,
        host: &Namespace,
        client: &Client,
        description: &str,
        own: Ipv4Addr,
    ) -> Result<Answer> {
        // Who speaks of PPP has found the connection by its place.
        let wanted = self.service.replace("WANPPP", "WANIP");
        let control = description
            .split("<service>")
            .find(|part| part.contains(&format!("service:{wanted}<")))
            .and_then(|part| part.split_once("<controlURL>")?.1.split_once('<'))
            .with_context(|| format!("no {wanted} in the description"))?
            .0;
        let fields: String = self
            .arguments
            .iter()
            .map(|(name, value)| {
                let value = value.replace("OWN", &own.to_string());
                format!("<{name}>{value}</{name}>")
            })
            .collect();
        let urn = format!("urn:schemas-upnp-org:service:{}", self.service);
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{urn}\">\
             {fields}</u:{action}></s:Body></s:Envelope>",
            action = self.action
        );
        let action = format!("{urn}#{}", self.action);
        send(host, &request(client, "POST", control, &action, &body))
    }
}

fn request(client: &Client, method: &str, path: &str, action: &str, body: &str) -> Vec<u8> {
    let agent = client.user_agent;
    let agent = match client.style {
        _ if agent.is_empty() => String::new(),
        Style::Modern => format!("user-agent: {agent}\r\n"),
        Style::Plain | Style::Old => format!("User-Agent: {agent}\r\n"),
    };
    let length = body.len();
    let text = match (client.style, method) {
        (Style::Plain, "GET") => {
            format!(
                "GET {path} HTTP/1.1\r\nHost: {GATEWAY}:5000\r\n{agent}Connection: Close\r\n\r\n"
            )
        }
        (Style::Old, "GET") => format!("GET {path} HTTP/1.0\r\n{agent}\r\n"),
        (Style::Modern, "GET") => {
            format!(
                "GET {path} HTTP/1.1\r\nhost: {GATEWAY}:5000\r\n{agent}connection: close\r\n\r\n"
            )
        }
        (Style::Plain, _) => format!(
            "POST {path} HTTP/1.1\r\nHost: {GATEWAY}:5000\r\n{agent}Content-Length: {length}\r\n\
             Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{action}\"\r\nConnection: Close\r\n\
             Cache-Control: no-cache\r\nPragma: no-cache\r\n\r\n{body}"
        ),
        (Style::Old, _) => format!(
            "POST {path} HTTP/1.0\r\n{agent}Content-Length: {length}\r\nContent-Type: text/xml\r\n\
             SOAPAction: {action}\r\n\r\n{body}"
        ),
        (Style::Modern, _) => format!(
            "POST {path} HTTP/1.1\r\nhost: {GATEWAY}:5000\r\n{agent}transfer-encoding: chunked\r\n\
             content-type: text/xml; charset=\"utf-8\"\r\nsoapaction: \"{action}\"\r\nconnection: close\r\n\r\n\
             {length:x}\r\n{body}\r\n0\r\n\r\n"
        ),
    };
    text.into_bytes()
}

#[test]
fn known_control_points_get_what_makes_them_work() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (lab, _iwfd, gateway) = super::quirks::alone()?;
    ensure!(WAN == Ipv4Addr::new(100, 64, 0, 2), "as the table says");
    // Somebody else has a port, which nobody meets in a listing, only at the port itself.
    let other = gateway.seen_from(&lab.lan2);
    other.add("UDP", 6199, LAN2, 6199, 3600)?.ok()?;
    for client in CLIENTS {
        play(&lab.lan1, LAN1, client).with_context(|| client.who.to_owned())?;
        listed_is(&gateway, 0).with_context(|| format!("after {}", client.who))?;
    }
    Ok(())
}

/// Whether the host's listing has ended.
fn listed_is(gateway: &Gateway, index: u32) -> Result<()> {
    let answer = gateway.call(
        "GetGenericPortMappingEntry",
        &[("NewPortMappingIndex", &index.to_string())],
    )?;
    ensure!(answer.error() == Some(713), "{}", answer.text);
    Ok(())
}
