//! What servers and a router on the WAN send.

use std::net::{Ipv4Addr, SocketAddr};

use iwf_userspace::iwf::{
    Discovery, Errand, Fetched, Input, ModeSetting, Returned, Saved, Settings, WanState,
};
use iwf_userspace::proto::dhcp as machine;
use iwf_userspace::types::caller::parse_mac;
use iwf_userspace::types::{Instant, UnixTime};
use iwf_userspace::wire::control_point::{self, Location};
use iwf_userspace::wire::description::{Route, Tree};
use iwf_userspace::wire::pcp::{self, ServerMessage};
use iwf_userspace::wire::pcp_servers::{MAX_ADDRESSES, MAX_SERVERS, Servers, from_hex};
use iwf_userspace::wire::{dhcp4, dhcp6, natpmp};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::gateway::{Gateway, NONCE, SERVER, wan_at};
use super::{add, call, count, delete, ignore};

/// From where NAT-PMP and UPnP are spoken.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 10);
/// Of a datagram.
const MAX_DATAGRAM: usize = 1500;

/// Answers of a PCP server to a request that is waited for, several with their lengths in front. The nonce of what was
/// asked last is put into them, so that they are looked at, and where they have zeros its protocol and ports.
pub(super) fn pcp(octets: &[u8]) -> usize {
    ignore(ServerMessage::decode(octets));
    ignore(pcp::Request::decode(octets));
    let mut gateway = Gateway::new(ModeSetting::Cascaded);
    gateway.call(add(9000));
    for mut answer in pieces(octets) {
        if happens(&mut gateway, &answer) {
            continue;
        }
        let mut sent = gateway.sent.iter().rev();
        if let Some(asked) = sent.find(|sent| sent.len() >= 60) {
            fill(&mut answer, asked, NONCE, true);
            for place in [36..37, 40..42, 42..44] {
                fill(&mut answer, asked, place, false);
            }
        }
        set_epoch(&mut answer, 8..12, &gateway);
        gateway.hear(answer);
    }
    assert_eq!(gateway.elsewhere, [], "only the server is asked");
    gateway.finish()
}

/// The same for a server that turns out to speak NAT-PMP.
pub(super) fn natpmp(octets: &[u8]) -> usize {
    ignore(natpmp::Response::decode(octets));
    ignore(natpmp::Request::decode(octets));
    let settings = Gateway::settings(ModeSetting::Cascaded);
    let mut gateway = Gateway::with(settings, Saved::default(), wan_at(PRIVATE));
    gateway.call(add(9000));
    // RFC 6886 section 3.5: the answer of a NAT-PMP server to version 2.
    gateway.hear(vec![0, 128, 0, 1, 0, 0, 0, 9]);
    gateway.hear(vec![0, 128, 0, 0, 0, 0, 0, 9, 11, 22, 33, 1]);
    for mut answer in pieces(octets) {
        if happens(&mut gateway, &answer) {
            continue;
        }
        let mut sent = gateway.sent.iter().rev();
        if let Some(asked) = sent.find(|sent| sent.len() == 12 && sent.first() == Some(&0)) {
            // The ports of an answer are where a request has two octets and its internal port.
            for (place, of) in [(8..10, 4..6), (10..12, 6..8)] {
                let ports = asked.get(of).unwrap_or_default().to_vec();
                if let Some(place) = answer.get_mut(place).filter(|at| **at == [0, 0]) {
                    place.copy_from_slice(&ports);
                }
            }
        }
        set_epoch(&mut answer, 4..8, &gateway);
        gateway.hear(answer);
    }
    assert_eq!(gateway.elsewhere, [], "only the server is asked");
    gateway.finish()
}

/// A clock of zero is that of a server that has not restarted.
fn set_epoch(answer: &mut [u8], place: std::ops::Range<usize>, gateway: &Gateway) {
    let seconds = gateway.now.as_millis() / 1000;
    let epoch = u32::try_from(seconds + 9).unwrap_or(u32::MAX);
    if let Some(place) = answer.get_mut(place).filter(|at| **at == [0; 4]) {
        place.copy_from_slice(&epoch.to_be_bytes());
    }
}

