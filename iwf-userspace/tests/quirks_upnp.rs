//! What control points in the field send, as a table: each variant must be read as the plain form is, or be
//! refused in the way the table says.

use iwf_userspace::wire::description::{DeviceUuid, Tree};
use iwf_userspace::wire::soap::{Call, CallFault, UpnpError};
use iwf_userspace::wire::ssdp::{Arrival, Search, SearchError};

const URN1: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";
const PLAIN_HEADER: &str =
    "\"urn:schemas-upnp-org:service:WANIPConnection:1#GetSpecificPortMappingEntry\"";
const PLAIN_BODY: &str = "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
    s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:GetSpecificPortMappingEntry \
    xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\"><NewRemoteHost></NewRemoteHost>\
    <NewExternalPort>6112</NewExternalPort><NewProtocol>UDP</NewProtocol></u:GetSpecificPortMappingEntry></s:Body>\
    </s:Envelope>\r\n";

fn decode(header: Option<&str>, body: &[u8]) -> Result<Call, CallFault> {
    Call::decode(header.map(str::as_bytes), body, 64 * 1024).map_err(|error| error.answer())
}

fn plain() -> Call {
    decode(Some(PLAIN_HEADER), PLAIN_BODY.as_bytes()).expect("the plain form")
}

#[test]
fn the_plain_form_is_what_it_seems() {
    let call = plain();
    assert_eq!(call.urn(), URN1);
    assert_eq!(call.action, "GetSpecificPortMappingEntry");
    let names: Vec<_> = call.args.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["NewRemoteHost", "NewExternalPort", "NewProtocol"]);
}

#[test]
fn soap_headers() {
    let bare = PLAIN_HEADER.trim_matches('"');
    let variants = [
        ("unquoted", Some(bare.to_owned())),
        ("single quotes", Some(format!("'{bare}'"))),
        ("opening quote only", Some(format!("\"{bare}"))),
        ("blanks around", Some(format!("  \"{bare}\" "))),
        ("blanks inside the quotes", Some(format!("\" {bare} \""))),
        ("lower case", Some(PLAIN_HEADER.to_lowercase())),
        (
            "upper case prefix",
            Some(bare.replace("urn:schemas", "URN:Schemas")),
        ),
        ("missing", None),
        ("empty", Some(String::new())),
        ("empty in quotes", Some("\"\"".to_owned())),
        ("no action", Some(format!("\"{URN1}\""))),
        (
            "action only",
            Some("GetSpecificPortMappingEntry".to_owned()),
        ),
        (
            "newer version than the body",
            Some(bare.replace(":1#", ":2#")),
        ),
    ];
    for (what, header) in variants {
        let read = decode(header.as_deref(), PLAIN_BODY.as_bytes());
        assert_eq!(read, Ok(plain()), "{what}");
    }
}

