//! What somebody would try who wants to get in, or to pass for another (S6-01, S6-02, S6-04, S6-05).

use anyhow::Result;
use iwf_common::names;
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{HOST, REMOTE, REMOTE2, ROUTER, WAN, gone_in, lan_frame, wan_frame, with_bed6};
use crate::bed::{ACK, DROP, PASS, REDIRECT, RST, SYN, TC_DROP, TC_NEXT};

const ADMITTED: [&str; 3] = ["sessions6_created", "next_hops_refreshed", "forwarded6_in"];
const AH: u8 = 51;
const FRAGMENT: u8 = 44;
const OSPF: u8 = 89;

fn addr(text: &str) -> [u8; 16] {
    let addr: std::net::Ipv6Addr = text.parse().expect("an address");
    addr.octets()
}

fn authenticated(frame: Frame6) -> Frame6 {
    frame.with(AH, &[1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0])
}

/// RFC 6092 REC-22 lets it in unasked; the receiver finds out whether it is genuine. What follows without one is
/// nobody's word.
#[test]
fn an_authentication_header_opens_no_way_for_packets_without() -> Result<()> {
    with_bed6(|bed| {
        for plain in [
            Frame6::tcp((REMOTE, 9), (HOST, 22), SYN),
            Frame6::udp((REMOTE, 9), (HOST, 53)),
        ] {
            let first = authenticated(plain.clone());
            bed.wan_in(&first)?;
            bed.wan_in(&plain)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        // It is a flow by its addresses, both ways.
        let back = authenticated(Frame6::tcp((HOST, 22), (REMOTE, 9), SYN | ACK));
        bed.lan_in(&back)?.is(REDIRECT, {
            Delta::counted(&["next_hops_refreshed", "forwarded6_out"]).sessions6_changed(1)
        });
        Ok(())
    })
}

/// The link beyond the WAN is outside as well.
#[test]
fn a_neighbour_on_the_wan_is_a_stranger() -> Result<()> {
    let (near, own) = (addr("fe80::66"), addr("fe80::2"));
    let (all_nodes, mdns) = (addr("ff02::1"), addr("ff02::fb"));
    with_bed6(|bed| {
        for to in [own, WAN, ROUTER] {
            for frame in [
                Frame6::tcp((near, 9), (to, 22), SYN),
                Frame6::udp((near, 9), (to, 53)),
                Frame6::udp((near, 546), (to, 547)),
            ] {
                bed.wan_in(&frame)?
                    .is(DROP, Delta::counted(&["drop_unsolicited6"]));
            }
        }
        for frame in [
            Frame6::udp((near, 5353), (mdns, 5353)),
            Frame6::udp((REMOTE, 1900), (addr("ff02::c"), 1900)),
            Frame6::tcp((addr("::"), 9), (own, 22), SYN),
        ] {
            bed.wan_in(&frame)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        // What the link itself needs.
        for frame in [
            Frame6::new(near, own, Upper::Icmp(135, 0, [0; 4])),
            Frame6::new(near, all_nodes, Upper::Icmp(134, 0, [0; 4])),
            Frame6::udp((near, 547), (own, 546)),
            Frame6::new(near, addr("ff02::5"), Upper::Other(OSPF)),
        ] {
            let seen = bed.wan_in(&frame)?;
            assert_eq!(seen.action, PASS, "{frame:?}");
            assert_eq!(seen.bytes, wan_frame(&frame).bytes());
        }
        // The router may begin, and is answered.
        bed.egress(&Frame6::tcp((own, 5000), (near, 179), SYN), false)?
            .is(
                TC_NEXT,
                Delta::counted(&["sessions6_created", "host_out"]).sessions6(2),
            );
        let answer = Frame6::tcp((near, 179), (own, 5000), SYN | ACK);
        assert_eq!(bed.wan_in(&answer)?.action, PASS);
        Ok(())
    })
}

#[test]
fn a_lan_host_does_not_pass_for_the_router() -> Result<()> {
    with_bed6(|bed| {
        // A flow of the router, at either address of it.
        for own in [WAN, ROUTER] {
            let flow = Frame6::udp((own, 40000), (REMOTE, 53));
            bed.egress(&flow, false)?;
            bed.lan_in(&flow)?
                .is(DROP, Delta::counted(&["drop_spoofed_lan"]));
            // None that the router has begun, and none that would open its port to everybody.
            let open = Frame6::udp((own, 53), (REMOTE, 40000));
            bed.lan_in(&open)?
                .is(DROP, Delta::counted(&["drop_spoofed_lan"]));
            bed.wan_in(&Frame6::udp((REMOTE2, 9), (own, 53)))?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        Ok(())
    })
}

/// A LAN host that names a source out there makes the router answer there; a reset begins nothing.
#[test]
fn a_reset_of_the_router_leaves_and_begins_nothing() -> Result<()> {
    with_bed6(|bed| {
        for flags in [RST, RST | ACK] {
            bed.egress(&Frame6::tcp((ROUTER, 80), (REMOTE, 9), flags), false)?
                .is(TC_NEXT, Delta::counted(&["host_out"]));
        }
        Ok(())
    })
}

#[test]
fn a_packet_from_itself_to_itself_is_dropped() -> Result<()> {
    with_bed6(|bed| {
        for own in [WAN, addr("fe80::2")] {
            bed.wan_in(&Frame6::tcp((own, 80), (own, 80), SYN))?
                .is(DROP, Delta::counted(&["drop_land"]));
        }
        Ok(())
    })
}

/// `word`: offset and flags of the fragment header.
fn piece(from: [u8; 16], to: [u8; 16], word: u16, octets: usize) -> Frame6 {
    let mut frame = Frame6::new(from, to, Upper::Other(FRAGMENT));
    frame.payload = vec![17, 0];
    frame.payload.extend(word.to_be_bytes());
    frame.payload.extend(7u32.to_be_bytes());
    frame.payload.resize(8 + octets, 5);
    frame
}

#[test]
fn fragments_that_make_no_packet_are_dropped() -> Result<()> {
    with_bed6(|bed| {
        for frame in [
            // Not a multiple of eight, and more to come.
            piece(REMOTE, HOST, 64 | 1, 12),
            // Beyond the largest packet.
            piece(REMOTE, HOST, 0xfff8, 16),
            // Nothing in it.
            piece(REMOTE, HOST, 64, 0),
        ] {
            bed.wan_in(&frame)?
                .is(DROP, Delta::counted(&["drop_malformed"]));
        }
        // A fragment in a first fragment: which of the two its ports belong to would be anybody's guess.
        let mut nested = piece(REMOTE, HOST, 1, 8 + 64);
        nested.payload[0] = FRAGMENT;
        nested.payload[8..12].copy_from_slice(&[17, 0, 0, 64]);
        bed.wan_in(&nested)?
            .is(DROP, Delta::counted(&["drop_headers6"]));
        Ok(())
    })
}

/// RFC 2675: a length of 0 and the size in a hop-by-hop option. Nothing here is as large.
#[test]
fn a_jumbogram_is_no_packet() -> Result<()> {
    with_bed6(|bed| {
        let (lan, wan) = (bed.lan, bed.wan);
        bed.lan_in(&Frame6::udp((HOST, 5000), (REMOTE, 53)))?;
        let jumbo = |frame: Frame6| {
            let mut bytes = frame.with(0, &[0, 0xc2, 4, 0, 1, 0, 0]).bytes();
            bytes[18..20].fill(0);
            bytes
        };
        let bytes = jumbo(wan_frame(&Frame6::udp((REMOTE, 53), (HOST, 5000))));
        bed.raw(names::XDP_WAN, &bytes, wan)?
            .is(DROP, Delta::counted(&["drop_malformed"]));
        let bytes = jumbo(lan_frame(&Frame6::udp((HOST, 5000), (REMOTE, 53))));
        bed.raw(names::XDP_LAN, &bytes, lan)?
            .is(PASS, Delta::counted(&["pass_malformed"]));
        Ok(())
    })
}

/// Used up on the way in: the stack answers who sent it, and only about what was admitted.
#[test]
fn a_used_up_hop_limit_is_the_stacks_to_answer() -> Result<()> {
    with_bed6(|bed| {
        bed.lan_in(&Frame6::udp((HOST, 5000), (REMOTE, 53)))?;
        for hop_limit in [0, 1] {
            let mut answer = Frame6::udp((REMOTE, 53), (HOST, 5000));
            answer.hop_limit = hop_limit;
            let seen = bed.wan_in(&answer)?;
            assert_eq!(seen.action, PASS);
            assert_eq!(seen.delta.counters.get("pass_ttl_exceeded"), Some(&1));
            let mut stranger = Frame6::udp((REMOTE, 53), (HOST, 5001));
            stranger.hop_limit = hop_limit;
            bed.wan_in(&stranger)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        }
        Ok(())
    })
}

/// The quote of an error is the attacker's to write.
#[test]
fn a_forged_quote_gets_no_further_than_its_flow() -> Result<()> {
    with_bed6(|bed| {
        let flow = Frame6::udp((HOST, 5000), (REMOTE, 53));
        bed.lan_in(&flow)?;
        let stray = Delta::counted(&["drop_icmp_error_stray"]);
        // To another host than the one that is quoted.
        let other = Frame6::error(REMOTE2, ROUTER, 1, &flow);
        bed.wan_in(&other)?.is(PASS, Delta::counted(&["pass_host"]));
        // A chain that never ends, and one whose upper layer is beyond what is looked at.
        let mut chained = flow.clone();
        for _ in 0..9 {
            chained = chained.with_options(60);
        }
        bed.wan_in(&Frame6::error(REMOTE2, HOST, 1, &chained))?
            .is(DROP, stray.clone());
        // Not IPv6 inside.
        let mut not_ipv6 = Frame6::error(REMOTE2, HOST, 1, &flow);
        not_ipv6.payload[0] = 0x45;
        bed.wan_in(&not_ipv6)?.is(DROP, stray.clone());
        // From a source that may not come in.
        bed.wan_in(&Frame6::error(addr("fd00::1"), HOST, 1, &flow))?
            .is(DROP, Delta::counted(&["drop_forbidden6"]));
        bed.wan_in(&Frame6::error(HOST, HOST, 1, &flow))?
            .is(DROP, Delta::counted(&["drop_spoofed"]));
        // The flow has been there all the time.
        let answer = Frame6::udp((REMOTE, 53), (HOST, 5000));
        assert_eq!(bed.wan_in(&answer)?.bytes, gone_in(&answer));
        Ok(())
    })
}

/// RFC 6092 REC-11 and section 3.2.2 for tunnels that end at a LAN host: the LAN begins them, strangers do not.
#[test]
fn a_tunnel_comes_in_only_as_an_answer_or_by_a_pinhole() -> Result<()> {
    use iwf_common::flow6::{PinholeKey, Shape};
    with_bed6(|bed| {
        bed.reconfigure(|config| {
            config.filter6 = iwf_common::nat::Filter::AddressDependent as u8;
        })?;
        for (number, name) in [(4, "IPv4"), (41, "IPv6"), (47, "GRE"), (137, "MPLS")] {
            let inbound = Frame6::new(REMOTE, HOST, Upper::Other(number));
            bed.wan_in(&inbound)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
            let outbound = Frame6::new(HOST, REMOTE, Upper::Other(number));
            assert_eq!(bed.lan_in(&outbound)?.action, REDIRECT, "{name}");
            assert_eq!(bed.wan_in(&inbound)?.bytes, gone_in(&inbound), "{name}");
            let elsewhere = Frame6::new(REMOTE2, HOST, Upper::Other(number));
            bed.wan_in(&elsewhere)?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
            bed.wan_in(&Frame6::new(REMOTE2, ROUTER, Upper::Other(number)))?
                .is(DROP, Delta::counted(&["drop_unsolicited6"]));
            let pinhole = PinholeKey {
                internal: HOST,
                remote: REMOTE2,
                proto: number,
                shape: Shape::ANY_REMOTE_PORT | Shape::ANY_INTERNAL_PORT,
                ..PinholeKey::default()
            };
            bed.pinhole(pinhole, 5, 0)?;
            bed.wan_in(&elsewhere)?
                .is(REDIRECT, Delta::counted(&ADMITTED).sessions6(2));
        }
        let leaving = Frame6::new(REMOTE, addr("2001:db8::9"), Upper::Other(41));
        bed.egress(&leaving, true)?
            .is(TC_DROP, Delta::counted(&["drop_forbidden6"]));
        Ok(())
    })
}
