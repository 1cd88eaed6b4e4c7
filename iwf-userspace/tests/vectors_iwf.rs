//! From octets to octets through the core: a control point's request in, the PCP request out, the server's
//! response in, the answer out. The translations are those of RFC 6970 section 5.6 and 4.3.

mod gateway;
mod vector_file;

use std::net::Ipv4Addr;

use gateway::{Gateway, NONCE};
use iwf_userspace::iwf::ModeSetting;
use iwf_userspace::types::{Epoch, Instant, Lifetime};
use iwf_userspace::wire::pcp::{
    Body, PcpOption, Request, Response, ResultCode, error_reply, version_reply,
};
use iwf_userspace::wire::scpd::{self, DataType, Service};
use iwf_userspace::wire::soap::Call;
use iwf_userspace::wire::{natpmp, services};
use vector_file::{binary_one, header, text_one};

impl Gateway {
    /// The last MAP request that was sent.
    fn map(&self) -> Vec<u8> {
        let is_map = |octets: &&Vec<u8>| octets[1] == 1;
        self.sent
            .iter()
            .rfind(is_map)
            .expect("a MAP request")
            .clone()
    }

    /// One out argument of an action that is called for the mapping of SOAP-01.
    fn read(&mut self, action: &str, argument: &str) -> String {
        self.call(sample(&services::WAN_IP_CONNECTION_2, action));
        let (status, body) = self.answer();
        assert_eq!(status, 200, "{action}: {body}");
        let answer = Call::decode(None, body.as_bytes(), 1 << 16).expect("an envelope");
        answer.arg(argument).expect(argument).to_owned()
    }

    fn answer(&mut self) -> (u16, String) {
        assert!(self.open.is_empty(), "not answered yet");
        assert_eq!(self.pinholes, 0, "nobody asked for a pinhole");
        self.answers.pop().expect("an answer")
    }
}

/// A vector with the nonce of another message.
fn with_nonce_of(mut octets: Vec<u8>, message: &[u8]) -> Vec<u8> {
    octets[NONCE].copy_from_slice(&message[NONCE]);
    octets
}

fn vector_call(id: &str) -> Call {
    let (head, body) = text_one(id);
    let action = header(&head, "SOAPACTION").expect("a SOAPACTION header");
    Call::decode(Some(action.as_bytes()), body.as_bytes(), 1 << 16).expect("a call")
}

fn with_arg(mut call: Call, name: &str, value: &str) -> Call {
    let (_, old) = call.args.iter_mut().find(|(n, _)| n == name).expect(name);
    value.clone_into(old);
    call
}

fn add(lease: &str) -> Call {
    with_arg(vector_call("SOAP-01"), "NewLeaseDuration", lease)
}

/// IGD-031: a description comes back as it was given, from every action that shows one.
#[test]
fn descriptions_are_kept_and_escaped() {
    let mut gateway = Gateway::new(ModeSetting::Local);
    for (given, kept) in [
        ("cam & nvr", "cam & nvr"),
        ("<Büro> \"1\" ]]>", "<Büro> \"1\" ]]>"),
        ("", ""),
        (&"ü".repeat(200), &"ü".repeat(127)),
    ] {
        let call = with_arg(add("3600"), "NewPortMappingDescription", given);
        gateway.call(call);
        assert_eq!(gateway.answer().0, 200);
        for action in ["GetSpecificPortMappingEntry", "GetGenericPortMappingEntry"] {
            assert_eq!(gateway.read(action, "NewPortMappingDescription"), kept);
        }
        let list = gateway.read("GetListOfPortMappings", "NewPortListing");
        let inner = list.split("<p:NewDescription>").nth(1).expect("an entry");
        let (inner, _) = inner.split_once("</p:NewDescription>").expect("its end");
        let read = inner
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&amp;", "&");
        assert_eq!(read, kept);
    }
}

