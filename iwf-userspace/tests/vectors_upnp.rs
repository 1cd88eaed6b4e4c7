//! SOAP and SSDP messages, octet by octet, and the service tables against the lists of the standards.

mod vector_file;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use iwf_userspace::wire::clients::InnerDocument;
use iwf_userspace::wire::description::{DeviceUuid, Tree};
use iwf_userspace::wire::port_listing::{self, PortMappingEntry};
use iwf_userspace::wire::soap::{
    Call, CallError, CallFault, MAX_ARGUMENTS, MAX_DEPTH, UpnpError, encode_fault, encode_reply,
    encode_response,
};
use iwf_userspace::wire::ssdp::{self, Advert, Arrival, Search, Sender, Target};
use iwf_userspace::wire::{scpd, services};
use vector_file::{header, text_one};

const LIMIT: usize = 16 * 1024;

fn call_of(id: &str) -> Call {
    let (head, body) = text_one(id);
    let action = header(&head, "SOAPACTION").expect("a SOAPACTION header");
    Call::decode(Some(action.as_bytes()), body.as_bytes(), LIMIT).expect("a call")
}

/// A call whose answer a vector shows.
fn called(action: &str) -> Call {
    Call {
        service: "WANIPConnection".to_owned(),
        version: 2,
        action: action.to_owned(),
        args: vec![],
    }
}

#[test]
fn soap_requests_are_read() {
    let add = call_of("SOAP-01");
    assert_eq!((add.service.as_str(), add.version), ("WANIPConnection", 2));
    assert_eq!(add.action, "AddPortMapping");
    let args: Vec<_> = add.args.iter().map(|(n, v)| (&n[..], &v[..])).collect();
    assert_eq!(
        args,
        [
            ("NewRemoteHost", ""),
            ("NewExternalPort", "8080"),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", "8080"),
            ("NewInternalClient", "192.168.1.20"),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "cam & nvr"),
            ("NewLeaseDuration", "0"),
        ]
    );
    let pinhole = call_of("SOAP-06");
    assert_eq!(pinhole.service, "WANIPv6FirewallControl");
    assert_eq!(pinhole.arg("InternalClient"), Some("2001:db8:1:1::20"));
    assert_eq!(pinhole.arg("RemoteHost"), Some(""));
}

#[test]
fn soap_answers_are_written() {
    let (_, body) = text_one("SOAP-02");
    assert_eq!(encode_response(&called("AddPortMapping"), &[]), body);
    let (_, body) = text_one("SOAP-03");
    assert_eq!(encode_fault(&UpnpError::CONFLICT_IN_MAPPING_ENTRY), body);
    let (_, body) = text_one("SOAP-04");
    let port = [("NewReservedPort", "6598".to_owned())];
    assert_eq!(encode_response(&called("AddAnyPortMapping"), &port), body);

    let call = called("AddPortMapping");
    let status = |result| encode_reply(&call, &result, InnerDocument::Escaped).status;
    assert_eq!(status(Ok(vec![])), 200);
    assert_eq!(status(Err(UpnpError::READ_ONLY)), 500);
}

/// SOAP-05 carries markup inside of a value: reading the answer as if it were a call must give it back.
#[test]
fn values_with_markup_are_escaped() {
    let (_, body) = text_one("SOAP-05");
    let read = Call::decode(None, body.as_bytes(), LIMIT).expect("well-formed");
    let listing = read.arg("NewPortListing").expect("the listing").to_owned();
    let entry = PortMappingEntry {
        remote_host: None,
        external_port: 8080,
        protocol: "TCP".to_owned(),
        internal_port: 8080,
        internal_client: Ipv4Addr::new(192, 168, 1, 20),
        description: "cam",
        lease_time: 3590,
    };
    assert_eq!(port_listing::encode([entry.clone()]), listing);
    let odd = PortMappingEntry {
        description: "a<b>&\u{1}",
        ..entry
    };
    let odd = port_listing::encode([odd]);
    assert!(
        odd.contains("<p:NewDescription>a&lt;b&gt;&amp;\u{fffd}</"),
        "{odd}"
    );
    let call = called("GetListOfPortMappings");
    assert_eq!(encode_response(&call, &[("NewPortListing", listing)]), body);
    // What XML cannot carry at all is replaced, so that the answer stays readable.
    let odd = encode_response(
        &call,
        &[("NewPortListing", "a\u{1}b\u{ffff}]]>".to_owned())],
    );
    let read = Call::decode(None, odd.as_bytes(), LIMIT).expect("well-formed");
    assert_eq!(read.arg("NewPortListing"), Some("a\u{fffd}b\u{fffd}]]>"));
    // Who cannot read it escaped gets the same text in CDATA sections, and nothing else is in one.
    for text in ["<p:PortMappingList/>", "a\u{1}b\u{ffff}]]>", "]]]]>>", ""] {
        let args = vec![
            ("NewPortListing", text.to_owned()),
            ("NewOther", "<x>".to_owned()),
        ];
        let reply = encode_reply(&call, &Ok(args), InnerDocument::Cdata);
        let read = Call::decode(None, reply.body.as_bytes(), LIMIT).expect("well-formed");
        let expected = text.replace(['\u{1}', '\u{ffff}'], "\u{fffd}");
        assert_eq!(read.arg("NewPortListing"), Some(expected.as_str()));
        assert_eq!(read.arg("NewOther"), Some("<x>"));
        let is_quoted = reply.body.contains("<NewPortListing><![CDATA[");
        assert!(is_quoted || text.is_empty(), "{}", reply.body);
        assert!(
            reply.body.contains("<NewOther>&lt;x&gt;<"),
            "{}",
            reply.body
        );
    }
}

