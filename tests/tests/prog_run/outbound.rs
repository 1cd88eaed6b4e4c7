//! XDP on the LAN ports.

use anyhow::Result;
use iwf_common::config::Prefix;
use iwf_common::names;
use iwf_common::nat::{MappingKind, MappingValue, mask};
use iwf_common::port::PortRange;
use iwf_tests::packet::{Frame, Transport};
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, BRIDGE_MAC, Bed, DROP, HOST, HOST2, ICMP, PASS, REDIRECT, REMOTE, REMOTE2, RST, SYN,
    TC_NEXT, TC_REDIRECT, TCP, Through, UDP, WAN, endpoint, lan_frame, translated_in,
    translated_out, wan_frame, with_bed, with_both, with_sized_bed,
};

fn opened() -> Delta {
    Delta::counted(&["forwarded_out", "mappings_created", "sessions_created"])
        .sessions(2)
        .mappings(1)
}

#[test]
fn a_flow_of_each_protocol_goes_out_and_its_answer_comes_back() -> Result<()> {
    let udp = Frame::udp((HOST, 5000), (REMOTE, 53));
    let mut with_options = udp.clone();
    with_options.options = vec![0x94, 4, 0, 0, 1, 1, 1, 0];
    let mut unchecked = udp.clone();
    unchecked.transport = Transport::Udp {
        ports: (5000, 53),
        checksum: false,
    };
    let mut empty = udp.clone();
    empty.payload.clear();
    let cases = [
        (udp, Frame::udp((REMOTE, 53), (WAN, 5000))),
        (with_options, Frame::udp((REMOTE, 53), (WAN, 5000))),
        (unchecked.clone(), {
            let mut reply = unchecked;
            (reply.src, reply.dst) = (REMOTE, WAN);
            reply.transport = Transport::Udp {
                ports: (53, 5000),
                checksum: false,
            };
            reply
        }),
        (empty, Frame::udp((REMOTE, 53), (WAN, 5000))),
        (
            Frame::tcp((HOST, 5000), (REMOTE, 80), SYN),
            Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | ACK),
        ),
        (
            Frame::icmp(HOST, REMOTE, 8, 5000),
            Frame::icmp(REMOTE, WAN, 0, 5000),
        ),
    ];
    for (request, reply) in cases {
        with_both(|bed| {
            let (request, reply) = (lan_frame(request.clone()), wan_frame(reply.clone()));
            let first = bed.lan_in(&request)?;
            first.is(REDIRECT, opened());
            assert_eq!(first.frame(), translated_out(&request, 5000));

            let again = bed.lan_in(&request)?;
            again.is(REDIRECT, Delta::counted(&["forwarded_out"]));
            assert_eq!(again.frame(), translated_out(&request, 5000));

            let back = bed.wan_in(&reply)?;
            let refreshed = Delta::counted(&["forwarded_in", "next_hops_refreshed"]);
            back.is(REDIRECT, refreshed.sessions_changed(1));
            assert_eq!(back.frame(), translated_in(&reply, (HOST, 5000)));

            let back = bed.wan_in(&reply)?;
            back.is(REDIRECT, Delta::counted(&["forwarded_in"]));
            assert_eq!(back.frame(), translated_in(&reply, (HOST, 5000)));
            Ok(())
        })?;
    }
    Ok(())
}

/// Every payload word once makes the sum all ones somewhere on the way: 0 must never be sent.
#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_ones() -> Result<()> {
    with_both(|bed| {
        let mut request = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        request.payload = vec![0, 0];
        let plain = bed.lan_in(&request)?.bytes;
        let field = u16::from_be_bytes([plain[40], plain[41]]);
        // Adding what the checksum field has to the covered words makes the new field 0.
        request.payload = field.to_be_bytes().to_vec();
        let seen = bed.lan_in(&request)?;
        assert_eq!(seen.bytes[40..42], [0xff, 0xff]);
        assert_eq!(seen.frame(), translated_out(&request, 5000));
        Ok(())
    })
}

/// RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1.
#[test]
fn one_mapping_for_every_destination() -> Result<()> {
    with_both(|bed| {
        let queries = |dst: [u8; 4], port: u16| {
            [
                Frame::udp((HOST, 5000), (dst, port)),
                Frame::tcp((HOST, 5000), (dst, port), SYN),
                Frame::icmp(HOST, dst, 8, 5000),
            ]
        };
        for frame in queries(REMOTE, 53) {
            bed.lan_in(&lan_frame(frame))?.is(REDIRECT, opened());
        }
        for frame in queries(REMOTE2, 54) {
            let frame = lan_frame(frame);
            let seen = bed.lan_in(&frame)?;
            let delta = Delta::counted(&["forwarded_out", "sessions_created"]).sessions(2);
            seen.is(REDIRECT, delta);
            assert_eq!(seen.frame(), translated_out(&frame, 5000));
        }
        Ok(())
    })
}

/// RFC 4787 REQ-3 and REQ-3a.
#[test]
fn a_taken_port_is_replaced_by_one_of_its_class() -> Result<()> {
    with_both(|bed| {
        for (port, class) in [(500, 1..=1023), (5000, 1024..=65535)] {
            for host in [HOST, HOST2] {
                let frame = lan_frame(Frame::udp((host, port), (REMOTE, 53)));
                let seen = bed.lan_in(&frame)?;
                seen.is(REDIRECT, opened());
                let got = seen.frame().src_port().expect("UDP has ports");
                assert_eq!(seen.frame(), translated_out(&frame, got));
                assert!(class.contains(&got), "{port} became {got}");
                assert_eq!(got == port, host == HOST, "{port} became {got}");
            }
        }
        Ok(())
    })
}

/// NAT-44: the new flow is refused, the old ones stay.
#[test]
fn exhausted_ports_refuse_the_new_flow() -> Result<()> {
    with_both(|bed| {
        bed.reconfigure(|config| {
            config.ports = PortRange {
                min: 20000,
                max: 20005,
                hole_min: 20002,
                hole_max: 20003,
            };
        })?;
        let flow = |port| lan_frame(Frame::udp((HOST, port), (REMOTE, 53)));
        let mut given = Vec::new();
        for port in 6000..6004 {
            given.extend(bed.lan_in(&flow(port))?.frame().src_port());
        }
        given.sort_unstable();
        assert_eq!(given, [20000, 20001, 20004, 20005]);
        let fifth = flow(6004);
        bed.lan_in(&fifth)?
            .is_untouched(DROP, Delta::counted(&["drop_ports_exhausted"]), &fifth);
        bed.lan_in(&flow(6000))?
            .is(REDIRECT, Delta::counted(&["forwarded_out"]));
        Ok(())
    })
}

#[test]
fn full_tables_refuse_the_new_flow() -> Result<()> {
    let flow = |port| lan_frame(Frame::udp((HOST, port), (REMOTE, 53)));
    with_sized_bed(2, 64, |bed| {
        bed.lan_in(&flow(6000))?.is(REDIRECT, opened());
        let refused = Delta::counted(&["drop_sessions_full", "mappings_created"]).mappings(1);
        bed.lan_in(&flow(6001))?.is(DROP, refused);
        bed.lan_in(&flow(6000))?
            .is(REDIRECT, Delta::counted(&["forwarded_out"]));
        Ok(())
    })?;
    with_sized_bed(64, 1, |bed| {
        bed.lan_in(&flow(6000))?.is(REDIRECT, opened());
        bed.lan_in(&flow(6001))?
            .is(DROP, Delta::counted(&["drop_mappings_full"]));
        Ok(())
    })
}

/// Architecture decision 6.
#[test]
fn only_a_syn_begins_a_connection() -> Result<()> {
    with_both(|bed| {
        for flags in [ACK, RST, RST | ACK, SYN | ACK, 0x01 | ACK] {
            let frame = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), flags));
            bed.lan_in(&frame)?
                .is_untouched(DROP, Delta::counted(&["drop_tcp_stray"]), &frame);
        }
        Ok(())
    })
}

/// An explicit mapping governs what its host sends (NAT-50).
#[test]
fn a_mapped_host_sends_from_its_mapped_port() -> Result<()> {
    with_both(|bed| {
        let later = bed.now()?.wrapping_add(1_000_000);
        bed.map(UDP, (HOST, 5000), 40000, later)?;
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        let seen = bed.lan_in(&frame)?;
        let delta = Delta::counted(&["forwarded_out", "sessions_created"]).sessions(2);
        seen.is(REDIRECT, delta);
        assert_eq!(seen.frame(), translated_out(&frame, 40000));
        let sessions = bed.plane.state()?.sessions;
        assert!(sessions.values().all(|session| session.deadline == later));
        Ok(())
    })
}

