//! The machine by itself; with everything around it see `sim`.

use rand::SeedableRng;

use super::*;
use crate::types::{InternalPort, RemotePeer};
use crate::wire::pcp::{Body, MapBody, Request, Response, ResultCode};

const SERVER: ([u8; 4], u16) = ([100, 64, 0, 1], 5351);

fn server() -> SocketAddr {
    SERVER.into()
}

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

fn client() -> PcpClient {
    let mut client = PcpClient::new(StdRng::seed_from_u64(1));
    let local = LocalAddrs {
        v4: Some([100, 64, 0, 2].into()),
        v6: None,
    };
    client.handle_input(Input::Local(local), at(0));
    client
}

fn want(id: u32, port: u16) -> Want {
    let port = ExternalPort::new(port).expect("not 0");
    Want {
        id: Generation(id),
        server: server(),
        protocol: Protocol::Tcp,
        behalf: None,
        port,
        external: Some(port),
        choice: PortChoice::Exact,
        remote: RemotePeer::Any,
        description: None,
        patient: false,
        brief: false,
        lifetime: Lifetime(3600),
        until: at(3600),
    }
}

/// Everything the client has to say, requests decoded.
fn drain(client: &mut PcpClient) -> (Vec<Request>, Vec<Effect>) {
    let (mut requests, mut rest) = (Vec::new(), Vec::new());
    while let Some(effect) = client.poll_effect() {
        match effect {
            Effect::Send { payload, .. } => {
                requests.push(Request::decode(&payload).expect("well formed"));
            }
            other @ (Effect::Granted { .. }
            | Effect::Refused { .. }
            | Effect::Trouble { .. }
            | Effect::GivenBack { .. }
            | Effect::Lost { .. }
            | Effect::Released { .. }
            | Effect::EpochReset(_)
            | Effect::EpochSeen { .. }
            | Effect::Asking { .. }
            | Effect::Ending(_)
            | Effect::Forgotten(..)
            | Effect::Liveness(_)
            | Effect::Spent(_)
            | Effect::Speaks(_)) => rest.push(other),
        }
    }
    (requests, rest)
}

fn datagram(client: &mut PcpClient, payload: Vec<u8>, now: Instant) {
    let from = server();
    client.handle_input(Input::Datagram { from, payload }, now);
}

/// The answer to a request with this result, lifetime and epoch.
fn answer(request: &Request, result: ResultCode, lifetime: u32, epoch: u32) -> Vec<u8> {
    let response = Response {
        result,
        lifetime: Lifetime(lifetime),
        epoch: Epoch(epoch),
        body: match &request.body {
            Body::Map(map) if map.external_port.is_some() => Body::Map(MapBody {
                external_addr: [11, 22, 33, 1].into(),
                ..*map
            }),
            body @ (Body::Announce | Body::Map(_) | Body::Peer(_) | Body::Opaque { .. }) => {
                body.clone()
            }
        },
        options: Vec::new(),
    };
    response.encode().expect("short")
}

#[test]
fn a_server_is_asked_for_a_sign_of_life_until_it_gives_one() {
    let mut client = client();
    client.handle_input(Input::Servers(vec![server()]), at(0));
    let mut sent = Vec::new();
    let mut now = at(0);
    while now < at(30) {
        client.handle_timeout(now);
        let (requests, effects) = drain(&mut client);
        sent.extend(requests.iter().map(|_| now.as_millis() / 1000));
        for effect in effects {
            assert_eq!(effect, Effect::Liveness(server()));
            assert!((16..=27).contains(&(now.as_millis() / 1000)), "{now:?}");
        }
        now = client.poll_timeout().expect("asks for ever");
    }
    assert_eq!(client.liveness(server()), Some(Liveness::Silent));
    assert_eq!(sent.len(), 4, "{sent:?}");
    let request = Request {
        lifetime: Lifetime(0),
        client: [100, 64, 0, 2].into(),
        body: Body::Announce,
        options: Vec::new(),
    };
    let payload = answer(&request, ResultCode::Success, 0, 77);
    datagram(&mut client, payload, at(40));
    assert_eq!(client.liveness(server()), Some(Liveness::Answering));
    assert_eq!(client.epoch(server()), Some(Epoch(77)));
    assert_eq!(client.poll_timeout(), None, "nothing more to do");
}

