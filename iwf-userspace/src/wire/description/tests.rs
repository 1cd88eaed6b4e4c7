//! What the descriptions contain, and what must not be in the tree of version 1.

use quick_xml::events::Event;

use super::*;
use crate::wire::control_point::{Location, connections};

fn info() -> DeviceInfo {
    DeviceInfo {
        uuid: DeviceUuid::parse("2fac1234-31f8-11b4-a222-08002b34c003").unwrap(),
        friendly_name: "router <attic> & more".to_owned(),
        manufacturer: "iwf".to_owned(),
        manufacturer_url: "https://example.invalid/".to_owned(),
        model_description: "gateway".to_owned(),
        model_name: "iwf".to_owned(),
        model_number: "0.1".to_owned(),
        serial_number: "1".to_owned(),
        presentation_url: "/".to_owned(),
    }
}

/// The texts of every element of this name.
fn texts(document: &str, name: &str) -> Vec<String> {
    document
        .split(&format!("<{name}>"))
        .skip(1)
        .map(|rest| rest.split('<').next().unwrap().to_owned())
        .collect()
}

fn documents(description: &Description, tree: Tree) -> Vec<String> {
    let services = tree.root().walk().flat_map(|device| device.services);
    let mut all = vec![description.root(tree)];
    all.extend(services.map(|service| description.scpd(tree, service)));
    all
}

#[test]
fn documents_are_well_formed() {
    let description = Description::new(info());
    for tree in [Tree::Igd1, Tree::Igd2] {
        for document in documents(&description, tree) {
            let mut reader = quick_xml::Reader::from_str(&document);
            let mut depth = 0_i32;
            loop {
                let event = reader.read_event().unwrap();
                depth += i32::from(matches!(event, Event::Start(_)));
                depth -= i32::from(matches!(event, Event::End(_)));
                if event == Event::Eof {
                    break;
                }
            }
            assert_eq!(depth, 0);
        }
    }
    assert_eq!(
        texts(&description.root(Tree::Igd1), "friendlyName")[0],
        "router &lt;attic&gt; &amp; more"
    );
}

#[test]
fn nothing_of_version_2_is_in_tree_1() {
    let description = Description::new(info());
    for document in documents(&description, Tree::Igd1) {
        for name in ["deviceType", "serviceType", "DefaultConnectionService"] {
            for text in texts(&document, name) {
                assert!(text.ends_with(":1"), "{text}");
            }
        }
        for word in [
            "igd2",
            "configId",
            "<minor>1",
            "AddAnyPortMapping",
            "DeletePortMappingRange",
            "GetListOfPortMappings",
            "SystemUpdateID",
            "604800",
            "DeviceProtection",
            "WANIPv6FirewallControl",
        ] {
            assert!(!document.contains(word), "{word}");
        }
    }
    let id = description.default_connection_service(Tree::Igd1);
    assert!(id.ends_with(":WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1"));
}

#[test]
fn tree_2_is_of_version_2() {
    let description = Description::new(info());
    let root = description.root(Tree::Igd2);
    assert_eq!(
        texts(&root, "deviceType"),
        [
            "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
            "urn:schemas-upnp-org:device:WANDevice:2",
            "urn:schemas-upnp-org:device:WANConnectionDevice:2",
        ]
    );
    assert_eq!(
        texts(&root, "serviceType"),
        [
            "urn:schemas-upnp-org:service:Layer3Forwarding:1",
            "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1",
            "urn:schemas-upnp-org:service:WANIPConnection:2",
            "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1",
        ]
    );
    let id = format!(" configId=\"{}\"", description.config_id());
    assert!(
        documents(&description, Tree::Igd2)
            .iter()
            .all(|d| d.contains(&id))
    );
    assert_eq!(texts(&root, "presentationURL"), ["/"]);
    assert!(!root.contains("URLBase"));
}

#[test]
fn every_url_in_a_description_leads_where_it_says() {
    for description in [Description::new(info()), Description::protected(info())] {
        let trees = description.trees();
        for tree in trees {
            urls_lead_where_they_say(&description, tree, trees);
        }
    }
}

fn urls_lead_where_they_say(description: &Description, tree: Tree, trees: [Tree; 2]) {
    let root = description.root(tree);
    let types = texts(&root, "serviceType");
    let routes = |name| -> Vec<Route> {
        texts(&root, name)
            .iter()
            .map(|path| Route::of(path, trees).expect(path))
            .collect()
    };
    for (at, urn) in types.iter().enumerate() {
        let service = services::ALL.into_iter().find(|s| s.urn() == *urn).unwrap();
        assert_eq!(routes("SCPDURL")[at], Route::Scpd(tree, service));
        assert_eq!(routes("controlURL")[at], Route::Control(tree, service));
        assert_eq!(routes("eventSubURL")[at], Route::Events(tree, service));
    }
    assert_eq!(
        Route::of(tree.path(), trees),
        Some(Route::Description(tree))
    );
}