/// What is over is gone at once: its host goes on by a mapping of its own, and nobody comes in by the old one.
#[test]
fn an_expired_mapping_does_not_keep_its_host_waiting() -> Result<()> {
    with_bed(|bed| {
        let now = bed.now()?;
        bed.map(UDP, (HOST, 5000), 40000, now.wrapping_sub(1))?;
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        let seen = bed.lan_in(&frame)?;
        let mut delta = opened();
        (delta.internal.added, delta.internal.changed) = (0, 1);
        delta.external.removed = 1;
        seen.is(REDIRECT, delta);
        assert_eq!(seen.frame(), translated_out(&frame, 5000));
        let state = bed.plane.state()?;
        let external: Vec<_> = state.external.keys().copied().collect();
        assert_eq!(external, [endpoint((WAN, 5000), UDP)]);
        let old = wan_frame(Frame::udp((REMOTE, 53), (WAN, 40000)));
        bed.wan_in(&old)?
            .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &old);
        Ok(())
    })
}

/// RFC 4787 REQ-4: a replacement has the parity of the port that was wanted, while there are such.
#[test]
fn a_replaced_udp_port_keeps_its_parity() -> Result<()> {
    with_bed(|bed| {
        bed.reconfigure(|config| {
            config.ports = PortRange {
                min: 20000,
                max: 20999,
                hole_min: 20100,
                hole_max: 20499,
            };
        })?;
        let mut taken = Vec::new();
        for port in 5000..5080 {
            let seen = bed.lan_in(&lan_frame(Frame::udp((HOST, port), (REMOTE, 53))))?;
            let got = seen.frame().src_port().expect("UDP has ports");
            assert_eq!(got % 2, port % 2, "{port} became {got}");
            assert!(matches!(got, 20000..20100 | 20500..21000), "{got}");
            taken.push(got);
        }
        // RFC 7857 section 9: in no order that could be told.
        assert!(!taken.is_sorted());
        // When those of one parity are gone, the others are better than nothing.
        bed.reconfigure(|config| {
            (config.ports.min, config.ports.max) = (30000, 30001);
            (config.ports.hole_min, config.ports.hole_max) = (1, 0);
        })?;
        for port in [6000, 6002] {
            let frame = lan_frame(Frame::udp((HOST, port), (REMOTE, 53)));
            assert_eq!(bed.lan_in(&frame)?.action, REDIRECT);
        }
        Ok(())
    })
}

/// RFC 7857 section 9, RFC 6056: who has seen some ports cannot tell the next.
#[test]
fn replaced_ports_have_no_order() -> Result<()> {
    const FLOWS: u16 = 1000;
    with_bed(|bed| {
        bed.reconfigure(|config| config.ports.min = 20_000)?;
        bed.plane.ready(names::XDP_LAN)?;
        let mut ports = Vec::new();
        for port in 5000..5000 + FLOWS {
            let frame = lan_frame(Frame::tcp((HOST, port), (REMOTE, 80), SYN));
            let ran = bed.plane.xdp(names::XDP_LAN, &frame.bytes(), bed.lan, 1)?;
            assert_eq!(ran.action, REDIRECT);
            let out = Frame::parse(&ran.frame).expect("a good frame");
            ports.push(out.src_port().expect("TCP has ports"));
        }
        // None of these bounds is nearer than seven standard deviations.
        let ascents = ports.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((400..600).contains(&ascents), "{ascents} ascents");
        for quarter in 0..4 {
            let of = |port: u16| (u32::from(port) - 20_000) * 4 / (65_536 - 20_000);
            let hits = ports.iter().filter(|port| of(**port) == quarter).count();
            assert!((150..350).contains(&hits), "{hits} in quarter {quarter}");
        }
        let mut steps: Vec<i32> = ports
            .windows(2)
            .map(|pair| i32::from(pair[1]) - i32::from(pair[0]))
            .collect();
        steps.sort_unstable();
        let repeated = steps.chunk_by(PartialEq::eq).map(<[i32]>::len).max();
        assert!(repeated < Some(6), "one step {repeated:?} times");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), usize::from(FLOWS), "each has its own");
        Ok(())
    })
}

