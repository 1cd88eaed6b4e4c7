//! The device trees and the documents that describe them.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 2; InternetGatewayDevice:1 and :2.
//!
//! Two trees are served side by side under paths of their own. Stacks of version 1 give up on a device when
//! anything they can reach from its description is of version 2, so nothing of version 2 is in tree 1: no device
//! or service type, no action, no variable, no version 1.1 of the architecture.
#![forbid(unsafe_code)]

use std::fmt;

use super::scpd::{Service, open_root};
use super::services;
use super::xml::Document;

/// Which of the two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tree {
    /// InternetGatewayDevice:1.
    Igd1,
    /// InternetGatewayDevice:2.
    Igd2,
}

/// A device of a tree.
#[derive(Debug)]
pub struct Device {
    /// Type without version, for example `WANDevice`.
    pub kind: &'static str,
    /// Version of the type.
    pub version: u8,
    /// Tells the devices of a tree apart in their UUIDs; never changes for a kind.
    pub index: u8,
    /// Its services.
    pub services: &'static [&'static Service],
    /// The devices in it.
    pub children: &'static [Device],
}

/// What a request path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The description of a tree.
    Description(Tree),
    /// The description of a service.
    Scpd(Tree, &'static Service),
    /// The control URL of a service.
    Control(Tree, &'static Service),
    /// The event URL of a service.
    Events(Tree, &'static Service),
}

/// Identity of a device: base of the UUIDs of the devices in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceUuid([u8; 16]);

/// Why a text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID of 32 hexadecimal digits in five groups")]
pub struct UuidError;

/// What the descriptions say about the product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Base of every UDN.
    pub uuid: DeviceUuid,
    /// Short name for people, under 64 characters.
    pub friendly_name: String,
    /// Who made it.
    pub manufacturer: String,
    /// Web site of the maker.
    pub manufacturer_url: String,
    /// Long name of the model.
    pub model_description: String,
    /// Short name of the model.
    pub model_name: String,
    /// Version of the model.
    pub model_number: String,
    /// Serial number.
    pub serial_number: String,
    /// Page for people: absolute, or a path on this server. Windows hides a gateway that has none.
    pub presentation_url: String,
}

/// The documents of one device, in both trees.
#[derive(Clone, Debug)]
pub struct Description {
    info: DeviceInfo,
    config_id: u32,
}

static IGD1: Device = Device {
    kind: "InternetGatewayDevice",
    version: 1,
    index: 0,
    services: &[&services::LAYER3_FORWARDING],
    children: &[Device {
        kind: "WANDevice",
        version: 1,
        index: 2,
        services: &[&services::WAN_COMMON_INTERFACE_CONFIG],
        children: &[Device {
            kind: "WANConnectionDevice",
            version: 1,
            index: 3,
            services: &[&services::WAN_IP_CONNECTION_1],
            children: &[],
        }],
    }],
};

static IGD2: Device = Device {
    kind: "InternetGatewayDevice",
    version: 2,
    index: 0,
    services: &[&services::LAYER3_FORWARDING],
    children: &[Device {
        kind: "WANDevice",
        version: 2,
        index: 2,
        services: &[&services::WAN_COMMON_INTERFACE_CONFIG],
        children: &[Device {
            kind: "WANConnectionDevice",
            version: 2,
            index: 3,
            services: &[&services::WAN_IP_CONNECTION_2],
            children: &[],
        }],
    }],
};

/// UPnP Device Architecture 1.1 clause 2.1: configuration numbers below 2^24 are the device's to give.
const CONFIG_ID_BITS: u32 = 24;

impl Tree {
    /// Its root device.
    pub fn root(self) -> &'static Device {
        match self {
            Self::Igd1 => &IGD1,
            Self::Igd2 => &IGD2,
        }
    }

    /// The path of its description, which LOCATION names.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Igd1 => "/igd1/desc.xml",
            Self::Igd2 => "/igd2/desc.xml",
        }
    }

    /// The tree that a client gets to see when it asks for this one: some stacks cannot bear version 2 and say
    /// who they are in their user agent.
    pub fn for_user_agent(self, user_agent: Option<&str>) -> Self {
        let only_version_1 = ["microsoft", "fdssdp", "xbox"];
        let user_agent = user_agent.unwrap_or_default().to_ascii_lowercase();
        if only_version_1.iter().any(|name| user_agent.contains(name)) {
            Self::Igd1
        } else {
            self
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Igd1 => "/igd1",
            Self::Igd2 => "/igd2",
        }
    }
}

