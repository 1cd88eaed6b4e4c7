//! From a LAN host to a LAN host by the external address (RFC 4787 REQ-9).

use anyhow::Result;
use iwf_common::config::FdbKey;
use iwf_common::flow::SessionFlags;
use iwf_common::nat::{Filter, MappingFlags, MappingKind, MappingValue, mask};
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, BRIDGE_MAC, Bed, DROP, HOST, HOST2, PASS, REDIRECT, REMOTE, SYN, TCP, UDP, WAN, endpoint,
    explicit, lan_frame, mac_of, with_bed,
};

const HOST2_MAC: [u8; 6] = mac_of(HOST2);

/// Makes the second host known, behind the same bridge port.
fn join(bed: &mut Bed) -> Result<()> {
    bed.ns
        .ip("neigh add 192.168.1.11 dev br0 lladdr 02:00:00:00:01:0b nud permanent")?;
    let station = FdbKey {
        bridge: bed.bridge,
        mac: HOST2_MAC,
        pad: [0; 2],
    };
    bed.plane.set_station(station, bed.lan)
}

fn from_host2(frame: Frame) -> Frame {
    Frame {
        src_mac: HOST2_MAC,
        ..lan_frame(frame)
    }
}

/// As it must arrive at the other host.
fn turned(frame: &Frame, from_port: u16, to: ([u8; 4], u16), mac: [u8; 6]) -> Frame {
    let mut out = frame.clone();
    out.src = WAN;
    out.set_src_port(from_port);
    out.dst = to.0;
    out.set_dst_port(to.1);
    out.ttl -= 1;
    out.dst_mac = mac;
    out.src_mac = BRIDGE_MAC;
    out
}

fn host_mac() -> [u8; 6] {
    lan_frame(Frame::icmp(HOST, HOST2, 8, 1)).src_mac
}

const OPENED: [&str; 4] = [
    "hairpinned",
    "mappings_created",
    "next_hops_refreshed",
    "sessions_created",
];

/// A packet of HOST to HOST2's mapped port, and the answer.
fn flows() -> [(u8, Frame, Frame); 2] {
    [
        (
            UDP,
            Frame::udp((HOST, 6000), (WAN, 40000)),
            Frame::udp((HOST2, 5000), (WAN, 6000)),
        ),
        (
            TCP,
            Frame::tcp((HOST, 6000), (WAN, 40000), SYN),
            Frame::tcp((HOST2, 5000), (WAN, 6000), SYN | ACK),
        ),
    ]
}