#[test]
fn add_port_mapping_becomes_pcp_01_and_pcp_02_becomes_soap_02() {
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    gateway.call(add("3600"));
    let request = gateway.map();
    assert_eq!(request, with_nonce_of(binary_one("PCP-01"), &request));
    gateway.hear(with_nonce_of(binary_one("PCP-02"), &request));
    let (_, body) = text_one("SOAP-02");
    assert_eq!(gateway.answer(), (200, body));

    gateway.call(Call {
        service: "WANIPConnection".to_owned(),
        version: 1,
        action: "GetExternalIPAddress".to_owned(),
        args: vec![],
    });
    let (status, body) = gateway.answer();
    assert_eq!(status, 200);
    assert!(body.contains("<NewExternalIPAddress>203.0.113.7</NewExternalIPAddress>"));
    assert!(body.contains("xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\""));
}

#[test]
fn lease_0_asks_for_a_week_and_is_listed_as_no_more() {
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    gateway.call(add("0"));
    let request = gateway.map();
    let mut expected = with_nonce_of(binary_one("PCP-01"), &request);
    expected[4..8].copy_from_slice(&604_800_u32.to_be_bytes());
    assert_eq!(request, expected);

    gateway.hear(with_nonce_of(binary_one("PCP-02"), &request));
    gateway.answer();
    let lease = gateway.read("GetSpecificPortMappingEntry", "NewLeaseDuration");
    let lease: u32 = lease.parse().expect("a number");
    assert!((1..=604_800).contains(&lease), "{lease}");
}

/// The server is told our NAT's endpoint, the control point reads its own.
#[test]
fn the_server_sees_nat1_and_the_control_point_its_host() {
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    gateway.call(with_arg(add("3600"), "NewInternalPort", "8000"));
    let octets = gateway.map();
    let request = Request::decode(&octets).expect("a request");
    let Body::Map(map) = &request.body else {
        panic!("not a MAP");
    };
    let mut response = with_nonce_of(binary_one("PCP-02"), &octets);
    response[40..42].copy_from_slice(&octets[40..42]);
    gateway.hear(response);
    assert_eq!(gateway.answer().0, 200);
    let [entry] = gateway.written.as_slice() else {
        panic!("not one entry: {:?}", gateway.written);
    };
    assert_eq!(request.client, entry.external.addr);
    assert_eq!(
        map.internal_port.map(|p| p.get()),
        Some(entry.external.port.get())
    );
    assert_eq!(entry.internal.to_string(), "192.168.1.20:8000");
    for action in ["GetSpecificPortMappingEntry", "GetGenericPortMappingEntry"] {
        assert_eq!(gateway.read(action, "NewInternalPort"), "8000");
        assert_eq!(gateway.read(action, "NewInternalClient"), "192.168.1.20");
    }
    assert_eq!(
        gateway.read("GetGenericPortMappingEntry", "NewExternalPort"),
        "8080"
    );
}

#[test]
fn cannot_provide_external_becomes_soap_03() {
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    gateway.call(add("3600"));
    let request = gateway.map();
    gateway.hear(with_nonce_of(binary_one("PCP-03"), &request));
    let (_, body) = text_one("SOAP-03");
    assert_eq!(gateway.answer(), (500, body));
}

#[test]
fn a_remote_host_becomes_a_filter() {
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    let call = with_arg(add("7200"), "NewRemoteHost", "198.51.100.5");
    let call = with_arg(call, "NewInternalPort", "8443");
    gateway.call(with_arg(call, "NewExternalPort", "8443"));
    let request = Request::decode(&gateway.map()).expect("a request");
    let mut expected = Request::decode(&binary_one("PCP-06")).expect("a request");
    // Descriptions stay inside (AMB-18).
    let is_text = |option: &PcpOption| matches!(option, PcpOption::Description(_));
    expected.options.retain(|option| !is_text(option));
    if let (Body::Map(expected), Body::Map(sent)) = (&mut expected.body, &request.body) {
        expected.nonce = sent.nonce;
    }
    assert_eq!(request, expected);
}

#[test]
fn add_any_port_mapping_takes_what_the_server_has() {
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    let mut call = add("3600");
    call.action = "AddAnyPortMapping".to_owned();
    gateway.call(call);
    let request = Request::decode(&gateway.map()).expect("a request");
    assert!(!request.prefers_failure());
    let Body::Map(mut map) = request.body else {
        panic!("not a MAP");
    };
    map.external_port = iwf_userspace::types::ExternalPort::new(6598);
    map.external_addr = Ipv4Addr::new(203, 0, 113, 7).into();
    let response = Response {
        result: ResultCode::Success,
        lifetime: Lifetime(3600),
        epoch: Epoch(1000),
        body: Body::Map(map),
        options: vec![],
    };
    gateway.hear(response.encode().expect("short"));
    let (_, body) = text_one("SOAP-04");
    assert_eq!(gateway.answer(), (200, body));
}