impl Device {
    /// Its type as a URN.
    pub fn urn(&self) -> String {
        format!("urn:schemas-upnp-org:device:{}:{}", self.kind, self.version)
    }

    /// Itself and every device in it, outermost first.
    pub fn walk(&'static self) -> impl Iterator<Item = &'static Self> {
        let mut pending = vec![self];
        std::iter::from_fn(move || {
            let device = pending.pop()?;
            pending.extend(device.children.iter().rev());
            Some(device)
        })
    }
}

impl Route {
    /// What a path (without query) leads to.
    pub fn of(path: &str) -> Option<Self> {
        let (tree, rest) = [Tree::Igd1, Tree::Igd2]
            .into_iter()
            .find_map(|tree| Some((tree, path.strip_prefix(tree.prefix())?)))?;
        if path == tree.path() {
            return Some(Self::Description(tree));
        }
        let service = |name: &str| {
            tree.root()
                .walk()
                .flat_map(|device| device.services)
                .find(|service| service.path == name)
                .copied()
        };
        if let Some(name) = rest.strip_prefix("/ctl/") {
            return Some(Self::Control(tree, service(name)?));
        }
        if let Some(name) = rest.strip_prefix("/evt/") {
            return Some(Self::Events(tree, service(name)?));
        }
        let name = rest.strip_prefix('/')?.strip_suffix(".xml")?;
        Some(Self::Scpd(tree, service(name)?))
    }

    /// The path that leads here.
    pub fn path(self) -> String {
        match self {
            Self::Description(tree) => tree.path().to_owned(),
            Self::Scpd(tree, service) => format!("{}/{}.xml", tree.prefix(), service.path),
            Self::Control(tree, service) => format!("{}/ctl/{}", tree.prefix(), service.path),
            Self::Events(tree, service) => format!("{}/evt/{}", tree.prefix(), service.path),
        }
    }
}

impl DeviceUuid {
    /// The identity with these octets.
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// Reads the usual text form, in any case, with or without `uuid:` in front.
    pub fn parse(text: &str) -> Result<Self, UuidError> {
        let text = text.strip_prefix("uuid:").unwrap_or(text);
        let mut groups = text.split('-');
        let mut digits = String::with_capacity(32);
        for len in [8, 4, 4, 4, 12] {
            let group = groups.next().filter(|group| group.len() == len);
            digits.push_str(group.ok_or(UuidError)?);
        }
        if groups.next().is_some() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(UuidError);
        }
        let number = u128::from_str_radix(&digits, 16).map_err(|_| UuidError)?;
        Ok(Self(number.to_be_bytes()))
    }

    /// The identity of a device in the tree. Only the last octet differs, so that all are distinct, stable and
    /// recognizable as one product.
    pub fn of(self, device: &Device) -> Self {
        let number = u128::from_be_bytes(self.0) ^ u128::from(device.index);
        Self(number.to_be_bytes())
    }
}

impl fmt::Display for DeviceUuid {
    /// The form in UDN and USN, without `uuid:`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, octet) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{octet:02x}")?;
        }
        Ok(())
    }
}

impl Description {
    /// The documents for this product.
    pub fn new(info: DeviceInfo) -> Self {
        let mut description = Self { info, config_id: 0 };
        let mut hash = Fnv::new();
        for tree in [Tree::Igd1, Tree::Igd2] {
            hash.update(description.root(tree).as_bytes());
            for service in tree.root().walk().flat_map(|device| device.services) {
                hash.update(description.scpd(tree, service).as_bytes());
            }
        }
        description.config_id = hash.folded(CONFIG_ID_BITS);
        description
    }

    /// Changes with any of the documents; CONFIGID.UPNP.ORG in discovery carries the same number.
    pub const fn config_id(&self) -> u32 {
        self.config_id
    }

    /// Base of the UDNs.
    pub const fn uuid(&self) -> DeviceUuid {
        self.info.uuid
    }