/// Another CPU has claimed the endpoint and not yet finished: who cannot finish it must not take it away.
#[test]
fn a_borrowed_claim_is_not_given_back() -> Result<()> {
    with_sized_bed(4096, 2, |bed| {
        // MAPPINGS_INT is full, so that the packet's mapping cannot be completed.
        let claim = endpoint((WAN, 5000), UDP);
        let value = MappingValue {
            addr: HOST,
            port: 5000u16.to_be_bytes(),
            kind: MappingKind::Dynamic as u8,
            ..MappingValue::default()
        };
        bed.plane.set_mapping(names::MAPPINGS_EXT, claim, value)?;
        for port in [1, 2] {
            let other = endpoint((HOST2, port), UDP);
            bed.plane.set_mapping(names::MAPPINGS_INT, other, value)?;
        }
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&frame)?
            .is_untouched(DROP, Delta::counted(&["drop_mappings_full"]), &frame);
        Ok(())
    })
}

/// MAPPINGS_EXT decides: the loser gets another port and its old entry goes.
#[test]
fn a_displaced_mapping_is_replaced() -> Result<()> {
    with_both(|bed| {
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&frame)?.is(REDIRECT, opened());
        bed.map(UDP, (HOST2, 7000), 5000, 0)?;
        let elsewhere = lan_frame(Frame::udp((HOST, 5000), (REMOTE2, 53)));
        let seen = bed.lan_in(&elsewhere)?;
        let got = seen.frame().src_port().expect("UDP has ports");
        assert_ne!(got, 5000);
        assert_eq!(seen.frame(), translated_out(&elsewhere, got));
        let state = bed.plane.state()?;
        assert_eq!(
            state.internal[&endpoint((HOST, 5000), UDP)].endpoint(UDP),
            endpoint((WAN, got), UDP)
        );
        Ok(())
    })
}

/// What is not for translation stays as it is and leaves no trace but its counter.
#[test]
fn the_stack_gets_what_is_not_ours() -> Result<()> {
    let ordinary = || lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
    let with = |change: fn(&mut Frame)| {
        let mut frame = ordinary();
        change(&mut frame);
        frame
    };
    let cases = [
        ("pass_not_our_mac", with(|f| f.dst_mac = [2, 9, 9, 9, 9, 9])),
        ("pass_not_unicast", with(|f| f.dst = [239, 255, 255, 250])),
        ("pass_not_unicast", with(|f| f.dst = [255; 4])),
        ("pass_not_lan_source", with(|f| f.src = [0; 4])),
        ("pass_hairpin", with(|f| f.dst = WAN)),
        ("pass_not_to_wan", with(|f| f.dst = HOST2)),
        ("pass_not_to_wan", with(|f| f.dst = [192, 168, 1, 1])),
        ("pass_ttl_exceeded", with(|f| f.ttl = 1)),
        (
            "pass_other_protocol",
            with(|f| f.transport = Transport::Other(47)),
        ),
        (
            "pass_other_protocol",
            lan_frame(Frame::icmp(HOST, REMOTE, 0, 7)),
        ),
        (
            "pass_other_protocol",
            lan_frame(Frame::icmp(HOST, REMOTE, 13, 7)),
        ),
        (
            "pass_icmp_error",
            lan_frame(Frame::icmp(HOST, REMOTE, 3, 7)),
        ),
    ];
    with_both(|bed| {
        // A session must not make the rest of these be taken for its own.
        bed.lan_in(&ordinary())?.is(REDIRECT, opened());
        for (reason, frame) in cases.clone() {
            let seen = bed.lan_in(&frame)?;
            seen.is_untouched(PASS, Delta::counted(&[reason]), &frame);
        }
        Ok(())
    })
}

#[test]
fn octets_that_contradict_each_other_are_dropped() -> Result<()> {
    with_bed(|bed| {
        let good = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))).bytes();
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let pass = [("pass_not_ipv4", changed(12, 0x86))];
        let drop = [
            ("drop_malformed", changed(14, 0x65)),
            ("drop_malformed", changed(14, 0x44)),
            // A header that reaches beyond the packet, and a packet beyond the frame.
            ("drop_malformed", changed(14, 0x4f)),
            ("drop_malformed", changed(17, 200)),
            ("drop_malformed", changed(17, 27)),
            ("drop_malformed", good[..40].to_vec()),
            ("drop_malformed", good[..20].to_vec()),
            // A UDP datagram shorter than its header, and longer than its packet.
            ("drop_malformed", changed(39, 7)),
            ("drop_malformed", changed(39, 25)),
        ];
        for (reason, bytes) in pass {
            let seen = bed.raw(names::XDP_LAN, &bytes, bed.lan)?;
            seen.is(PASS, Delta::counted(&[reason]));
            assert_eq!(seen.bytes, bytes);
        }
        for (reason, mut bytes) in drop {
            bed.raw(names::XDP_LAN, &bytes, bed.lan)?
                .is(DROP, Delta::counted(&[reason]));
            // The same between two others is none of our business.
            bytes[0] = 6;
            let seen = bed.raw(names::XDP_LAN, &bytes, bed.lan)?;
            seen.is(PASS, Delta::counted(&["pass_not_our_mac"]));
            assert_eq!(seen.bytes, bytes);
        }
        Ok(())
    })
}

