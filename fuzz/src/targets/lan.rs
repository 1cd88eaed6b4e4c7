//! What hosts of the LAN send.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use iwf_userspace::iwf::pinholes::Lan6;
use iwf_userspace::iwf::{Input, ModeSetting, RequestId, Saved, Settings};
use iwf_userspace::proto::{gena as events, protection};
use iwf_userspace::types::access::{Channel, ControlPointId, Identity, Roles, Who};
use iwf_userspace::types::caller::Caller;
use iwf_userspace::wire::control_point;
use iwf_userspace::wire::description::DeviceUuid;
use iwf_userspace::wire::protection as documents;
use iwf_userspace::wire::soap::{Call, CallFault, encode_fault};
use iwf_userspace::wire::ssdp::{Arrival, Search};
use iwf_userspace::wire::{gena as wire, services};

use super::gateway::{CALLER, Gateway, wan};
use super::{add, count, ignore};

/// Of HTTP.
const MAX_BODY: usize = 64 << 10;
const PREFIX: Ipv6Addr = Ipv6Addr::new(0x2a0b, 1, 2, 3, 0, 0, 0, 0);
const CALLER6: Ipv6Addr = Ipv6Addr::new(0x2a0b, 1, 2, 3, 0, 0, 0, 0x20);

/// Requests of HTTP to their answers: several bodies, with NULs between. In front of each there may be `@` and who calls,
/// and then a line with its SOAPAction if it begins with `#`.
pub(super) fn soap(octets: &[u8]) -> usize {
    let mut gateway = protected();
    for request in octets.split(|octet| *octet == 0).take(8) {
        let (caller, request) = match request {
            [b'@', who, rest @ ..] => (caller(*who), rest),
            _ => (CALLER.into(), request),
        };
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
                gateway.call_from(caller, call);
            }
            Err(error) => {
                if let CallFault::Upnp(fault) = error.answer() {
                    assert!(encode_fault(&fault).contains("<errorCode>"));
                }
            }
        }
    }
    let granted = gateway.finish();
    if let Ok(text) = std::str::from_utf8(octets) {
        if let Ok(named) = documents::read_identity_list(text) {
            // What is read can be written and read again.
            let again = documents::identity_list(&named);
            assert_eq!(documents::read_identity_list(&again).ok(), Some(named));
        }
        ignore(documents::read_identity(text));
    }
    granted
}

/// With all services, and somebody who may do everything.
pub(super) fn protected() -> Gateway {
    let settings = Settings {
        protection: Some(protection::Settings {
            uuid: DeviceUuid::from_octets([3; 16]),
            certificate: ControlPointId::from_hash(&[2; 32]),
        }),
        ..Gateway::settings(ModeSetting::Local)
    };
    let administrator = Identity {
        who: Who::ControlPoint(administrator()),
        name: "point".to_owned(),
        alias: None,
        introduced: true,
        roles: Roles {
            basic: true,
            admin: true,
        },
        verifier: None,
    };
    let saved = Saved {
        identities: vec![administrator],
        ..Saved::default()
    };
    let mut gateway = Gateway::with(settings, saved, wan());
    gateway.input(Input::Lan6(Lan6 {
        prefixes: vec![(PREFIX, 64)],
        own: BTreeSet::from([Ipv6Addr::from(u128::from(PREFIX) + 1)]),
        interfaces: [].into(),
    }));
    gateway
}

/// Who calls as `b`.
pub(super) fn stranger() -> ControlPointId {
    ControlPointId::from_hash(&[9; 32])
}

fn administrator() -> ControlPointId {
    ControlPointId::from_hash(&[1; 32])
}

pub(super) fn caller(who: u8) -> Caller {
    let channel = |connection, control_point| Channel::Secure {
        connection,
        control_point,
    };
    let mut caller = Caller::from(CALLER);
    match who {
        b'a' => caller.channel = channel(1, Some(administrator())),
        b'b' => caller.channel = channel(2, Some(stranger())),
        b'c' => caller.channel = channel(3, None),
        b'6' => {
            caller.addr = CALLER6.into();
            caller.mac = Some([2, 0, 0, 0, 0, 0x20]);
            caller.others = vec![CALLER.into()];
        }
        b'7' => caller.addr = CALLER6.into(),
        _ => caller.addr = Ipv4Addr::new(192, 168, 1, 21).into(),
    }
    caller
}

pub(super) fn ssdp(octets: &[u8]) -> usize {
    let search = Search::decode(octets);
    if let Ok(search) = &search {
        let waits = search.spread(Arrival::Multicast);
        assert!(waits.is_none_or(|waits| waits <= Duration::from_secs(5)));
        assert!(search.answers(DeviceUuid::from_octets([0; 16])).len() <= 10);
    }
    let found = control_point::Found::decode(octets);
    count([search.is_ok(), found.is_some()])
}

