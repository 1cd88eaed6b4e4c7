//! URLs of a gateway.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Longest URL that is looked at, in octets.
const MAX_LEN: usize = 512;
/// RFC 9110 section 4.2.1.
const HTTP_PORT: u16 = 80;

/// A place of HTTP at a literal address. Its path is visible ASCII and begins with a slash, so that it can stand in a
/// request line as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Address and port.
    pub at: SocketAddrV4,
    /// Path with its query.
    pub path: String,
}

impl Location {
    /// Reads an absolute URL. `None` for another scheme, a name in the place of an address, user information, and what no
    /// URL may have inside.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() > MAX_LEN || !text.bytes().all(|octet| octet.is_ascii_graphic()) {
            return None;
        }
        let (scheme, rest) = text.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end)?;
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
            None => (authority, HTTP_PORT),
        };
        let address: Ipv4Addr = host.parse().ok()?;
        Some(Self {
            at: SocketAddrV4::new(address, port),
            path: rooted(path),
        })
    }

    /// What a description found here means by a reference: another URL, a path, or a path from here.
    pub fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.trim();
        if reference.contains("://") {
            return Self::parse(reference);
        }
        // The authority of another place without its scheme.
        if reference.len() > MAX_LEN
            || reference.starts_with("//")
            || !reference.bytes().all(|octet| octet.is_ascii_graphic())
        {
            return None;
        }
        let path = match reference.starts_with('/') {
            true => rooted(reference),
            false => {
                let path = self.path.split(['?', '#']).next().unwrap_or_default();
                let directory = path.rsplit_once('/').map_or("", |(before, _)| before);
                rooted(&format!("{directory}/{reference}"))
            }
        };
        let at = self.at;
        (path.len() <= 2 * MAX_LEN).then_some(Self { at, path })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.at, self.path)
    }
}

/// Without a fragment, and with a slash in front.
fn rooted(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_gateways_are_read_and_others_are_not() {
        for (text, expected) in [
            (
                "http://192.168.0.1:5000/rootDesc.xml",
                "http://192.168.0.1:5000/rootDesc.xml",
            ),
            (
                " HTTP://192.168.0.1/d.xml?a=b#c ",
                "http://192.168.0.1:80/d.xml?a=b",
            ),
            ("http://192.168.0.1:49152", "http://192.168.0.1:49152/"),
            ("http://192.168.0.1?x", "http://192.168.0.1:80/?x"),
        ] {
            let read = Location::parse(text).map(|location| location.to_string());
            assert_eq!(read.as_deref(), Some(expected), "{text}");
        }
        for text in [
            "https://192.168.0.1/",
            "http://router.example/",
            "http://192.168.0.1:0/",
            "http://192.168.0.1:70000/",
            "http://a@192.168.0.1/",
            "http://192.168.0.1/a b",
            "http://192.168.0.1/a\r\nHost: x",
            "http://[fe80::1]/",
            "/rootDesc.xml",
            "http://",
            "",
        ] {
            assert_eq!(Location::parse(text), None, "{text}");
        }
        assert_eq!(
            Location::parse(&format!("http://192.168.0.1/{}", "a".repeat(MAX_LEN))),
            None
        );
    }

    #[test]
    fn references_are_resolved_where_they_were_found() {
        let base = Location::parse("http://192.168.0.1:5000/igd/root.xml?x/y").expect("a URL");
        for (reference, expected) in [
            ("/ctl/IPConn", Some("http://192.168.0.1:5000/ctl/IPConn")),
            ("ctl/IPConn", Some("http://192.168.0.1:5000/igd/ctl/IPConn")),
            ("http://10.0.0.1:81/x", Some("http://10.0.0.1:81/x")),
            ("https://10.0.0.1/x", None),
            ("//10.0.0.1/x", None),
            ("ctl\r\nX: y", None),
        ] {
            let joined = base.join(reference).map(|location| location.to_string());
            assert_eq!(joined.as_deref(), expected, "{reference}");
        }
    }
}