#[test]
fn other_paths_lead_nowhere() {
    for path in [
        "",
        "/",
        "/igd1",
        "/igd1/",
        "/igd1/x.xml",
        "/igd1/ctl/",
        "/igd3/desc.xml",
        "/igd1/ctl/DeviceProtection",
        "/igd2/ctl/DeviceProtection",
        "/igd2/DeviceProtection.xml",
    ] {
        assert_eq!(Route::of(path, [Tree::Igd1, Tree::Igd2]), None, "{path}");
    }
}

#[test]
fn udns_are_distinct_and_stable() {
    let description = Description::new(info());
    let udns = texts(&description.root(Tree::Igd2), "UDN");
    assert_eq!(
        udns,
        [
            "uuid:2fac1234-31f8-11b4-a222-08002b34c003",
            "uuid:2fac1234-31f8-11b4-a222-08002b34c001",
            "uuid:2fac1234-31f8-11b4-a222-08002b34c000",
        ]
    );
    assert_eq!(udns, texts(&description.root(Tree::Igd1), "UDN"));
}

#[test]
fn uuids_are_read_strictly() {
    let good = "2FAC1234-31f8-11b4-a222-08002b34c003";
    let uuid = DeviceUuid::parse(good).unwrap();
    assert_eq!(uuid.to_string(), good.to_lowercase());
    assert_eq!(DeviceUuid::parse(&format!("uuid:{good}")), Ok(uuid));
    for bad in [
        "",
        "2fac1234",
        "2fac1234-31f8-11b4-a222-08002b34c0033",
        "2fac1234-31f8-11b4-a222-08002b34c003-",
        "+fac1234-31f8-11b4-a222-08002b34c003",
        "2fac123431f811b4a22208002b34c003",
    ] {
        assert_eq!(DeviceUuid::parse(bad), Err(UuidError), "{bad}");
    }
}

#[test]
fn config_id_follows_the_documents() {
    let first = Description::new(info());
    assert_eq!(first.config_id(), Description::new(info()).config_id());
    let mut other = info();
    other.friendly_name.push('!');
    assert_ne!(first.config_id(), Description::new(other).config_id());
    assert!(first.config_id() < 1 << 24);
}

#[test]
fn some_user_agents_only_see_version_1() {
    let windows = "Microsoft-Windows/10.0 UPnP/1.0";
    for agent in [windows, "FDSSDP", "xbox one"] {
        assert_eq!(Tree::Igd2.for_user_agent(Some(agent)), Tree::Igd1);
    }
    assert_eq!(Tree::Igd2.for_user_agent(Some("miniupnpc/2.2")), Tree::Igd2);
    assert_eq!(Tree::Igd2.for_user_agent(None), Tree::Igd2);
}

#[test]
fn a_control_point_finds_the_connection() {
    let description = Description::new(info());
    let here = Location::parse("http://192.168.1.1:49152/x").unwrap();
    for (tree, version) in [(Tree::Igd1, 1), (Tree::Igd2, 2)] {
        let found = connections(&here, description.root(tree).as_bytes()).unwrap();
        assert_eq!(found[0].version, version);
        assert_eq!(found[0].control.at, here.at);
        assert!(matches!(
            Route::of(&found[0].control.path, description.trees()),
            Some(Route::Control(..))
        ));
    }
}

/// DEV-006: relative URLs, and no base that would lead from one scheme to the other.
#[test]
fn the_service_is_of_the_protected_tree_alone_and_its_urls_have_no_base() {
    let description = Description::protected(info());
    for (tree, times) in [(Tree::Igd1, 0), (Tree::Igd2, 0), (Tree::Protected, 1)] {
        let root = description.root(tree);
        let types = texts(&root, "serviceType");
        let found = types
            .iter()
            .filter(|urn| urn.contains("DeviceProtection:1"));
        assert_eq!(found.count(), times, "{tree:?}");
        assert!(!root.contains("URLBase"));
        assert!(
            texts(&root, "controlURL")
                .iter()
                .all(|url| url.starts_with('/'))
        );
    }
    assert_ne!(
        description.config_id(),
        Description::new(info()).config_id()
    );
}