#[test]
fn two_hosts_meet_at_their_external_endpoints() -> Result<()> {
    for (proto, request, reply) in flows() {
        with_bed(|bed| {
            join(bed)?;
            bed.map(proto, (HOST2, 5000), 40000, 0)?;
            let (request, reply) = (lan_frame(request), from_host2(reply));
            let there = turned(&request, 6000, (HOST2, 5000), HOST2_MAC);
            let seen = bed.lan_in(&request)?;
            seen.is(REDIRECT, Delta::counted(&OPENED).sessions(2).mappings(1));
            assert_eq!(seen.frame(), there);

            let seen = bed.lan_in(&reply)?;
            let refreshed = Delta::counted(&["hairpinned", "next_hops_refreshed"]);
            seen.is(REDIRECT, refreshed.sessions_changed(1));
            assert_eq!(
                seen.frame(),
                turned(&reply, 40000, (HOST, 6000), host_mac())
            );

            // And on, without a lookup.
            let seen = bed.lan_in(&request)?;
            seen.is(REDIRECT, Delta::counted(&["hairpinned"]));
            assert_eq!(seen.frame(), there);
            for session in bed.plane.state()?.sessions.values() {
                assert_eq!(session.egress, bed.lan);
                let flags = session.flags & (SessionFlags::HAIRPIN | SessionFlags::INBOUND);
                assert_eq!(flags, SessionFlags::HAIRPIN);
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_other_host_may_be_behind_another_port() -> Result<()> {
    with_bed(|bed| {
        join(bed)?;
        bed.ns.ip("link add lan1 type veth peer name lan1p")?;
        bed.ns.ip("link set lan1 master br0 up")?;
        let other = bed.ns.ifindex("lan1")?;
        bed.plane.set_device(other)?;
        let station = FdbKey {
            bridge: bed.bridge,
            mac: HOST2_MAC,
            pad: [0; 2],
        };
        bed.plane.set_station(station, other)?;
        bed.map(UDP, (HOST2, 5000), 40000, 0)?;
        let request = lan_frame(Frame::udp((HOST, 6000), (WAN, 40000)));
        assert_eq!(bed.lan_in(&request)?.action, REDIRECT);
        let egress: Vec<u32> = bed
            .plane
            .state()?
            .sessions
            .values()
            .map(|s| s.egress)
            .collect();
        assert!(egress.contains(&other), "{egress:?}");
        Ok(())
    })
}

/// RFC 5780 section 4.5 tests it so.
#[test]
fn a_host_meets_itself() -> Result<()> {
    with_bed(|bed| {
        // At another mapping of its own, and at the same one, whatever the filter.
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        let request = lan_frame(Frame::udp((HOST, 6000), (WAN, 40000)));
        let seen = bed.lan_in(&request)?;
        seen.is(REDIRECT, Delta::counted(&OPENED).sessions(2).mappings(1));
        assert_eq!(
            seen.frame(),
            turned(&request, 6000, (HOST, 5000), host_mac())
        );
        let request = lan_frame(Frame::udp((HOST, 6000), (WAN, 6000)));
        let seen = bed.lan_in(&request)?;
        let opened = Delta::counted(&["hairpinned", "next_hops_refreshed", "sessions_created"]);
        seen.is(REDIRECT, opened.sessions(1));
        assert_eq!(
            seen.frame(),
            turned(&request, 6000, (HOST, 6000), host_mac())
        );
        let seen = bed.lan_in(&request)?;
        seen.is(REDIRECT, Delta::counted(&["hairpinned"]));
        Ok(())
    })
}

/// Only what we have hairpinned has such a source on its way to the LAN.
#[test]
fn nobody_on_the_lan_pretends_to_be_our_external_address() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, (HOST2, 5000), 40000, 0)?;
        for to in [
            (WAN, 40000),
            (REMOTE, 53),
            (HOST2, 5000),
            ([192, 168, 1, 1], 53),
        ] {
            let frame = lan_frame(Frame::udp((WAN, 6000), to));
            bed.lan_in(&frame)?
                .is_untouched(DROP, Delta::counted(&["drop_spoofed"]), &frame);
        }
        Ok(())
    })
}

/// The filter sees the sender's external endpoint.
#[test]
fn the_targets_filter_holds_here_too() -> Result<()> {
    with_bed(|bed| {
        join(bed)?;
        for (port, remote, admitted) in [(40000, REMOTE, false), (40001, WAN, true)] {
            let only = MappingValue {
                remote_addr: remote,
                remote_mask: mask(32),
                ..explicit((HOST2, 5000), 0)
            };
            bed.map_with(UDP, port, only)?;
            let request = lan_frame(Frame::udp((HOST, 6000), (WAN, port)));
            let seen = bed.lan_in(&request)?;
            if admitted {
                assert_eq!(seen.action, REDIRECT);
            } else {
                assert_eq!(seen.action, DROP);
                assert_eq!(seen.delta.counters.get("drop_hairpin_refused"), Some(&1));
                assert_eq!(seen.bytes, request.bytes());
            }
        }
        // An end of the mapping is an end of it here.
        let past = bed.now()?.wrapping_sub(1);
        bed.map(UDP, (HOST2, 5001), 40002, past)?;
        let request = lan_frame(Frame::udp((HOST, 6000), (WAN, 40002)));
        bed.lan_in(&request)?.is_untouched(
            DROP,
            Delta::counted(&["drop_mapping_expired"]),
            &request,
        );
        let middle = lan_frame(Frame::tcp((HOST, 6000), (WAN, 40003), ACK));
        bed.map(TCP, (HOST2, 5000), 40003, 0)?;
        bed.lan_in(&middle)?
            .is_untouched(DROP, Delta::counted(&["drop_tcp_stray"]), &middle);
        Ok(())
    })
}

/// With the target's mapping the session is over in both directions, for every packet and not only for the first.
#[test]
fn a_session_does_not_outlive_the_targets_mapping() -> Result<()> {
    with_bed(|bed| {
        join(bed)?;
        let now = bed.now()?;
        bed.map(UDP, (HOST2, 5000), 40000, now.wrapping_add(1 << 20))?;
        let request = lan_frame(Frame::udp((HOST, 6000), (WAN, 40000)));
        let reply = from_host2(Frame::udp((HOST2, 5000), (WAN, 6000)));
        for frame in [&request, &reply] {
            assert_eq!(bed.lan_in(frame)?.action, REDIRECT);
        }
        let past = bed.now()?.wrapping_sub(1);
        bed.map(UDP, (HOST2, 5000), 40000, past)?;
        for (key, mut value) in bed.plane.state()?.sessions {
            assert_ne!(value.deadline, 0);
            value.deadline = past;
            bed.plane.set_session(key, value)?;
        }
        for frame in [&request, &request, &reply, &reply] {
            let expired = Delta::counted(&["drop_mapping_expired"]);
            bed.lan_in(frame)?.is_untouched(DROP, expired, frame);
        }
        Ok(())
    })
}

/// Two hosts that know each other's external endpoint and send at once.
#[test]
fn dynamic_mappings_let_in_whom_their_host_has_sent_to() -> Result<()> {
    with_bed(|bed| {
        join(bed)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 6000), (REMOTE, 53))))?;
        bed.lan_in(&from_host2(Frame::udp((HOST2, 7000), (REMOTE, 53))))?;
        let one = lan_frame(Frame::udp((HOST, 6000), (WAN, 7000)));
        let two = from_host2(Frame::udp((HOST2, 7000), (WAN, 6000)));
        for _ in 0..2 {
            let seen = bed.lan_in(&one)?;
            assert_eq!(seen.action, DROP);
            assert_eq!(seen.delta.counters.get("drop_hairpin_refused"), Some(&1));
        }
        let seen = bed.lan_in(&two)?;
        assert_eq!(seen.action, REDIRECT);
        assert_eq!(seen.frame(), turned(&two, 7000, (HOST, 6000), host_mac()));
        let seen = bed.lan_in(&one)?;
        assert_eq!(seen.action, REDIRECT);
        assert_eq!(seen.frame(), turned(&one, 6000, (HOST2, 7000), HOST2_MAC));
        // Or everybody, if that is configured.
        bed.reconfigure(|config| config.filter = Filter::EndpointIndependent as u8)?;
        bed.lan_in(&from_host2(Frame::udp((HOST2, 7001), (REMOTE, 53))))?;
        let other = lan_frame(Frame::udp((HOST, 6001), (WAN, 7001)));
        assert_eq!(bed.lan_in(&other)?.action, REDIRECT);
        Ok(())
    })
}