#[test]
fn timeouts_handled_twice_change_nothing() {
    let mut client = client();
    client.handle_input(Input::Request(want(1, 8080)), at(0));
    client.handle_input(Input::Servers(vec![server()]), at(0));
    drain(&mut client);
    for now in [at(4), at(20), at(60)] {
        client.handle_timeout(now);
        drain(&mut client);
        let next = client.poll_timeout();
        client.handle_timeout(now);
        assert_eq!(drain(&mut client), (vec![], vec![]));
        assert_eq!(client.poll_timeout(), next);
    }
}

#[test]
fn servers_of_another_version_are_left_alone_for_a_while() {
    let nat_pmp = vec![0, 0x81, 0, 1, 0, 0, 0, 9];
    let mut version_3 = vec![0; 24];
    (version_3[0], version_3[1], version_3[3], version_3[7]) = (3, 0x81, 1, 60);
    for (payload, pause) in [(nat_pmp, 1800), (version_3, 60)] {
        let mut client = client();
        datagram(&mut client, payload.clone(), at(0));
        client.handle_input(Input::Request(want(1, 8080)), at(1));
        drain(&mut client);
        datagram(&mut client, payload, at(2));
        let (_, effects) = drain(&mut client);
        assert!(effects.contains(&Effect::Refused {
            id: Generation(1),
            server: server(),
            result: ResultCode::UnsuppVersion,
            lifetime: Lifetime(pause),
            asked: true,
        }));
        let last = at(2) + Duration::from_secs(u64::from(pause) - 1);
        client.handle_input(Input::Request(want(2, 8081)), last);
        let (requests, effects) = drain(&mut client);
        assert_eq!(requests, []);
        assert!(matches!(effects[..], [Effect::Refused { .. }]));
        let later = last + Duration::from_secs(1);
        client.handle_input(Input::Request(want(3, 8082)), later);
        assert_eq!(drain(&mut client).0.len(), 1, "PCPC-080");
    }
}

#[test]
fn only_the_right_fields_make_an_answer() {
    let mut client = client();
    client.handle_input(Input::Request(want(1, 8080)), at(0));
    let (requests, _) = drain(&mut client);
    let Body::Map(map) = requests[0].body else {
        panic!("{requests:?}");
    };
    let altered = [
        MapBody {
            nonce: MappingNonce([0; 12]),
            ..map
        },
        MapBody {
            protocol: 17,
            ..map
        },
        MapBody {
            internal_port: InternalPort::new(8081),
            ..map
        },
    ];
    for body in altered {
        let request = Request {
            body: Body::Map(body),
            ..requests[0].clone()
        };
        let payload = answer(&request, ResultCode::Success, 600, 5);
        datagram(&mut client, payload, at(1));
        assert_eq!(drain(&mut client).1, [], "PCPC-035");
    }
    assert_eq!(client.ignored().unmatched, 3);
    let payload = answer(&requests[0], ResultCode::Success, 600, 5);
    let stranger = ([100, 64, 0, 1], 5352).into();
    let from_elsewhere = Input::Datagram {
        from: stranger,
        payload: payload.clone(),
    };
    client.handle_input(from_elsewhere, at(1));
    assert_eq!(client.ignored().stranger, 1, "PCPC-030");
    datagram(&mut client, payload, at(2));
    let (_, effects) = drain(&mut client);
    let granted =
        |e: &Effect| matches!(e, Effect::Granted { lease, .. } if lease.expires == at(602));
    assert_eq!(effects.iter().filter(|e| granted(e)).count(), 1);
}

#[test]
fn absurd_lifetimes_are_cut_to_a_day() {
    let mut client = client();
    let mut forever = want(1, 8080);
    forever.until = at(10_000_000);
    client.handle_input(Input::Request(forever), at(0));
    let (requests, _) = drain(&mut client);
    let payload = answer(&requests[0], ResultCode::Success, u32::MAX, 5);
    datagram(&mut client, payload, at(0));
    drain(&mut client);
    let renewal = client.poll_timeout().expect("a renewal");
    assert!(renewal <= at(15 * 3600), "PCPC-033");
}

