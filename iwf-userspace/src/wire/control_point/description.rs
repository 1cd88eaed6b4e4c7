//! What a description says of connections to the Internet.

use super::Location;
use super::read::{Piece, XmlError, pieces};

/// Most octets of a description.
pub const MAX_DESCRIPTION: usize = 128 * 1024;
/// Most connection services that are looked at.
const MAX_CONNECTIONS: usize = 8;

/// A service that maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Service type with its version, as the gateway spells it.
    pub urn: String,
    /// Its version.
    pub version: u8,
    /// Where it is controlled.
    pub control: Location,
}

/// The connections of a description that was found at `location`, in its order; of one connection service that is there
/// in several versions, the newest first. Those whose control URL cannot be read are left out.
pub fn connections(location: &Location, body: &[u8]) -> Result<Vec<Connection>, XmlError> {
    let mut base = location.clone();
    let mut found: Vec<(String, String)> = Vec::new();
    let (mut kind, mut control) = (None, None);
    pieces(body, MAX_DESCRIPTION, |piece| match piece {
        Piece::Leaf { name, text, .. } => match name {
            "serviceType" => kind = Some(text.trim().to_owned()),
            "controlURL" => control = Some(text.trim().to_owned()),
            // Of version 1.0 of the architecture. An empty or odd one says nothing.
            "URLBase" => base = Location::parse(text).unwrap_or(base.clone()),
            _ => {}
        },
        Piece::Close { name: "service" } => {
            if let (Some(kind), Some(control)) = (kind.take(), control.take())
                && version(&kind).is_some()
                && found.len() < MAX_CONNECTIONS
            {
                found.push((kind, control));
            }
        }
        Piece::Open {
            name: "service", ..
        } => (kind, control) = (None, None),
        Piece::Open { .. } | Piece::Close { .. } => {}
    })?;
    let read = found.into_iter().filter_map(|(urn, control)| {
        Some(Connection {
            version: version(&urn)?,
            control: base.join(&control)?,
            urn,
        })
    });
    let mut read: Vec<_> = read.collect();
    // The same service under two names is one.
    read.sort_by_key(|connection| std::cmp::Reverse(connection.version));
    Ok(read)
}

/// Version of a connection service; `None` for any other service.
fn version(urn: &str) -> Option<u8> {
    let kinds = [
        "urn:schemas-upnp-org:service:WANIPConnection:",
        "urn:schemas-upnp-org:service:WANPPPConnection:",
    ];
    let version = kinds.iter().find_map(|kind| urn.strip_prefix(kind))?;
    version.parse().ok().filter(|version| *version > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Location {
        Location::parse(text).expect("a URL")
    }

    #[test]
    fn what_is_found_is_bounded_and_in_order() {
        let service = |kind: &str, control: &str| {
            format!(
                "<service><serviceType>urn:schemas-upnp-org:service:{kind}</serviceType>\
                 <controlURL>{control}</controlURL></service>"
            )
        };
        let text = format!(
            "<root><URLBase>http://10.0.0.1:81/base/</URLBase><device>{}{}{}{}{}</device></root>",
            service("Layer3Forwarding:1", "/l3f"),
            service("WANPPPConnection:1", "/ppp"),
            service("WANIPConnection:1", "ip"),
            service("WANIPConnection:2", "http://10.9.9.9/elsewhere"),
            service("WANIPConnection:2", "bad url"),
        );
        let found =
            connections(&at("http://10.0.0.1/d.xml"), text.as_bytes()).expect("well-formed");
        let found: Vec<_> = found
            .iter()
            .map(|c| (c.version, c.control.to_string()))
            .collect();
        assert_eq!(
            found,
            [
                (2, "http://10.9.9.9:80/elsewhere".to_owned()),
                (1, "http://10.0.0.1:81/ppp".to_owned()),
                (1, "http://10.0.0.1:81/base/ip".to_owned()),
            ]
        );
        let many = format!(
            "<root>{}</root>",
            service("WANIPConnection:1", "/c").repeat(100)
        );
        let found =
            connections(&at("http://10.0.0.1/d.xml"), many.as_bytes()).expect("well-formed");
        assert_eq!(found.len(), MAX_CONNECTIONS);
    }
}