/// Ethernet pads short frames; the padding is not the packet's.
#[test]
fn a_padded_frame_is_translated() -> Result<()> {
    with_both(|bed| {
        let mut frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        frame.payload.truncate(2);
        let mut bytes = frame.bytes();
        let len = bytes.len();
        bytes.resize(60, 0);
        let seen = bed.raw(names::XDP_LAN, &bytes, bed.lan)?;
        seen.is(REDIRECT, opened());
        assert_eq!(
            Frame::parse(&seen.bytes[..len]),
            Ok(translated_out(&frame, 5000))
        );
        assert!(seen.bytes[len..].iter().all(|octet| *octet == 0));
        Ok(())
    })
}

#[test]
fn nothing_is_translated_before_it_is_configured() -> Result<()> {
    with_both(|bed| {
        bed.reconfigure(|config| config.external_addr = [0; 4])?;
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&frame)?
            .is_untouched(PASS, Delta::counted(&["pass_not_configured"]), &frame);
        Ok(())
    })
}

/// The way of a packet that cannot leave from XDP: untouched to the stack, translated on WAN egress.
#[test]
fn an_unresolved_next_hop_goes_by_way_of_the_stack() -> Result<()> {
    with_both(|bed| {
        bed.ns.ip("neigh del 100.64.0.1 dev wan0")?;
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        let unresolved = Delta::counted(&["pass_unresolved"]);
        bed.lan_in(&frame)?
            .is_untouched(PASS, unresolved.clone(), &frame);

        bed.egress(&frame, true)?;
        bed.lan_in(&frame)?.is_untouched(PASS, unresolved, &frame);

        bed.ns
            .ip("neigh add 100.64.0.1 dev wan0 lladdr 02:00:00:00:02:01 nud permanent")?;
        let seen = bed.lan_in(&frame)?;
        let refreshed = Delta::counted(&["forwarded_out", "next_hops_refreshed"]);
        seen.is(REDIRECT, refreshed.sessions_changed(1));
        assert_eq!(seen.frame(), translated_out(&frame, 5000));
        Ok(())
    })
}

#[test]
fn a_new_generation_looks_the_next_hop_up_again() -> Result<()> {
    with_both(|bed| {
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&frame)?;
        bed.ns
            .ip("neigh replace 100.64.0.1 dev wan0 lladdr 02:00:00:00:02:77 nud permanent")?;
        bed.reconfigure(|config| config.next_hop_generation += 1)?;
        let seen = bed.lan_in(&frame)?;
        let refreshed = Delta::counted(&["forwarded_out", "next_hops_refreshed"]);
        seen.is(REDIRECT, refreshed.sessions_changed(1));
        assert_eq!(seen.frame().dst_mac, [2, 0, 0, 0, 2, 0x77]);
        Ok(())
    })
}

#[test]
fn what_the_wan_cannot_take_goes_to_the_stack() -> Result<()> {
    with_both(|bed| {
        let mut frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&frame)?;
        frame.payload = vec![7; 1500];
        bed.lan_in(&frame)?
            .is_untouched(PASS, Delta::counted(&["pass_too_big"]), &frame);
        // As the first packet of a flow as well.
        frame.set_src_port(5001);
        bed.lan_in(&frame)?
            .is_untouched(PASS, Delta::counted(&["pass_too_big"]), &frame);
        Ok(())
    })
}

#[test]
fn a_wan_without_redirects_gets_its_packets_from_the_stack() -> Result<()> {
    with_bed(|bed: &mut Bed| {
        bed.plane.remove_device(bed.wan)?;
        let frame = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        let made = Delta::counted(&["pass_no_redirect", "mappings_created", "sessions_created"]);
        bed.lan_in(&frame)?
            .is_untouched(PASS, made.sessions(2).mappings(1), &frame);
        Ok(())
    })
}