#[test]
fn soap_bodies() {
    let swap = |from: &str, to: &str| {
        assert!(PLAIN_BODY.contains(from), "{from}");
        PLAIN_BODY.replace(from, to)
    };
    let variants = [
        ("byte order mark", format!("\u{feff}{PLAIN_BODY}")),
        ("trailing NUL", format!("{PLAIN_BODY}\0")),
        (
            "trailing NULs and blanks",
            format!("{PLAIN_BODY}\0\0 \r\n\0"),
        ),
        ("leading blank line", format!("\r\n{PLAIN_BODY}")),
        ("no declaration", swap("<?xml version=\"1.0\"?>\r\n", "")),
        (
            "declared encoding",
            swap(
                "version=\"1.0\"",
                "version=\"1.0\" encoding=\"utf-8\" standalone='no'",
            ),
        ),
        (
            "other prefixes",
            swap("<s:", "<SOAP-ENV:")
                .replace("</s:", "</SOAP-ENV:")
                .replace("xmlns:s=", "xmlns:SOAP-ENV=")
                .replace("u:Get", "m:Get")
                .replace("xmlns:u", "xmlns:m"),
        ),
        (
            "default namespace",
            swap("u:Get", "Get").replace("xmlns:u", "xmlns"),
        ),
        (
            "namespace in single quotes",
            swap(&format!("\"{URN1}\""), &format!("'{URN1}'")),
        ),
        (
            "undeclared prefix",
            swap(&format!(" xmlns:u=\"{URN1}\""), ""),
        ),
        (
            "namespace declared on the envelope",
            swap(&format!(" xmlns:u=\"{URN1}\""), "")
                .replace("<s:Envelope", &format!("<s:Envelope xmlns:u=\"{URN1}\"")),
        ),
        ("CDATA", swap("6112", "<![CDATA[6112]]>")),
        (
            "CDATA in pieces",
            swap("6112", "6<![CDATA[1]]>1<![CDATA[2]]>"),
        ),
        ("character references", swap("UDP", "&#85;&#x44;P")),
        (
            "comment inside of a value",
            swap("6112", "61<!-- port -->12"),
        ),
        (
            "data types",
            swap(
                "<NewExternalPort>",
                "<NewExternalPort xmlns:dt=\"urn:schemas-microsoft-com:datatypes\" dt:dt=\"ui2\">",
            ),
        ),
        (
            "empty element",
            swap("<NewRemoteHost></NewRemoteHost>", "<NewRemoteHost/>"),
        ),
        (
            "empty element with a blank",
            swap("<NewRemoteHost></NewRemoteHost>", "<NewRemoteHost />"),
        ),
        ("prefixed arguments", swap("NewProtocol>", "u:NewProtocol>")),
        (
            "indented",
            PLAIN_BODY
                .replace("><", ">\r\n\t<")
                .replace(">\r\n\t</NewRemoteHost", "></NewRemoteHost"),
        ),
        (
            "header before the body",
            swap(
                "<s:Body>",
                "<s:Header><a:b xmlns:a=\"x\"><c/></a:b></s:Header><s:Body>",
            ),
        ),
        (
            "processing instruction",
            swap("<s:Body>", "<?x y?><s:Body>"),
        ),
        (
            "cut before the last tags",
            swap("</s:Body></s:Envelope>\r\n", "</s:Bo"),
        ),
        ("rubbish after the call", format!("{PLAIN_BODY}<<<&&&")),
    ];
    for (what, body) in variants {
        let read = decode(Some(PLAIN_HEADER), body.as_bytes());
        assert_eq!(read, Ok(plain()), "{what}: {body}");
    }
}

#[test]
fn soap_values_are_kept_as_sent() {
    let value = |text: &[u8]| {
        let (before, after) = PLAIN_BODY.split_once("6112").expect("the port");
        let body = [before.as_bytes(), text, after.as_bytes()].concat();
        let call = decode(Some(PLAIN_HEADER), &body).expect("a call");
        call.arg("NewExternalPort").expect("the port").to_owned()
    };
    assert_eq!(value(b" 6112\n"), " 6112\n");
    assert_eq!(value(b"&lt;a&gt; &quot;&apos;&amp;amp;"), "<a> \"'&amp;");
    assert_eq!(value(b"R&D"), "R&D");
    // miniupnpc sends descriptions as they are.
    assert_eq!(value(b"a & b"), "a & b");
    assert_eq!(value("Büro".as_bytes()), "Büro");
    assert_eq!(value(b"B\xfcro"), "Büro");
}

#[test]
fn soap_order_of_arguments_is_free() {
    let port = "<NewExternalPort>6112</NewExternalPort>";
    let body = PLAIN_BODY
        .replace(port, "")
        .replace("</NewProtocol>", &format!("</NewProtocol>{port}"));
    let call = decode(Some(PLAIN_HEADER), body.as_bytes()).expect("a call");
    assert_eq!(call.arg("NewExternalPort"), Some("6112"));
    assert_eq!(call.arg("NewProtocol"), Some("UDP"));
}

