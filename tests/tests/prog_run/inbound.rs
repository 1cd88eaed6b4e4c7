//! XDP on the WAN, and its stand-in on tc ingress.

use anyhow::Result;
use iwf_common::nat::{Filter, MappingFlags, MappingKind, MappingValue, mask};
use iwf_tests::packet::{Frame, Transport};
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, DROP, HOST, PASS, REDIRECT, REMOTE, REMOTE2, RST, SYN, TCP, UDP, WAN, explicit, lan_frame,
    translated_in, translated_out, wan_frame, with_bed, with_both,
};

fn opened() -> Delta {
    Delta::counted(&["forwarded_in", "next_hops_refreshed", "sessions_created"]).sessions(2)
}

#[test]
fn an_explicit_mapping_lets_everybody_in_and_answers_leave_from_it() -> Result<()> {
    let cases = [
        (
            UDP,
            Frame::udp((REMOTE, 9999), (WAN, 40000)),
            Frame::udp((HOST, 5000), (REMOTE, 9999)),
        ),
        (
            TCP,
            Frame::tcp((REMOTE, 9999), (WAN, 40000), SYN),
            Frame::tcp((HOST, 5000), (REMOTE, 9999), SYN | ACK),
        ),
    ];
    for (proto, request, reply) in cases {
        with_both(|bed| {
            bed.map(proto, (HOST, 5000), 40000, 0)?;
            let (request, reply) = (wan_frame(request.clone()), lan_frame(reply.clone()));
            let seen = bed.wan_in(&request)?;
            seen.is(REDIRECT, opened());
            assert_eq!(seen.frame(), translated_in(&request, (HOST, 5000)));

            let seen = bed.lan_in(&reply)?;
            let refreshed = Delta::counted(&["forwarded_out", "next_hops_refreshed"]);
            seen.is(REDIRECT, refreshed.sessions_changed(1));
            assert_eq!(seen.frame(), translated_out(&reply, 40000));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn unsolicited_packets_are_dropped_and_counted() -> Result<()> {
    with_both(|bed| {
        for frame in [
            Frame::udp((REMOTE, 53), (WAN, 5000)),
            Frame::tcp((REMOTE, 80), (WAN, 5000), SYN),
            Frame::icmp(REMOTE, WAN, 0, 5000),
        ] {
            let frame = wan_frame(frame);
            bed.wan_in(&frame)?
                .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &frame);
        }
        Ok(())
    })
}

/// RFC 4787 REQ-8, the strict of its two choices.
#[test]
fn a_dynamic_mapping_lets_in_whom_its_host_has_sent_to() -> Result<()> {
    with_both(|bed| {
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        let unsolicited = Delta::counted(&["drop_unsolicited"]);
        for (addr, port) in [(REMOTE, 54), (REMOTE2, 53)] {
            let frame = wan_frame(Frame::udp((addr, port), (WAN, 5000)));
            bed.wan_in(&frame)?
                .is_untouched(DROP, unsolicited.clone(), &frame);
        }
        // NAT-02: nor by another protocol.
        let frame = wan_frame(Frame::tcp((REMOTE, 53), (WAN, 5000), SYN));
        bed.wan_in(&frame)?.is_untouched(DROP, unsolicited, &frame);
        Ok(())
    })
}

/// RFC 7857 sections 5 and 6: mappings and filters are per protocol, also those that are for everybody.
#[test]
fn a_mapping_of_one_protocol_lets_no_other_in() -> Result<()> {
    with_both(|bed| {
        let udp = wan_frame(Frame::udp((REMOTE, 53), (WAN, 40000)));
        let tcp = wan_frame(Frame::tcp((REMOTE, 53), (WAN, 40000), SYN));
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        let unsolicited = Delta::counted(&["drop_unsolicited"]);
        bed.wan_in(&tcp)?
            .is_untouched(DROP, unsolicited.clone(), &tcp);
        bed.wan_in(&udp)?.is(REDIRECT, opened());
        let (udp, tcp) = (
            wan_frame(Frame::udp((REMOTE, 53), (WAN, 40001))),
            wan_frame(Frame::tcp((REMOTE, 53), (WAN, 40001), SYN)),
        );
        bed.map(TCP, (HOST, 5001), 40001, 0)?;
        bed.wan_in(&udp)?.is_untouched(DROP, unsolicited, &udp);
        bed.wan_in(&tcp)?.is(REDIRECT, opened());
        Ok(())
    })
}

/// The other choice, for dynamic mappings.
#[test]
fn endpoint_independent_filtering_can_be_configured() -> Result<()> {
    with_both(|bed| {
        bed.reconfigure(|config| config.filter = Filter::EndpointIndependent as u8)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
        let frame = wan_frame(Frame::udp((REMOTE2, 7), (WAN, 5000)));
        let seen = bed.wan_in(&frame)?;
        seen.is(REDIRECT, opened());
        assert_eq!(seen.frame(), translated_in(&frame, (HOST, 5000)));
        // Until the mapping is idle, whether swept or not.
        bed.let_pass(bed.config.idle.udp + 1)?;
        let frame = wan_frame(Frame::udp((REMOTE2, 8), (WAN, 5000)));
        bed.wan_in(&frame)?
            .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &frame);
        Ok(())
    })
}

#[test]
fn a_remote_prefix_keeps_the_others_out() -> Result<()> {
    with_both(|bed| {
        let only = MappingValue {
            remote_addr: REMOTE,
            remote_mask: mask(32),
            ..explicit((HOST, 5000), 0)
        };
        bed.map_with(UDP, 40000, only)?;
        let frame = wan_frame(Frame::udp((REMOTE2, 9999), (WAN, 40000)));
        bed.wan_in(&frame)?
            .is_untouched(DROP, Delta::counted(&["drop_filtered"]), &frame);
        let frame = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 40000)));
        bed.wan_in(&frame)?.is(REDIRECT, opened());
        Ok(())
    })
}

