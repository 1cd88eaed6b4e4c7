//! The list of mappings that GetListOfPortMappings answers with.
//!
//! Read before editing: WANIPConnection:2 sections 2.3.25 and 2.5.21. Its text says attributes, its schema and its
//! sample have elements with a prefix; elements it is (AMB-23).
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::xml::Document;

/// One mapping in the list. The last two elements have other names than the arguments of AddPortMapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMappingEntry<'a> {
    /// Who may come in; `None`: everybody.
    pub remote_host: Option<Ipv4Addr>,
    /// Outermost external port.
    pub external_port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Port of the LAN host.
    pub internal_port: u16,
    /// The LAN host.
    pub internal_client: Ipv4Addr,
    /// Free text.
    pub description: &'a str,
    /// Seconds left.
    pub lease_time: u32,
}

const NAMESPACES: &[(&str, &str)] = &[
    ("xmlns:p", "urn:schemas-upnp-org:gw:WANIPConnection"),
    ("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance"),
    (
        "xsi:schemaLocation",
        "urn:schemas-upnp-org:gw:WANIPConnection http://www.upnp.org/schemas/gw/WANIPConnection-v2.xsd",
    ),
];

/// The fragment; it is text once more in the answer, so it is escaped there, or quoted ([`super::clients`]).
pub fn encode<'a>(entries: impl IntoIterator<Item = PortMappingEntry<'a>>) -> String {
    let mut xml = Document::fragment();
    xml.open("p:PortMappingList", NAMESPACES);
    for entry in entries {
        let remote = entry.remote_host.map(|addr| addr.to_string());
        xml.open("p:PortMappingEntry", &[]);
        xml.leaf("p:NewRemoteHost", remote.as_deref().unwrap_or_default());
        xml.leaf("p:NewExternalPort", &entry.external_port.to_string());
        xml.leaf("p:NewProtocol", &entry.protocol);
        xml.leaf("p:NewInternalPort", &entry.internal_port.to_string());
        xml.leaf("p:NewInternalClient", &entry.internal_client.to_string());
        xml.leaf("p:NewEnabled", "1");
        xml.leaf("p:NewDescription", entry.description);
        xml.leaf("p:NewLeaseTime", &entry.lease_time.to_string());
        xml.close("p:PortMappingEntry");
    }
    xml.close("p:PortMappingList");
    xml.finish()
}
