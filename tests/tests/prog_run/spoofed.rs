//! Sources that do not belong where a frame comes in (RFC 2827, RFC 3704).

use anyhow::Result;
use iwf_common::config::{IfaceValue, Prefix, Role};
use iwf_common::nat::mask;
use iwf_tests::packet::{Frame, Transport, split};
use iwf_tests::prog::Delta;

use crate::bed::{
    BRIDGE_MAC, Bed, DROP, HOST, PASS, REDIRECT, REMOTE, SYN, Through, UDP, WAN, explicit,
    lan_frame, with_bed, with_both,
};

/// In no prefix, and routed to nobody but the WAN.
const STRANGER: [u8; 4] = [8, 8, 8, 8];
/// Behind a router in the LAN.
const ROUTED: [u8; 4] = [10, 9, 8, 7];
/// A host of a second LAN.
const ELSEWHERE: [u8; 4] = [192, 168, 2, 10];

/// A second LAN behind an interface of its own, and a network behind a router in the first.
fn with_two_lans(test: impl Fn(&mut Bed) -> Result<()> + Send + Sync) -> Result<()> {
    with_both(|bed| {
        for command in [
            "link add lan9 address 02:00:00:00:09:01 type veth peer name lan9p",
            "link set lan9 up",
            "link set lan9p up",
            "address add 192.168.2.1/24 dev lan9",
            "route add 10.9.8.0/24 via 192.168.1.10",
        ] {
            bed.ns.ip(command)?;
        }
        let second = bed.ns.ifindex("lan9")?;
        bed.plane.set_iface(
            second,
            IfaceValue {
                role: Role::Lan as u32,
                l3: second,
                mac: BRIDGE_MAC,
                pad: [0; 2],
            },
        )?;
        let bridge = bed.bridge;
        bed.reconfigure(|config| {
            config.lan_len = 2;
            config.lan[1] = Prefix {
                addr: [192, 168, 2, 0],
                mask: mask(24),
            };
            (config.lan_ifindex[0], config.lan_ifindex[1]) = (bridge, second);
        })?;
        test(bed)
    })
}

/// What a host could send out of the WAN: flows, and what is none.
fn kinds(src: [u8; 4]) -> Vec<Vec<u8>> {
    let error = Frame::icmp_error(
        src,
        REMOTE,
        (3, 3),
        Frame::udp((REMOTE, 1), (src, 2)).quoted(64),
    );
    let mut other = Frame::udp((src, 5000), (REMOTE, 53));
    other.transport = Transport::Other(47);
    let mut long = Frame::udp((src, 5000), (REMOTE, 53));
    long.payload = vec![7; 2000];
    let mut all: Vec<_> = [
        Frame::udp((src, 5000), (REMOTE, 53)),
        Frame::tcp((src, 5000), (REMOTE, 80), SYN),
        Frame::icmp(src, REMOTE, 8, 5000),
        Frame::icmp(src, REMOTE, 0, 5000),
        error,
        other,
    ]
    .map(|frame| lan_frame(frame).bytes())
    .into();
    // Only what comes after the first of a datagram, which has no ports.
    all.extend(split(&lan_frame(long), 1208, 9).into_iter().skip(1));
    all
}

fn into(bed: &mut Bed, bytes: &[u8], port: u32) -> Result<crate::bed::Seen> {
    match bed.through {
        Through::Xdp => bed.raw(iwf_common::names::XDP_LAN, bytes, port),
        Through::Tc => {
            let seen = bed.tc_raw(iwf_common::names::TC_LAN, bytes, port)?;
            Ok(crate::bed::as_xdp(seen))
        }
    }
}

#[test]
fn sources_that_do_not_belong_there_are_dropped() -> Result<()> {
    with_two_lans(|bed| {
        let spoofed = Delta::counted(&["drop_spoofed_lan"]);
        for src in [STRANGER, ELSEWHERE, [192, 168, 3, 1]] {
            for bytes in kinds(src) {
                let seen = into(bed, &bytes, bed.lan)?;
                seen.is(DROP, spoofed.clone());
                assert_eq!(seen.bytes, bytes);
            }
        }
        // Where it belongs, the same is a host like any other.
        let second = bed.ns.ifindex("lan9")?;
        let own = lan_frame(Frame::udp((ELSEWHERE, 5000), (REMOTE, 53))).bytes();
        assert_eq!(into(bed, &own, second)?.action, REDIRECT);
        Ok(())
    })
}