#[test]
fn only_a_syn_begins_a_connection() -> Result<()> {
    with_both(|bed| {
        bed.map(TCP, (HOST, 5000), 40000, 0)?;
        for flags in [ACK, RST, RST | ACK, SYN | ACK] {
            let frame = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 40000), flags));
            bed.wan_in(&frame)?
                .is_untouched(DROP, Delta::counted(&["drop_tcp_stray"]), &frame);
        }
        Ok(())
    })
}

/// The invariant on lifetimes: a mapping, and every session of it, ends when it was promised to.
#[test]
fn a_mapping_ends_with_its_sessions_unless_it_is_prolonged() -> Result<()> {
    with_both(|bed| {
        let later = bed.now()?.wrapping_add(1_000_000);
        bed.map(UDP, (HOST, 5000), 40000, later)?;
        let inbound = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 40000)));
        let outbound = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 9999)));
        bed.wan_in(&inbound)?;
        bed.lan_in(&outbound)?;

        // The deadline comes, and the mapping has been prolonged.
        let now = bed.now()?;
        for (key, mut value) in bed.plane.state()?.sessions {
            value.deadline = now.wrapping_sub(1);
            bed.plane.set_session(key, value)?;
        }
        let changed = Delta::counted(&["forwarded_in"]).sessions_changed(1);
        bed.wan_in(&inbound)?.is(REDIRECT, changed);
        let changed = Delta::counted(&["forwarded_out"]).sessions_changed(1);
        bed.lan_in(&outbound)?.is(REDIRECT, changed);

        // The deadline comes, and it has not.
        bed.map(UDP, (HOST, 5000), 40000, now.wrapping_sub(1))?;
        for (key, mut value) in bed.plane.state()?.sessions {
            value.deadline = now.wrapping_sub(1);
            bed.plane.set_session(key, value)?;
        }
        let expired = Delta::counted(&["drop_mapping_expired"]);
        bed.wan_in(&inbound)?
            .is_untouched(DROP, expired.clone(), &inbound);
        bed.lan_in(&outbound)?
            .is_untouched(DROP, expired.clone(), &outbound);

        // For a new session just as well.
        let other = wan_frame(Frame::udp((REMOTE2, 1), (WAN, 40000)));
        bed.wan_in(&other)?.is_untouched(DROP, expired, &other);
        Ok(())
    })
}

#[test]
fn nothing_from_the_wan_pretends_to_be_ours_or_aims_past_the_nat() -> Result<()> {
    let mut gre_to_lan = Frame::udp((REMOTE, 1), (HOST, 1));
    gre_to_lan.transport = Transport::Other(47);
    let mut fragment_to_lan = Frame::udp((REMOTE, 1), (HOST, 1));
    fragment_to_lan.fragment = 0x2000;
    let mut spoofed_fragment = Frame::udp((HOST, 1), (WAN, 1));
    spoofed_fragment.fragment = 0x2000;
    let cases = [
        ("drop_spoofed", Frame::udp((HOST, 1), (WAN, 40000))),
        ("drop_spoofed", Frame::udp((WAN, 1), (WAN, 40000))),
        (
            "drop_spoofed",
            Frame::udp((HOST, 1), ([224, 0, 0, 1], 5350)),
        ),
        ("drop_spoofed", Frame::icmp(HOST, WAN, 8, 1)),
        ("drop_spoofed", Frame::icmp(HOST, WAN, 3, 1)),
        ("drop_spoofed", spoofed_fragment),
        ("drop_unsolicited", Frame::udp((REMOTE, 1), (HOST, 5000))),
        (
            "drop_unsolicited",
            Frame::tcp((REMOTE, 1), (HOST, 5000), SYN),
        ),
        ("drop_unsolicited", Frame::icmp(REMOTE, HOST, 8, 1)),
        ("drop_unsolicited", gre_to_lan),
        ("drop_unsolicited", fragment_to_lan),
    ];
    with_both(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        for (reason, frame) in cases.clone() {
            let frame = wan_frame(frame);
            bed.wan_in(&frame)?
                .is_untouched(DROP, Delta::counted(&[reason]), &frame);
        }
        Ok(())
    })
}