/// Requests at event URLs and what subscribers answer to messages, with NULs between. A SID of `*` is the newest one, and
/// nothing lets time pass.
pub(super) fn gena(octets: &[u8]) -> usize {
    for end in 0..octets.len().min(wire::MAX_STATUS_LINE * 2) {
        // However it comes in pieces.
        ignore(wire::answer(octets.get(..end).unwrap_or_default()));
    }
    let own = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
    let at = events::At { own, interface: 3 };
    let mut gateway = Gateway::new(ModeSetting::Local);
    gateway.input(Input::Links {
        links: vec![events::Link { at, len: 24 }],
        own: BTreeSet::new(),
    });
    for (number, piece) in octets.split(|octet| *octet == 0).take(16).enumerate() {
        if piece.is_empty() {
            gateway.wait();
        } else if piece == b"+" {
            // Something to tell.
            gateway.call(add(9000 + u16::try_from(number).unwrap_or(0)));
        } else if piece.starts_with(b"HTTP") {
            if let Some(message) = gateway.events.pop_front() {
                gateway.input(Input::EventSent {
                    number: message.number,
                    result: outcome(piece),
                });
            }
        } else {
            ask(&mut gateway, piece, number, at);
        }
        for message in &gateway.events {
            look(message);
        }
    }
    let subscribed = gateway.subscribed.iter();
    subscribed.filter(|result| result.is_ok()).count() + gateway.finish()
}

/// As the shell says it.
fn outcome(answer: &[u8]) -> Result<(), events::SendError> {
    match wire::answer(answer) {
        wire::Answer::Status(200..=299) => Ok(()),
        wire::Answer::Status(status) => Err(events::SendError::Refused(status)),
        wire::Answer::Nonsense | wire::Answer::Incomplete => Err(events::SendError::Silent),
    }
}

fn ask(gateway: &mut Gateway, head: &[u8], number: usize, at: events::At) {
    let fields: Vec<(&[u8], &[u8])> = head
        .split(|octet| *octet == b'\n')
        .take(64)
        .filter_map(|line| {
            let colon = line.iter().position(|octet| *octet == b':')?;
            let value = line.get(colon + 1..)?.trim_ascii();
            Some((line.get(..colon)?, value))
        })
        .collect();
    let granted = gateway.subscribed.iter().rev();
    let newest = granted.flatten().flatten().next();
    let newest = newest.map(|granted| granted.sid.to_string());
    let field = |name: &str| {
        let of = |(field, _): &&(&[u8], &[u8])| field.eq_ignore_ascii_case(name.as_bytes());
        let (_, value) = fields.iter().find(of)?;
        match &newest {
            Some(newest) if *value == b"*" => Some(newest.as_bytes()),
            _ => Some(*value),
        }
    };
    let wanted = match head.first() {
        Some(b'U') => wire::Request::unsubscribe(field),
        _ => wire::Request::subscribe(field),
    };
    let Ok(wanted) = wanted else {
        return;
    };
    // A digit behind the first octet names another service than WANIPConnection:1.
    let digit = head.get(1).filter(|octet| octet.is_ascii_digit());
    let service = digit.map_or(3, |digit| usize::from(digit - b'0'));
    let answered = gateway.subscribed.len();
    gateway.input(Input::Subscription {
        request: RequestId(1 << 32 | u64::try_from(number).unwrap_or(0)),
        service: services::ALL[service % services::ALL.len()],
        host: IpAddr::V4(CALLER).into(),
        at,
        wanted,
    });
    assert_eq!(gateway.subscribed.len(), answered + 1, "answered at once");
}

/// Whatever a subscriber has asked for, a message is one message, and goes to its own link.
fn look(message: &events::Send) {
    let IpAddr::V4(to) = message.callback.to.ip() else {
        panic!("a message to {}", message.callback.to);
    };
    let [a, b, c, d] = to.octets();
    assert_eq!([a, b, c], [192, 168, 1], "a message to {to}");
    assert!(![0, 1, 255].contains(&d), "a message to {to}");
    let text = std::str::from_utf8(&message.message).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert_eq!(head.lines().count(), 9, "{head}");
    assert!(head.split("\r\n").all(is_printable), "{head}");
    assert!(head.contains(&format!("CONTENT-LENGTH: {}\r\n", body.len())));
}

fn is_printable(line: &str) -> bool {
    line.bytes().all(|octet| (b' '..=b'~').contains(&octet))
}