/// A second router in the LAN: what the routing table sends back to it is the stack's, as before.
#[test]
fn sources_behind_a_router_of_the_lan_pass() -> Result<()> {
    with_two_lans(|bed| {
        for bytes in kinds(ROUTED) {
            let seen = into(bed, &bytes, bed.lan)?;
            assert_eq!((seen.action, &seen.bytes), (PASS, &bytes));
            let mut expected = Delta::default();
            expected.counters.clone_from(&seen.delta.counters);
            assert_eq!(seen.delta, expected, "no table has changed");
        }
        // But not by another interface.
        let second = bed.ns.ifindex("lan9")?;
        for bytes in kinds(ROUTED) {
            into(bed, &bytes, second)?.is(DROP, Delta::counted(&["drop_spoofed_lan"]));
        }
        Ok(())
    })
}

/// Nobody is asked for his source who does not send to the WAN, or has none yet.
#[test]
fn what_is_not_for_the_wan_is_the_stacks() -> Result<()> {
    with_two_lans(|bed| {
        let router = [192, 168, 1, 1];
        for (src, dst, counter) in [
            (STRANGER, router, "pass_not_lan_source"),
            (STRANGER, HOST, "pass_not_lan_source"),
            (ELSEWHERE, router, "pass_not_lan_source"),
            ([0; 4], [255; 4], "pass_not_unicast"),
            ([0; 4], REMOTE, "pass_not_lan_source"),
            ([169, 254, 3, 4], REMOTE, "pass_not_lan_source"),
            (STRANGER, [239, 255, 255, 250], "pass_not_unicast"),
            (STRANGER, WAN, "pass_not_lan_source"),
        ] {
            let frame = lan_frame(Frame::udp((src, 68), (dst, 67)));
            bed.lan_in(&frame)?
                .is_untouched(PASS, Delta::counted(&[counter]), &frame);
        }
        // IGMP, whoever reports.
        let mut report = lan_frame(Frame::udp((STRANGER, 1), ([224, 0, 0, 22], 1)));
        report.transport = Transport::Other(2);
        let passed = Delta::counted(&["pass_other_protocol"]);
        bed.lan_in(&report)?.is_untouched(PASS, passed, &report);
        // What is bridged past the router is none of its business.
        let mut past = lan_frame(Frame::udp((STRANGER, 1), (REMOTE, 1)));
        past.dst_mac = [2, 0, 0, 0, 1, 99];
        let passed = Delta::counted(&["pass_not_our_mac"]);
        bed.lan_in(&past)?.is_untouched(PASS, passed, &past);
        Ok(())
    })
}

/// Nor does one LAN's host borrow an endpoint of the other's to turn back with.
#[test]
fn a_spoofed_source_does_not_turn_back() -> Result<()> {
    with_two_lans(|bed| {
        bed.map_at(UDP, (WAN, 40000), explicit((HOST, 5000), 0))?;
        let fake = lan_frame(Frame::udp((ELSEWHERE, 6000), (WAN, 40000)));
        bed.lan_in(&fake)?
            .is_untouched(DROP, Delta::counted(&["drop_spoofed_lan"]), &fake);
        Ok(())
    })
}

/// While there is no way to the WAN there is nothing to be spoofed either.
#[test]
fn without_a_wan_the_stack_has_the_last_word() -> Result<()> {
    with_bed(|bed| {
        bed.ns.ip("route del default")?;
        let frame = lan_frame(Frame::udp((STRANGER, 1), (REMOTE, 1)));
        let passed = Delta::counted(&["pass_not_lan_source"]);
        bed.lan_in(&frame)?.is_untouched(PASS, passed, &frame);
        Ok(())
    })
}