#[test]
fn delete_names_nothing_external() {
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    gateway.call(add("3600"));
    let request = gateway.map();
    gateway.hear(with_nonce_of(binary_one("PCP-02"), &request));
    gateway.answer();

    let mut delete = add("3600");
    delete.action = "DeletePortMapping".to_owned();
    let names = ["NewRemoteHost", "NewExternalPort", "NewProtocol"];
    delete
        .args
        .retain(|(name, _)| names.contains(&name.as_str()));
    gateway.call(delete);
    // As PCP-04 without THIRD_PARTY: lifetime, suggested port and address 0, no options (AMB-03).
    let mut expected = with_nonce_of(binary_one("PCP-01"), &request);
    expected.truncate(60);
    expected[4..8].fill(0);
    expected[42..44].fill(0);
    assert_eq!(gateway.map(), expected);
}

/// RFC 6970 section 4.3, with the error replies a server builds from our own request.
#[test]
fn results_become_the_errors_of_either_version() {
    let table = [
        (2, 718, 606),
        (3, 501, 501),
        (4, 501, 501),
        (5, 501, 501),
        (6, 501, 501),
        (7, 501, 501),
        (8, 501, 728),
        (9, 501, 501),
        (10, 501, 728),
        (11, 718, 718),
        (12, 501, 501),
        (13, 501, 501),
    ];
    let later = (14..=27).map(|result| (result, 501, 501));
    for (result, version_1, version_2) in table.into_iter().chain(later) {
        for (version, code) in [(1, version_1), (2, version_2)] {
            let mut gateway = Gateway::new(ModeSetting::Cascaded);
            let mut call = add("3600");
            call.version = version;
            gateway.call(call);
            let result = ResultCode::from_number(result);
            let lifetime = result.error_lifetime();
            let reply = error_reply(&gateway.map(), result, lifetime, Epoch(1));
            gateway.hear(reply);
            let (status, body) = gateway.answer();
            assert_eq!(status, 500, "{result}");
            let expected = format!("<errorCode>{code}</errorCode>");
            assert!(
                body.contains(&expected),
                "{result} for version {version}: {body}"
            );
        }
    }
}

#[test]
fn servers_of_other_versions_become_501() {
    type Reply = fn(&[u8]) -> Vec<u8>;
    let version_1 = |request: &[u8]| {
        let mut reply = version_reply(request, Lifetime(1800), Epoch(1));
        reply[0] = 1;
        reply
    };
    let natpmp = |_: &[u8]| natpmp::Response::UnsupportedVersion { epoch: Epoch(1) }.encode();
    for reply in [version_1 as Reply, natpmp] {
        for version in [1, 2] {
            let mut gateway = Gateway::new(ModeSetting::Cascaded);
            let mut call = add("3600");
            call.version = version;
            gateway.call(call);
            gateway.hear(reply(&gateway.map()));
            let (status, body) = gateway.answer();
            assert_eq!(status, 500);
            assert!(body.contains("<errorCode>501</errorCode>"), "{body}");
        }
    }
}

#[test]
fn silence_becomes_501_within_28_seconds() {
    for version in [1, 2] {
        let mut gateway = Gateway::new(ModeSetting::Cascaded);
        let mut call = add("3600");
        call.version = version;
        gateway.call(call);
        let sent = gateway.sent.len();
        while gateway.answers.is_empty() {
            assert!(gateway.wait(), "something to wait for");
            assert!(gateway.now <= Instant::from_millis(28_000), "still waiting");
        }
        assert!(gateway.sent.len() > sent, "asked more than once");
        let (status, body) = gateway.answer();
        assert_eq!(status, 500);
        assert!(body.contains("<errorCode>501</errorCode>"), "{body}");
    }
}

