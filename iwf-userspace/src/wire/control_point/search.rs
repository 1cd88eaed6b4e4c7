//! Searches out, answers in.

use crate::wire::ssdp::{GROUP, PORT};

/// Header lines that are looked at.
const MAX_HEADERS: usize = 64;
/// What every gateway is.
const KIND: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:";

/// The search for a gateway of version 1, which those of version 2 answer too. The answer comes within a second.
pub fn encode_search() -> Vec<u8> {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:{PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {KIND}1\r\n\r\n"
    )
    .into_bytes()
}

/// A gateway that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// URL of its description, as it says.
    pub location: String,
}

impl Found {
    /// Reads an answer to a search for gateways; `None` for anything else. Names in any case, bare line feeds and a missing
    /// empty line are taken.
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let mut lines = datagram
            .split(|octet| *octet == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut status = lines.next()?.split(u8::is_ascii_whitespace);
        let version = status.next()?.get(..7)?;
        if !version.eq_ignore_ascii_case(b"HTTP/1.") || status.next() != Some(b"200") {
            return None;
        }
        let (mut location, mut target) = (None, None);
        for line in lines.take_while(|line| !line.is_empty()).take(MAX_HEADERS) {
            let line = std::str::from_utf8(line).ok()?;
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let slot = match name.trim().to_ascii_uppercase().as_str() {
                "LOCATION" => &mut location,
                "ST" => &mut target,
                _ => continue,
            };
            slot.get_or_insert(value.trim());
        }
        let is_gateway = target?
            .get(..KIND.len())
            .is_some_and(|kind| kind.eq_ignore_ascii_case(KIND));
        is_gateway.then_some(Self {
            location: location?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::wire::description::DeviceUuid;
    use crate::wire::ssdp::{Search, Sender, encode_answer};

    #[test]
    fn our_own_server_is_found_by_it() {
        let search = Search::decode(&encode_search()).expect("a search");
        let uuid = DeviceUuid::from_octets([7; 16]);
        let adverts = search.answers(uuid);
        let sender = Sender {
            group: std::net::IpAddr::V4(GROUP),
            location: "http://192.168.1.1:49152/igd1/root.xml",
            secure_location: None,
            server: "Linux/6 UPnP/1.1 iwf/0",
            max_age: 1800,
            boot_id: 1,
            config_id: 1,
            search_port: None,
        };
        let answer = encode_answer(&sender, &adverts[0], None);
        let location = sender.location.to_owned();
        assert_eq!(Found::decode(&answer), Some(Found { location }));
    }

    #[test]
    fn sloppy_answers_are_taken_and_others_are_not() {
        let sloppy = format!("http/1.0 200 OK\nst:{KIND}2\nLocation:http://10.0.0.1/d\n");
        let location = "http://10.0.0.1/d".to_owned();
        assert_eq!(Found::decode(sloppy.as_bytes()), Some(Found { location }));
        for other in [
            String::new(),
            format!("NOTIFY * HTTP/1.1\r\nST: {KIND}1\r\nLOCATION: http://10.0.0.1/d\r\n\r\n"),
            format!("HTTP/1.1 404 x\r\nST: {KIND}1\r\nLOCATION: http://10.0.0.1/d\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://10.0.0.1/d\r\n\r\n"
                .to_owned(),
            format!("HTTP/1.1 200 OK\r\nST: {KIND}1\r\n\r\n"),
        ] {
            assert_eq!(Found::decode(other.as_bytes()), None, "{other}");
        }
    }
}
