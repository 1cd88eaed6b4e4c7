//! A LAN that is routed: the provider's device translates, so packets keep their addresses, and what comes in is judged
//! as by a NAT.
//!
//! Read before editing: RFC 4787 section 5, RFC 6092 section 2.2, RFC 6864 section 5.3.

use anyhow::Result;
use iwf_common::config::{Config, ConfigFlags, Prefix};
use iwf_common::flow::SessionValue;
use iwf_common::names;
use iwf_common::nat::{Filter, mask};
use iwf_common::refusal::Side;
use iwf_tests::packet::{ETHERNET, Frame, Transport, split};
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, Bed, DROP, GATEWAY_MAC, HOST, HOST2, PASS, REDIRECT, REMOTE, REMOTE2, SYN, Seen, TC_DROP,
    TC_NEXT, TCP, Through, UDP, WAN, WAN_MAC, explicit, lan_frame, translated_in, verdict_of,
    wan_frame, with_bed, with_both,
};

/// The router in the LAN.
const ROUTER: [u8; 4] = [192, 168, 1, 1];
/// Another router of the LAN, and a host behind it.
const LAN_ROUTER: [u8; 4] = [192, 168, 1, 10];
const BEHIND: [u8; 4] = [10, 5, 0, 9];

fn route(config: &mut Config) {
    config.flags |= ConfigFlags::ROUTED;
    config.next_hop_generation += 1;
}

fn with_routed(test: impl Fn(&mut Bed) -> Result<()> + Send + Sync) -> Result<()> {
    with_both(|bed| {
        bed.reconfigure(route)?;
        test(bed)
    })
}

/// What a frame of the LAN must look like when it has left the WAN.
fn gone_out(frame: &Frame) -> Frame {
    Frame {
        ttl: frame.ttl - 1,
        dst_mac: GATEWAY_MAC,
        src_mac: WAN_MAC,
        ..frame.clone()
    }
}

/// A packet of each protocol to the Internet, and its answer.
fn flows() -> Vec<(Frame, Frame)> {
    let unchecked = |ports| Transport::Udp {
        ports,
        checksum: false,
    };
    [
        (
            Frame::udp((HOST, 5000), (REMOTE, 53)),
            Frame::udp((REMOTE, 53), (HOST, 5000)),
        ),
        (
            Frame::new(HOST, REMOTE, unchecked((500, 53))),
            Frame::new(REMOTE, HOST, unchecked((53, 500))),
        ),
        (
            Frame::tcp((HOST, 5000), (REMOTE, 80), SYN),
            Frame::tcp((REMOTE, 80), (HOST, 5000), SYN | ACK),
        ),
        (
            Frame::icmp(HOST, REMOTE, 8, 5000),
            Frame::icmp(REMOTE, HOST, 0, 5000),
        ),
    ]
    .map(|(out, back)| (lan_frame(out), wan_frame(back)))
    .into()
}

fn opened(reason: &'static str) -> Delta {
    Delta::counted(&[reason, "mappings_created", "sessions_created"])
        .sessions(2)
        .mappings(1)
}

#[test]
fn packets_keep_their_addresses_both_ways() -> Result<()> {
    for (out, back) in flows() {
        with_routed(|bed| {
            let seen = bed.lan_in(&out)?;
            seen.is(REDIRECT, opened("forwarded_out"));
            assert_eq!(seen.frame(), gone_out(&out));
            let (_, mapping) = bed.plane.state()?.external.pop_first().expect("one");
            assert_eq!(mapping.addr, HOST);

            let port = out.src_port().expect("a port or an identifier");
            let seen = bed.wan_in(&back)?;
            let refreshed = Delta::counted(&["forwarded_in", "next_hops_refreshed"]);
            seen.is(REDIRECT, refreshed.sessions_changed(1));
            assert_eq!(seen.frame(), translated_in(&back, (HOST, port)));
            Ok(())
        })?;
    }
    Ok(())
}

/// Two hosts with one port each keep it: nothing is looked for, reserved or random.
#[test]
fn every_host_has_all_ports() -> Result<()> {
    with_routed(|bed| {
        for host in [HOST, HOST2] {
            for port in [1, 53, 1024, 65_535] {
                let frame = lan_frame(Frame::udp((host, port), (REMOTE, 53)));
                let seen = bed.lan_in(&frame)?;
                assert_eq!(seen.frame(), gone_out(&frame));
            }
        }
        Ok(())
    })
}

