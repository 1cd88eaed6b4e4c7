use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::mapping::PortChoice;
use crate::types::{ExternalPort, InternalPort, Lifetime, Protocol, RemotePeer};
use crate::wire::natpmp::{Request, Response, ResultCode};

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

fn server(n: u8) -> SocketAddr {
    ([192, 168, 0, n], 5351).into()
}

fn want(id: u32, to: SocketAddr, external: u16, until: Instant) -> Want {
    let port = u16::try_from(40_000 + id).expect("small");
    Want {
        id: Generation(id),
        server: to,
        protocol: Protocol::Tcp,
        behalf: None,
        port: ExternalPort::new(port).expect("not 0"),
        external: ExternalPort::new(external),
        choice: PortChoice::Exact,
        remote: RemotePeer::Any,
        description: None,
        lifetime: Lifetime(3600),
        patient: false,
        brief: false,
        until,
    }
}

fn client() -> NatPmpClient {
    let mut client = NatPmpClient::default();
    client.handle_input(Input::Local(Some([192, 168, 0, 2].into())), at(1));
    client
}

fn sent(client: &mut NatPmpClient) -> Vec<(SocketAddr, Request)> {
    let mut all = Vec::new();
    while let Some(effect) = client.poll_effect() {
        if let Effect::Send { server, payload } = effect {
            all.push((server, Request::decode(&payload).expect("well formed")));
        }
    }
    all
}

fn address(epoch: u32) -> Vec<u8> {
    let response = Response::ExternalAddress {
        result: ResultCode::Success,
        epoch: Epoch(epoch),
        addr: [11, 22, 33, 9].into(),
    };
    response.encode()
}

fn grant(id: u32, external: u16, lifetime: u32) -> Vec<u8> {
    let response = Response::Map {
        protocol: Protocol::Tcp,
        result: ResultCode::Success,
        epoch: Epoch(100),
        internal_port: InternalPort::new(u16::try_from(40_000 + id).expect("small")),
        external_port: ExternalPort::new(external),
        lifetime: Lifetime(lifetime),
    };
    response.encode()
}

fn tell(client: &mut NatPmpClient, from: SocketAddr, payload: Vec<u8>, now: Instant) {
    client.handle_input(Input::Datagram { from, payload }, now);
}

#[test]
fn one_thing_at_a_time_and_the_address_first() {
    let (mut client, to) = (client(), server(1));
    for id in 1..4 {
        let want = want(id, to, 8000, at(4000));
        client.handle_input(Input::Request(want), at(1));
    }
    assert_eq!(sent(&mut client), [(to, Request::ExternalAddress)]);
    tell(&mut client, to, address(100), at(2));
    let requests = sent(&mut client);
    assert!(matches!(requests[..], [(_, Request::Map { .. })]));
    // Somebody else's answer, and that of a question not asked yet.
    tell(&mut client, server(9), grant(1, 8000, 3600), at(2));
    tell(&mut client, to, grant(2, 8000, 3600), at(2));
    assert_eq!(sent(&mut client), []);
    let ignored = client.ignored();
    assert_eq!((ignored.stranger, ignored.unmatched), (1, 1));
    tell(&mut client, to, grant(1, 8000, 3600), at(2));
    assert_eq!(sent(&mut client).len(), 1);
    assert!(client.is_consistent());
}

#[test]
fn a_closed_port_ends_the_wait_at_once() {
    let (mut client, to) = (client(), server(1));
    client.handle_input(Input::Request(want(1, to, 8000, at(4000))), at(1));
    sent(&mut client);
    client.handle_input(Input::Unreachable(to), at(1));
    let mut effects = std::iter::from_fn(|| client.poll_effect());
    let refused = |e: &Effect| matches!(e, Effect::Refused { asked: false, .. });
    assert!(effects.any(|e| refused(&e)));
    assert_eq!(client.liveness(to), Some(Liveness::Silent));
    assert_eq!(client.poll_timeout(), None, "nobody waits for anything");
}

