//! The device trees and the documents that describe them.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 2; InternetGatewayDevice:1 and :2.
//!
//! Two trees are served side by side under paths of their own. Stacks of version 1 give up on a device when
//! anything they can reach from its description is of version 2, so nothing of version 2 is in tree 1: no device
//! or service type, no action, no variable, no version 1.1 of the architecture.
#![forbid(unsafe_code)]

use std::fmt;

use super::clients::{self, Versions};
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
    /// InternetGatewayDevice:2 with DeviceProtection:1, which is served instead of the one without it.
    Protected,
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
    version_2: Tree,
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
    services: &[&services::LAYER3_FORWARDING],
    ..ROOT_2
};

static PROTECTED: Device = Device {
    services: &[&services::LAYER3_FORWARDING, &services::DEVICE_PROTECTION],
    ..ROOT_2
};

const ROOT_2: Device = Device {
    kind: "InternetGatewayDevice",
    version: 2,
    index: 0,
    services: &[],
    children: &[Device {
        kind: "WANDevice",
        version: 2,
        index: 2,
        services: &[&services::WAN_COMMON_INTERFACE_CONFIG],
        children: &[Device {
            kind: "WANConnectionDevice",
            version: 2,
            index: 3,
            services: &[
                &services::WAN_IP_CONNECTION_2,
                &services::WAN_IPV6_FIREWALL_CONTROL,
            ],
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
            Self::Protected => &PROTECTED,
        }
    }

    /// The path of its description, which LOCATION names.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Igd1 => "/igd1/desc.xml",
            Self::Igd2 | Self::Protected => "/igd2/desc.xml",
        }
    }

    /// The tree that a client gets to see when it asks for this one: some stacks cannot bear version 2 and say
    /// who they are in their user agent.
    pub fn for_user_agent(self, user_agent: Option<&str>) -> Self {
        match clients::of(user_agent).versions {
            Versions::FirstOnly => Self::Igd1,
            Versions::All => self,
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Igd1 => "/igd1",
            Self::Igd2 | Self::Protected => "/igd2",
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
    /// What a path (without query) leads to where these trees are served.
    pub fn of(path: &str, trees: [Tree; 2]) -> Option<Self> {
        let (tree, rest) = trees
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

    /// The octets.
    pub const fn octets(self) -> [u8; 16] {
        self.0
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
    /// The documents for this product, without DeviceProtection.
    pub fn new(info: DeviceInfo) -> Self {
        Self::with(info, Tree::Igd2)
    }

    /// The documents for this product, with DeviceProtection.
    pub fn protected(info: DeviceInfo) -> Self {
        Self::with(info, Tree::Protected)
    }

    fn with(info: DeviceInfo, version_2: Tree) -> Self {
        let mut description = Self {
            info,
            version_2,
            config_id: 0,
        };
        let mut hash = Fnv::new();
        for tree in description.trees() {
            hash.update(description.root(tree).as_bytes());
            for service in tree.root().walk().flat_map(|device| device.services) {
                hash.update(description.scpd(tree, service).as_bytes());
            }
        }
        description.config_id = hash.folded(CONFIG_ID_BITS);
        description
    }

    /// The trees that are served.
    pub const fn trees(&self) -> [Tree; 2] {
        [Tree::Igd1, self.version_2]
    }

    /// The tree that is served where this one is meant.
    pub const fn served(&self, tree: Tree) -> Tree {
        match tree {
            Tree::Igd1 => Tree::Igd1,
            Tree::Igd2 | Tree::Protected => self.version_2,
        }
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
            Tree::Igd2 | Tree::Protected => Some(self.config_id),
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
mod tests;
