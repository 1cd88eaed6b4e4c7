//! Whatever a router and the leases do, the machine stays consistent, asks nobody else, and one thing at a time.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::mapping::PortChoice;
use crate::proto::pcp_client::Want;
use crate::types::{ExternalPort, Lifetime, Protocol, RemotePeer};

use std::time::Duration;

const ROUTER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

fn server() -> SocketAddr {
    (ROUTER, 5351).into()
}

fn want(rng: &mut StdRng, now: Instant) -> Want {
    // No two leases of one owner have the same port of our NAT; one lease may come to have another port.
    let id: u32 = rng.random_range(1..6);
    let own = u16::try_from(8000 + 2 * id + rng.random_range(0..2)).expect("small");
    let port = ExternalPort::new(own).expect("not 0");
    Want {
        id: Generation(id),
        server: server(),
        protocol: *[Protocol::Tcp, Protocol::Udp].choose(rng).expect("two"),
        behalf: None,
        port,
        external: Some(port),
        choice: *[PortChoice::Exact, PortChoice::Any]
            .choose(rng)
            .expect("two"),
        remote: RemotePeer::Any,
        description: None,
        lifetime: Lifetime(3600),
        patient: rng.random(),
        brief: rng.random(),
        until: now + Duration::from_secs(3600),
    }
}

fn answer(rng: &mut StdRng) -> Option<Fetched> {
    let leaf = |name: &str, value: &str| format!("<{name}>{value}</{name}>");
    let service = format!(
        "<root><service>{}{}</service></root>",
        leaf(
            "serviceType",
            "urn:schemas-upnp-org:service:WANIPConnection:2"
        ),
        leaf(
            "controlURL",
            ["/c", "http://100.64.0.9/c", "c"]
                .choose(rng)
                .expect("some")
        ),
    );
    let response = |action: &str, inside: &str| leaf("e", &leaf("b", &leaf(action, inside)));
    let fault = |code: u16| leaf("e", &leaf("b", &leaf("errorCode", &code.to_string())));
    let entry = format!(
        "{}{}{}",
        leaf("NewInternalPort", "8003"),
        leaf("NewInternalClient", "100.64.0.2"),
        leaf("NewLeaseDuration", "100"),
    );
    let body = match rng.random_range(0..10) {
        0..3 => service,
        3 => response(
            "GetExternalIPAddressResponse",
            &leaf("NewExternalIPAddress", "11.22.33.1"),
        ),
        4 => response("GetSpecificPortMappingEntryResponse", &entry),
        5 => response("AddPortMappingResponse", ""),
        6 => response(
            "AddAnyPortMappingResponse",
            &leaf("NewReservedPort", "8004"),
        ),
        7 => response("DeletePortMappingResponse", ""),
        8 => fault(*[402, 501, 714, 718, 725, 728].choose(rng).expect("some")),
        _ => return None,
    };
    Some(Fetched {
        status: *[200, 200, 500, 404].choose(rng).expect("some"),
        body: body.into_bytes(),
    })
}

#[test]
fn any_order_of_inputs_leaves_it_consistent() {
    let mut fetches = 0;
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut client = IgdClient::default();
        let mut now = Instant::from_millis(1000);
        client.handle_input(Input::Router(Some(server())), now);
        let local = natpmp_client::Input::Local(Some(Ipv4Addr::new(100, 64, 0, 2)));
        client.handle_input(Input::Lease(local), now);
        client.handle_input(Input::Wanted(true), now);
        let mut open = None;
        for _ in 0..600 {
            let id = Generation(rng.random_range(1..6));
            let input = match rng.random_range(0..12) {
                0 | 1 => Input::Lease(natpmp_client::Input::Request(want(&mut rng, now))),
                2 => Input::Lease(natpmp_client::Input::Abandon(id)),
                3 => Input::Lease(natpmp_client::Input::Release(id)),
                4 => Input::Lease(natpmp_client::Input::Keep(id)),
                5 if rng.random_bool(0.1) => Input::Wanted(rng.random()),
                5..8 => {
                    let host = ["100.64.0.1:80", "100.64.0.9"]
                        .choose(&mut rng)
                        .expect("two");
                    let payload = format!(
                        "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                         LOCATION: http://{host}/d\r\n\r\n"
                    );
                    Input::Found {
                        from: (ROUTER, 1900).into(),
                        payload: payload.into_bytes(),
                    }
                }
                _ => Input::Fetched {
                    id: open.take().unwrap_or(0),
                    answer: answer(&mut rng),
                },
            };
            client.handle_input(input, now);
            now = now + Duration::from_millis(rng.random_range(0..3000));
            client.handle_timeout(now);
            while let Some(errand) = client.poll_errand() {
                match errand {
                    Errand::Search { router, .. } => assert_eq!(router, ROUTER),
                    Errand::Fetch { id, request } => {
                        assert_eq!(*request.at.ip(), ROUTER, "seed {seed}");
                        open = Some(id);
                        fetches += 1;
                    }
                }
            }
            while client.poll_effect().is_some() {}
            while client.poll_gone().is_some() {}
            assert!(client.is_consistent(), "seed {seed}");
            let due = client.poll_timeout();
            assert!(due.is_none_or(|at| at > now), "seed {seed}: due for ever");
        }
    }
    assert!(fetches > 10_000, "{fetches}");
}
