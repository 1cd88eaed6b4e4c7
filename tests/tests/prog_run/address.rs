//! External addresses that come and go, and several of them at a time.
//!
//! Read before editing: RFC 4787 REQ-2, RFC 7857 section 4.

use anyhow::Result;
use iwf_common::flow::SessionFlags;
use iwf_common::host::{HostKey, paired};
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, Bed, DROP, HOST, HOST2, PASS, REDIRECT, REMOTE, SYN, TC_DROP, TC_NEXT, TCP, UDP, WAN,
    explicit, lan_frame, translated_in, translated_out, wan_frame, with_bed, with_both,
};

/// Another address of ours, for which the same gateway will do.
const OTHER: [u8; 4] = [100, 64, 0, 77];

/// What the daemon does when the address changes: one write, with a new generation.
fn move_to(bed: &mut Bed, addr: [u8; 4]) -> Result<()> {
    bed.reconfigure(|config| {
        config.external_addr = addr;
        config.next_hop_generation += 1;
    })
}

fn pool_of(bed: &mut Bed, pool: &[[u8; 4]]) -> Result<()> {
    bed.reconfigure(|config| {
        config.pool = [[0; 4]; 7];
        config.pool[..pool.len()].copy_from_slice(pool);
        config.next_hop_generation += 1;
    })
}

fn gone() -> Delta {
    Delta::counted(&["drop_address_gone"])
}

/// A flow of each protocol, and its answer.
fn flows() -> [(Frame, Frame); 3] {
    [
        (
            Frame::udp((HOST, 5000), (REMOTE, 53)),
            Frame::udp((REMOTE, 53), (WAN, 5000)),
        ),
        (
            Frame::tcp((HOST, 5000), (REMOTE, 80), SYN),
            Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | ACK),
        ),
        (
            Frame::icmp(HOST, REMOTE, 8, 5000),
            Frame::icmp(REMOTE, WAN, 0, 5000),
        ),
    ]
    .map(|(out, back)| (lan_frame(out), wan_frame(back)))
}

fn open(bed: &mut Bed, out: &Frame, back: &Frame) -> Result<()> {
    assert_eq!(bed.lan_in(out)?.action, REDIRECT);
    assert_eq!(bed.wan_in(back)?.action, REDIRECT);
    Ok(())
}

