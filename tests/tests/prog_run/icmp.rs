//! ICMP errors, with the packets they quote (RFC 5508).
//!
//! What is expected is built anew, every checksum included: an error that differs in one octet fails.

use anyhow::Result;
use iwf_common::names;
use iwf_common::nat::{MappingFlags, MappingKind, MappingValue};
use iwf_tests::packet::{Frame, Transport};
use iwf_tests::prog::{Delta, State};

use crate::bed::{
    ACK, Bed, DROP, HOST, PASS, REDIRECT, REMOTE, REMOTE2, SYN, Seen, TC_DROP, TC_NEXT, UDP, WAN,
    explicit, lan_frame, translated_in, translated_out, wan_frame, with_bed,
};

/// A router of the Internet.
const ROUTER: [u8; 4] = [11, 99, 0, 1];
/// A router of the LAN.
const LAN_ROUTER: [u8; 4] = [192, 168, 1, 2];

/// Port unreachable, fragmentation needed, time exceeded, parameter problem.
const KINDS: [(u8, u8); 4] = [(3, 3), (3, 4), (11, 0), (12, 0)];

/// Octets of the quoted packet's data: the least of RFC 792, one more, TCP's without its checksum and with it,
/// all.
const QUOTED: [usize; 5] = [8, 9, 16, 18, 1500];

/// A packet of a host and its answer, for each protocol.
fn flows() -> Vec<(Frame, Frame)> {
    let unchecked = Transport::Udp {
        ports: (5000, 9999),
        checksum: false,
    };
    let unchecked_back = Transport::Udp {
        ports: (9999, 5000),
        checksum: false,
    };
    let mut odd = Frame::udp((HOST, 5000), (REMOTE, 9999));
    odd.payload.push(0x77);
    let mut with_options = Frame::tcp((HOST, 5000), (REMOTE, 80), SYN);
    with_options.options = vec![1, 1, 1, 1, 1, 1, 1, 0];
    let mut options_back = Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | ACK);
    // All the room there is: a timestamp option (RFC 791 section 3.1).
    options_back.options = vec![0; 40];
    options_back.options[..4].copy_from_slice(&[68, 40, 5, 0]);
    [
        (
            Frame::udp((HOST, 5000), (REMOTE, 9999)),
            Frame::udp((REMOTE, 9999), (WAN, 5000)),
        ),
        (odd, Frame::udp((REMOTE, 9999), (WAN, 5000))),
        (
            Frame::new(HOST, REMOTE, unchecked),
            Frame::new(REMOTE, WAN, unchecked_back),
        ),
        (
            Frame::tcp((HOST, 5000), (REMOTE, 80), SYN),
            Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | ACK),
        ),
        (with_options, options_back),
        (
            Frame::icmp(HOST, REMOTE, 8, 5000),
            Frame::icmp(REMOTE, WAN, 0, 5000),
        ),
    ]
    .map(|(out, back)| (lan_frame(out), wan_frame(back)))
    .into()
}

/// Opens a flow in both directions, from an external port that is not the internal one.
fn open(bed: &mut Bed, out: &Frame, back: &mut Frame) -> Result<u16> {
    for proto in [1, 6, 17] {
        bed.map(proto, ([192, 168, 1, 99], 1), 5000, 0)?;
    }
    let seen = bed.lan_in(out)?;
    let port = seen.frame().src_port().expect("a port or an identifier");
    assert_ne!(port, 5000);
    back.set_dst_port(port);
    assert_eq!(bed.wan_in(back)?.action, REDIRECT);
    Ok(port)
}

/// Everything but counters, the ticks of the last use included.
fn tables(bed: &Bed) -> Result<State> {
    let mut state = bed.plane.state()?;
    state.counters.clear();
    Ok(state)
}

/// What `run` did; and that no table has changed in a single octet (RFC 4787 REQ-12, RFC 5508 REQ-6).
fn only_counts(bed: &mut Bed, run: impl FnOnce(&mut Bed) -> Result<Seen>) -> Result<Seen> {
    bed.let_pass(10)?;
    let before = tables(bed)?;
    let seen = run(bed)?;
    assert_eq!(tables(bed)?, before);
    Ok(seen)
}

fn with_second_word(mut error: Frame, kind: (u8, u8)) -> Frame {
    if let Transport::IcmpError { rest, .. } = &mut error.transport {
        *rest = match kind {
            (3, 4) => [0, 0, 0x05, 0x00],
            (12, 0) => [20, 0, 0, 0],
            _ => [0; 4],
        };
    }
    error
}