#[test]
fn the_ports_of_the_cpe_are_its_own() -> Result<()> {
    with_bed(|bed| {
        let service = MappingValue {
            kind: MappingKind::Host as u8,
            flags: MappingFlags::STATIC,
            ..explicit((WAN, 68), 0)
        };
        bed.map_with(UDP, 68, service)?;
        for (reason, frame) in [
            ("pass_hairpin", Frame::udp((HOST, 6000), (WAN, 68))),
            ("pass_hairpin", Frame::tcp((HOST, 6000), (WAN, 80), SYN)),
            ("pass_echo_request", Frame::icmp(HOST, WAN, 8, 7)),
            ("pass_hairpin", Frame::icmp(HOST, WAN, 0, 7)),
        ] {
            let frame = lan_frame(frame);
            bed.lan_in(&frame)?
                .is_untouched(PASS, Delta::counted(&[reason]), &frame);
        }
        Ok(())
    })
}

/// The stack would take the external address for its own.
#[test]
fn what_cannot_be_redirected_is_handed_up_translated() -> Result<()> {
    with_bed(|bed| {
        bed.map(UDP, (HOST2, 5000), 40000, 0)?;
        let request = lan_frame(Frame::udp((HOST, 6000), (WAN, 40000)));
        let seen = bed.lan_in(&request)?;
        let reasons = ["mappings_created", "pass_unresolved", "sessions_created"];
        seen.is(PASS, Delta::counted(&reasons).sessions(2).mappings(1));
        let expected = Frame {
            ttl: request.ttl,
            dst_mac: request.dst_mac,
            src_mac: request.src_mac,
            ..turned(&request, 6000, (HOST2, 5000), HOST2_MAC)
        };
        assert_eq!(seen.frame(), expected);
        // The stack would tell itself.
        let late = Frame { ttl: 1, ..request };
        bed.lan_in(&late)?
            .is_untouched(DROP, Delta::counted(&["drop_ttl_exceeded"]), &late);
        Ok(())
    })
}