#[test]
fn soap_refusals() {
    let swap = |from: &str, to: &str| PLAIN_BODY.replace(from, to).into_bytes();
    let action = CallFault::Upnp(UpnpError::INVALID_ACTION);
    let args = CallFault::Upnp(UpnpError::INVALID_ARGS);
    let bad = CallFault::BadRequest;
    let twice = "<NewProtocol>TCP</NewProtocol><NewProtocol>";
    let variants = [
        ("empty", vec![], bad),
        ("not XML", b"NewExternalPort=6112".to_vec(), bad),
        ("another document", b"<html></html>".to_vec(), bad),
        (
            "crossed tags",
            swap("</NewProtocol>", "</NewExternalPort>"),
            bad,
        ),
        ("unknown entity", swap("UDP", "&udp;"), bad),
        ("NUL reference", swap("UDP", "&#0;"), bad),
        ("document type", swap("?>\r\n", "?><!DOCTYPE s>"), bad),
        ("UTF-16", vec![0xff, 0xfe, b'<', 0], bad),
        (
            "no action",
            b"<s:Envelope><s:Body/></s:Envelope>".to_vec(),
            action,
        ),
        (
            "another action than the header",
            swap("GetSpecific", "GetGeneric"),
            action,
        ),
        (
            "another service than the header",
            swap("WANIPConnection", "Layer3Forwarding"),
            action,
        ),
        ("argument twice", swap("<NewProtocol>", twice), args),
        ("element in an argument", swap("UDP", "<b>UDP</b>"), args),
    ];
    for (what, body, answer) in variants {
        assert_eq!(decode(Some(PLAIN_HEADER), &body), Err(answer), "{what}");
    }
    let nameless = swap(&format!(" xmlns:u=\"{URN1}\""), "");
    assert_eq!(
        decode(None, &nameless),
        Err(action),
        "service named nowhere"
    );
}

const IGD1: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";

fn uuid() -> DeviceUuid {
    DeviceUuid::from_octets([7; 16])
}

#[test]
fn ssdp_searches() {
    let variants = [
        (
            "plain",
            format!(
                "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {IGD1}\r\n\r\n"
            ),
        ),
        (
            "no blanks",
            format!(
                "M-SEARCH * HTTP/1.1\r\nHost:239.255.255.250:1900\r\nST:{IGD1}\r\nMan:\"ssdp:discover\"\r\nMX:2\r\n\r\n"
            ),
        ),
        (
            "mixed case",
            format!("M-Search * http/1.1\r\nMaN: \"ssdp:discover\"\r\nmx: 2\r\nSt: {IGD1}\r\n\r\n"),
        ),
        (
            "unquoted MAN",
            format!("M-SEARCH * HTTP/1.1\r\nMAN: ssdp:discover\r\nMX: 2\r\nST: {IGD1}\r\n\r\n"),
        ),
        (
            "extra empty lines behind",
            format!(
                "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {IGD1}\r\n\r\n\r\n\r\n"
            ),
        ),
        (
            "extra empty lines in front",
            format!(
                "\r\n\r\nM-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {IGD1}\r\n\r\n"
            ),
        ),
        (
            "no empty line",
            format!("M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {IGD1}\r\n"),
        ),
        (
            "cut line end",
            format!("M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {IGD1}"),
        ),
        (
            "bare line feeds",
            format!("M-SEARCH * HTTP/1.1\nMAN: \"ssdp:discover\"\nMX: 2\nST: {IGD1}\n\n"),
        ),
        (
            "version 1.0",
            format!("M-SEARCH * HTTP/1.0\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {IGD1}\r\n\r\n"),
        ),
        (
            "blanks before the colon",
            format!(
                "M-SEARCH * HTTP/1.1\r\nMAN : \"ssdp:discover\"\r\nMX : 2\r\nST : {IGD1} \r\n\r\n"
            ),
        ),
        (
            "unknown and broken headers",
            format!(
                "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nCPFN.UPNP.ORG: x\r\nnonsense\r\n: y\r\nMX: 2\r\nST: {IGD1}\r\n\r\n"
            ),
        ),
        (
            "MX above the limit",
            format!(
                "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 120\r\nST: {IGD1}\r\n\r\n"
            ),
        ),
        (
            "MX above its type",
            format!(
                "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 99999999999999999999\r\nST: {IGD1}\r\n\r\n"
            ),
        ),
        (
            "MX 0",
            format!("M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 0\r\nST: {IGD1}\r\n\r\n"),
        ),
    ];
    for (what, datagram) in variants {
        let search = Search::decode(datagram.as_bytes()).expect(what);
        let spread = search.spread(Arrival::Multicast).expect(what);
        assert!(spread.as_millis() <= 1000, "{what}: {spread:?}");
        let answers = search.answers(uuid());
        assert_eq!(answers.len(), 1, "{what}");
        assert_eq!(answers[0].nt, IGD1, "{what}");
        assert_eq!(search.tree(), Tree::Igd1, "{what}");
    }
}