/// What is written is what was there, so that a wrong sum stays exactly as wrong as it was.
#[test]
fn a_checksum_is_not_touched() -> Result<()> {
    for (out, back) in flows() {
        with_routed(|bed| {
            // Of a UDP header, a TCP header, an ICMP message.
            let at = |frame: &Frame| match frame.transport {
                Transport::Udp { .. } => ETHERNET + 20 + 6,
                Transport::Tcp { .. } => ETHERNET + 20 + 16,
                Transport::Icmp { .. } | Transport::IcmpError { .. } | Transport::Other(_) => {
                    ETHERNET + 20 + 2
                }
            };
            for (frame, inbound) in [(&out, false), (&back, true)] {
                let mut bytes = frame.bytes();
                let at = at(frame);
                let is_there = bytes[at..at + 2] != [0, 0];
                if is_there {
                    bytes[at..at + 2].copy_from_slice(&[0x12, 0x34]);
                }
                let seen = raw(bed, &bytes, inbound)?;
                assert_eq!(seen.action, REDIRECT);
                assert_eq!(seen.bytes[ETHERNET + 20..], bytes[ETHERNET + 20..]);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn raw(bed: &mut Bed, bytes: &[u8], inbound: bool) -> Result<Seen> {
    let port = if inbound { bed.wan } else { bed.lan };
    let seen = match (bed.through, inbound) {
        (Through::Xdp, false) => bed.raw(names::XDP_LAN, bytes, port),
        (Through::Xdp, true) => bed.raw(names::XDP_WAN, bytes, port),
        (Through::Tc, false) => bed.tc_raw(names::TC_LAN, bytes, port),
        (Through::Tc, true) => bed.tc_raw(names::TC_INGRESS, bytes, port),
    }?;
    let action = verdict_of(bed.through, seen.action);
    Ok(Seen { action, ..seen })
}

/// The stack would forward each of them: it knows the way to the host.
#[test]
fn what_nobody_has_asked_for_does_not_come_in() -> Result<()> {
    with_routed(|bed| {
        let broadcast = [192, 168, 1, 255];
        for (reason, frame) in [
            ("drop_unsolicited", Frame::udp((REMOTE, 53), (HOST, 5000))),
            (
                "drop_unsolicited",
                Frame::tcp((REMOTE, 80), (HOST, 5000), SYN),
            ),
            (
                "drop_unsolicited",
                Frame::tcp((REMOTE, 80), (HOST, 5000), ACK),
            ),
            ("drop_unsolicited", Frame::icmp(REMOTE, HOST, 8, 7)),
            ("drop_unsolicited", Frame::icmp(REMOTE, HOST, 0, 7)),
            (
                "drop_unsolicited",
                Frame::new(REMOTE, HOST, Transport::Other(47)),
            ),
            (
                "drop_unsolicited",
                Frame::new(REMOTE, HOST, Transport::Other(4)),
            ),
            // The router's address in the LAN is no address of the WAN.
            (
                "drop_unsolicited",
                Frame::tcp((REMOTE, 80), (ROUTER, 22), SYN),
            ),
            ("drop_unsolicited", Frame::icmp(REMOTE, ROUTER, 8, 7)),
            ("drop_unsolicited", Frame::udp((REMOTE, 53), (broadcast, 9))),
            ("drop_unsolicited", Frame::udp((REMOTE, 53), (WAN, 5000))),
            // Nobody outside has an address of the LAN, or ours.
            ("drop_spoofed", Frame::udp((HOST2, 53), (HOST, 5000))),
            ("drop_spoofed", Frame::udp((WAN, 53), (HOST, 5000))),
            ("drop_spoofed", Frame::icmp(HOST2, HOST, 8, 7)),
        ] {
            let frame = wan_frame(frame);
            bed.wan_in(&frame)?
                .is_untouched(DROP, Delta::counted(&[reason]), &frame);
        }
        // The router itself answers as before.
        let echo = wan_frame(Frame::icmp(REMOTE, WAN, 8, 7));
        let answered = Delta::counted(&["pass_echo_request"]);
        bed.wan_in(&echo)?.is_untouched(PASS, answered, &echo);
        Ok(())
    })
}

/// Endpoint-independent mapping, and filtering as the mode says (RFC 4787 REQ-8).
#[test]
fn a_host_that_sends_is_open_to_whom_the_rules_say() -> Result<()> {
    let (dependent, both) = (Filter::AddressDependent, Filter::AddressAndPortDependent);
    for (filter, other_port, other_host) in [
        (Filter::EndpointIndependent, REDIRECT, REDIRECT),
        (dependent, REDIRECT, DROP),
        (both, DROP, DROP),
    ] {
        with_routed(|bed| {
            bed.reconfigure(|config| config.filter = filter as u8)?;
            bed.lan_in(&lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53))))?;
            for (from, expected) in [((REMOTE, 54), other_port), ((REMOTE2, 53), other_host)] {
                let frame = wan_frame(Frame::udp(from, (HOST, 5000)));
                let seen = bed.wan_in(&frame)?;
                assert_eq!(seen.action, expected, "{filter:?} {from:?}");
                if expected == REDIRECT {
                    assert_eq!(seen.frame(), translated_in(&frame, (HOST, 5000)));
                }
                // The same port of another host is another endpoint.
                let frame = wan_frame(Frame::udp(from, (HOST2, 5000)));
                assert_eq!(bed.wan_in(&frame)?.action, DROP);
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_mapping_lets_in_whom_it_names() -> Result<()> {
    let frames = |proto: u8, from: [u8; 4]| {
        let (there, here) = ((from, 9999), (HOST, 5000));
        let both = match proto {
            UDP => (Frame::udp(there, here), Frame::udp(here, there)),
            _tcp => (
                Frame::tcp(there, here, SYN),
                Frame::tcp(here, there, SYN | ACK),
            ),
        };
        (wan_frame(both.0), lan_frame(both.1))
    };
    for proto in [UDP, TCP] {
        with_routed(|bed| {
            // Everybody.
            bed.map_at(proto, (HOST, 5000), explicit((HOST, 5000), 0))?;
            let (ask, answer) = frames(proto, REMOTE);
            let seen = bed.wan_in(&ask)?;
            let counted = ["forwarded_in", "next_hops_refreshed", "sessions_created"];
            seen.is(REDIRECT, Delta::counted(&counted).sessions(2));
            assert_eq!(seen.frame(), translated_in(&ask, (HOST, 5000)));
            let seen = bed.lan_in(&answer)?;
            let counted = Delta::counted(&["forwarded_out", "next_hops_refreshed"]);
            seen.is(REDIRECT, counted.sessions_changed(1));
            assert_eq!(seen.frame(), gone_out(&answer));
            Ok(())
        })?;
        with_routed(|bed| {
            // One host.
            let mut only = explicit((HOST, 5000), 0);
            (only.remote_addr, only.remote_mask) = (REMOTE, mask(32));
            bed.map_at(proto, (HOST, 5000), only)?;
            let (ask, _) = frames(proto, REMOTE2);
            assert_eq!(bed.wan_in(&ask)?.action, DROP);
            assert_eq!(bed.wan_in(&frames(proto, REMOTE).0)?.action, REDIRECT);
            Ok(())
        })?;
    }
    Ok(())
}

fn large(mut frame: Frame) -> Frame {
    frame.fragment = 0;
    frame.payload = (0..3000u16).map(|n| (n % 251) as u8).collect();
    frame
}

fn id_of(bytes: &[u8]) -> [u8; 2] {
    [bytes[18], bytes[19]]
}

/// Hosts have identifications of their own, which nobody has to replace (RFC 6864 section 5.3.1), also where the stack has
/// had the first fragment.
#[test]
fn fragments_keep_what_they_are() -> Result<()> {
    for (out, back) in flows() {
        with_bed(|bed| {
            bed.reconfigure(route)?;
            let (out, back) = (large(out.clone()), large(back.clone()));
            for (frame, inbound) in [(&out, false), (&back, true)] {
                for (place, bytes) in split(frame, 1208, 0x4242).iter().enumerate() {
                    let seen = raw(bed, bytes, inbound)?;
                    assert_eq!(seen.action, REDIRECT, "{place} {:?}", seen.delta);
                    assert_eq!(id_of(&seen.bytes), id_of(bytes));
                    assert_eq!(seen.bytes[ETHERNET + 12..], bytes[ETHERNET + 12..]);
                }
            }
            // What cannot leave from here is the stack's, all of it, and comes by once more.
            let mut last = out.clone();
            last.ttl = 1;
            for bytes in split(&last, 1208, 0x4343) {
                let seen = raw(bed, &bytes, false)?;
                assert_eq!((seen.action, &seen.bytes), (PASS, &bytes));
            }
            for bytes in split(&out, 1208, 0x4343) {
                let seen = bed.tc_raw(names::TC_EGRESS, &bytes, bed.bridge)?;
                assert_eq!((seen.action, &seen.bytes), (TC_NEXT, &bytes));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The stack would forward it to the host, whatever the first one turns out to be.
#[test]
fn a_fragment_before_its_first_is_held_and_does_not_pass() -> Result<()> {
    with_routed(|bed| {
        for (_, back) in flows() {
            let later = &split(&large(back), 1208, 9)[1];
            let held = Delta::counted(&["fragments_held", "drop_fragment_early"]);
            let seen = raw(bed, later, true)?;
            seen.is(DROP, held);
            assert_eq!(bed.held()?.expect("a copy"), later[ETHERNET..]);
        }
        // A datagram may be the router's own, which puts it together itself.
        let own = large(wan_frame(Frame::udp((REMOTE, 53), (WAN, 5000))));
        let later = &split(&own, 1208, 9)[1];
        let passed = Delta::counted(&["fragments_held", "pass_fragment"]);
        raw(bed, later, true)?.is(PASS, passed);
        assert!(bed.held()?.is_some());
        // A first one that is not let in lets in none of the others.
        let refused = large(wan_frame(Frame::udp((REMOTE, 54), (HOST2, 5000))));
        for bytes in split(&refused, 1208, 10) {
            assert_eq!(raw(bed, &bytes, true)?.action, DROP);
        }
        while bed.held()?.is_some() {}
        // Fragments with a source of the LAN are nobody's outside.
        let spoofed = large(wan_frame(Frame::udp((HOST2, 53), (HOST, 5000))));
        let later = &split(&spoofed, 1208, 11)[1];
        raw(bed, later, true)?.is(DROP, Delta::counted(&["drop_spoofed"]));
        assert_eq!(bed.held()?, None);
        Ok(())
    })
}

/// RFC 5508 REQ-4 for what comes in. Whoever reports from the LAN is not hidden: his address is as good as the host's.
#[test]
fn an_error_needs_the_flow_that_it_is_about() -> Result<()> {
    const REPORTER: [u8; 4] = [11, 99, 0, 1];
    let translated = Delta::counted(&["icmp_errors_translated"]);
    for (out, back) in flows() {
        with_routed(|bed| {
            let stray = wan_frame(Frame::icmp_error(REPORTER, HOST, (3, 3), out.quoted(8)));
            let counted = Delta::counted(&["drop_icmp_error_stray"]);
            bed.wan_in(&stray)?.is_untouched(DROP, counted, &stray);

            bed.lan_in(&out)?;
            assert_eq!(bed.wan_in(&back)?.action, REDIRECT);
            for kind in [(3, 3), (3, 4), (11, 0)] {
                for octets in [8, 1500] {
                    let quote = gone_out(&out).quoted(octets);
                    let error = wan_frame(Frame::icmp_error(REPORTER, HOST, kind, quote));
                    let seen = bed.wan_in(&error)?;
                    seen.is(REDIRECT, translated.clone());
                    assert_eq!(seen.frame(), translated_in(&error, (HOST, 0)));
                    for from in [HOST, [192, 168, 1, 2]] {
                        let inside = translated_in(&back, (HOST, 0));
                        let quote = Frame {
                            transport: back.transport.clone(),
                            ..inside
                        };
                        let quote = quote.quoted(octets);
                        let error = lan_frame(Frame::icmp_error(from, REMOTE, kind, quote));
                        let seen = bed.lan_in(&error)?;
                        seen.is(REDIRECT, translated.clone());
                        assert_eq!(seen.frame(), gone_out(&error), "{from:?}");
                    }
                }
            }
            // For the router in the LAN, and with the address of somebody inside.
            for (from, to) in [(REPORTER, ROUTER), (HOST2, HOST)] {
                let error = wan_frame(Frame::icmp_error(from, to, (3, 3), out.quoted(8)));
                assert_eq!(bed.wan_in(&error)?.action, DROP);
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn what_the_stack_forwards_leaves_as_it_is() -> Result<()> {
    with_bed(|bed| {
        bed.reconfigure(route)?;
        for (out, back) in flows() {
            let seen = bed.egress(&out, true)?;
            let made = opened("translated_egress");
            seen.is_untouched(TC_NEXT, made, &out);
            assert_eq!(bed.wan_in(&back)?.action, REDIRECT);
        }
        // Of other protocols no answer would be let in.
        let other = lan_frame(Frame::new(HOST, REMOTE, Transport::Other(47)));
        let private = Delta::counted(&["drop_private_source"]);
        bed.egress(&other, true)?
            .is_untouched(TC_DROP, private, &other);
        // Others' private addresses are not the LAN's.
        let stranger = Frame::udp(([10, 9, 8, 7], 5000), (REMOTE, 53));
        assert_eq!(bed.egress(&stranger, true)?.action, TC_DROP);
        // The router's own flows are as ever.
        let own = Frame::udp((WAN, 6000), (REMOTE, 53));
        bed.egress(&own, false)?
            .is_untouched(TC_NEXT, opened("host_out"), &own);
        let answer = wan_frame(Frame::udp((REMOTE, 53), (WAN, 6000)));
        let passed = Delta::counted(&["pass_host"]).sessions_changed(1);
        bed.wan_in(&answer)?.is_untouched(PASS, passed, &answer);
        Ok(())
    })
}

/// A SYN that nothing lets in is noted, and what the router says about it is let out: nothing in it is hidden.
#[test]
fn who_is_refused_may_be_told() -> Result<()> {
    with_routed(|bed| {
        bed.reconfigure(|config| config.flags |= ConfigFlags::ANSWER_WAN)?;
        let syn = wan_frame(Frame::tcp((REMOTE, 80), (HOST, 5000), SYN));
        let noted = Delta::counted(&["drop_unsolicited", "refusals_noted"]);
        bed.wan_in(&syn)?.is_untouched(DROP, noted, &syn);
        let (side, head) = bed.refused()?.expect("a copy");
        assert_eq!((side, &head[..]), (Side::Wan, &syn.bytes()[ETHERNET..]));
        let error = Frame::icmp_error(WAN, REMOTE, (3, 3), syn.quoted(8));
        let untouched = Delta::counted(&["egress_untouched"]);
        bed.egress(&error, false)?
            .is_untouched(TC_NEXT, untouched, &error);
        Ok(())
    })
}

/// What tc at LAN ingress sends out comes by WAN egress, where unchanged addresses lead to the same session.
#[test]
fn a_packet_is_counted_once_whichever_programs_it_comes_by() -> Result<()> {
    let (out, _) = flows().swap_remove(0);
    for through in [Through::Xdp, Through::Tc] {
        with_bed(|bed| {
            bed.through = through;
            bed.reconfigure(route)?;
            for sent in 1..=3 {
                let seen = bed.lan_in(&out)?;
                assert_eq!(seen.action, REDIRECT);
                if through == Through::Tc {
                    let left = Frame::parse(&seen.bytes).expect("a good frame");
                    let passed = bed.egress(&left, true)?;
                    passed.is_untouched(TC_NEXT, Delta::counted(&["translated_egress"]), &left);
                }
                let state = bed.plane.state()?;
                let packets: u32 = state.sessions.values().map(|value| value.packets).sum();
                assert_eq!(packets, sent, "{through:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Another router of the LAN has hosts behind it: their addresses are places like the others.
#[test]
fn hosts_behind_another_router_are_hosts() -> Result<()> {
    with_routed(|bed| {
        bed.ns.ip("route add 10.5.0.0/24 via 192.168.1.10")?;
        bed.reconfigure(|config| {
            config.lan[1] = Prefix {
                addr: [10, 5, 0, 0],
                mask: mask(24),
            };
            config.lan_ifindex[1] = 0;
            config.lan_len = 2;
        })?;
        let ask = wan_frame(Frame::udp((REMOTE, 53), (BEHIND, 5000)));
        let unsolicited = Delta::counted(&["drop_unsolicited"]);
        bed.wan_in(&ask)?.is_untouched(DROP, unsolicited, &ask);
        let out = lan_frame(Frame::udp((BEHIND, 5000), (REMOTE, 53)));
        let seen = bed.lan_in(&out)?;
        seen.is(REDIRECT, opened("forwarded_out"));
        assert_eq!(seen.frame(), gone_out(&out));
        assert_eq!(bed.lan_in(&out)?.action, REDIRECT);
        let seen = bed.wan_in(&ask)?;
        assert_eq!(seen.action, REDIRECT, "by way of {LAN_ROUTER:?}");
        assert_eq!(seen.frame(), translated_in(&ask, (BEHIND, 5000)));
        Ok(())
    })
}

fn alive(bed: &Bed) -> Result<Vec<SessionValue>> {
    Ok(bed.plane.state()?.sessions.into_values().collect())
}

/// From the one write on nothing goes on in the form that was.
#[test]
fn a_change_of_who_translates_ends_what_was_there() -> Result<()> {
    let gone = Delta::counted(&["drop_address_gone"]);
    for to_routed in [true, false] {
        for (out, back) in flows() {
            with_both(|bed| {
                let toggle = |config: &mut Config| {
                    config.flags ^= ConfigFlags::ROUTED;
                    config.next_hop_generation += 1;
                };
                let mut back = back.clone();
                if to_routed {
                    back.dst = WAN;
                } else {
                    bed.reconfigure(route)?;
                }
                let out_seen = bed.lan_in(&out)?;
                if to_routed {
                    back.set_dst_port(out_seen.frame().src_port().expect("one"));
                }
                assert_eq!(bed.wan_in(&back)?.action, REDIRECT);
                assert_eq!(alive(bed)?.len(), 2);
                bed.reconfigure(toggle)?;
                bed.lan_in(&out)?.is_untouched(DROP, gone.clone(), &out);
                bed.wan_in(&back)?.is_untouched(DROP, gone.clone(), &back);
                let forwarded = bed.egress(&out, true)?;
                forwarded.is_untouched(TC_DROP, gone.clone(), &out);
                assert_eq!(bed.keep_ours()?, (0, 0));
                // It begins anew.
                let seen = bed.lan_in(&out)?;
                assert_eq!(seen.action, REDIRECT);
                let source = if to_routed { HOST } else { WAN };
                assert_eq!(seen.frame().src, source);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// What the sweep finds in its place stays.
#[test]
fn mappings_at_the_hosts_own_addresses_are_kept() -> Result<()> {
    with_routed(|bed| {
        bed.map_at(TCP, (HOST, 5000), explicit((HOST, 5000), 0))?;
        let (out, _) = flows().swap_remove(0);
        bed.lan_in(&out)?;
        assert_eq!(bed.keep_ours()?, (2, 2));
        bed.sweep()?;
        assert_eq!(bed.keep_ours()?, (2, 2));
        // One that is at ours is none.
        bed.map_at(TCP, (WAN, 5000), explicit((HOST2, 5000), 0))?;
        assert_eq!(bed.keep_ours()?, (2, 2));
        Ok(())
    })
}

/// There is no way back by our own address: nobody's mapping is there.
#[test]
fn our_own_address_is_only_ours() -> Result<()> {
    with_routed(|bed| {
        bed.map_at(TCP, (HOST2, 5000), explicit((HOST2, 5000), 0))?;
        for (reason, frame) in [
            ("pass_hairpin", Frame::tcp((HOST, 6000), (WAN, 5000), SYN)),
            ("pass_echo_request", Frame::icmp(HOST, WAN, 8, 7)),
            (
                "pass_not_to_wan",
                Frame::tcp((HOST, 6000), (HOST2, 5000), SYN),
            ),
        ] {
            let frame = lan_frame(frame);
            bed.lan_in(&frame)?
                .is_untouched(PASS, Delta::counted(&[reason]), &frame);
        }
        Ok(())
    })
}
