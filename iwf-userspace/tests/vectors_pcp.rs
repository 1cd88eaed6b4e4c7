//! PCP messages octet by octet: vectors both ways, every truncation, the order of checks.

mod vector_file;

use std::net::{IpAddr, Ipv4Addr};

use iwf_userspace::types::{Epoch, ExternalPort, InternalPort, Lifetime, MappingNonce};
use iwf_userspace::wire::pcp::{
    Body, EncodeError, Filter, MapBody, OptionError, PcpOption, PeerBody, PortSet, Request,
    RequestError, RequestHeader, Response, ResponseError, ResultCode, ServerMessage, error_reply,
    version_reply,
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
    let filter = |prefix_len, remote_addr| {
        PcpOption::Filter(Filter {
            prefix_len,
            remote_port: 0,
            remote_addr,
        })
    };
    let prefix64 = [&[0, 12][..], &[0; 12]].concat();
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
                    filter(0, "::".parse().unwrap()),
                    filter(120, v4(198, 51, 100, 0)),
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
                vec![PcpOption::Prefix64(binary_one("PCP-20")[28..50].to_vec())],
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

#[test]
fn servers_learn_what_to_answer() {
    let refusal = |octets: &[u8]| Request::decode(octets).map_err(|error| error.result());
    assert_eq!(
        refusal(&binary_one("PCP-21")),
        Err(Some(ResultCode::MalformedRequest))
    );
    assert_eq!(
        refusal(&binary_one("PCP-22")),
        Err(Some(ResultCode::MalformedOption))
    );
    // RFC 6887 section 8.2 in its order: too short, a response, another version, too short for a header.
    assert_eq!(refusal(&[2]), Err(None));
    assert_eq!(refusal(&binary_one("PCP-02")), Err(None));
    assert_eq!(refusal(&[0, 0]), Err(Some(ResultCode::UnsuppVersion)));
    assert_eq!(refusal(&[0, 0x80]), Err(None));
    assert_eq!(refusal(&[2, 0, 0, 0]), Err(None));
    assert_eq!(refusal(&binary_one("PCP-10")[..23]), Err(None));
    // Then the lengths.
    let map = binary_one("PCP-27");
    assert_eq!(
        refusal(&[map.as_slice(), &[0]].concat()),
        Err(Some(ResultCode::MalformedRequest))
    );
    assert_eq!(refusal(&map[..56]), Err(Some(ResultCode::MalformedRequest)));
    let mut long = map.clone();
    long.resize(1104, 0);
    assert_eq!(refusal(&long), Err(Some(ResultCode::MalformedRequest)));
    // An unknown opcode passes the codec, so that a wrong client address can be answered first.
    let mut unknown = binary_one("PCP-10");
    unknown[1] = 96;
    let unknown = Request::decode(&unknown).unwrap();
    assert_eq!(
        unknown.known_opcode().map_err(|error| error.result()),
        Err(Some(ResultCode::UnsuppOpcode))
    );
    let header = RequestHeader::decode(&map).unwrap();
    assert_eq!(header.client, "2001:db8:1:1::20".parse::<IpAddr>().unwrap());
}

#[test]
fn options_are_checked() {
    let with = |base: &str, options: &[u8]| {
        let octets = [&binary_one(base)[..], options].concat();
        Request::decode(&octets).map_err(|error| {
            let RequestError::Options(error) = error else {
                panic!("{error}");
            };
            error
        })
    };
    let invalid = |code| Err(OptionError::Invalid { code });
    let repeated = |code| Err(OptionError::Repeated { code });
    let misplaced = |code| Err(OptionError::Misplaced { code });
    // PCP-27 is a MAP without options, PCP-01 one with PREFER_FAILURE.
    assert_eq!(
        with("PCP-27", &[1, 0, 0, 16, 0, 0, 0, 0]),
        Err(OptionError::Overrun { code: 1, len: 16 })
    );
    assert_eq!(with("PCP-27", &[1, 0, 0, 4, 0, 0, 0, 0]), invalid(1));
    assert_eq!(with("PCP-27", &[2, 0, 0, 1, 0, 0, 0, 0]), invalid(2));
    assert_eq!(with("PCP-01", &[2, 0, 0, 0]), repeated(2));
    assert_eq!(with("PCP-27", &[128, 0, 0, 0, 128, 0, 0, 0]), repeated(128));
    assert_eq!(
        with("PCP-27", &[130, 0, 0, 5, 0, 0, 1, 187, 0, 0, 0, 0]),
        invalid(130)
    );
    assert_eq!(
        with("PCP-01", &[130, 0, 0, 5, 0, 2, 0x1f, 0x90, 0, 0, 0, 0]),
        misplaced(130)
    );
    let filter = |prefix: u8, v4: bool| {
        let mut option = vec![3, 0, 0, 20, 0, prefix, 0, 0];
        option.extend([0; 10]);
        option.extend(if v4 { [0xff; 2] } else { [0; 2] });
        option.extend([9, 9, 9, 9]);
        option
    };
    assert!(with("PCP-27", &filter(96, true)).is_ok());
    assert!(with("PCP-27", &filter(0, true)).is_ok());
    assert_eq!(with("PCP-27", &filter(95, true)), invalid(3));
    assert!(with("PCP-27", &filter(1, false)).is_ok());
    assert_eq!(with("PCP-27", &filter(129, false)), invalid(3));
    // FILTER and PREFER_FAILURE make no sense in a deletion.
    assert_eq!(with("PCP-04", &filter(128, true)), misplaced(3));
    assert_eq!(with("PCP-04", &[2, 0, 0, 0]), misplaced(2));
    // Unknown options are kept, repeated or not; so is a DESCRIPTION that is not UTF-8.
    let unknown = with(
        "PCP-27",
        &[77, 0, 0, 0, 77, 0, 0, 0, 128, 0, 0, 1, 0xff, 0, 0, 0],
    )
    .unwrap();
    assert_eq!(
        unknown.options[2],
        PcpOption::Unknown {
            code: 128,
            data: vec![0xff]
        }
    );
    assert!(unknown.options[0].is_mandatory() && !unknown.options[2].is_mandatory());
}

#[test]
fn fields_are_checked_together() {
    let contradiction = |mut octets: Vec<u8>, at: usize, to: &[u8]| {
        octets[at..at + to.len()].copy_from_slice(to);
        assert_eq!(
            Request::decode(&octets),
            Err(RequestError::Contradiction),
            "octet {at}"
        );
    };
    // THIRD_PARTY that names the sender.
    contradiction(binary_one("PCP-15"), 79, &[30]);
    // PEER without protocol, internal port, remote port; PEER with PREFER_FAILURE.
    contradiction(binary_one("PCP-08"), 36, &[0]);
    contradiction(binary_one("PCP-08"), 40, &[0, 0]);
    contradiction(binary_one("PCP-08"), 60, &[0, 0]);
    let peer = [binary_one("PCP-08"), vec![2, 0, 0, 0]].concat();
    contradiction(peer, 0, &[2]);
}

#[test]
fn reserved_fields_are_ignored() {
    let mut octets = binary_one("PCP-02");
    octets[2] = 0xff;
    octets[12..24].fill(0xff);
    octets[37..40].fill(0xff);
    octets[61] = 0xff;
    assert_eq!(
        ServerMessage::decode(&octets),
        ServerMessage::decode(&binary_one("PCP-02"))
    );
}

#[test]
fn versions_are_told_apart() {
    let unsupported = |octets: &[u8]| match ServerMessage::decode(octets) {
        Ok(ServerMessage::UnsupportedVersion {
            version,
            lifetime,
            epoch,
        }) => (version, lifetime, epoch),
        other => panic!("{other:?}"),
    };
    let full = (2, Some(Lifetime(1800)), Some(Epoch(77)));
    assert_eq!(unsupported(&binary_one("PCP-12")), full);
    assert_eq!(unsupported(&[1, 0x80, 0, 1]), (1, None, None));
    assert_eq!(
        unsupported(&[3, 0x81, 0, 1, 0, 0, 0, 60]),
        (3, Some(Lifetime(60)), None)
    );
    // The NAT-PMP error comes with R clear, set, or set with the opcode: the first octet decides (AMB-31).
    for op in [0, 0x80, 0x81] {
        let mut octets = binary_one("NPMP-08");
        octets[1] = op;
        let epoch = Some(Epoch(3603));
        assert_eq!(
            ServerMessage::decode(&octets),
            Ok(ServerMessage::NatPmpOnly { epoch })
        );
    }
    assert_eq!(
        ServerMessage::decode(&[0, 0x80, 0, 3, 0, 0, 0, 0]),
        Err(ResponseError::Version { version: 0 })
    );
}

#[test]
fn clients_drop_what_is_no_response() {
    let mut octets = binary_one("PCP-02");
    assert_eq!(
        ServerMessage::decode(&octets[..3]),
        Err(ResponseError::Truncated { have: 3 })
    );
    assert_eq!(
        ServerMessage::decode(&binary_one("PCP-01")),
        Err(ResponseError::IsRequest)
    );
    octets.push(0);
    assert_eq!(
        ServerMessage::decode(&octets),
        Err(ResponseError::Length { have: 65 })
    );
    octets.resize(1104, 0);
    assert_eq!(
        ServerMessage::decode(&octets),
        Err(ResponseError::Length { have: 1104 })
    );
}

#[test]
fn unknown_options_in_a_success_are_no_reason_to_drop_it() {
    let octets = [binary_one("PCP-02"), vec![77, 0, 0, 1, 9, 0, 0, 0]].concat();
    let Ok(ServerMessage::Response(response)) = ServerMessage::decode(&octets) else {
        panic!("dropped");
    };
    assert_eq!(
        response.options[1],
        PcpOption::Unknown {
            code: 77,
            data: vec![9]
        }
    );
    // Options that cannot be read: a success is not believed, an error is (it returns the request's own).
    let broken = [2, 0, 0, 9];
    let success = [&binary_one("PCP-02")[..], &broken].concat();
    assert!(matches!(
        ServerMessage::decode(&success),
        Err(ResponseError::Options(_))
    ));
    let error = [&binary_one("PCP-03")[..], &broken].concat();
    assert!(ServerMessage::decode(&error).is_ok());
}

#[test]
fn error_replies_copy_the_request() {
    let unknown_opcode = {
        let mut octets = binary_one("PCP-10");
        octets[1] = 96;
        octets.extend([0xde, 0xad, 0xbe, 0xef]);
        octets
    };
    let reply = |request: &[u8], result: ResultCode, epoch| {
        error_reply(request, result, result.error_lifetime(), Epoch(epoch))
    };
    assert_eq!(
        reply(&unknown_opcode, ResultCode::UnsuppOpcode, 78),
        binary_one("PCP-14")
    );
    assert_eq!(
        reply(&binary_one("PCP-15"), ResultCode::UnsuppOption, 79),
        binary_one("PCP-16")
    );
    // Cut to 1100, padded to a multiple of 4.
    let long = vec![2; 2000];
    assert_eq!(reply(&long, ResultCode::MalformedRequest, 0).len(), 1100);
    let odd = [binary_one("PCP-10"), vec![7]].concat();
    let odd = reply(&odd, ResultCode::MalformedRequest, 0);
    assert_eq!(odd[24..], [7, 0, 0, 0]);
}

#[test]
fn version_replies_are_24_octets() {
    let mut version3 = binary_one("PCP-10");
    version3[0] = 3;
    version3.extend([0; 8]);
    let reply = |request: &[u8]| version_reply(request, Lifetime(1800), Epoch(77));
    assert_eq!(reply(&version3), binary_one("PCP-12"));
    assert_eq!(reply(&[0, 0]), binary_one("PCP-13"));
}

#[test]
fn messages_over_the_limit_are_not_written() {
    let full = |len: usize| {
        let data = vec![0; len];
        request(
            0,
            any(),
            Body::Announce,
            vec![PcpOption::Unknown { code: 200, data }],
        )
    };
    assert_eq!(full(1072).encode().map(|octets| octets.len()), Ok(1100));
    assert_eq!(full(1073).encode(), Err(EncodeError::TooLong { len: 1104 }));
}