#[test]
fn ssdp_silence() {
    let search =
        |headers: &str| Search::decode(format!("M-SEARCH * HTTP/1.1\r\n{headers}\r\n").as_bytes());
    let no_mx = search(&format!("MAN: \"ssdp:discover\"\r\nST: {IGD1}\r\n")).expect("a search");
    assert_eq!(no_mx.spread(Arrival::Multicast), None);
    for (mx, seconds) in [("3", 3), ("5", 5), ("120", 5), ("99999999999", 5)] {
        let all = format!(
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nST: ssdp:all\r\nMX: {mx}\r\n\r\n"
        );
        let all = Search::decode(all.as_bytes()).expect("a search");
        let spread = all.spread(Arrival::Multicast).expect("MX is there");
        assert_eq!(spread.as_secs(), seconds, "MX {mx}: above 5 is 5");
    }
    assert_eq!(
        no_mx.spread(Arrival::Unicast).map(|d| d.as_millis()),
        Some(0)
    );
    let odd_mx = search(&format!(
        "MAN: \"ssdp:discover\"\r\nMX: soon\r\nST: {IGD1}\r\n"
    ))
    .expect("a search");
    assert_eq!(odd_mx.mx, None);
    assert_eq!(
        search("MX: 1\r\nST: ssdp:all\r\n"),
        Err(SearchError::NoDiscover)
    );
    assert_eq!(
        search("MAN: \"ssdp:alive\"\r\nMX: 1\r\nST: ssdp:all\r\n"),
        Err(SearchError::NoDiscover)
    );
    assert_eq!(
        search("MAN: \"ssdp:discover\"\r\nMX: 1\r\nST:\r\n"),
        Err(SearchError::NoTarget)
    );
    let long = format!(
        "MAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {}\r\n",
        "x".repeat(257)
    );
    assert_eq!(search(&long), Err(SearchError::NoTarget));
    for other in [
        "",
        "\r\n\r\n",
        "NOTIFY * HTTP/1.1\r\n\r\n",
        "M-SEARCH / HTTP/1.1\r\n\r\n",
        "M-SEARCH * RTSP/1.0\r\n\r\n",
    ] {
        assert_eq!(
            Search::decode(other.as_bytes()),
            Err(SearchError::NotASearch),
            "{other:?}"
        );
    }
}

