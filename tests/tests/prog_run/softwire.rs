//! The DS-Lite softwire: IPv4 into IPv6 to the AFTR and back, by XDP; all else is left to the stack (RFC 6333, 2473, 6040).

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use iwf_common::names;
use iwf_common::softwire::Softwire;
use iwf_tests::packet::{ETHERNET, Frame, Transport};
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;
use iwf_tests::wait;

use crate::bed::{
    ACK, BRIDGE_MAC, Bed, DROP, GATEWAY_MAC, HOST, PASS, REDIRECT, REMOTE, SYN, Seen, TC_DROP,
    TC_NEXT, Through, WAN_MAC, lan_frame, wan_frame, with_bed, with_both,
};

const B4: [u8; 16] = outside(2);
const AFTR: [u8; 16] = outside(0xaf);
const STRANGER: [u8; 16] = outside(0x99);
/// The CPE and the AFTR inside.
const B4_INSIDE: [u8; 4] = [192, 0, 0, 2];
const AFTR_INSIDE: [u8; 4] = [192, 0, 0, 1];
const ROUTER: [u8; 4] = [192, 168, 1, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 10];
const SOON: Duration = Duration::from_secs(5);

/// Every test has next hops of its own: planes go from one to the next, and what they cache is good for a second.
static GENERATION: AtomicU32 = AtomicU32::new(1000);

const fn outside(last: u8) -> [u8; 16] {
    [0x2a, 0x0c, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A router without IPv4 on the WAN and with a softwire.
fn furnish(bed: &mut Bed) -> Result<()> {
    for (key, value) in [
        ("all/disable_ipv6", "0"),
        ("default/disable_ipv6", "0"),
        ("wan0/disable_ipv6", "0"),
        ("all/forwarding", "1"),
    ] {
        bed.ns.sysctl(&format!("net/ipv6/conf/{key}"), value)?;
    }
    for line in [
        "route del default",
        "address flush dev wan0",
        "tuntap add mode tun name b4",
        "link set b4 up",
        "route add default dev b4",
        "address add 2a0c:9::2/64 dev wan0 nodad",
        "neigh add 2a0c:9::af dev wan0 lladdr 02:00:00:00:02:01 nud permanent",
    ] {
        bed.ns.ip(line)?;
    }
    wait::until_ok("the route to the AFTR", SOON, || {
        let found = bed.ns.ip("-6 route get 2a0c:9::af")?;
        ensure!(found.contains("dev wan0"), "{found}");
        Ok(())
    })?;
    bed.plane.set_softwire(Softwire {
        local: B4,
        remote: AFTR,
    })?;
    let softwire = bed.ns.ifindex("b4")?;
    bed.reconfigure(|config| {
        config.external_addr = [0; 4];
        config.softwire = softwire;
        // The way is asked for again once a second. That a test takes longer must not show: here no second passes.
        config.hz = u32::MAX;
        config.next_hop_generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    })
}

fn with_softwire(test: impl FnOnce(&mut Bed) -> Result<()> + Send) -> Result<()> {
    with_bed(|bed| {
        furnish(bed)?;
        test(bed)
    })
}

/// The packet of a frame.
fn packet(frame: &Frame) -> Vec<u8> {
    frame.bytes().split_off(ETHERNET)
}

/// An IPv6 frame with this packet inside, written from scratch.
fn wrapped(
    macs: ([u8; 6], [u8; 6]),
    ends: ([u8; 16], [u8; 16]),
    class: u8,
    inside: &[u8],
) -> Vec<u8> {
    let mut frame = [macs.0, macs.1].concat();
    frame.extend([0x86, 0xdd]);
    frame.extend((6 << 28 | u32::from(class) << 20).to_be_bytes());
    frame.extend(u16::try_from(inside.len()).expect("fits").to_be_bytes());
    frame.extend([4, 64]);
    frame.extend(ends.0);
    frame.extend(ends.1);
    frame.extend(inside);
    frame
}

/// What a frame of the LAN must look like when it has left the WAN.
fn gone_out(frame: &Frame) -> Vec<u8> {
    let mut hop = frame.clone();
    hop.ttl -= 1;
    wrapped((GATEWAY_MAC, WAN_MAC), (B4, AFTR), frame.tos, &packet(&hop))
}

/// A packet of the AFTR.
fn of_aftr(frame: &Frame) -> Vec<u8> {
    wrapped(
        (WAN_MAC, GATEWAY_MAC),
        (AFTR, B4),
        frame.tos,
        &packet(frame),
    )
}

/// What it must look like when it has left the bridge port.
fn gone_in(frame: &Frame) -> Vec<u8> {
    let mut hop = frame.clone();
    (hop.dst_mac, hop.src_mac) = (HOST_MAC, BRIDGE_MAC);
    hop.ttl -= 1;
    hop.bytes()
}

fn into_wan(bed: &mut Bed, bytes: &[u8]) -> Result<Seen> {
    bed.raw(names::XDP_WAN, bytes, bed.wan)
}

/// What a run says that asked for the way to the AFTR, as the first of each test does.
fn first(counter: &'static str) -> Delta {
    Delta::counted(&[counter, "next_hops_refreshed"])
}

fn udp_out() -> Frame {
    lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)))
}