/// UPnP Device Architecture 1.0 clause 3.3: the control URL says whose variable it is.
#[test]
fn a_query_is_read_and_answered_in_its_own_namespace() {
    let urn = "urn:schemas-upnp-org:control-1-0";
    let body = format!(
        "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><u:QueryStateVariable \
         xmlns:u=\"{urn}\"><u:varName>Uptime</u:varName></u:QueryStateVariable></s:Body></s:Envelope>"
    );
    let header = format!("\"{urn}#QueryStateVariable\"");
    for header in [None, Some(header.as_bytes())] {
        let call = Call::decode(header, body.as_bytes(), LIMIT).expect("a query");
        assert!(call.is_query());
        assert_eq!(
            (call.service.as_str(), call.arg("varName")),
            ("", Some("Uptime"))
        );
        let answer = encode_response(&call, &[("return", "7".to_owned())]);
        let expected = format!(
            "<u:QueryStateVariableResponse xmlns:u=\"{urn}\"><return>7</return></u:QueryStateVariableResponse>"
        );
        assert!(answer.contains(&expected), "{answer}");
    }
    let other = body.replace("QueryStateVariable", "Other");
    assert!(Call::decode(None, other.as_bytes(), LIMIT).is_err());
}

/// A body that ends early is refused until the action is complete; then it says the same as the whole.
#[test]
fn soap_truncations_are_refused_or_complete() {
    for id in ["SOAP-01", "SOAP-06"] {
        let whole = call_of(id);
        let (_, body) = text_one(id);
        let end_tag = format!("</u:{}>", whole.action);
        let complete = body.find(&end_tag).expect("its end tag") + end_tag.len();
        for len in 0..body.len() {
            match Call::decode(None, &body.as_bytes()[..len], LIMIT) {
                Ok(call) => assert!(len >= complete && call == whole, "{id} cut to {len}"),
                Err(error) => {
                    assert!(len < complete, "{id} cut to {len}: {error}");
                    assert_eq!(error.answer(), CallFault::BadRequest, "{id} cut to {len}");
                }
            }
        }
    }
}

#[test]
fn soap_limits_hold() {
    let (_, body) = text_one("SOAP-01");
    assert!(matches!(
        Call::decode(None, body.as_bytes(), body.len() - 1),
        Err(CallError::TooLong { .. })
    ));
    assert!(Call::decode(None, body.as_bytes(), body.len()).is_ok());
    let answer = |body: &str| {
        Call::decode(None, body.as_bytes(), usize::MAX)
            .expect_err("refused")
            .answer()
    };
    let bomb = format!(
        "<!DOCTYPE a [<!ENTITY b \"{0}\"><!ENTITY c \"&b;&b;&b;&b;\">]>{body}",
        "x".repeat(1000)
    );
    assert_eq!(answer(&bomb), CallFault::BadRequest);
    assert_eq!(
        answer(&body.replace("cam &amp; nvr", "&c;")),
        CallFault::BadRequest
    );
    let deep = body.replace("cam &amp; nvr", &"<a>".repeat(100_000));
    assert_eq!(answer(&deep), CallFault::Upnp(UpnpError::INVALID_ARGS));
    let deep = format!("<Envelope><Header>{}", "<a>".repeat(100_000));
    assert_eq!(answer(&deep), CallFault::BadRequest);
    let many: String = (0..100_000).map(|i| format!("<a{i}/>")).collect();
    let many = body.replace("<NewRemoteHost>", &format!("{many}<NewRemoteHost>"));
    assert_eq!(answer(&many), CallFault::Upnp(UpnpError::INVALID_ARGS));
    // Right at the bounds.
    let nested = |depth: usize, arguments: usize| {
        let (open, close) = ("<a>".repeat(depth), "</a>".repeat(depth));
        let arguments: String = (0..arguments).map(|i| format!("<a{i}/>")).collect();
        format!(
            "<Envelope><Header>{open}{close}</Header><Body>\
             <u:X xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">{arguments}</u:X></Body></Envelope>"
        )
    };
    let most = nested(MAX_DEPTH - 2, MAX_ARGUMENTS);
    let most = Call::decode(None, most.as_bytes(), usize::MAX).expect("a call");
    assert_eq!(most.args.len(), MAX_ARGUMENTS);
    assert_eq!(answer(&nested(MAX_DEPTH - 1, 0)), CallFault::BadRequest);
    assert_eq!(
        answer(&nested(0, MAX_ARGUMENTS + 1)),
        CallFault::Upnp(UpnpError::INVALID_ARGS)
    );
}

