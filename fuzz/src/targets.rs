//! What takes octets from the network, each behind one function that must return.
//!
//! Also compiled into a test, which gives each target its committed corpus.

#[path = "../../iwf-userspace/tests/gateway/mod.rs"]
mod gateway;

use std::time::Duration;

use gateway::{CALLER, Gateway, NONCE};
use iwf_userspace::iwf::{Input, ModeSetting};
use iwf_userspace::types::UnixTime;
use iwf_userspace::wire::control_point::{self, Location};
use iwf_userspace::wire::description::{DeviceUuid, Route, Tree};
use iwf_userspace::wire::pcp::{self, ServerMessage};
use iwf_userspace::wire::soap::{Call, encode_fault};
use iwf_userspace::wire::ssdp::{Arrival, Search};
use iwf_userspace::wire::{dhcp4, dhcp6, gena, natpmp, services};

pub(crate) type Target = fn(&[u8]);

pub(crate) const TARGETS: [(&str, Target); 7] = [
    ("soap", soap),
    ("ssdp", ssdp),
    ("gena", gena),
    ("pcp", pcp),
    ("natpmp", natpmp),
    ("dhcp", dhcp),
    ("router", router),
];

pub(crate) fn named(name: &str) -> Option<Target> {
    let mut targets = TARGETS.iter();
    targets
        .find(|(of, _)| *of == name)
        .map(|(_, target)| *target)
}

/// For results that only have to come back.
fn ignore<T>(_: T) {}

/// Of HTTP.
const MAX_BODY: usize = 64 << 10;
/// Of a datagram.
const MAX_DATAGRAM: usize = 1500;
impl Gateway {
    /// Lets time pass until every call has its answer.
    fn finish(&mut self) {
        for _ in 0..200 {
            if self.open.is_empty() || !self.wait() {
                break;
            }
            self.input(Input::WallClock(UnixTime::from_secs(1_700_000_100)));
        }
        assert!(self.open.is_empty(), "each call has one answer");
    }
}

