//! PCP messages octet by octet: vectors both ways, every truncation.

mod vector_file;

use std::net::{IpAddr, Ipv4Addr};

use iwf_userspace::types::{Epoch, ExternalPort, InternalPort, Lifetime, MappingNonce};
use iwf_userspace::wire::pcp::{
    Body, Filter, MapBody, PcpOption, PeerBody, PortSet, Prefix64, Request, Response, ResultCode,
    ServerMessage,
};
use vector_file::{binary, binary_one};

const NONCE: MappingNonce = MappingNonce([
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b,
]);
const TCP: u8 = 6;
const UDP: u8 = 17;

fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}

fn any() -> IpAddr {
    Ipv4Addr::UNSPECIFIED.into()
}

fn map(protocol: u8, internal: u16, external: u16, addr: IpAddr) -> MapBody {
    MapBody {
        nonce: NONCE,
        protocol,
        internal_port: InternalPort::new(internal),
        external_port: ExternalPort::new(external),
        external_addr: addr,
    }
}

fn request(lifetime: u32, client: IpAddr, body: Body, options: Vec<PcpOption>) -> Request {
    Request {
        lifetime: Lifetime(lifetime),
        client,
        body,
        options,
    }
}

/// Every vector that is a valid request, as it should be read.
fn requests() -> Vec<(&'static str, Request)> {
    let cpe = v4(192, 0, 2, 10);
    let b4: IpAddr = "2001:db8:b4::2".parse().unwrap();
    let prefer = PcpOption::PreferFailure;
    let prefix64 = Prefix64::ASK;
    let mut probe = map(TCP, 49321, 8080, any());
    probe.nonce = MappingNonce([
        0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b,
    ]);
    let peer = PeerBody {
        map: map(UDP, 40000, 0, any()),
        remote_port: 3478,
        remote_addr: v4(198, 51, 100, 9),
    };
    let carrier = v4(203, 0, 113, 7);
    let tag = binary_one("PCP-26")[64..].to_vec();
    vec![
        (
            "PCP-01",
            request(
                3600,
                cpe,
                Body::Map(map(TCP, 8080, 8080, any())),
                vec![prefer.clone()],
            ),
        ),
        (
            "PCP-04",
            request(
                0,
                b4,
                Body::Map(map(UDP, 5060, 0, any())),
                vec![PcpOption::ThirdParty(v4(192, 168, 1, 20))],
            ),
        ),
        (
            "PCP-06",
            request(
                7200,
                cpe,
                Body::Map(map(TCP, 8443, 8443, any())),
                vec![
                    prefer.clone(),
                    PcpOption::Filter(Filter::host(v4(198, 51, 100, 5))),
                    PcpOption::Description("cam 1".to_owned()),
                ],
            ),
        ),
        (
            "PCP-07",
            request(
                7200,
                cpe,
                Body::Map(map(TCP, 8443, 8443, carrier)),
                vec![
                    PcpOption::Filter(Filter::CLEAR),
                    PcpOption::Filter(Filter {
                        prefix_len: 120,
                        remote_port: 0,
                        remote_addr: v4(198, 51, 100, 0),
                    }),
                ],
            ),
        ),
        ("PCP-08", request(1800, cpe, Body::Peer(peer), vec![])),
        ("PCP-10", request(0, cpe, Body::Announce, vec![])),
        (
            "PCP-15",
            request(
                600,
                v4(192, 168, 1, 30),
                Body::Map(map(TCP, 22, 0, any())),
                vec![PcpOption::ThirdParty(v4(192, 168, 1, 40))],
            ),
        ),
        (
            "PCP-17",
            request(
                3600,
                cpe,
                Body::Map(map(UDP, 50000, 0, any())),
                vec![PcpOption::PortSet(PortSet {
                    size: 100,
                    first_internal: 50000,
                    parity: false,
                })],
            ),
        ),
        (
            "PCP-19",
            request(0, b4, Body::Announce, vec![PcpOption::Prefix64(prefix64)]),
        ),
        (
            "PCP-24",
            request(
                3600,
                v4(192, 168, 1, 30),
                Body::Map(map(0, 0, 0, any())),
                vec![],
            ),
        ),
        (
            "PCP-25",
            request(
                0,
                cpe,
                Body::Opaque {
                    opcode: 3,
                    octet3: 14,
                    data: binary_one("PCP-25")[24..].to_vec(),
                },
                vec![],
            ),
        ),
        (
            "PCP-26",
            request(
                3600,
                cpe,
                Body::Map(map(TCP, 8080, 0, any())),
                vec![PcpOption::Unknown { code: 5, data: tag }],
            ),
        ),
        (
            "PCP-27",
            request(
                3600,
                "2001:db8:1:1::20".parse().unwrap(),
                Body::Map(map(TCP, 443, 0, "::".parse().unwrap())),
                vec![],
            ),
        ),
        (
            "PCP-28",
            request(
                u32::MAX,
                cpe,
                Body::Map(map(UDP, 5060, 5060, any())),
                vec![prefer.clone()],
            ),
        ),
        (
            "PCP-29",
            request(60, cpe, Body::Map(probe), vec![prefer.clone()]),
        ),
        (
            "PCP-30",
            request(
                3000,
                cpe,
                Body::Map(map(TCP, 8080, 8080, carrier)),
                vec![prefer],
            ),
        ),
    ]
}