#[test]
fn the_stack_gets_what_is_not_ours() -> Result<()> {
    let mut stranger = wan_frame(Frame::udp((REMOTE, 1), (WAN, 40000)));
    stranger.dst_mac = [2, 9, 9, 9, 9, 9];
    let multicast = Frame::udp((REMOTE, 5351), ([224, 0, 0, 1], 5350));
    let cases = [
        ("pass_not_our_mac", stranger),
        ("pass_not_unicast", wan_frame(multicast)),
        (
            "pass_not_external_addr",
            wan_frame(Frame::udp((REMOTE, 67), ([100, 64, 0, 9], 68))),
        ),
        (
            "pass_echo_request",
            wan_frame(Frame::icmp(REMOTE, WAN, 8, 1)),
        ),
    ];
    with_both(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        for (reason, frame) in cases.clone() {
            bed.wan_in(&frame)?
                .is_untouched(PASS, Delta::counted(&[reason]), &frame);
        }
        Ok(())
    })
}

/// A service of the CPE that the daemon has entered, such as its DHCP client.
#[test]
fn a_static_service_reaches_the_stack() -> Result<()> {
    with_both(|bed| {
        let service = MappingValue {
            kind: MappingKind::Host as u8,
            flags: MappingFlags::STATIC,
            ..explicit((WAN, 68), 0)
        };
        bed.map_with(UDP, 68, service)?;
        let frame = wan_frame(Frame::udp((REMOTE, 67), (WAN, 68)));
        bed.wan_in(&frame)?
            .is_untouched(PASS, Delta::counted(&["pass_host"]), &frame);
        Ok(())
    })
}

/// Translated, and otherwise as it came: the stack takes from the TTL and sets the MAC addresses.
fn for_stack(frame: &Frame) -> Frame {
    let mut out = frame.clone();
    out.dst = HOST;
    out.set_dst_port(5000);
    out
}

#[test]
fn what_cannot_be_redirected_is_handed_up_translated() -> Result<()> {
    let frame = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 40000)));
    let made = |reason| Delta::counted(&[reason, "sessions_created"]).sessions(2);
    // No neighbour yet.
    with_both(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        bed.ns.ip("neigh del 192.168.1.10 dev br0")?;
        let seen = bed.wan_in(&frame)?;
        seen.is(PASS, made("pass_unresolved"));
        assert_eq!(seen.frame(), for_stack(&frame));
        let seen = bed.wan_in(&frame)?;
        seen.is(PASS, Delta::counted(&["pass_unresolved"]));
        assert_eq!(seen.frame(), for_stack(&frame));
        Ok(())
    })?;
    // A station that no port is known for, or a port without XDP.
    with_bed(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        bed.plane.remove_device(bed.lan)?;
        let seen = bed.wan_in(&frame)?;
        let reasons = [
            "pass_no_redirect",
            "sessions_created",
            "next_hops_refreshed",
        ];
        seen.is(PASS, Delta::counted(&reasons).sessions(2));
        assert_eq!(seen.frame(), for_stack(&frame));
        Ok(())
    })?;
    // Larger than the LAN takes.
    with_both(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        bed.wan_in(&frame)?;
        let mut large = frame.clone();
        large.payload = vec![7; 1500];
        let seen = bed.wan_in(&large)?;
        seen.is(PASS, Delta::counted(&["pass_too_big"]));
        assert_eq!(seen.frame(), for_stack(&large));
        Ok(())
    })
}

/// So that the CPE is seen on a traceroute from outside.
#[test]
fn the_stack_answers_a_used_up_ttl() -> Result<()> {
    with_both(|bed| {
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        let mut frame = wan_frame(Frame::udp((REMOTE, 9999), (WAN, 40000)));
        bed.wan_in(&frame)?;
        frame.ttl = 1;
        let seen = bed.wan_in(&frame)?;
        seen.is(PASS, Delta::counted(&["pass_ttl_exceeded"]));
        assert_eq!(seen.frame(), for_stack(&frame));
        Ok(())
    })
}