fn udp_in() -> Frame {
    Frame::udp((REMOTE, 53), (HOST, 5000))
}

/// Of each kind that a LAN host sends: with and without ports, in fragments, reports.
fn kinds(src: [u8; 4], dst: [u8; 4]) -> Vec<Frame> {
    let mut first = Frame::udp((src, 5000), (dst, 53));
    first.fragment = 0x2000;
    let mut later = Frame::new(src, dst, Transport::Other(17));
    later.fragment = 0x0003;
    let quoted = Frame::udp((dst, 53), (src, 5000)).quoted(8);
    vec![
        Frame::udp((src, 5000), (dst, 53)),
        Frame::tcp((src, 5000), (dst, 80), ACK),
        Frame::icmp(src, dst, 8, 7),
        Frame::icmp(src, dst, 0, 7),
        Frame::new(src, dst, Transport::Other(47)),
        Frame::icmp_error(src, dst, (3, 3), quoted),
        first,
        later,
    ]
}

#[test]
fn everything_of_a_lan_host_goes_to_the_aftr_as_it_is() -> Result<()> {
    with_softwire(|bed| {
        for (n, frame) in kinds(HOST, REMOTE).into_iter().enumerate() {
            let frame = lan_frame(frame);
            let seen = bed.lan_in(&frame)?;
            let delta = Delta::counted(&["softwire_out"]);
            seen.is(REDIRECT, if n == 0 { first("softwire_out") } else { delta });
            assert_eq!(seen.bytes, gone_out(&frame), "{frame:?}");
        }
        Ok(())
    })
}

#[test]
fn everything_of_the_aftr_for_a_lan_host_comes_in_as_it_is() -> Result<()> {
    with_softwire(|bed| {
        let mut all = kinds(REMOTE, HOST);
        // The AFTR tells of what it drops.
        all.push(Frame::icmp_error(
            AFTR_INSIDE,
            HOST,
            (11, 0),
            udp_out().quoted(8),
        ));
        for frame in all {
            let seen = into_wan(bed, &of_aftr(&frame))?;
            seen.is(REDIRECT, Delta::counted(&["softwire_in"]));
            assert_eq!(seen.bytes, gone_in(&frame), "{frame:?}");
        }
        Ok(())
    })
}