/// Copies what was asked into an answer: always, or where it has zeros.
fn fill(answer: &mut [u8], asked: &[u8], place: std::ops::Range<usize>, always: bool) {
    let Some(value) = asked.get(place.clone()) else {
        return;
    };
    if let Some(place) = answer.get_mut(place)
        && (always || place.iter().all(|octet| *octet == 0))
    {
        place.copy_from_slice(value);
    }
}

/// What happens besides datagrams, one octet each, and nothing is time that passes.
fn happens(gateway: &mut Gateway, what: &[u8]) -> bool {
    match what {
        [] => {
            gateway.wait();
        }
        [number @ ..=4] => gateway.call(add(9000 + u16::from(*number))),
        [number @ 5..=9] => gateway.call(delete(8995 + u16::from(*number))),
        [10] => gateway.input(Input::UpstreamUnreachable { server: SERVER }),
        [11] => gateway.input(Input::Renewed),
        [12] => gateway.input(Input::Wan(WanState::default())),
        [octet @ 13..=14] => {
            let address = Ipv4Addr::new(100, 64, 0, octet - 3);
            gateway.input(Input::Wan(wan_at(address)));
        }
        [15] => gateway.call(call("GetExternalIPAddress", &[])),
        [hours] => {
            let later = 1_700_000_000 + 3600 * u64::from(*hours);
            gateway.input(Input::WallClock(UnixTime::from_secs(later)));
        }
        _ => return false,
    }
    true
}

/// Each piece has its length in front, in one octet.
fn pieces(octets: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = octets;
    while let Some((length, behind)) = rest.split_first().filter(|_| found.len() < 32) {
        let end = usize::from(*length).min(behind.len());
        let (piece, more) = behind.split_at(end);
        found.push(piece.to_vec());
        rest = more;
    }
    found
}

/// A router that speaks UPnP and nothing else: answers to searches and to requests of HTTP in the order in which they are
/// waited for, with NULs between. The first octet of the latter is about the status. What is one octet alone happens
/// besides, as for PCP.
pub(super) fn igd(octets: &[u8]) -> usize {
    let settings = Settings {
        igd: true,
        servers: Vec::new(),
        discovery: Discovery {
            router: true,
            ..Discovery::default()
        },
        ..Gateway::settings(ModeSetting::Cascaded)
    };
    let mut gateway = Gateway::with(settings, Saved::default(), wan_at(PRIVATE));
    for piece in octets.split(|octet| *octet == 0).take(24) {
        if piece.len() < 2 {
            // NULs are taken.
            let what = piece.iter().map(|octet| octet.wrapping_sub(b'0'));
            happens(&mut gateway, &what.collect::<Vec<_>>());
            continue;
        }
        for _ in 0..40 {
            if !gateway.errands.is_empty() || !gateway.wait() {
                break;
            }
        }
        let returned = match gateway.errands.pop_front() {
            Some(Errand::Search { router, .. }) => Returned::Found {
                from: SocketAddr::new(router.into(), 1900),
                payload: piece.to_vec(),
            },
            Some(Errand::Fetch { id, request }) => {
                assert_eq!(*request.at.ip(), Ipv4Addr::new(192, 0, 2, 1));
                let visible = |octet: u8| (b'!'..=b'~').contains(&octet);
                assert!(request.path.bytes().all(visible), "{:?}", request.path);
                let (status, body) = piece.split_first().unwrap_or((&0, &[]));
                let status = match status {
                    b'2' => Some(200),
                    b'5' => Some(500),
                    b'-' => None,
                    other => Some(300 + u16::from(*other)),
                };
                let limit = request.limit.min(body.len());
                let body = body.get(..limit).unwrap_or_default().to_vec();
                Returned::Fetched {
                    id,
                    answer: status.map(|status| Fetched { status, body }),
                }
            }
            None => continue,
        };
        gateway.input(Input::Returned(returned));
    }
    assert_eq!(gateway.elsewhere, [], "only the server is asked");
    gateway.finish()
}