/// landscape 214, einat 34: from the one write on, whoever has swept what by then, in both directions and on every way
/// that a packet can take.
#[test]
fn no_packet_uses_an_address_that_is_gone() -> Result<()> {
    for (out, back) in flows() {
        with_both(|bed| {
            open(bed, &out, &back)?;
            move_to(bed, OTHER)?;
            bed.lan_in(&out)?.is_untouched(DROP, gone(), &out);
            bed.wan_in(&back)?.is_untouched(DROP, gone(), &back);
            // The same packet by way of the stack, and one that would be the stack's to answer.
            let forwarded = bed.egress(&out, true)?;
            forwarded.is_untouched(TC_DROP, gone(), &out);
            let last = Frame {
                ttl: 1,
                ..back.clone()
            };
            bed.wan_in(&last)?.is_untouched(DROP, gone(), &last);
            // And again: nothing was remembered of it.
            bed.lan_in(&out)?.is_untouched(DROP, gone(), &out);

            let left = bed.keep_ours()?;
            assert_eq!(left, (0, 0));
            let seen = bed.lan_in(&out)?;
            assert_eq!(seen.action, REDIRECT);
            let mut moved = translated_out(&out, 5000);
            moved.src = OTHER;
            assert_eq!(seen.frame(), moved);
            bed.wan_in(&back)?.is_untouched(
                PASS,
                Delta::counted(&["pass_not_external_addr"]),
                &back,
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// The router's own flows are asked on every packet: they have no next hop to ask for.
#[test]
fn the_routers_own_flows_end_as_well() -> Result<()> {
    with_bed(|bed| {
        let (out, back) = (
            Frame::udp((WAN, 6000), (REMOTE, 53)),
            wan_frame(Frame::udp((REMOTE, 53), (WAN, 6000))),
        );
        bed.egress(&out, false)?;
        let first = Delta::counted(&["pass_host"]).sessions_changed(1);
        bed.wan_in(&back)?.is(PASS, first);
        move_to(bed, OTHER)?;
        bed.wan_in(&back)?.is_untouched(DROP, gone(), &back);
        bed.egress(&out, false)?.is_untouched(TC_DROP, gone(), &out);
        Ok(())
    })
}

/// Two LAN hosts meet at addresses of ours: each of the two must still be one.
#[test]
fn hairpins_need_both_addresses() -> Result<()> {
    let turn = lan_frame(Frame::udp((HOST, 6000), (OTHER, 40000)));
    for (first, pool, goes_on) in [
        (WAN, vec![OTHER], true),
        (OTHER, vec![WAN], true),
        (WAN, vec![], false),
        (OTHER, vec![], false),
    ] {
        with_bed(|bed| {
            pool_of(bed, &[OTHER])?;
            bed.plane.set_paired(HOST, WAN)?;
            bed.map_at(UDP, (OTHER, 40000), explicit((HOST2, 5000), 0))?;
            bed.ns
                .ip("neigh add 192.168.1.11 dev br0 lladdr 02:00:00:00:01:0b nud permanent")?;
            let seen = bed.lan_in(&turn)?;
            assert_eq!((seen.frame().src, seen.frame().dst), (WAN, HOST2));

            pool_of(bed, &pool)?;
            bed.reconfigure(|config| config.external_addr = first)?;
            let seen = bed.lan_in(&turn)?;
            if goes_on {
                assert_eq!((seen.frame().src, seen.frame().dst), (WAN, HOST2));
            } else {
                seen.is_untouched(DROP, gone(), &turn);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What is reported about a packet shows no address that is gone either.
#[test]
fn errors_go_with_their_session() -> Result<()> {
    let (out, back) = &flows()[0];
    with_bed(|bed| {
        open(bed, out, back)?;
        let inside = translated_in(back, (HOST, 5000));
        let report = lan_frame(Frame::icmp_error(HOST, REMOTE, (3, 3), inside.quoted(64)));
        move_to(bed, OTHER)?;
        bed.lan_in(&report)?.is_untouched(DROP, gone(), &report);
        bed.egress(&report, true)?
            .is_untouched(TC_DROP, gone(), &report);
        let outside = translated_out(out, 5000);
        let report = wan_frame(Frame::icmp_error(REMOTE, WAN, (3, 3), outside.quoted(64)));
        let passed = Delta::counted(&["pass_not_external_addr"]);
        bed.wan_in(&report)?.is_untouched(PASS, passed, &report);
        Ok(())
    })
}

/// A lease that ends and is given out again: nothing leaves in between, and the flows go on.
#[test]
fn sessions_wait_for_the_same_address() -> Result<()> {
    for (out, back) in flows() {
        with_bed(|bed| {
            open(bed, &out, &back)?;
            move_to(bed, [0; 4])?;
            bed.lan_in(&out)?.is_untouched(DROP, gone(), &out);
            bed.wan_in(&back)?.is_untouched(DROP, gone(), &back);
            let swept = bed.sweep()?;
            assert_eq!((swept.sessions_left, swept.mappings_left), (2, 1));

            move_to(bed, WAN)?;
            let goes_on = |done| Delta::counted(&[done, "next_hops_refreshed"]).sessions_changed(1);
            let seen = bed.lan_in(&out)?;
            seen.is(REDIRECT, goes_on("forwarded_out"));
            assert_eq!(seen.frame(), translated_out(&out, 5000));
            let seen = bed.wan_in(&back)?;
            seen.is(REDIRECT, goes_on("forwarded_in"));
            assert_eq!(seen.frame(), translated_in(&back, (HOST, 5000)));
            Ok(())
        })?;
    }
    Ok(())
}

/// The daemon may die between the write and the end of its sweep: the next one, whoever's, ends what is left.
#[test]
fn ageing_ends_what_stands_on_an_address_that_is_gone() -> Result<()> {
    with_bed(|bed| {
        bed.map(TCP, (HOST, 7000), 40000, 0)?;
        for (out, back) in flows() {
            open(bed, &out, &back)?;
        }
        move_to(bed, OTHER)?;
        bed.lan_in(&lan_frame(Frame::udp((HOST2, 5000), (REMOTE, 53))))?;
        let swept = bed.sweep()?;
        assert_eq!((swept.sessions_left, swept.mappings_left), (2, 1));
        let state = bed.plane.state()?;
        let (key, _) = state.external.first_key_value().expect("the new mapping");
        assert_eq!((state.external.len(), state.internal.len()), (1, 1));
        assert_eq!(key.addr, OTHER);
        Ok(())
    })
}

/// A host of the Internet has given us its address, so to say: what was sent there turns back by now.
#[test]
fn a_remote_address_may_become_ours() -> Result<()> {
    let (out, back) = &flows()[0];
    with_bed(|bed| {
        open(bed, out, back)?;
        pool_of(bed, &[REMOTE])?;
        bed.lan_in(out)?.is_untouched(DROP, gone(), out);
        bed.wan_in(back)?.is_untouched(DROP, gone(), back);
        bed.keep_ours()?;
        let ended = bed.plane.state()?.sessions;
        assert!(ended.values().all(|s| s.flags & SessionFlags::ENDED != 0));
        bed.lan_in(out)?.is(PASS, Delta::counted(&["pass_hairpin"]));
        Ok(())
    })
}

/// Which of two addresses a host has, and one that has the other.
fn two_hosts() -> ([u8; 4], [u8; 4]) {
    let mut pool = [[0; 4]; 7];
    pool[0] = OTHER;
    let with = |addr| {
        let hosts = (10..=99).map(|last| [192, 168, 1, last]);
        let mut with = hosts.filter(|host| paired(&HostKey::v4(*host), WAN, &pool) == addr);
        with.next().expect("a host")
    };
    (with(WAN), with(OTHER))
}

/// RFC 4787 REQ-2: whatever a host sends, it is the same address.
#[test]
fn a_host_has_one_address_of_the_pool() -> Result<()> {
    with_both(|bed| {
        pool_of(bed, &[OTHER])?;
        let (first, second) = two_hosts();
        for (host, addr) in [(first, WAN), (second, OTHER)] {
            for port in [5000, 5001, 600] {
                for frame in [
                    Frame::udp((host, port), (REMOTE, 53)),
                    Frame::tcp((host, port), (REMOTE, 80), SYN),
                    Frame::icmp(host, REMOTE, 8, port),
                ] {
                    let frame = lan_frame(frame);
                    let seen = bed.lan_in(&frame)?;
                    let opened = ["forwarded_out", "mappings_created", "sessions_created"];
                    seen.is(REDIRECT, Delta::counted(&opened).sessions(2).mappings(1));
                    let mut out = translated_out(&frame, port);
                    out.src = addr;
                    assert_eq!(seen.frame(), out);
                }
            }
        }
        // Both have all ports to themselves, and answers reach the right one.
        for (host, addr) in [(first, WAN), (second, OTHER)] {
            let back = wan_frame(Frame::udp((REMOTE, 53), (addr, 5000)));
            let seen = bed.wan_in(&back)?;
            assert_eq!(seen.frame().dst, host);
        }
        Ok(())
    })
}

/// What the stack forwards has the same address.
#[test]
fn the_stacks_packets_have_the_hosts_address() -> Result<()> {
    with_bed(|bed| {
        pool_of(bed, &[OTHER])?;
        let (first, second) = two_hosts();
        for (host, addr) in [(first, WAN), (second, OTHER)] {
            let seen = bed.egress(&Frame::udp((host, 5000), (REMOTE, 53)), true)?;
            assert_eq!((seen.action, seen.frame().src), (TC_NEXT, addr));
        }
        // The router itself may send from each of them.
        for addr in [WAN, OTHER] {
            let own = Frame::udp((addr, 7000), (REMOTE, 53));
            let opened = Delta::counted(&["host_out", "mappings_created", "sessions_created"]);
            bed.egress(&own, false)?
                .is_untouched(TC_NEXT, opened.sessions(2).mappings(1), &own);
            let answer = wan_frame(Frame::udp((REMOTE, 53), (addr, 7000)));
            bed.wan_in(&answer)?.is_untouched(
                PASS,
                Delta::counted(&["pass_host"]).sessions_changed(1),
                &answer,
            );
        }
        Ok(())
    })
}

/// RFC 7857 section 4: a paired address without a port is no reason to use another one.
#[test]
fn a_used_up_address_refuses_the_new_flow() -> Result<()> {
    with_bed(|bed| {
        pool_of(bed, &[OTHER])?;
        bed.reconfigure(|config| (config.ports.min, config.ports.max) = (20000, 20001))?;
        let (first, second) = two_hosts();
        let frame = |host, port| lan_frame(Frame::udp((host, port), (REMOTE, 53)));
        for port in [20000, 20001] {
            assert_eq!(bed.lan_in(&frame(first, port))?.frame().src, WAN);
        }
        let third = frame(first, 20002);
        bed.lan_in(&third)?
            .is_untouched(DROP, Delta::counted(&["drop_ports_exhausted"]), &third);
        assert_eq!(bed.lan_in(&frame(second, 20000))?.frame().src, OTHER);
        Ok(())
    })
}

/// A host with explicit mappings uses their address for all it sends.
#[test]
fn explicit_mappings_decide_for_their_host() -> Result<()> {
    with_bed(|bed| {
        pool_of(bed, &[OTHER])?;
        let (first, _) = two_hosts();
        bed.plane.set_paired(first, OTHER)?;
        let frame = lan_frame(Frame::udp((first, 5000), (REMOTE, 53)));
        assert_eq!(bed.lan_in(&frame)?.frame().src, OTHER);
        // Not to an address that is not ours any more.
        bed.plane.set_paired(first, [100, 64, 0, 99])?;
        let frame = lan_frame(Frame::udp((first, 5001), (REMOTE, 53)));
        assert_eq!(bed.lan_in(&frame)?.frame().src, WAN);
        Ok(())
    })
}

/// Unasked packets come in by every address that has a mapping for them, and by no other.
#[test]
fn mappings_let_in_by_their_own_address() -> Result<()> {
    with_both(|bed| {
        pool_of(bed, &[OTHER])?;
        bed.map_at(UDP, (OTHER, 40000), explicit((HOST, 5000), 0))?;
        let to = |addr| wan_frame(Frame::udp((REMOTE, 9), (addr, 40000)));
        let seen = bed.wan_in(&to(OTHER))?;
        let opened = Delta::counted(&["forwarded_in", "next_hops_refreshed", "sessions_created"]);
        seen.is(REDIRECT, opened.sessions(2));
        assert_eq!(seen.frame(), translated_in(&to(OTHER), (HOST, 5000)));
        let stranger = to(WAN);
        bed.wan_in(&stranger)?
            .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &stranger);
        // The answer leaves by the address that it was asked at.
        let answer = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 9)));
        assert_eq!(bed.lan_in(&answer)?.frame().src, OTHER);
        // Nobody outside has an address of ours.
        for ours in [WAN, OTHER] {
            let fake = wan_frame(Frame::udp((ours, 9), (OTHER, 40000)));
            bed.wan_in(&fake)?
                .is_untouched(DROP, Delta::counted(&["drop_spoofed"]), &fake);
        }
        Ok(())
    })
}

/// RFC 4787 REQ-7: the provider gives us an address that is one of the LAN's prefix. All but that address goes on.
#[test]
fn the_external_address_may_be_in_the_lans_prefix() -> Result<()> {
    const AMONG: [u8; 4] = [192, 168, 1, 200];
    with_both(|bed| {
        move_to(bed, AMONG)?;
        let out = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        let seen = bed.lan_in(&out)?;
        assert_eq!((seen.action, seen.frame().src), (REDIRECT, AMONG));
        let back = wan_frame(Frame::udp((REMOTE, 53), (AMONG, 5000)));
        assert_eq!(bed.wan_in(&back)?.frame().dst, HOST);
        bed.map_at(TCP, (AMONG, 8080), explicit((HOST, 80), 0))?;
        let unasked = wan_frame(Frame::tcp((REMOTE, 9), (AMONG, 8080), SYN));
        let seen = bed.wan_in(&unasked)?;
        assert_eq!((seen.action, seen.frame().dst), (REDIRECT, HOST));
        // For the router itself, and from it.
        let ping = wan_frame(Frame::icmp(REMOTE, AMONG, 8, 1));
        bed.wan_in(&ping)?
            .is_untouched(PASS, Delta::counted(&["pass_echo_request"]), &ping);
        let pong = Frame::icmp(AMONG, REMOTE, 0, 1);
        bed.egress(&pong, false)?
            .is_untouched(TC_NEXT, Delta::counted(&["host_out"]), &pong);
        // Other addresses of the prefix are still nobody's outside.
        let fake = wan_frame(Frame::udp(([192, 168, 1, 9], 1), (AMONG, 5000)));
        bed.wan_in(&fake)?
            .is_untouched(DROP, Delta::counted(&["drop_spoofed"]), &fake);
        let inside = wan_frame(Frame::udp((REMOTE, 1), (HOST, 5000)));
        bed.wan_in(&inside)?
            .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &inside);
        Ok(())
    })
}