fn uuid() -> DeviceUuid {
    DeviceUuid::parse("2fac1234-31f8-11b4-a222-08002b34c003").expect("a UUID")
}

const SENDER: Sender<'_> = Sender {
    secure_location: None,
    group: std::net::IpAddr::V4(ssdp::GROUP),
    location: "http://192.168.1.1:5000/rootDesc.xml",
    server: "Linux/6.1 UPnP/1.1 cpe-iwf/0.1",
    max_age: 1800,
    boot_id: 1_700_000_000,
    config_id: 1337,
    search_port: None,
};

fn root_advert() -> Advert {
    ssdp::advertisements(Tree::Igd2, uuid())
        .into_iter()
        .next()
        .expect("the root device comes first")
}

#[test]
fn ssdp_search_and_answer() {
    let (search, _) = text_one("SSDP-01");
    let search = Search::decode(search.as_bytes()).expect("a search");
    let asked = Target::Device {
        kind: "InternetGatewayDevice".to_owned(),
        version: 1,
    };
    assert_eq!((search.target.as_ref(), search.mx), (Some(&asked), Some(2)));
    assert!(search.spread(Arrival::Multicast).is_some());

    let (expected, _) = text_one("SSDP-02");
    let date = header(&expected, "DATE");
    let answers: Vec<_> = search
        .answers(uuid())
        .iter()
        .map(|advert| ssdp::encode_answer(&SENDER, advert, date.as_deref()))
        .map(|octets| String::from_utf8(octets).expect("text"))
        .collect();
    assert_eq!(answers, [expected]);
}

#[test]
fn ssdp_announcements() {
    let (alive, _) = text_one("SSDP-03");
    let (byebye, _) = text_one("SSDP-04");
    assert_eq!(
        ssdp::encode_alive(&SENDER, &root_advert()),
        alive.into_bytes()
    );
    assert_eq!(
        ssdp::encode_byebye(&SENDER, &root_advert()),
        byebye.into_bytes()
    );
    let update = ssdp::encode_update(&SENDER, &root_advert(), 1_700_000_001);
    let update = String::from_utf8(update).expect("text");
    assert_eq!(header(&update, "NTS").as_deref(), Some("ssdp:update"));
    assert_eq!(
        header(&update, "NEXTBOOTID.UPNP.ORG").as_deref(),
        Some("1700000001")
    );
    // Clause 1.3.2: who hears unicast searches elsewhere says so wherever it can be found by.
    let elsewhere = Sender {
        search_port: Some(50_001),
        ..SENDER
    };
    for (message, told) in [
        (
            ssdp::encode_alive(&elsewhere, &root_advert()),
            Some("50001"),
        ),
        (
            ssdp::encode_update(&elsewhere, &root_advert(), 1_700_000_001),
            Some("50001"),
        ),
        (
            ssdp::encode_answer(&elsewhere, &root_advert(), None),
            Some("50001"),
        ),
        (ssdp::encode_byebye(&elsewhere, &root_advert()), None),
    ] {
        let message = String::from_utf8(message).expect("text");
        assert_eq!(
            header(&message, "SEARCHPORT.UPNP.ORG").as_deref(),
            told,
            "{message}"
        );
    }
}

#[test]
fn ssdp_truncations_never_panic_and_keep_their_meaning() {
    let (search, _) = text_one("SSDP-01");
    let whole = Search::decode(search.as_bytes()).expect("a search");
    for len in 0..search.len() {
        if let Ok(cut) = Search::decode(&search.as_bytes()[..len]) {
            assert!(whole.st.starts_with(&cut.st), "cut to {len}");
        }
    }
}

