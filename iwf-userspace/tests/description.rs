//! The device descriptions as a control point reads them: tree, identities, URLs, configuration number.

use std::collections::{BTreeMap, BTreeSet};

use iwf_userspace::wire::description::{Description, DeviceInfo, DeviceUuid, Route, Tree};
use quick_xml::Reader;
use quick_xml::events::Event;

fn info() -> DeviceInfo {
    DeviceInfo {
        uuid: DeviceUuid::from_octets([0x5a; 16]),
        friendly_name: "gateway <1>".to_owned(),
        manufacturer: "maker".to_owned(),
        manufacturer_url: "http://maker.invalid/".to_owned(),
        model_description: "model".to_owned(),
        model_name: "iwf".to_owned(),
        model_number: "0".to_owned(),
        serial_number: "1".to_owned(),
        presentation_url: "/".to_owned(),
    }
}

/// Every leaf of a document as its path and text, in document order.
fn leaves(document: &str) -> Vec<(String, String)> {
    let mut reader = Reader::from_str(document);
    let mut path: Vec<String> = Vec::new();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut text = String::new();
    loop {
        match reader.read_event().expect("well-formed") {
            Event::Start(start) => {
                path.push(start.local_name().as_ref().to_owned());
                text.clear();
            }
            Event::Text(part) => text.push_str(&part.xml10_content()),
            Event::GeneralRef(_) => text.push('&'),
            Event::End(_) => {
                if !text.trim().is_empty() {
                    found.push((path.join("/"), std::mem::take(&mut text)));
                }
                text.clear();
                path.pop();
            }
            Event::Eof => return found,
            Event::Empty(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_) => {}
        }
    }
}

fn texts<'a>(leaves: &'a [(String, String)], element: &str) -> Vec<&'a str> {
    let ends = format!("/{element}");
    let matching = leaves.iter().filter(|(path, _)| path.ends_with(&ends));
    matching.map(|(_, text)| text.as_str()).collect()
}

/// Device types with the services directly in them.
fn tree(document: &str) -> Vec<(String, Vec<String>)> {
    let mut devices: Vec<(String, Vec<String>)> = Vec::new();
    for (path, text) in leaves(document) {
        if path.ends_with("/deviceType") {
            devices.push((text, Vec::new()));
        } else if path.ends_with("/serviceType") {
            devices.last_mut().expect("in a device").1.push(text);
        }
    }
    devices
}

#[test]
fn each_tree_is_of_one_version_throughout() {
    let description = Description::new(info());
    for (which, version, connection) in [(Tree::Igd1, 1, 1), (Tree::Igd2, 2, 2)] {
        let device = |kind: &str| format!("urn:schemas-upnp-org:device:{kind}:{version}");
        let service = |kind: &str, v: u8| vec![format!("urn:schemas-upnp-org:service:{kind}:{v}")];
        let expected = [
            (
                device("InternetGatewayDevice"),
                service("Layer3Forwarding", 1),
            ),
            (device("WANDevice"), service("WANCommonInterfaceConfig", 1)),
            (
                device("WANConnectionDevice"),
                service("WANIPConnection", connection),
            ),
        ];
        assert_eq!(tree(&description.root(which)), expected);
    }
}

#[test]
fn identities_are_distinct_and_depend_on_the_stored_uuid_only() {
    let first = Description::new(info());
    let other_name = Description::new(DeviceInfo {
        friendly_name: "renamed".to_owned(),
        ..info()
    });
    let other_device = Description::new(DeviceInfo {
        uuid: DeviceUuid::from_octets([0x5b; 16]),
        ..info()
    });
    for which in [Tree::Igd1, Tree::Igd2] {
        let udns = |description: &Description| -> Vec<String> {
            let leaves = leaves(&description.root(which));
            texts(&leaves, "UDN")
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        let own: BTreeSet<_> = udns(&first).into_iter().collect();
        assert_eq!(own.len(), 3);
        assert_eq!(udns(&first), udns(&other_name));
        assert!(udns(&other_device).iter().all(|udn| !own.contains(udn)));
    }
}

/// URLs are paths on the server that was asked, so they hold on every LAN address; there is no URLBase.
#[test]
fn every_url_is_relative_and_leads_to_what_it_names() {
    let description = Description::new(info());
    for which in [Tree::Igd1, Tree::Igd2] {
        let document = description.root(which);
        let leaves = leaves(&document);
        assert!(!document.contains("URLBase"));
        let urls = |element| texts(&leaves, element);
        for url in urls("SCPDURL") {
            assert!(matches!(Route::of(url), Some(Route::Scpd(tree, _)) if tree == which));
        }
        for url in urls("controlURL") {
            assert!(matches!(Route::of(url), Some(Route::Control(tree, _)) if tree == which));
        }
        for url in urls("eventSubURL") {
            assert!(matches!(Route::of(url), Some(Route::Events(tree, _)) if tree == which));
        }
        assert_eq!(urls("presentationURL"), ["/"]);
        let services = urls("serviceType").len();
        assert_eq!(urls("SCPDURL").len(), services);
        assert_eq!(urls("controlURL").len(), services);
        assert_eq!(urls("eventSubURL").len(), services);
    }
}

#[test]
fn config_id_is_in_the_documents_and_changes_with_them() {
    let first = Description::new(info());
    let attribute = format!("configId=\"{}\"", first.config_id());
    assert!(first.root(Tree::Igd2).contains(&attribute));
    assert!(!first.root(Tree::Igd1).contains("configId"));
    assert!(first.config_id() < 1 << 24);
    assert_eq!(first.config_id(), Description::new(info()).config_id());
    let renamed = Description::new(DeviceInfo {
        friendly_name: "renamed".to_owned(),
        ..info()
    });
    assert_ne!(first.config_id(), renamed.config_id());
}

/// What an action refers to, a client looks up: every argument has its variable, every variable is used or
/// evented, and nothing of version 2 shows in version 1.
#[test]
fn service_descriptions_are_closed() {
    let description = Description::new(info());
    for which in [Tree::Igd1, Tree::Igd2] {
        for service in which.root().walk().flat_map(|device| device.services) {
            let document = description.scpd(which, service);
            let leaves = leaves(&document);
            let variables: BTreeSet<_> = leaves
                .iter()
                .filter(|(path, _)| path.ends_with("/stateVariable/name"))
                .map(|(_, name)| name.as_str())
                .collect();
            let used: BTreeSet<_> = texts(&leaves, "relatedStateVariable").into_iter().collect();
            assert!(used.is_subset(&variables), "{}", service.kind);
            let declared: BTreeMap<_, _> = service.variables.iter().map(|v| (v.name, v)).collect();
            for unused in variables.difference(&used) {
                assert!(declared[unused].evented, "{} of {}", unused, service.kind);
            }
            let is_v1 = which == Tree::Igd1;
            assert!(!(is_v1 && document.contains("AddAnyPortMapping")));
        }
    }
}

#[test]
fn the_default_connection_service_names_the_connection_device() {
    let description = Description::new(info());
    let document = description.root(Tree::Igd2);
    let leaves = leaves(&document);
    let connection = *texts(&leaves, "UDN").last().expect("the innermost device");
    assert_eq!(
        description.default_connection_service(Tree::Igd2),
        format!("{connection}:WANConnectionDevice:2,urn:upnp-org:serviceId:WANIPConn1")
    );
}