/// RFC 6970 section 5.7: a short MAP tells whether the port is free; the entry does not exist either way.
#[test]
fn an_unknown_entry_is_probed_as_in_pcp_29() {
    for code in [0, 11] {
        let mut gateway = Gateway::new(ModeSetting::Cascaded);
        let mut call = add("3600");
        call.action = "GetSpecificPortMappingEntry".to_owned();
        let names = ["NewRemoteHost", "NewExternalPort", "NewProtocol"];
        call.args.retain(|(name, _)| names.contains(&name.as_str()));
        gateway.call(call);
        let request = gateway.map();
        // Which of our ports asks is free to choose.
        let mut expected = with_nonce_of(binary_one("PCP-29"), &request);
        expected[40..42].copy_from_slice(&request[40..42]);
        assert_eq!(request, expected);

        let mut response = with_nonce_of(binary_one("PCP-02"), &request);
        response[3] = code;
        response[4..8].copy_from_slice(&60_u32.to_be_bytes());
        response[40..42].copy_from_slice(&request[40..42]);
        gateway.hear(response);
        let (status, body) = gateway.answer();
        assert_eq!(status, 500);
        assert!(body.contains("<errorCode>714</errorCode>"), "{body}");
    }
}

#[test]
fn a_server_is_greeted_with_pcp_10() {
    let gateway = Gateway::new(ModeSetting::Cascaded);
    assert_eq!(gateway.sent, [binary_one("PCP-10")]);
}

/// Out arguments come complete and in the order of the table, for every action that succeeds locally.
#[test]
fn answers_keep_the_order_of_the_table() {
    // No action of the firewall has several out arguments but one, which needs no sample; who may what is off.
    let elsewhere = ["WANIPv6FirewallControl", "DeviceProtection"];
    let others = services::ALL.into_iter();
    for service in others.filter(|service| !elsewhere.contains(&service.kind)) {
        for action in service.actions {
            let mut gateway = Gateway::new(ModeSetting::Local);
            // Something to list, to find and to delete.
            gateway.call(add("3600"));
            assert_eq!(gateway.answer().0, 200);
            gateway.call(sample(service, action.name));
            let (status, body) = gateway.answer();
            let refused = [
                "SetConnectionType",
                "ForceTermination",
                "SetDefaultConnectionService",
            ];
            if refused.contains(&action.name) {
                assert_eq!(status, 500, "{}", action.name);
                continue;
            }
            assert_eq!(status, 200, "{}: {body}", action.name);
            let answer = Call::decode(None, body.as_bytes(), 1 << 16).expect("an envelope");
            assert_eq!(answer.action, format!("{}Response", action.name));
            assert_eq!(
                (answer.service.as_str(), answer.version),
                (service.kind, service.version)
            );
            let names: Vec<_> = answer.args.iter().map(|(name, _)| name.as_str()).collect();
            let expected: Vec<_> = action.outputs().map(|argument| argument.name).collect();
            assert_eq!(names, expected, "{}", action.name);
            for (argument, (name, value)) in action.outputs().zip(&answer.args) {
                check_value(service, argument.variable, name, value);
            }
        }
    }
}

/// A call of an action with arguments that fit the mapping of SOAP-01.
fn sample(service: &Service, action: &str) -> Call {
    let action = service.action(action).expect("its action");
    let known = add("3600");
    let value = |name: &'static str| {
        let value = match name {
            "NewPortMappingIndex" | "NewActiveConnectionIndex" | "NewNumberOfPorts" => "0",
            "NewStartPort" => "1024",
            "NewEndPort" => "65535",
            "NewManage" => "0",
            name => known.arg(name).unwrap_or("x"),
        };
        (name.to_owned(), value.to_owned())
    };
    Call {
        service: service.kind.to_owned(),
        version: service.version,
        action: action.name.to_owned(),
        args: action.inputs().map(|input| value(input.name)).collect(),
    }
}

/// A value is of its variable's type and among its allowed values.
fn check_value(service: &Service, variable: &str, name: &str, value: &str) {
    let variable = service.variable(variable).expect("its variable");
    let fits = match variable.data {
        DataType::Ui2 => value.parse::<u16>().is_ok(),
        DataType::Ui4 => value.parse::<u32>().is_ok(),
        DataType::Boolean => ["0", "1"].contains(&value),
        DataType::Base64 => scpd::octets(value).is_ok(),
        DataType::String => variable.allowed.is_empty() || variable.allowed.contains(&value),
    };
    assert!(fits, "{name}: {value:?}");
}