#[test]
fn a_late_grant_is_given_back() {
    let (mut client, to) = (client(), server(1));
    client.handle_input(Input::Request(want(1, to, 8000, at(4000))), at(1));
    tell(&mut client, to, address(100), at(1));
    client.handle_input(Input::Abandon(Generation(1)), at(2));
    let deletion = sent(&mut client).pop().map(|(_, request)| request);
    let is_deletion = |r: &Request| {
        matches!(
            r,
            Request::Map {
                lifetime: Lifetime(0),
                external_port: None,
                ..
            }
        )
    };
    assert!(deletion.is_some_and(|r| is_deletion(&r)));
    tell(&mut client, to, grant(1, 0, 0), at(2));
    assert_eq!(sent(&mut client), []);
    // A repetition of the request was carried out after the deletion.
    tell(&mut client, to, grant(1, 8000, 3600), at(3));
    let deletion = sent(&mut client).pop().map(|(_, request)| request);
    assert!(deletion.is_some_and(|r| is_deletion(&r)));
}

/// What comes in whatever order: everything stays where it can be found, and nothing is due for ever.
#[test]
fn any_order_of_inputs_leaves_it_consistent() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut client = client();
        let mut now = at(1);
        for _ in 0..200 {
            let id = rng.random_range(1..6);
            let to = server(rng.random_range(1..3));
            let until = now + Duration::from_secs(rng.random_range(1..9000));
            let wanted = want(id, to, 8000, until);
            let external = ExternalEndpoint {
                addr: [11, 22, 33, 9].into(),
                port: ExternalPort::new(8000).expect("not 0"),
            };
            let datagram = |payload| Input::Datagram { from: to, payload };
            let input = match rng.random_range(0..14) {
                0 | 1 => Input::Request(wanted),
                2 => Input::Reacquire {
                    want: wanted,
                    external,
                },
                3 => Input::Abandon(Generation(id)),
                4 => Input::Release(Generation(id)),
                5 => Input::Keep(Generation(id)),
                6 => Input::Terms(wanted),
                7 => Input::Unreachable(to),
                8 => Input::Alive(to),
                9 => datagram(address(rng.random_range(0..500))),
                10 | 11 => datagram(grant(id, 8000, rng.random_range(0..3) * 600)),
                12 => datagram(grant(id, 9000, 600)),
                _ => Input::Local((rng.random_range(0..4) > 0).then(|| [192, 168, 0, 2].into())),
            };
            client.handle_input(input, now);
            assert!(client.is_consistent(), "seed {seed}");
            sent(&mut client);
            assert!(
                client.poll_timeout().is_none_or(|next| next > now),
                "due for ever, seed {seed}"
            );
            now = match client.poll_timeout().filter(|_| rng.random()) {
                Some(next) => next,
                None => now + Duration::from_millis(rng.random_range(0..4000)),
            };
            client.handle_timeout(now);
            sent(&mut client);
            assert!(client.is_consistent(), "seed {seed}");
        }
    }
}

/// Whoever waited has heard of it; what is left waits with everything else until the gateway is asked again.
#[test]
fn who_waits_in_line_hears_of_silence_too() {
    let (mut client, to) = (client(), server(1));
    for id in [1, 2] {
        client.handle_input(Input::Request(want(id, to, 8000, at(4000))), at(1));
    }
    client.handle_input(Input::Keep(Generation(1)), at(1));
    client.handle_input(Input::Release(Generation(2)), at(1));
    sent(&mut client);
    client.handle_input(Input::Unreachable(to), at(1));
    let effects: Vec<_> = std::iter::from_fn(|| client.poll_effect()).collect();
    let released = |e: &Effect| {
        matches!(
            e,
            Effect::Released {
                id: Generation(2),
                result: Err(_)
            }
        )
    };
    assert!(effects.iter().any(released), "{effects:?}");
    let asks = |e: &Effect| matches!(e, Effect::Send { .. });
    assert!(!effects.iter().any(asks), "{effects:?}");
    assert!(client.poll_timeout() > Some(at(60)), "it is left alone");
    assert!(client.is_consistent());
}