/// RFC 5508 REQ-4, by whoever it is sent.
#[test]
fn an_error_from_outside_reaches_the_host_that_sent_what_it_quotes() -> Result<()> {
    for (out, mut back) in flows() {
        with_bed(|bed| {
            let port = open(bed, &out, &mut back)?;
            let outside = translated_out(&out, port);
            for kind in KINDS {
                for octets in QUOTED {
                    for from in [ROUTER, REMOTE] {
                        let error = Frame::icmp_error(from, WAN, kind, outside.quoted(octets));
                        let error = wan_frame(with_second_word(error, kind));
                        let seen = only_counts(bed, |bed| bed.wan_in(&error))?;
                        seen.is(REDIRECT, Delta::counted(&["icmp_errors_translated"]));
                        let inside = Frame {
                            ttl: outside.ttl,
                            ..out.clone()
                        };
                        let mut expected = translated_in(&error, (HOST, 0));
                        expected.payload = inside.quoted(octets);
                        assert_eq!(seen.frame(), expected, "{kind:?} {octets}");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// RFC 5508 REQ-5: from the host itself, or a router of the LAN.
#[test]
fn an_error_from_inside_shows_nothing_of_the_lan() -> Result<()> {
    for (out, mut back) in flows() {
        with_bed(|bed| {
            open(bed, &out, &mut back)?;
            let inside = translated_in(&back, (HOST, 5000));
            for kind in KINDS {
                for octets in QUOTED {
                    for from in [HOST, LAN_ROUTER] {
                        let error = Frame::icmp_error(from, REMOTE, kind, inside.quoted(octets));
                        let error = lan_frame(with_second_word(error, kind));
                        let seen = only_counts(bed, |bed| bed.lan_in(&error))?;
                        seen.is(REDIRECT, Delta::counted(&["icmp_errors_translated"]));
                        let outside = Frame {
                            ttl: inside.ttl,
                            ..back.clone()
                        };
                        let mut expected = translated_out(&error, 0);
                        expected.payload = outside.quoted(octets);
                        assert_eq!(seen.frame(), expected, "{kind:?} {octets}");
                        // By way of the stack.
                        let seen = only_counts(bed, |bed| bed.egress(&error, true))?;
                        seen.is(TC_NEXT, Delta::counted(&["icmp_errors_translated"]));
                        let expected = Frame {
                            ttl: error.ttl,
                            dst_mac: error.dst_mac,
                            src_mac: error.src_mac,
                            ..expected
                        };
                        assert_eq!(seen.frame(), expected, "{kind:?} {octets}");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What XDP gives up for its TTL or size goes to the stack translated. What the stack says about it is turned
/// back: traceroute and path-MTU discovery from outside see one hop, the WAN address.
#[test]
fn an_error_of_the_stack_is_translated_back() -> Result<()> {
    for (out, mut back) in flows() {
        with_bed(|bed| {
            open(bed, &out, &mut back)?;
            let mut late = back.clone();
            late.ttl = 1;
            let given = bed.wan_in(&late)?;
            assert_eq!(given.action, PASS);
            for from in [WAN, [192, 168, 1, 1]] {
                let quote = given.frame().quoted(548);
                let error = Frame::icmp_error(from, REMOTE, (11, 0), quote);
                let seen = only_counts(bed, |bed| bed.egress(&error, false))?;
                seen.is(TC_NEXT, Delta::counted(&["icmp_errors_translated"]));
                let expected = Frame {
                    src: WAN,
                    payload: late.quoted(548),
                    ..error
                };
                assert_eq!(seen.frame(), expected);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// On tc ingress as well.
#[test]
fn the_stack_gets_an_error_translated_where_there_is_no_next_hop() -> Result<()> {
    for (out, _) in flows() {
        with_bed(|bed| {
            // No answer has come yet: traceroute's first one is an error.
            let port = bed.lan_in(&out)?.frame().src_port().expect("a port");
            let outside = translated_out(&out, port);
            let error = Frame::icmp_error(ROUTER, WAN, (11, 0), outside.quoted(8));
            let error = wan_frame(error);
            let inside = Frame {
                ttl: outside.ttl,
                ..out.clone()
            };
            let expected = Frame {
                dst: HOST,
                payload: inside.quoted(8),
                ..error.clone()
            };
            let seen = only_counts(bed, |bed| bed.wan_in(&error))?;
            let reasons = ["icmp_errors_translated", "pass_unresolved"];
            seen.is(PASS, Delta::counted(&reasons));
            assert_eq!(seen.frame(), expected);
            let wan = bed.wan;
            let seen = only_counts(bed, |bed| bed.tc(names::TC_INGRESS, &error, wan))?;
            seen.is(TC_NEXT, Delta::counted(&reasons));
            assert_eq!(seen.frame(), expected);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_stack_gets_an_error_untranslated_that_cannot_leave_the_lan_port() -> Result<()> {
    with_bed(|bed| {
        let (out, mut back) = flows().swap_remove(0);
        open(bed, &out, &mut back)?;
        let inside = translated_in(&back, (HOST, 5000));
        let error = lan_frame(Frame::icmp_error(HOST, REMOTE, (3, 3), inside.quoted(8)));
        let late = Frame {
            ttl: 1,
            ..error.clone()
        };
        bed.lan_in(&late)?
            .is_untouched(PASS, Delta::counted(&["pass_ttl_exceeded"]), &late);
        bed.reconfigure(|config| config.next_hop_generation += 1)?;
        bed.lan_in(&error)?
            .is_untouched(PASS, Delta::counted(&["pass_unresolved"]), &error);
        Ok(())
    })
}

/// RFC 4884: a quote filled up with zeros to 128 octets, and an MPLS label stack behind it.
#[test]
fn padding_and_extensions_stay_and_stay_covered() -> Result<()> {
    for (out, mut back) in flows() {
        with_bed(|bed| {
            let port = open(bed, &out, &mut back)?;
            let outside = translated_out(&out, port);
            let padded = |frame: &Frame, octets| {
                let mut quote = frame.quoted(octets);
                quote.resize(128, 0);
                let label = [0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x01];
                quote.extend(label);
                quote
            };
            for octets in [8, 100] {
                let mut error = Frame::icmp_error(ROUTER, WAN, (11, 0), padded(&outside, octets));
                if let Transport::IcmpError { rest, .. } = &mut error.transport {
                    *rest = [0, 32, 0, 0];
                }
                let error = wan_frame(error);
                let seen = only_counts(bed, |bed| bed.wan_in(&error))?;
                seen.is(REDIRECT, Delta::counted(&["icmp_errors_translated"]));
                let inside = Frame {
                    ttl: outside.ttl,
                    ..out.clone()
                };
                let mut expected = translated_in(&error, (HOST, 0));
                expected.payload = padded(&inside, octets);
                assert_eq!(seen.frame(), expected);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// RFC 5508 REQ-3: by the checksum of the message and the quoted header's, not the quoted transport's.
#[test]
fn a_damaged_error_is_dropped() -> Result<()> {
    for (out, mut back) in flows() {
        with_bed(|bed| {
            let port = open(bed, &out, &mut back)?;
            let outside = translated_out(&out, port);
            let error = |quote| wan_frame(Frame::icmp_error(ROUTER, WAN, (11, 0), quote));
            let bad = Delta::counted(&["drop_icmp_error_bad"]);
            // One bit of each octet of the message that does not say what flow it is of.
            let whole = error(outside.quoted(1500)).bytes();
            let header = 14 + 20 + 8;
            let data = header + 20 + outside.options.len();
            let octets = (36..38).chain(header + 1..header + 6);
            for at in octets.chain(data + 8..whole.len()) {
                let mut octets = whole.clone();
                octets[at] ^= 0x10;
                let wan = bed.wan;
                let seen = only_counts(bed, |bed| bed.raw(names::XDP_WAN, &octets, wan))?;
                seen.is(DROP, bad.clone());
                assert_eq!(seen.bytes, octets);
            }
            // The quoted header's checksum, with the message's own right.
            let mut quote = outside.quoted(8);
            quote[8] ^= 1;
            let frame = error(quote);
            bed.wan_in(&frame)?.is_untouched(DROP, bad.clone(), &frame);
            // Too short.
            let header_len = 20 + outside.options.len();
            for len in [0, 19, header_len, header_len + 7] {
                let frame = error(outside.quoted(8)[..len].to_vec());
                bed.wan_in(&frame)?.is_untouched(DROP, bad.clone(), &frame);
            }
            // Not addressed to whom it quotes.
            let mut other = Frame {
                src: REMOTE2,
                ..outside.clone()
            };
            let frame = error(other.quoted(8));
            bed.wan_in(&frame)?.is_untouched(DROP, bad.clone(), &frame);
            // The quoted transport's checksum is the host's to judge.
            other.src = WAN;
            let mut quote = other.quoted(1500);
            let last = quote.len() - 1;
            quote[last] ^= 1;
            assert_eq!(bed.wan_in(&error(quote))?.action, REDIRECT);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_error_about_no_session_is_dropped() -> Result<()> {
    with_bed(|bed| {
        let (out, mut back) = flows().swap_remove(0);
        let port = open(bed, &out, &mut back)?;
        let stray = Delta::counted(&["drop_icmp_error_stray"]);
        let outside = translated_out(&out, port);
        let mut other_peer = outside.clone();
        other_peer.dst = REMOTE2;
        let mut other_port = outside.clone();
        other_port.set_src_port(port ^ 1);
        // The session of the other direction is none.
        let reversed = Frame::udp((WAN, 9999), (REMOTE, port));
        let mut fragment = outside.clone();
        fragment.fragment = 0x2001;
        let nested = Frame::icmp_error(WAN, REMOTE, (3, 3), outside.quoted(8));
        for quoted in [other_peer, other_port, reversed, fragment, nested] {
            let frame = wan_frame(Frame::icmp_error(ROUTER, WAN, (3, 1), quoted.quoted(1500)));
            bed.wan_in(&frame)?
                .is_untouched(DROP, stray.clone(), &frame);
        }
        // A first fragment has its ports.
        let mut first = outside.clone();
        first.fragment = 0x2000;
        let frame = wan_frame(Frame::icmp_error(ROUTER, WAN, (11, 1), first.quoted(8)));
        assert_eq!(bed.wan_in(&frame)?.action, REDIRECT);
        // From inside: the stack's, and not let out.
        let inside = Frame::udp((REMOTE2, 9999), (HOST, 5000));
        let frame = lan_frame(Frame::icmp_error(HOST, REMOTE2, (3, 3), inside.quoted(8)));
        bed.lan_in(&frame)?
            .is_untouched(PASS, Delta::counted(&["pass_icmp_error"]), &frame);
        bed.egress(&frame, true)?.is_untouched(
            TC_DROP,
            Delta::counted(&["drop_private_source"]),
            &frame,
        );
        Ok(())
    })
}

/// RFC 5508 REQ-10, RFC 6633. A redirect is for the neighbour that it is sent to.
#[test]
fn quench_and_redirect_are_not_translated() -> Result<()> {
    with_bed(|bed| {
        let (out, mut back) = flows().swap_remove(0);
        let port = open(bed, &out, &mut back)?;
        let quote = translated_out(&out, port).quoted(8);
        for kind in [(4, 0), (5, 1)] {
            let frame = wan_frame(Frame::icmp_error(ROUTER, WAN, kind, quote.clone()));
            bed.wan_in(&frame)?
                .is_untouched(PASS, Delta::counted(&["pass_icmp_error"]), &frame);
        }
        Ok(())
    })
}

#[test]
fn the_cpe_gets_the_errors_about_its_own_packets() -> Result<()> {
    with_bed(|bed| {
        let own = Frame::tcp((WAN, 5000), (REMOTE, 80), SYN);
        bed.egress(&own, false)?;
        let error = wan_frame(Frame::icmp_error(ROUTER, WAN, (3, 4), own.quoted(8)));
        let seen = only_counts(bed, |bed| bed.wan_in(&error))?;
        let reasons = ["icmp_errors_translated", "pass_host"];
        seen.is_untouched(PASS, Delta::counted(&reasons), &error);

        // From a port that a LAN host had first.
        bed.lan_in(&lan_frame(Frame::udp((HOST, 7000), (REMOTE, 53))))?;
        let own = Frame::udp((WAN, 7000), (REMOTE, 53));
        let sent = bed.egress(&own, false)?.frame();
        assert_ne!(sent.src_port(), Some(7000));
        let error = wan_frame(Frame::icmp_error(ROUTER, WAN, (3, 4), sent.quoted(8)));
        let seen = only_counts(bed, |bed| bed.wan_in(&error))?;
        seen.is(PASS, Delta::counted(&reasons));
        let expected = Frame {
            payload: own.quoted(8),
            ..error
        };
        assert_eq!(seen.frame(), expected);

        // A service, which has no session, and protocols that are not translated.
        let service = MappingValue {
            kind: MappingKind::Host as u8,
            flags: MappingFlags::STATIC,
            ..explicit((WAN, 68), 0)
        };
        bed.map_with(UDP, 68, service)?;
        let mut tunnel = Frame::udp((WAN, 1), (REMOTE, 1));
        tunnel.transport = Transport::Other(41);
        for (reason, own) in [
            ("pass_host", Frame::udp((WAN, 68), (REMOTE, 67))),
            ("pass_host", Frame::icmp(WAN, REMOTE, 0, 7)),
            ("pass_icmp_error", tunnel),
        ] {
            let error = wan_frame(Frame::icmp_error(ROUTER, WAN, (3, 1), own.quoted(8)));
            bed.wan_in(&error)?
                .is_untouched(PASS, Delta::counted(&[reason]), &error);
        }
        Ok(())
    })
}

#[test]
fn an_error_that_is_bridged_past_us_is_left_alone() -> Result<()> {
    with_bed(|bed| {
        let (out, mut back) = flows().swap_remove(0);
        let port = open(bed, &out, &mut back)?;
        let quote = translated_out(&out, port).quoted(8);
        let mut error = wan_frame(Frame::icmp_error(ROUTER, WAN, (3, 1), quote));
        error.dst_mac = [2, 9, 9, 9, 9, 9];
        bed.wan_in(&error)?
            .is_untouched(PASS, Delta::counted(&["pass_not_our_mac"]), &error);
        Ok(())
    })
}
