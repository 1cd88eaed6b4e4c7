//! The order of checks of PCP messages, what servers answer and what clients drop.

mod vector_file;

use std::net::{IpAddr, Ipv4Addr};

use iwf_userspace::types::{Epoch, Lifetime};
use iwf_userspace::wire::pcp::{
    Body, EncodeError, MapBody, OptionError, PcpOption, PeerBody, Request, RequestError,
    RequestHeader, ResponseError, ResultCode, ServerMessage, error_reply, version_reply,
};
use vector_file::binary_one;

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
        Request {
            lifetime: Lifetime(0),
            client: Ipv4Addr::UNSPECIFIED.into(),
            body: Body::Announce,
            options: vec![PcpOption::Unknown { code: 200, data }],
        }
    };
    assert_eq!(full(1072).encode().map(|octets| octets.len()), Ok(1100));
    assert_eq!(full(1073).encode(), Err(EncodeError::TooLong { len: 1104 }));
}

#[test]
fn an_optional_option_that_cannot_be_read_costs_no_success() {
    let mut octets = binary_one("PCP-02").clone();
    let before = ServerMessage::decode(&octets).expect("a success");
    // PREFIX64 of three octets, and a good DESCRIPTION behind it.
    octets.extend([129, 0, 0, 3, 0, 9, 9, 0, 128, 0, 0, 2, b'h', b'i', 0, 0]);
    let Ok(ServerMessage::Response(after)) = ServerMessage::decode(&octets) else {
        panic!("dropped");
    };
    let Ok(ServerMessage::Response(before)) = Ok::<_, ()>(before) else {
        panic!("PCP-02 is a response");
    };
    assert_eq!((after.body, after.lifetime), (before.body, before.lifetime));
    assert!(after.options.contains(&PcpOption::Description("hi".into())));
    // One that runs past the end has no known start of what follows: dropped.
    octets.extend([129, 0, 0, 30, 0, 0, 0, 0]);
    assert!(ServerMessage::decode(&octets).is_err());
}

#[test]
fn the_fields_of_the_opcode_make_an_answer() {
    let peer = |octets: &[u8]| Request::decode(octets).expect("a request").body;
    let (map, announce) = (peer(&binary_one("PCP-01")), peer(&binary_one("PCP-10")));
    assert!(map.answers(&map) && announce.answers(&announce));
    assert!(!map.answers(&announce) && !announce.answers(&map));
    let Body::Map(fields) = map else {
        panic!("PCP-01 is a MAP");
    };
    let asked = PeerBody {
        map: fields,
        remote_port: 443,
        remote_addr: [198, 51, 100, 9].into(),
    };
    let other_external = MapBody {
        external_port: None,
        external_addr: [203, 0, 113, 7].into(),
        ..fields
    };
    let other_nonce = MapBody {
        nonce: iwf_userspace::types::MappingNonce([0; 12]),
        ..fields
    };
    let answers = |answer: PeerBody| Body::Peer(answer).answers(&Body::Peer(asked));
    assert!(
        answers(PeerBody {
            map: other_external,
            ..asked
        }),
        "PCPC-035"
    );
    assert!(!answers(PeerBody {
        map: other_nonce,
        ..asked
    }));
    assert!(!answers(PeerBody {
        remote_port: 80,
        ..asked
    }));
    assert!(!answers(PeerBody {
        remote_addr: [198, 51, 100, 8].into(),
        ..asked
    }));
    assert!(!Body::Map(fields).answers(&Body::Peer(asked)));
}

#[test]
fn an_identifier_of_a_third_party_needs_the_third_party() {
    let with = |options: &[u8]| Request::decode(&[&binary_one("PCP-27")[..], options].concat());
    let id = [13, 0, 0, 3, 1, 2, 3, 0];
    let mut party = vec![1, 0, 0, 16];
    party.extend(Ipv4Addr::new(192, 168, 1, 20).to_ipv6_mapped().octets());
    let alone = with(&id).expect_err("of whom?");
    assert_eq!(alone.result(), Some(ResultCode::ThirdPartyMissingOption));
    let both = with(&[&party[..], &id].concat()).expect("well formed");
    assert!(
        both.options
            .contains(&PcpOption::ThirdPartyId(vec![1, 2, 3]))
    );
}