#[test]
fn every_configured_prefix_is_the_lans() -> Result<()> {
    with_both(|bed| {
        bed.reconfigure(|config| {
            config.lan[7] = Prefix {
                addr: [10, 7, 0, 0],
                mask: mask(16),
            };
        })?;
        let mut frame = Frame::tcp(([10, 7, 3, 4], 5000), (REMOTE, 80), SYN);
        frame.dst_mac = BRIDGE_MAC;
        bed.lan_in(&frame)?.is(REDIRECT, opened());
        assert!(
            bed.plane
                .state()?
                .external
                .contains_key(&endpoint((WAN, 5000), TCP))
        );
        Ok(())
    })
}

/// RFC 5508 REQ-1: the identifier is a port like any other.
#[test]
fn two_hosts_with_one_query_identifier() -> Result<()> {
    with_both(|bed| {
        for host in [HOST, HOST2] {
            bed.lan_in(&lan_frame(Frame::icmp(host, REMOTE, 8, 7)))?
                .is(REDIRECT, opened());
        }
        let state = bed.plane.state()?;
        assert_eq!(state.external.len(), 2);
        assert!(state.external.contains_key(&endpoint((WAN, 7), ICMP)));
        Ok(())
    })
}

/// Of a query with identifier 0 and its answer the flow looks the same, so a remote host could answer a query with one
/// of its own. Outside no LAN host has that identifier: what has it is the router's.
#[test]
fn a_query_with_identifier_0_lets_no_query_in() -> Result<()> {
    with_both(|bed| {
        let out = lan_frame(Frame::icmp(HOST, REMOTE, 8, 0));
        let seen = bed.lan_in(&out)?;
        seen.is(REDIRECT, opened());
        let outside = seen.frame().src_port().expect("an identifier");
        assert_ne!(outside, 0);
        assert_eq!(seen.frame(), translated_out(&out, outside));

        let query = wan_frame(Frame::icmp(REMOTE, WAN, 8, 0));
        bed.wan_in(&query)?
            .is_untouched(PASS, Delta::counted(&["pass_echo_request"]), &query);
        let answer = wan_frame(Frame::icmp(REMOTE, WAN, 0, outside));
        let seen = bed.wan_in(&answer)?;
        assert_eq!(seen.action, REDIRECT);
        assert_eq!(seen.frame(), translated_in(&answer, (HOST, 0)));
        Ok(())
    })
}

/// A flow of the CPE itself is nobody's to send in from the LAN, nor is anything with its address.
#[test]
fn a_lan_host_does_not_pass_for_the_cpe() -> Result<()> {
    with_both(|bed| {
        let frame = Frame::udp((WAN, 5000), (REMOTE, 53));
        bed.egress(&frame, false)?;
        let spoofed = lan_frame(frame);
        bed.lan_in(&spoofed)?
            .is_untouched(DROP, Delta::counted(&["drop_spoofed"]), &spoofed);
        Ok(())
    })
}

/// What counts is the size of what leaves: the segments, if segmentation is left to the device.
#[test]
fn a_packet_to_be_segmented_is_as_big_as_its_segments() -> Result<()> {
    with_bed(|bed| {
        bed.through = Through::Tc;
        bed.lan_in(&lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), SYN)))?;
        let mut frame = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), ACK));
        frame.payload = vec![7; 3000];
        let (name, lan) = (names::TC_LAN, bed.lan);
        let fits = bed.tc_segmented(name, &frame.bytes(), lan, 1460)?;
        fits.is(
            TC_REDIRECT,
            Delta::counted(&["forwarded_out"]).sessions_changed(1),
        );
        assert_eq!(fits.frame(), translated_out(&frame, 5000));
        for segment in [1461, 0] {
            bed.tc_segmented(name, &frame.bytes(), lan, segment)?
                .is_untouched(TC_NEXT, Delta::counted(&["pass_too_big"]), &frame);
        }
        // As the first packet of a flow as well.
        let mut first = lan_frame(Frame::udp((HOST, 5001), (REMOTE, 53)));
        first.payload = vec![7; 3000];
        bed.tc_segmented(name, &first.bytes(), lan, 1473)?
            .is_untouched(TC_NEXT, Delta::counted(&["pass_too_big"]), &first);
        bed.tc_segmented(name, &first.bytes(), lan, 1472)?
            .is(TC_REDIRECT, opened());
        Ok(())
    })
}