#[test]
fn what_is_given_up_is_deleted_and_remembered_within_bounds() {
    let mut client = client();
    for id in 1..30_000 {
        let port = 1024 + id as u16;
        client.handle_input(Input::Request(want(id, port)), at(0));
        client.handle_input(Input::Abandon(Generation(id)), at(0));
        drain(&mut client);
    }
    assert_eq!(client.ended.len(), MAX_ENDED);
    assert!(client.leases.len() == 0 && client.by_tuple.is_empty());
}

#[test]
fn nonces_differ_and_are_not_shown() {
    let mut client = client();
    let mut seen = std::collections::BTreeSet::new();
    for id in 1..1000 {
        let port = 1024 + id as u16;
        client.handle_input(Input::Request(want(id, port)), at(0));
    }
    for request in drain(&mut client).0 {
        if let Body::Map(map) = request.body {
            assert!(seen.insert(map.nonce));
            assert!(!format!("{map:?}").contains(&format!("{:?}", map.nonce.0)));
        }
    }
    assert_eq!(seen.len(), 999);
}

#[test]
fn the_epoch_of_a_version_error_counts() {
    let mut client = client();
    client.handle_input(Input::Request(want(1, 8080)), at(0));
    let (requests, _) = drain(&mut client);
    datagram(
        &mut client,
        answer(&requests[0], ResultCode::Success, 600, 5000),
        at(0),
    );
    client.handle_input(Input::Request(want(2, 8081)), at(10));
    drain(&mut client);
    let mut other_version = vec![0; 24];
    (
        other_version[0],
        other_version[1],
        other_version[3],
        other_version[7],
    ) = (3, 0x81, 1, 60);
    datagram(&mut client, other_version, at(11));
    let (_, effects) = drain(&mut client);
    assert!(effects.contains(&Effect::EpochReset(server())), "PCPC-044");
}

/// PCPC-032: what one server has said is no reason not to ask another one.
#[test]
fn a_new_server_is_asked_at_once_whatever_the_old_one_said() {
    let mut client = client();
    client.handle_input(Input::Request(want(1, 8080)), at(0));
    let (requests, _) = drain(&mut client);
    let refusal = answer(&requests[0], ResultCode::UnsuppOpcode, 1800, 5);
    datagram(&mut client, refusal, at(0));
    drain(&mut client);
    client.handle_input(Input::Request(want(2, 8081)), at(1));
    assert_eq!(drain(&mut client).0, []);
    let other = ([100, 64, 0, 9], 5351).into();
    client.handle_input(Input::Servers(vec![other]), at(2));
    drain(&mut client);
    let elsewhere = Want {
        server: other,
        ..want(3, 8080)
    };
    client.handle_input(Input::Request(elsewhere), at(2));
    let told = client.poll_effect();
    assert!(
        matches!(told, Some(Effect::Asking { trace, .. }) if trace.key.server == other),
        "before it is asked"
    );
    let asked = client.poll_effect();
    assert!(matches!(asked, Some(Effect::Send { server, .. }) if server == other));
}

/// PCPC-013: a server copies the request into an error and adds options to a success; both fit.
#[test]
fn requests_leave_room_for_the_answer() {
    use crate::types::{RemoteList, RemotePrefix};
    use crate::wire::pcp::MAX_LEN;
    let prefixes: Vec<_> = (0..RemoteList::MAX)
        .filter_map(|n| RemotePrefix::new([11, 22, 33, n as u8].into(), 32, 443))
        .collect();
    let mut largest = want(1, 8080);
    largest.remote = RemotePeer::of(&prefixes).expect("as many as there may be");
    largest.description = Some("x".repeat(MAX_DESCRIPTION));
    let mut client = client();
    client.handle_input(Input::Request(largest), at(0));
    let (requests, _) = drain(&mut client);
    let payload = answer(&requests[0], ResultCode::Success, 600, 5);
    datagram(&mut client, payload, at(0));
    drain(&mut client);
    // A renewal also clears the filters first.
    client.handle_timeout(at(300));
    client.handle_timeout(at(375));
    let (renewals, _) = drain(&mut client);
    let len = renewals[0].encode().expect("fits").len();
    assert!(len > 24 + 36 + 9 * 24 + 128, "everything is in it: {len}");
    assert!(len < MAX_LEN / 2, "{len}");
}