/// RFC 5508 REQ-7, RFC 7857 section 12.
#[test]
fn an_error_about_a_hairpinned_packet_turns_back_as_well() -> Result<()> {
    for (proto, request, reply) in flows() {
        with_bed(|bed| {
            join(bed)?;
            bed.map(proto, (HOST2, 5000), 40000, 0)?;
            let request = lan_frame(request);
            let there = bed.lan_in(&request)?.frame();
            bed.lan_in(&from_host2(reply))?;
            // From the target, and from a router before it.
            for from in [HOST2, [192, 168, 1, 2]] {
                for octets in [8, 1500] {
                    let error = Frame::icmp_error(from, WAN, (3, 3), there.quoted(octets));
                    let error = from_host2(error);
                    let seen = bed.lan_in(&error)?;
                    seen.is(REDIRECT, Delta::counted(&["icmp_errors_translated"]));
                    let as_sent = Frame {
                        ttl: there.ttl,
                        ..request.clone()
                    };
                    let mut expected = turned(&error, 0, (HOST, 0), host_mac());
                    expected.payload = as_sent.quoted(octets);
                    assert_eq!(seen.frame(), expected);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Each end stands on its own mapping, and the pair on both.
#[test]
fn a_pair_ends_with_either_mapping() -> Result<()> {
    for ends in [40000, 6000] {
        with_bed(|bed| {
            join(bed)?;
            bed.map(UDP, (HOST2, 5000), 40000, 0)?;
            bed.map(UDP, (HOST, 6000), 6000, 0)?;
            let request = lan_frame(Frame::udp((HOST, 6000), (WAN, 40000)));
            let reply = from_host2(Frame::udp((HOST2, 5000), (WAN, 6000)));
            assert_eq!(bed.lan_in(&request)?.action, REDIRECT);
            assert_eq!(bed.lan_in(&reply)?.action, REDIRECT);
            bed.sweep()?;
            assert_eq!(bed.plane.state()?.sessions.len(), 2);
            bed.plane
                .remove_mapping(iwf_common::names::MAPPINGS_EXT, endpoint((WAN, ends), UDP))?;
            bed.sweep()?;
            let live = bed.plane.state()?.sessions;
            let live = live
                .values()
                .filter(|session| session.flags & SessionFlags::ENDED == 0);
            assert_eq!(live.count(), 0);
            Ok(())
        })?;
    }
    Ok(())
}