fn add(port: u16) -> Call {
    let args = [
        ("NewRemoteHost", String::new()),
        ("NewExternalPort", port.to_string()),
        ("NewProtocol", "TCP".to_owned()),
        ("NewInternalPort", "8000".to_owned()),
        ("NewInternalClient", CALLER.to_string()),
        ("NewEnabled", "1".to_owned()),
        ("NewPortMappingDescription", "one".to_owned()),
        ("NewLeaseDuration", "3600".to_owned()),
    ];
    Call {
        service: "WANIPConnection".to_owned(),
        version: 1,
        action: "AddPortMapping".to_owned(),
        args: args.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

/// Requests of HTTP to their answers: several bodies, with NULs between, each behind a line with its SOAPAction if it
/// begins with `#`.
fn soap(octets: &[u8]) {
    let mut gateway = Gateway::new(ModeSetting::Local);
    for request in octets.split(|octet| *octet == 0).take(8) {
        let line = request.iter().position(|octet| *octet == b'\n');
        let (header, body) = match (request.first(), line) {
            (Some(b'#'), Some(at)) => (request.get(1..at), request.get(at + 1..)),
            _ => (None, Some(request)),
        };
        match Call::decode(header, body.unwrap_or_default(), MAX_BODY) {
            Ok(mut call) => {
                if call.is_query() {
                    "WANIPConnection".clone_into(&mut call.service);
                    call.version = 2;
                }
                if let Some(service) = services::find(&call.service, call.version) {
                    ignore(service.check(&call));
                }
                gateway.call(call);
            }
            Err(error) => {
                if let iwf_userspace::wire::soap::CallFault::Upnp(fault) = error.answer() {
                    assert!(encode_fault(&fault).contains("<errorCode>"));
                }
            }
        }
    }
    gateway.finish();
}

fn ssdp(octets: &[u8]) {
    if let Ok(search) = Search::decode(octets) {
        let waits = search.spread(Arrival::Multicast);
        assert!(waits.is_none_or(|waits| waits <= Duration::from_secs(5)));
        assert!(search.answers(DeviceUuid::from_octets([0; 16])).len() <= 10);
    }
    ignore(control_point::Found::decode(octets));
}

/// Requests at event URLs, and what subscribers answer to messages.
fn gena(octets: &[u8]) {
    let fields: Vec<(&[u8], &[u8])> = octets
        .split(|octet| *octet == b'\n')
        .take(64)
        .filter_map(|line| {
            let colon = line.iter().position(|octet| *octet == b':')?;
            Some((line.get(..colon)?, line.get(colon + 1..)?))
        })
        .collect();
    let field = |name: &str| {
        let of = |(field, _): &&(&[u8], &[u8])| field.eq_ignore_ascii_case(name.as_bytes());
        fields.iter().find(of).map(|(_, value)| *value)
    };
    ignore(gena::Request::subscribe(field));
    ignore(gena::Request::unsubscribe(field));
    for end in 0..octets.len().min(gena::MAX_STATUS_LINE * 2) {
        // However it comes in pieces.
        ignore(gena::answer(octets.get(..end).unwrap_or_default()));
    }
}

/// Answers of a PCP server to a request that is waited for, several with their lengths in front. The nonce of what was
/// asked is put into them, so that they are looked at.
fn pcp(octets: &[u8]) {
    ignore(ServerMessage::decode(octets));
    ignore(pcp::Request::decode(octets));
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    gateway.call(add(9000));
    let nonce = gateway
        .sent
        .iter()
        .find_map(|sent| sent.get(NONCE).map(<[u8]>::to_vec));
    for mut answer in pieces(octets) {
        if let (Some(nonce), Some(place)) = (&nonce, answer.get_mut(NONCE)) {
            place.copy_from_slice(nonce);
        }
        gateway.hear(answer);
    }
    gateway.finish();
}

/// The same for a server that turns out to speak NAT-PMP.
fn natpmp(octets: &[u8]) {
    ignore(natpmp::Response::decode(octets));
    ignore(natpmp::Request::decode(octets));
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    // RFC 6886 section 3.5: the answer of a NAT-PMP server to version 2.
    gateway.hear(vec![0, 128, 0, 1, 0, 0, 0, 9]);
    gateway.call(add(9000));
    gateway.hear(vec![0, 128, 0, 0, 0, 0, 0, 9, 11, 22, 33, 1]);
    for answer in pieces(octets) {
        gateway.hear(answer);
    }
    gateway.finish();
}

/// Each piece has its length in front, in one octet.
fn pieces(octets: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = octets;
    while let Some((length, behind)) = rest.split_first().filter(|_| found.len() < 8) {
        let end = usize::from(*length).min(behind.len());
        let (piece, more) = behind.split_at(end);
        found.push(piece.to_vec());
        rest = more;
    }
    found
}

fn dhcp(octets: &[u8]) {
    let octets = octets.get(..MAX_DATAGRAM).unwrap_or(octets);
    ignore(dhcp4::Ack::decode(octets));
    ignore(dhcp6::Reply::decode(octets));
}

/// What a router upstream says of itself.
fn router(octets: &[u8]) {
    if let Some(location) = Location::parse("http://192.0.2.1:5000/desc.xml") {
        let read = control_point::connections(&location, octets);
        for connection in read.into_iter().flatten() {
            ignore(format!("{connection:?}"));
        }
        if let Ok(text) = std::str::from_utf8(octets) {
            ignore(location.join(text));
            ignore(Location::parse(text));
            ignore(Route::of(text, [Tree::Igd1, Tree::Igd2]));
        }
    }
    for action in ["GetExternalIPAddress", "GetSpecificPortMappingEntry"] {
        ignore(control_point::Answer::decode(action, octets));
    }
}