#[test]
fn what_a_server_speaks_is_said_when_it_becomes_known() {
    let said = |client: &mut PcpClient| {
        let told = drain(client).1.contains(&Effect::Speaks(server()));
        (told, client.speaks(server()))
    };
    let mut client = client();
    client.handle_input(Input::Servers(vec![server()]), at(0));
    assert_eq!(said(&mut client), (false, Speaks::Unknown));
    // Nobody has asked for that: it may come from anywhere.
    client.handle_input(Input::Request(want(1, 8080)), at(0));
    client.handle_timeout(at(0));
    drain(&mut client);
    for opcode in [0, 0x80, 0x81] {
        client.handle_input(Input::Servers(vec![server()]), at(1));
        datagram(&mut client, vec![0, opcode, 0, 1, 0, 0, 0, 9], at(1));
        assert_eq!(client.speaks(server()), Speaks::NatPmp, "PCPC-082");
    }
    assert_eq!(said(&mut client), (true, Speaks::NatPmp));
    // It is asked again in half an hour, and may have been replaced (PCPC-083).
    let (again, requests) = loop {
        let again = client.poll_timeout().expect("a probe");
        client.handle_timeout(again);
        let (requests, _) = drain(&mut client);
        if !requests.is_empty() {
            break (again, requests);
        }
    };
    assert!(again > at(1700) && again <= at(1801), "{again:?}");
    assert_eq!(requests.len(), 1);
    datagram(
        &mut client,
        answer(&requests[0], ResultCode::Success, 0, 7),
        again,
    );
    assert_eq!(said(&mut client), (true, Speaks::Pcp));
    client.handle_input(Input::Unreachable(server()), again);
    assert_eq!(said(&mut client), (true, Speaks::Nothing));
}

/// A server that has answered and does not any more is silent, also if only its signs of life are missing.
#[test]
fn a_server_that_answers_no_sign_of_life_any_more_is_silent() {
    let mut client = client();
    client.handle_input(Input::Servers(vec![server()]), at(0));
    let (requests, _) = drain(&mut client);
    datagram(
        &mut client,
        answer(&requests[0], ResultCode::Success, 0, 7),
        at(0),
    );
    assert_eq!(client.liveness(server()), Some(Liveness::Answering));
    client.handle_input(Input::Local(LocalAddrs::default()), at(10));
    let back = LocalAddrs {
        v4: Some([100, 64, 0, 2].into()),
        v6: None,
    };
    client.handle_input(Input::Local(back), at(20));
    while client.poll_timeout().is_some_and(|next| next < at(50)) {
        let next = client.poll_timeout().expect("just seen");
        client.handle_timeout(next);
    }
    assert_eq!(client.liveness(server()), Some(Liveness::Silent));
}

/// It was told twice how the deletion went, once for each answer.
#[test]
fn the_refused_deletion_of_what_was_never_granted_is_over() {
    let mut client = client();
    client.handle_input(Input::Request(want(1, 8080)), at(0));
    client.handle_input(Input::Release(Generation(1)), at(1));
    let (requests, _) = drain(&mut client);
    let released = Effect::Released {
        id: Generation(1),
        result: Ok(()),
    };
    let refusal = answer(&requests[1], ResultCode::UnsuppProtocol, 100, 5);
    datagram(&mut client, refusal, at(2));
    let (_, told) = drain(&mut client);
    assert_eq!(told.iter().filter(|effect| **effect == released).count(), 1);
    let success = answer(&requests[1], ResultCode::Success, 0, 5);
    datagram(&mut client, success, at(3));
    assert!(!drain(&mut client).1.contains(&released));
    assert_eq!(client.leases.len(), 0);
}
