//! NAT-PMP messages octet by octet: vectors both ways, every truncation, the errors of RFC 6886 section 3.5.

mod vector_file;

use std::net::Ipv4Addr;

use iwf_userspace::types::{Epoch, ExternalPort, InternalPort, Lifetime, Protocol};
use iwf_userspace::wire::natpmp::{
    Request, RequestError, Response, ResponseError, ResultCode, opcode_reply,
};
use vector_file::{binary, binary_one};

fn map_request(protocol: Protocol, internal: u16, external: u16, lifetime: u32) -> Request {
    Request::Map {
        protocol,
        internal_port: InternalPort::new(internal),
        external_port: ExternalPort::new(external),
        lifetime: Lifetime(lifetime),
    }
}

#[test]
fn requests_both_ways() {
    let table = [
        ("NPMP-01", Request::ExternalAddress),
        ("NPMP-03", map_request(Protocol::Udp, 5000, 5000, 7200)),
        ("NPMP-05", map_request(Protocol::Tcp, 8080, 0, 0)),
        ("NPMP-07", map_request(Protocol::Udp, 0, 0, 0)),
    ];
    for (id, expected) in table {
        let octets = binary_one(id);
        assert_eq!(Request::decode(&octets), Ok(expected), "{id}");
        assert_eq!(expected.encode(), octets, "{id}");
    }
}

#[test]
fn responses_both_ways() {
    let address = |result, epoch, addr| Response::ExternalAddress {
        result,
        epoch: Epoch(epoch),
        addr,
    };
    let map = |protocol, epoch, internal, external, lifetime| Response::Map {
        protocol,
        result: ResultCode::Success,
        epoch: Epoch(epoch),
        internal_port: InternalPort::new(internal),
        external_port: ExternalPort::new(external),
        lifetime: Lifetime(lifetime),
    };
    let table = [
        (
            "NPMP-02",
            address(ResultCode::Success, 3600, Ipv4Addr::new(203, 0, 113, 7)),
        ),
        ("NPMP-04", map(Protocol::Udp, 3601, 5000, 40001, 7200)),
        ("NPMP-06", map(Protocol::Tcp, 3602, 8080, 0, 0)),
        (
            "NPMP-08",
            Response::UnsupportedVersion { epoch: Epoch(3603) },
        ),
        ("NPMP-09", Response::UnsupportedOpcode { opcode: 5 }),
        (
            "NPMP-10",
            address(ResultCode::NetworkFailure, 12, Ipv4Addr::UNSPECIFIED),
        ),
    ];
    for (id, expected) in table {
        let octets = binary_one(id);
        assert_eq!(Response::decode(&octets), Ok(expected), "{id}");
        assert_eq!(expected.encode(), octets, "{id}");
    }
}

#[test]
fn truncations_are_refused() {
    for (name, octets) in binary("NPMP-") {
        for len in 0..octets.len() {
            let cut = &octets[..len];
            // Two octets 00 00 are the address request, whatever they were cut from.
            let address = matches!(Request::decode(cut), Ok(Request::ExternalAddress));
            assert!(
                address || Request::decode(cut).is_err(),
                "{name} cut to {len}"
            );
            assert!(Response::decode(cut).is_err(), "{name} cut to {len}");
        }
    }
}

#[test]
fn requests_are_refused_in_order() {
    assert_eq!(
        Request::decode(&[0]),
        Err(RequestError::Truncated { have: 1 })
    );
    assert_eq!(Request::decode(&[0, 128]), Err(RequestError::IsResponse));
    assert_eq!(
        Request::decode(&[1, 0]),
        Err(RequestError::Version { version: 1 })
    );
    assert_eq!(
        Request::decode(&[0, 5]),
        Err(RequestError::Opcode { opcode: 5 })
    );
    assert_eq!(opcode_reply(&[0, 5]), binary_one("NPMP-09"));
    assert_eq!(opcode_reply(&[0, 9, 1, 2, 3]), [0, 0x89, 0, 5, 3]);
}

#[test]
fn the_version_error_counts_with_any_opcode() {
    for op in [0, 128, 129, 130] {
        let mut octets = binary_one("NPMP-08");
        octets[1] = op;
        let epoch = Epoch(3603);
        assert_eq!(
            Response::decode(&octets),
            Ok(Response::UnsupportedVersion { epoch })
        );
    }
    assert_eq!(
        Response::decode(&binary_one("PCP-13")),
        Err(ResponseError::Version { version: 2 })
    );
}

#[test]
fn unknown_results_are_kept() {
    let mut octets = binary_one("NPMP-04");
    octets[2..4].copy_from_slice(&[0, 77]);
    assert!(matches!(
        Response::decode(&octets),
        Ok(Response::Map {
            result: ResultCode::Other(77),
            ..
        })
    ));
}