/// Each service is a part of what the standard lists: same arguments, same order, same types.
#[test]
fn tables_agree_with_the_standard() {
    type Arguments = Vec<(String, String)>;
    let file = include_str!("../../tests/vectors/igd-actions.json");
    let standard: BTreeMap<String, BTreeMap<String, BTreeMap<String, Arguments>>> =
        serde_json::from_str(file).expect("valid JSON");
    for service in services::ALL {
        let actions = &standard[&format!("{}{}", service.kind, service.version)];
        for action in service.actions {
            let typed = |argument: &scpd::Argument| {
                let variable = service.variable(argument.variable).expect("its variable");
                (argument.name.to_owned(), variable.data.name().to_owned())
            };
            let expected = &actions[action.name];
            let inputs: Arguments = action.inputs().map(typed).collect();
            let outputs: Arguments = action.outputs().map(typed).collect();
            assert_eq!(inputs, expected["in"], "{}", action.name);
            assert_eq!(outputs, expected["out"], "{}", action.name);
        }
    }
}

/// The actions that this release promises, by service.
#[test]
fn promised_actions_are_there() {
    let names = |kind, version| -> Vec<_> {
        services::find(kind, version)
            .expect("a service")
            .actions
            .iter()
            .map(|action| action.name)
            .collect()
    };
    let version1 = names("WANIPConnection", 1);
    let version2 = names("WANIPConnection", 2);
    for name in [
        "SetConnectionType",
        "GetConnectionTypeInfo",
        "RequestConnection",
        "ForceTermination",
        "GetStatusInfo",
        "GetNATRSIPStatus",
        "GetGenericPortMappingEntry",
        "GetSpecificPortMappingEntry",
        "AddPortMapping",
        "DeletePortMapping",
        "GetExternalIPAddress",
    ] {
        assert!(
            version1.contains(&name) && version2.contains(&name),
            "{name}"
        );
    }
    for name in [
        "AddAnyPortMapping",
        "DeletePortMappingRange",
        "GetListOfPortMappings",
    ] {
        assert!(
            version2.contains(&name) && !version1.contains(&name),
            "{name}"
        );
    }
    assert!(names("WANCommonInterfaceConfig", 1).contains(&"GetCommonLinkProperties"));
    assert_eq!(
        services::find("WANPPPConnection", 1),
        services::find("WANIPConnection", 1)
    );
    assert_eq!(services::find("WANIPConnection", 3), None);
}

#[test]
fn calls_are_checked_against_the_table() {
    let add = call_of("SOAP-01");
    let service = services::find(&add.service, add.version).expect("a service");
    let check = |call: &Call| service.check(call).map(|action| action.name);
    assert_eq!(check(&add), Ok("AddPortMapping"));

    let with = |name: &str, value: Option<&str>| {
        let mut call = add.clone();
        call.args.retain(|(n, _)| n != name);
        if let Some(value) = value {
            call.args.push((name.to_owned(), value.to_owned()));
        }
        check(&call)
    };
    let ok = Ok("AddPortMapping");
    assert_eq!(with("NewRemoteHost", None), ok);
    assert_eq!(with("NewLeaseDuration", None), ok);
    assert_eq!(with("NewLeaseDuration", Some("")), ok);
    assert_eq!(with("NewExternalPort", Some(" 8080 \n")), ok);
    assert_eq!(with("NewEnabled", Some("TRUE")), ok);
    let args = Err(UpnpError::INVALID_ARGS);
    assert_eq!(with("NewProtocol", None), args);
    assert_eq!(with("NewExternalPort", Some("")), args);
    assert_eq!(with("NewExternalPort", Some("-1")), args);
    assert_eq!(with("NewExternalPort", Some("http")), args);
    assert_eq!(with("NewEnabled", Some("2")), args);
    assert_eq!(with("NewSurprise", Some("1")), args);
    let range = Err(UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE);
    assert_eq!(with("NewExternalPort", Some("65536")), range);
    assert_eq!(with("NewLeaseDuration", Some("4294967296")), range);
    assert_eq!(with("NewLeaseDuration", Some(&"9".repeat(400))), range);

    for (action, error) in [
        (
            "RequestTermination",
            UpnpError::OPTIONAL_ACTION_NOT_IMPLEMENTED,
        ),
        (
            "GetAutoDisconnectTime",
            UpnpError::OPTIONAL_ACTION_NOT_IMPLEMENTED,
        ),
        ("GetEnabledForInternet", UpnpError::INVALID_ACTION),
        ("addPortMapping", UpnpError::INVALID_ACTION),
    ] {
        let mut unknown = add.clone();
        action.clone_into(&mut unknown.action);
        assert_eq!(check(&unknown), Err(error), "{action}");
    }
}