fn response(
    result: ResultCode,
    lifetime: u32,
    epoch: u32,
    body: Body,
    options: Vec<PcpOption>,
) -> Response {
    Response {
        result,
        lifetime: Lifetime(lifetime),
        epoch: Epoch(epoch),
        body,
        options,
    }
}

/// Every vector that is a response in version 2, as it should be read.
fn responses() -> Vec<(&'static str, Response)> {
    let carrier = v4(203, 0, 113, 7);
    let peer = PeerBody {
        map: map(UDP, 40000, 50123, carrier),
        remote_port: 3478,
        remote_addr: v4(198, 51, 100, 9),
    };
    let mut foreign = map(TCP, 22, 0, any());
    foreign.nonce = MappingNonce([0; 12]);
    vec![
        (
            "PCP-02",
            response(
                ResultCode::Success,
                3600,
                1000,
                Body::Map(map(TCP, 8080, 8080, carrier)),
                vec![PcpOption::PreferFailure],
            ),
        ),
        (
            "PCP-03",
            response(
                ResultCode::CannotProvideExternal,
                30,
                1001,
                Body::Map(map(TCP, 8080, 8080, any())),
                vec![PcpOption::PreferFailure],
            ),
        ),
        (
            "PCP-05",
            response(
                ResultCode::Success,
                0,
                4000,
                Body::Map(map(UDP, 5060, 0, any())),
                vec![PcpOption::ThirdParty(v4(192, 168, 1, 20))],
            ),
        ),
        (
            "PCP-09",
            response(ResultCode::Success, 1800, 1100, Body::Peer(peer), vec![]),
        ),
        (
            "PCP-11",
            response(ResultCode::Success, 0, 1, Body::Announce, vec![]),
        ),
        (
            "PCP-14",
            response(
                ResultCode::UnsuppOpcode,
                1800,
                78,
                Body::Opaque {
                    opcode: 96,
                    octet3: 0,
                    data: vec![0xde, 0xad, 0xbe, 0xef],
                },
                vec![],
            ),
        ),
        (
            "PCP-16",
            response(
                ResultCode::UnsuppOption,
                1800,
                79,
                Body::Map(map(TCP, 22, 0, any())),
                vec![PcpOption::ThirdParty(v4(192, 168, 1, 40))],
            ),
        ),
        (
            "PCP-18",
            response(
                ResultCode::Success,
                3600,
                1200,
                Body::Map(map(UDP, 50000, 37056, carrier)),
                vec![PcpOption::PortSet(PortSet {
                    size: 32,
                    first_internal: 50000,
                    parity: false,
                })],
            ),
        ),
        (
            "PCP-20",
            response(
                ResultCode::Success,
                0,
                500,
                Body::Announce,
                vec![PcpOption::Prefix64(
                    Prefix64::new(
                        [0x20, 0x01, 0x0d, 0xb8, 0x01, 0x22, 0x03, 0, 0, 0, 0, 0],
                        7,
                        &[([192, 0, 2, 0].into(), 24)],
                    )
                    .expect("a length"),
                )],
            ),
        ),
        (
            "PCP-23",
            response(
                ResultCode::NotAuthorized,
                1234,
                80,
                Body::Map(foreign),
                vec![],
            ),
        ),
    ]
}

#[test]
fn requests_both_ways() {
    for (id, expected) in requests() {
        let octets = binary_one(id);
        assert_eq!(Request::decode(&octets), Ok(expected.clone()), "{id}");
        assert_eq!(expected.encode(), Ok(octets), "{id}");
    }
}

#[test]
fn responses_both_ways() {
    for (id, expected) in responses() {
        let octets = binary_one(id);
        let read = ServerMessage::decode(&octets);
        assert_eq!(read, Ok(ServerMessage::Response(expected.clone())), "{id}");
        assert_eq!(expected.encode(), Ok(octets), "{id}");
    }
}

#[test]
fn every_vector_has_a_test() {
    let mut tested: Vec<_> = requests().into_iter().map(|(id, _)| id).collect();
    tested.extend(responses().into_iter().map(|(id, _)| id));
    tested.extend(["PCP-12", "PCP-13", "PCP-21", "PCP-22"]);
    tested.sort_unstable();
    let all: Vec<_> = binary("PCP-").into_iter().map(|(name, _)| name).collect();
    let all: Vec<_> = all.iter().map(|name| &name[..6]).collect();
    assert_eq!(tested, all);
}

/// A truncation is refused, or it is what cutting off whole options leaves: then it reads as exactly that.
#[test]
fn truncations_are_refused_or_exact() {
    for (name, octets) in binary("PCP-") {
        for len in 0..octets.len() {
            let cut = &octets[..len];
            if let Ok(request) = Request::decode(cut) {
                assert_eq!(request.encode().unwrap(), cut, "{name} cut to {len}");
            }
            if let Ok(ServerMessage::Response(response)) = ServerMessage::decode(cut) {
                // An error may end inside of an option: what is left of it is dropped.
                let written = response.encode().unwrap();
                assert!(cut.starts_with(&written), "{name} cut to {len}");
                let whole = response.result == ResultCode::Success;
                assert!(!whole || written == cut, "{name} cut to {len}");
            }
        }
    }
}