    /// The value of DefaultConnectionService (Layer3Forwarding:1) in a tree: the connection device's UDN and
    /// type, and the id of its connection service.
    pub fn default_connection_service(&self, tree: Tree) -> String {
        tree.root()
            .walk()
            .filter(|device| device.kind == "WANConnectionDevice")
            .flat_map(|device| device.services.iter().map(move |service| (device, service)))
            .map(|(device, service)| {
                format!(
                    "uuid:{}:{}:{},urn:upnp-org:serviceId:{}",
                    self.info.uuid.of(device),
                    device.kind,
                    device.version,
                    service.id
                )
            })
            .next()
            .unwrap_or_default()
    }

    /// The description of a tree.
    pub fn root(&self, tree: Tree) -> String {
        let mut xml = Document::new();
        let namespace = "urn:schemas-upnp-org:device-1-0";
        open_root(&mut xml, "root", namespace, self.document_id(tree));
        self.write_device(&mut xml, tree, tree.root());
        xml.close("root");
        xml.finish()
    }

    /// The description of a service as it appears in a tree.
    pub fn scpd(&self, tree: Tree, service: &Service) -> String {
        service.document(self.document_id(tree))
    }

    /// configId is a word of version 1.1 of the architecture.
    const fn document_id(&self, tree: Tree) -> Option<u32> {
        match tree {
            Tree::Igd1 => None,
            Tree::Igd2 => Some(self.config_id),
        }
    }

    fn write_device(&self, xml: &mut Document, tree: Tree, device: &'static Device) {
        let info = &self.info;
        let is_root = device.index == 0;
        xml.open("device", &[]);
        xml.leaf("deviceType", &device.urn());
        if is_root {
            xml.leaf("friendlyName", &info.friendly_name);
        } else {
            xml.leaf("friendlyName", device.kind);
        }
        xml.leaf("manufacturer", &info.manufacturer);
        xml.leaf("manufacturerURL", &info.manufacturer_url);
        xml.leaf("modelDescription", &info.model_description);
        xml.leaf("modelName", &info.model_name);
        xml.leaf("modelNumber", &info.model_number);
        xml.leaf("serialNumber", &info.serial_number);
        xml.leaf("UDN", &format!("uuid:{}", info.uuid.of(device)));
        xml.open("serviceList", &[]);
        for service in device.services {
            xml.open("service", &[]);
            xml.leaf("serviceType", &service.urn());
            let id = format!("urn:upnp-org:serviceId:{}", service.id);
            xml.leaf("serviceId", &id);
            xml.leaf("SCPDURL", &Route::Scpd(tree, service).path());
            xml.leaf("controlURL", &Route::Control(tree, service).path());
            xml.leaf("eventSubURL", &Route::Events(tree, service).path());
            xml.close("service");
        }
        xml.close("serviceList");
        if !device.children.is_empty() {
            xml.open("deviceList", &[]);
            for child in device.children {
                self.write_device(xml, tree, child);
            }
            xml.close("deviceList");
        }
        if is_root {
            xml.leaf("presentationURL", &info.presentation_url);
        }
        xml.close("device");
    }
}

/// FNV-1a, 64 bits: tells versions of a document apart; nobody gains by a collision.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn update(&mut self, octets: &[u8]) {
        for octet in octets {
            self.0 = (self.0 ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn folded(&self, bits: u32) -> u32 {
        let folded = (self.0 >> 32) ^ self.0;
        let mask = (1_u64 << bits) - 1;
        u32::try_from(((folded >> bits) ^ folded) & mask).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use quick_xml::events::Event;

    use super::*;

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
        let description = Description::new(info());
        for tree in [Tree::Igd1, Tree::Igd2] {
            let root = description.root(tree);
            let types = texts(&root, "serviceType");
            let routes = |name| -> Vec<Route> {
                texts(&root, name)
                    .iter()
                    .map(|path| Route::of(path).expect(path))
                    .collect()
            };
            for (at, urn) in types.iter().enumerate() {
                let service = services::ALL.into_iter().find(|s| s.urn() == *urn).unwrap();
                assert_eq!(routes("SCPDURL")[at], Route::Scpd(tree, service));
                assert_eq!(routes("controlURL")[at], Route::Control(tree, service));
                assert_eq!(routes("eventSubURL")[at], Route::Events(tree, service));
            }
            assert_eq!(Route::of(tree.path()), Some(Route::Description(tree)));
        }
        for path in [
            "",
            "/",
            "/igd1",
            "/igd1/",
            "/igd1/x.xml",
            "/igd1/ctl/",
            "/igd3/desc.xml",
        ] {
            assert_eq!(Route::of(path), None, "{path}");
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
}