#[test]
fn only_the_aftr_is_listened_to() -> Result<()> {
    with_softwire(|bed| {
        let inside = packet(&udp_in());
        let macs = (WAN_MAC, GATEWAY_MAC);
        let stranger = wrapped(macs, (STRANGER, B4), 0, &inside);
        let seen = into_wan(bed, &stranger)?;
        seen.is(DROP, Delta::counted(&["drop_softwire_stranger"]));
        assert_eq!(seen.bytes, stranger);
        // In pieces as well: the others have no first one to go with.
        let whole = Frame6 {
            dst_mac: WAN_MAC,
            payload: inside.clone(),
            ..Frame6::new(STRANGER, B4, Upper::Other(4))
        };
        for (n, piece) in whole.fragments(5, 24).iter().enumerate() {
            let counters: &[&str] = if n == 0 {
                &["drop_softwire_stranger"]
            } else {
                &["drop_fragment_early", "fragments_held"]
            };
            into_wan(bed, &piece.bytes())?.is(DROP, Delta::counted(counters));
        }
        // A frame for somebody else on the link is none of ours.
        let passing = wrapped((GATEWAY_MAC, WAN_MAC), (AFTR, B4), 0, &inside);
        into_wan(bed, &passing)?.is(PASS, Delta::counted(&["pass_not_our_mac"]));
        // Without a softwire it is a packet like any other that nobody asked for.
        bed.reconfigure(|config| config.softwire = 0)?;
        into_wan(bed, &of_aftr(&udp_in()))?.is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

#[test]
fn what_is_inside_is_judged() -> Result<()> {
    with_softwire(|bed| {
        let from = |src, dst| packet(&Frame::udp((src, 53), (dst, 5000)));
        let changed = |at: usize, octets: &[u8]| {
            let mut inside = from(REMOTE, HOST);
            inside[at..at + octets.len()].copy_from_slice(octets);
            // Right again, so that it is not the checksum that is refused.
            inside[10..12].fill(0);
            let sum = iwf_tests::packet::sum(&inside[..20]);
            inside[10..12].copy_from_slice(&(!sum).to_be_bytes());
            inside
        };
        let mut bad_sum = from(REMOTE, HOST);
        bad_sum[8] ^= 1;
        for (what, inside) in [
            ("from the LAN", from([192, 168, 1, 77], HOST)),
            ("from ourselves", from(B4_INSIDE, HOST)),
            ("from a group", from([224, 0, 0, 1], HOST)),
            ("from nobody", from([0; 4], HOST)),
            ("from this host", from([127, 0, 0, 1], HOST)),
            ("for elsewhere", from(REMOTE, [10, 0, 0, 1])),
            ("for a group", from(REMOTE, [224, 0, 0, 251])),
            ("bad checksum", bad_sum),
            ("longer than what carries it", changed(2, &[1, 0])),
            ("shorter than its header", changed(2, &[0, 19])),
            ("cut short", from(REMOTE, HOST)[..19].to_vec()),
            ("empty", Vec::new()),
        ] {
            let bytes = wrapped((WAN_MAC, GATEWAY_MAC), (AFTR, B4), 0, &inside);
            let seen = into_wan(bed, &bytes)?;
            assert_eq!(
                (seen.action, &seen.delta),
                (DROP, &Delta::counted(&["drop_softwire_inner"])),
                "{what}"
            );
            assert_eq!(seen.bytes, bytes, "{what}");
        }
        Ok(())
    })
}

#[test]
fn a_lan_host_sends_from_its_own_address_and_nowhere_else() -> Result<()> {
    with_softwire(|bed| {
        let send =
            |bed: &mut Bed, src, dst| bed.lan_in(&lan_frame(Frame::udp((src, 5000), (dst, 53))));
        for (src, dst, action, counter) in [
            ([10, 1, 1, 1], REMOTE, DROP, "drop_spoofed_lan"),
            (B4_INSIDE, REMOTE, DROP, "drop_spoofed_lan"),
            (HOST, [192, 168, 1, 77], PASS, "pass_not_to_wan"),
            (HOST, ROUTER, PASS, "pass_not_to_wan"),
            (HOST, [224, 0, 0, 251], PASS, "pass_not_unicast"),
            (HOST, [255; 4], PASS, "pass_not_unicast"),
        ] {
            send(bed, src, dst)?.is(action, Delta::counted(&[counter]));
        }
        // Another network that the router knows a way to.
        bed.ns.ip("link add vpn0 type veth peer name vpn0p")?;
        bed.ns.ip("link set vpn0 up")?;
        bed.ns.ip("route add 10.77.0.0/16 dev vpn0")?;
        send(bed, HOST, [10, 77, 0, 1])?.is(PASS, Delta::counted(&["pass_not_to_wan"]));
        // For another station of the bridge.
        let mut bridged = udp_out();
        bridged.dst_mac = [2, 0, 0, 0, 9, 9];
        bed.lan_in(&bridged)?
            .is(PASS, Delta::counted(&["pass_not_our_mac"]));
        Ok(())
    })
}

#[test]
fn what_the_short_way_cannot_do_is_left_to_the_stack_as_it_came() -> Result<()> {
    with_softwire(|bed| {
        let sized = |len: usize| {
            let mut frame = udp_out();
            frame.payload = vec![7; len - 28];
            frame
        };
        let fits = sized(1460);
        let seen = bed.lan_in(&fits)?;
        seen.is(REDIRECT, first("softwire_out"));
        assert_eq!(seen.bytes, gone_out(&fits));
        let mut last_hop = udp_out();
        last_hop.ttl = 1;
        let mut options = udp_out();
        options.options = vec![7, 3, 4, 0];
        for (frame, counter) in [
            (sized(1461), "pass_too_big"),
            (sized(1500), "pass_too_big"),
            (last_hop, "pass_ttl_exceeded"),
            (options, "pass_softwire"),
        ] {
            bed.lan_in(&frame)?
                .is_untouched(PASS, Delta::counted(&[counter]), &frame);
        }
        let mut route = udp_out();
        route.options = vec![131, 3, 4, 0];
        bed.lan_in(&route)?
            .is(DROP, Delta::counted(&["drop_source_route"]));

        let mut last_hop = udp_in();
        last_hop.ttl = 1;
        let mut options = udp_in();
        options.options = vec![7, 3, 4, 0];
        let own = Frame::udp((REMOTE, 53), (B4_INSIDE, 5000));
        for (frame, counter) in [
            (last_hop, "pass_ttl_exceeded"),
            (options, "pass_softwire"),
            (own, "pass_host"),
        ] {
            let bytes = of_aftr(&frame);
            let seen = into_wan(bed, &bytes)?;
            seen.is(PASS, Delta::counted(&[counter]));
            assert_eq!(seen.bytes, bytes);
        }
        // The router's address in the LAN is nobody's to reach through the softwire.
        into_wan(bed, &of_aftr(&Frame::udp((REMOTE, 53), (ROUTER, 22))))?
            .is(PASS, Delta::counted(&["pass_not_to_wan"]));
        Ok(())
    })
}

#[test]
fn fragments_of_the_outside_and_extension_headers_are_for_the_daemon() -> Result<()> {
    with_softwire(|bed| {
        let whole = Frame6 {
            dst_mac: WAN_MAC,
            src_mac: GATEWAY_MAC,
            payload: packet(&udp_in()),
            ..Frame6::new(AFTR, B4, Upper::Other(4))
        };
        let pieces = whole.fragments(7, 24);
        assert!(pieces.len() > 1);
        // RFC 2473 section 4.1.1: a limit of encapsulations.
        let limited = whole.clone().with(60, &[0, 4, 1, 4, 1, 0, 0]);
        for frame in pieces.iter().chain([&limited]) {
            let seen = into_wan(bed, &frame.bytes())?;
            seen.is(PASS, Delta::counted(&["pass_softwire"]));
            assert_eq!(seen.bytes, frame.bytes());
        }
        Ok(())
    })
}

/// What the daemon and its kernel send themselves leaves without a session; errors about it come in (RFC 2473 section 8).
#[test]
fn the_daemons_part_passes_the_filter_of_ipv6() -> Result<()> {
    with_softwire(|bed| {
        let whole = Frame6 {
            payload: packet(&udp_out()),
            ..Frame6::new(B4, AFTR, Upper::Other(4))
        };
        for frame in whole.fragments(7, 24).iter().chain([&whole]) {
            let seen = bed.tc_raw(names::TC_EGRESS, &frame.bytes(), 0)?;
            seen.is(TC_NEXT, Delta::counted(&["host_out"]));
        }
        let error = Frame6 {
            dst_mac: WAN_MAC,
            ..Frame6::error(STRANGER, B4, 2, &whole)
        };
        into_wan(bed, &error.bytes())?.is(PASS, Delta::counted(&["pass_host"]));
        Ok(())
    })
}

/// RFC 6040 section 4.2.
#[test]
fn congestion_outside_is_told_inside() -> Result<()> {
    with_softwire(|bed| {
        for (inside, outside, told) in [
            (0x28, 0x28, Some(0x28)),
            (0x2a, 0x2b, Some(0x2b)),
            (0x29, 0x03, Some(0x2b)),
            (0x2b, 0x28, Some(0x2b)),
            (0x28, 0x2b, None),
        ] {
            let mut frame = udp_in();
            frame.tos = inside;
            let macs = (WAN_MAC, GATEWAY_MAC);
            let seen = into_wan(bed, &wrapped(macs, (AFTR, B4), outside, &packet(&frame)))?;
            match told {
                Some(tos) => {
                    seen.is(REDIRECT, Delta::counted(&["softwire_in"]));
                    frame.tos = tos;
                    assert_eq!(seen.bytes, gone_in(&frame));
                }
                None => drop(seen.is(DROP, Delta::counted(&["drop_softwire_inner"]))),
            }
        }
        Ok(())
    })
}

/// A SYN with a maximum segment size of so many octets; the options are at the end of the header.
fn syn(frame: &Frame, flags: u8, size: u16) -> Vec<u8> {
    let mut with = frame.clone();
    if let Transport::Tcp {
        flags: of_frame, ..
    } = &mut with.transport
    {
        *of_frame = flags;
    }
    with.payload = [&[2, 4][..], &size.to_be_bytes()].concat();
    let mut bytes = with.bytes();
    let tcp = ETHERNET + 20;
    // The payload becomes the option: a header of 24 octets.
    bytes[tcp + 12] = 6 << 4;
    bytes[tcp + 16..tcp + 18].fill(0);
    let len = u16::try_from(bytes.len() - tcp).expect("fits");
    let mut covered = bytes[ETHERNET + 12..ETHERNET + 20].to_vec();
    covered.extend([0, 6]);
    covered.extend(len.to_be_bytes());
    covered.extend(&bytes[tcp..]);
    let sum = !iwf_tests::packet::sum(&covered);
    bytes[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn a_syn_announces_what_fits_the_softwire_either_way() -> Result<()> {
    with_softwire(|bed| {
        bed.reconfigure(|config| config.mss = 1420)?;
        let out = lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), SYN));
        let mut hop = out.clone();
        hop.ttl -= 1;
        for (announced, passes) in [(1460, 1420), (1421, 1420), (1420, 1420), (536, 536)] {
            let seen = bed.raw(names::XDP_LAN, &syn(&out, SYN, announced), bed.lan)?;
            assert_eq!(seen.action, REDIRECT);
            let inside = syn(&hop, SYN, passes).split_off(ETHERNET);
            let whole = wrapped((GATEWAY_MAC, WAN_MAC), (B4, AFTR), out.tos, &inside);
            assert_eq!(seen.bytes, whole, "{announced}");

            let back = Frame::tcp((REMOTE, 80), (HOST, 5000), SYN | ACK);
            let inside = syn(&back, SYN | ACK, announced).split_off(ETHERNET);
            let macs = (WAN_MAC, GATEWAY_MAC);
            let seen = into_wan(bed, &wrapped(macs, (AFTR, B4), back.tos, &inside))?;
            assert_eq!(seen.action, REDIRECT);
            let mut hop = back.clone();
            (hop.dst_mac, hop.src_mac, hop.ttl) = (HOST_MAC, BRIDGE_MAC, 63);
            assert_eq!(seen.bytes, syn(&hop, SYN | ACK, passes), "{announced}");
        }
        Ok(())
    })
}

/// The way is asked for again when the network changes, and once a second.
#[test]
fn another_way_to_the_aftr_is_taken() -> Result<()> {
    with_softwire(|bed| {
        bed.lan_in(&udp_out())?.is(REDIRECT, first("softwire_out"));
        bed.ns
            .ip("neigh replace 2a0c:9::af dev wan0 lladdr 02:00:00:00:02:77 nud permanent")?;
        bed.reconfigure(|config| {
            config.next_hop_generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        })?;
        let seen = bed.lan_in(&udp_out())?;
        seen.is(REDIRECT, first("softwire_out"));
        assert_eq!(seen.bytes[..6], [2, 0, 0, 0, 2, 0x77]);
        // No configuration says so: it is only late. Time to wait for is none of a test, so that a second has no ticks.
        bed.ns.ip("link set wan0 mtu 1300")?;
        bed.reconfigure(|config| config.hz = 0)?;
        let mut frame = udp_out();
        frame.payload = vec![7; 1300];
        bed.lan_in(&frame)?
            .is_untouched(PASS, first("pass_too_big"), &frame);
        // The neighbour is gone: the stack asks for it.
        bed.ns.ip("neigh del 2a0c:9::af dev wan0")?;
        bed.lan_in(&udp_out())?.is_untouched(
            PASS,
            Delta::counted(&["pass_unresolved"]),
            &udp_out(),
        );
        Ok(())
    })
}

/// A native IPv4 that has gone leaves sessions behind, which wait for it. Their hosts need not.
#[test]
fn a_flow_that_was_translated_goes_on_through_the_softwire() -> Result<()> {
    with_bed(|bed| {
        bed.lan_in(&udp_out())?;
        furnish(bed)?;
        let seen = bed.lan_in(&udp_out())?;
        seen.is(REDIRECT, first("softwire_out"));
        assert_eq!(seen.bytes, gone_out(&udp_out()));
        Ok(())
    })
}

/// tc leaves all of it to the stack; the checks are the same.
#[test]
fn tc_judges_and_hands_up() -> Result<()> {
    with_both(|bed| {
        furnish(bed)?;
        if bed.through == Through::Xdp {
            return Ok(());
        }
        let frame = udp_out();
        bed.lan_in(&frame)?
            .is_untouched(PASS, Delta::counted(&["pass_no_redirect"]), &frame);
        bed.lan_in(&lan_frame(Frame::udp(([10, 1, 1, 1], 5000), (REMOTE, 53))))?
            .is(DROP, Delta::counted(&["drop_spoofed_lan"]));
        let bytes = of_aftr(&udp_in());
        let seen = bed.tc_raw(names::TC_INGRESS, &bytes, bed.wan)?;
        seen.is(TC_NEXT, Delta::counted(&["pass_no_redirect"]));
        assert_eq!(seen.bytes, bytes);
        let stranger = wrapped(
            (WAN_MAC, GATEWAY_MAC),
            (STRANGER, B4),
            0,
            &packet(&udp_in()),
        );
        bed.tc_raw(names::TC_INGRESS, &stranger, bed.wan)?
            .is(TC_DROP, Delta::counted(&["drop_softwire_stranger"]));
        Ok(())
    })
}

/// Nothing private leaves beside the softwire.
#[test]
fn the_wan_takes_no_ipv4_of_the_lan() -> Result<()> {
    with_softwire(|bed| {
        bed.egress(&wan_frame(udp_out()), true)?
            .is(TC_DROP, Delta::counted(&["drop_private_source"]));
        Ok(())
    })
}