/// What is asked for, how much is found, and which tree its location shows.
#[test]
fn ssdp_targets() {
    let device = |kind: &str, version: u8| format!("urn:schemas-upnp-org:device:{kind}:{version}");
    let service =
        |kind: &str, version: u8| format!("urn:schemas-upnp-org:service:{kind}:{version}");
    let mine = format!("uuid:{}", uuid());
    let microsoft = Some("Microsoft-Windows/10.0 UPnP/1.0 Microsoft-UPnP/1.0");
    let table = [
        // Root 3, two embedded devices with 2 each, three services.
        ("ssdp:all".to_owned(), None, Tree::Igd1, 10),
        ("upnp:rootdevice".to_owned(), None, Tree::Igd1, 1),
        (
            mine.to_uppercase().replace("UUID", "uuid"),
            None,
            Tree::Igd1,
            1,
        ),
        (
            "uuid:00000000-0000-0000-0000-000000000000".to_owned(),
            None,
            Tree::Igd1,
            0,
        ),
        (device("InternetGatewayDevice", 1), None, Tree::Igd1, 1),
        (device("InternetGatewayDevice", 2), None, Tree::Igd2, 1),
        (
            device("InternetGatewayDevice", 2),
            Some("Xbox"),
            Tree::Igd1,
            0,
        ),
        (device("InternetGatewayDevice", 2), microsoft, Tree::Igd1, 0),
        (device("InternetGatewayDevice", 1), microsoft, Tree::Igd1, 1),
        (device("InternetGatewayDevice", 3), None, Tree::Igd2, 0),
        (device("InternetGatewayDevice", 0), None, Tree::Igd1, 0),
        (device("WANConnectionDevice", 2), None, Tree::Igd2, 1),
        (device("MediaServer", 1), None, Tree::Igd2, 0),
        (service("WANIPConnection", 1), None, Tree::Igd1, 1),
        (service("WANIPConnection", 2), None, Tree::Igd2, 1),
        (service("WANPPPConnection", 1), None, Tree::Igd2, 0),
        // Of version 1 itself, and only in the tree of version 2.
        (service("WANIPv6FirewallControl", 1), None, Tree::Igd2, 1),
        (
            service("WANIPv6FirewallControl", 1),
            microsoft,
            Tree::Igd1,
            0,
        ),
        (service("DeviceProtection", 1), None, Tree::Igd2, 0),
        (service("WANCommonInterfaceConfig", 1), None, Tree::Igd1, 1),
        (
            "urn:schemas-upnp-org:device:InternetGatewayDevice:".to_owned(),
            None,
            Tree::Igd1,
            0,
        ),
        (
            "urn:schemas-upnp-org:device:InternetGatewayDevice:999".to_owned(),
            None,
            Tree::Igd1,
            0,
        ),
        (
            "urn:dial-multiscreen-org:service:dial:1".to_owned(),
            None,
            Tree::Igd1,
            0,
        ),
        ("whatever".to_owned(), None, Tree::Igd1, 0),
    ];
    for (st, user_agent, tree, found) in table {
        let agent = user_agent.map_or(String::new(), |ua| format!("USER-AGENT: {ua}\r\n"));
        let datagram = format!(
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {st}\r\n{agent}\r\n"
        );
        let search = Search::decode(datagram.as_bytes()).expect("a search");
        let answers = search.answers(uuid());
        assert_eq!(
            (search.tree(), answers.len()),
            (tree, found),
            "{st} by {user_agent:?}"
        );
        for answer in answers {
            assert!(
                st == "ssdp:all" || answer.nt == st,
                "{st}: the answer repeats ST"
            );
            assert!(answer.usn.starts_with("uuid:"), "{st}");
        }
    }
    // Where the tree of version 2 is all that is served, as over IPv6, it answers for version 1 as well (DEV-004).
    for st in [service("WANIPConnection", 1), device("WANDevice", 1)] {
        let datagram =
            format!("M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {st}\r\n\r\n");
        let search = Search::decode(datagram.as_bytes()).expect("a search");
        let own = std::net::Ipv6Addr::LOCALHOST.into();
        assert_eq!(search.tree_at(own), Tree::Igd2);
        let answers = search.answers_in(Tree::Igd2, uuid());
        let [answer] = answers.as_slice() else {
            panic!("{st}: {answers:?}");
        };
        assert!(answer.nt == st && answer.usn.ends_with(&st));
    }
}