/// What a router upstream says of itself.
pub(super) fn router(octets: &[u8]) -> usize {
    let mut connections = 0;
    if let Some(location) = Location::parse("http://192.0.2.1:5000/desc.xml") {
        let read = control_point::connections(&location, octets);
        connections = read.map_or(0, |read| read.len());
        if let Ok(text) = std::str::from_utf8(octets) {
            ignore(location.join(text));
            ignore(Location::parse(text));
            ignore(Route::of(text, [Tree::Igd1, Tree::Igd2]));
        }
    }
    let answers = ["GetExternalIPAddress", "GetSpecificPortMappingEntry"]
        .map(|action| control_point::Answer::decode(action, octets).is_ok());
    connections + count(answers)
}

/// Messages of DHCP servers, of both protocols, several with their lengths in front in two octets, to clients that have
/// asked; and values of options as hooks tell them.
pub(super) fn dhcp(octets: &[u8]) -> usize {
    let datagram = octets.get(..MAX_DATAGRAM).unwrap_or(octets);
    ignore(dhcp4::Ack::decode(datagram));
    ignore(dhcp6::Reply::decode(datagram));
    if let Ok(servers) = Servers::from_option158(octets) {
        bounded(&servers);
    }
    let instances: Vec<_> = octets
        .split(|octet| *octet == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    bounded(&Servers::from_option86(&instances).0);
    if let Ok(text) = std::str::from_utf8(octets) {
        ignore(from_hex(text));
        ignore(parse_mac(text));
    }
    let mac = [2, 0, 0, 0, 0, 1];
    let address = Ipv4Addr::new(192, 0, 2, 10);
    let by_v4 = converse(
        machine::Client::V4 { address, mac },
        octets,
        |asked, answer| {
            fill(answer, asked, 4..8, true);
            fill(answer, asked, 28..44, true);
        },
    );
    let duid = dhcp6::Duid::from_uuid([0; 16]);
    let by_v6 = converse(machine::Client::V6 { duid }, octets, |asked, answer| {
        fill(answer, asked, 1..4, true);
    });
    by_v4 + by_v6
}

fn bounded(servers: &Servers) {
    assert!(servers.lists.len() <= MAX_SERVERS);
    let lengths = servers.lists.iter().map(Vec::len);
    assert!(
        lengths
            .into_iter()
            .all(|length| (1..=MAX_ADDRESSES).contains(&length))
    );
}

/// The octets that name the question are put into each answer. Returns how many were taken for one.
fn converse(client: machine::Client, octets: &[u8], name: impl Fn(&[u8], &mut [u8])) -> usize {
    let mut dhcp = machine::DhcpClient::new(StdRng::from_seed([7; 32]));
    let mut now = Instant::from_millis(0);
    dhcp.handle_input(machine::Input::Client(Some(client)), now);
    let mut asked = Vec::new();
    let mut rest = octets;
    for _ in 0..8 {
        while let Some(effect) = dhcp.poll_effect() {
            match effect {
                machine::Effect::Send(payload) => asked = payload,
                machine::Effect::Known(known) => bounded(&known.servers),
                machine::Effect::Discarded(_) => {}
            }
        }
        match rest {
            [high, low, behind @ ..] if !asked.is_empty() => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let (piece, more) = behind.split_at(length.min(behind.len()));
                let mut piece = piece.to_vec();
                name(&asked, &mut piece);
                dhcp.handle_input(machine::Input::Datagram(piece), now);
                rest = more;
            }
            _ => {
                let Some(due) = dhcp.poll_timeout() else {
                    break;
                };
                now = due.max(now);
                dhcp.handle_timeout(now);
            }
        }
    }
    usize::try_from(dhcp.heard().answers).unwrap_or(usize::MAX)
}
