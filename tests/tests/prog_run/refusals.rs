//! What the daemon hears of refused packets, so that it may tell their senders (RFC 5382 REQ-4, RFC 5508 REQ-8).

use anyhow::Result;
use iwf_common::config::ConfigFlags;
use iwf_common::limits::{REFUSED_OCTETS, REFUSED_PER_SECOND};
use iwf_common::nat::{Filter, MappingValue, mask};
use iwf_common::port::PortRange;
use iwf_common::refusal::Side;
use iwf_tests::packet::{ETHERNET, Frame};
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, Bed, DROP, HOST, REDIRECT, REMOTE, REMOTE2, RST, SYN, TC_DROP, TC_NEXT, TCP, UDP, WAN,
    explicit, lan_frame, wan_frame, with_bed, with_both, with_sized_bed,
};

/// The owner wants answers to both sides.
fn answer(bed: &mut Bed) -> Result<()> {
    bed.reconfigure(|config| config.flags |= ConfigFlags::ANSWER_WAN | ConfigFlags::ANSWER_LAN)
}

fn packet(frame: &Frame) -> Vec<u8> {
    frame.bytes().split_off(ETHERNET)
}

/// Dropped, and the daemon has a copy.
#[track_caller]
fn is_noted(bed: &mut Bed, frame: &Frame, side: Side, reason: &'static str) -> Result<()> {
    let seen = match side {
        Side::Lan => bed.lan_in(frame)?,
        Side::Wan => bed.wan_in(frame)?,
        Side::Forwarded => bed.egress(frame, true)?,
    };
    let drop = if side == Side::Forwarded {
        TC_DROP
    } else {
        DROP
    };
    seen.is_untouched(drop, Delta::counted(&[reason, "refusals_noted"]), frame);
    assert_eq!(bed.refused()?, Some((side, packet(frame))));
    assert_eq!(bed.refused()?, None);
    Ok(())
}

/// Dropped, and nobody hears of it.
#[track_caller]
fn is_silent(bed: &mut Bed, frame: &Frame, reason: &'static str) -> Result<()> {
    bed.wan_in(frame)?
        .is_untouched(DROP, Delta::counted(&[reason]), frame);
    assert_eq!(bed.refused()?, None);
    Ok(())
}

/// NAT-20: whatever it is that does not let the SYN in.
#[test]
fn an_unsolicited_syn_is_noted() -> Result<()> {
    with_both(|bed| {
        answer(bed)?;
        let syn = |port| wan_frame(Frame::tcp((REMOTE, 80), (WAN, port), SYN));
        is_noted(bed, &syn(5000), Side::Wan, "drop_unsolicited")?;
        // A dynamic mapping for others, one that was asked for and admits others, and one that is over.
        bed.lan_in(&lan_frame(Frame::tcp((HOST, 5000), (REMOTE2, 80), SYN)))?;
        is_noted(bed, &syn(5000), Side::Wan, "drop_unsolicited")?;
        let others = MappingValue {
            remote_addr: REMOTE2,
            remote_mask: mask(32),
            ..explicit((HOST, 5001), 0)
        };
        bed.map_with(TCP, 40000, others)?;
        is_noted(bed, &syn(40000), Side::Wan, "drop_filtered")?;
        let now = bed.now()?;
        bed.map(TCP, (HOST, 5002), 40002, now.wrapping_sub(1))?;
        is_noted(bed, &syn(40002), Side::Wan, "drop_mapping_expired")
    })
}

#[test]
fn nothing_else_from_outside_is_noted() -> Result<()> {
    with_both(|bed| {
        answer(bed)?;
        for frame in [
            Frame::udp((REMOTE, 53), (WAN, 5000)),
            Frame::icmp(REMOTE, WAN, 0, 5000),
            Frame::tcp((REMOTE, 80), (WAN, 5000), SYN | ACK),
            Frame::tcp((REMOTE, 80), (WAN, 5000), RST),
            Frame::tcp((REMOTE, 80), (WAN, 5000), ACK),
            // Past the NAT.
            Frame::tcp((REMOTE, 80), (HOST, 5000), SYN),
        ] {
            is_silent(bed, &wan_frame(frame), "drop_unsolicited")?;
        }
        let spoofed = wan_frame(Frame::tcp((HOST, 80), (WAN, 5000), SYN));
        is_silent(bed, &spoofed, "drop_spoofed")
    })
}

#[test]
fn nothing_is_noted_if_nobody_is_to_be_told() -> Result<()> {
    with_both(|bed| {
        let syn = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), SYN));
        is_silent(bed, &syn, "drop_unsolicited")?;
        bed.reconfigure(|config| config.flags |= ConfigFlags::ANSWER_LAN)?;
        is_silent(bed, &syn, "drop_unsolicited")?;
        bed.reconfigure(|config| {
            config.flags ^= ConfigFlags::ANSWER_LAN | ConfigFlags::ANSWER_WAN
        })?;
        is_noted(bed, &syn, Side::Wan, "drop_unsolicited")?;
        bed.reconfigure(|config| config.host_mappings = 0)?;
        let flow = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        bed.lan_in(&flow)?
            .is_untouched(DROP, Delta::counted(&["drop_host_mappings"]), &flow);
        assert_eq!(bed.refused()?, None);
        Ok(())
    })
}

/// NAT-31.
#[test]
fn a_flow_that_there_is_no_room_for_is_noted() -> Result<()> {
    with_both(|bed| {
        answer(bed)?;
        let flow = |port| lan_frame(Frame::udp((HOST, port), (REMOTE, 53)));
        bed.lan_in(&flow(20000))?;
        bed.reconfigure(|config| {
            config.ports = PortRange {
                min: 20000,
                max: 20000,
                hole_min: 1,
                hole_max: 0,
            };
        })?;
        is_noted(bed, &flow(5000), Side::Lan, "drop_ports_exhausted")?;
        is_noted(bed, &flow(5000), Side::Forwarded, "drop_ports_exhausted")?;
        bed.reconfigure(|config| config.host_mappings = 1)?;
        is_noted(bed, &flow(5000), Side::Lan, "drop_host_mappings")?;
        bed.reconfigure(|config| config.host_sessions = 1)?;
        let other = lan_frame(Frame::udp((HOST, 20000), (REMOTE2, 53)));
        is_noted(bed, &other, Side::Lan, "drop_host_sessions")?;
        // What goes on is nobody's business, nor is what is wrong with a packet.
        bed.lan_in(&flow(20000))?
            .is(REDIRECT, Delta::counted(&["forwarded_out"]));
        let stray = lan_frame(Frame::tcp((HOST, 20000), (REMOTE, 80), ACK));
        bed.lan_in(&stray)?
            .is_untouched(DROP, Delta::counted(&["drop_tcp_stray"]), &stray);
        assert_eq!(bed.refused()?, None);
        Ok(())
    })
}

#[test]
fn full_tables_are_noted() -> Result<()> {
    with_sized_bed(64, 1, |bed| {
        answer(bed)?;
        let flow = |port| lan_frame(Frame::udp((HOST, port), (REMOTE, 53)));
        bed.lan_in(&flow(6000))?;
        is_noted(bed, &flow(6001), Side::Lan, "drop_mappings_full")
    })
}

/// A remote host is not told how much room there is.
#[test]
fn what_a_mapping_lets_in_and_there_is_no_room_for_is_not_noted() -> Result<()> {
    with_both(|bed| {
        answer(bed)?;
        bed.map(TCP, (HOST, 5000), 40000, 0)?;
        bed.reconfigure(|config| config.host_sessions = 0)?;
        let syn = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 40000), SYN));
        is_silent(bed, &syn, "drop_host_sessions")
    })
}

/// The router's own sockets have errors of their own.
#[test]
fn a_flow_of_the_router_itself_is_not_noted() -> Result<()> {
    with_bed(|bed| {
        answer(bed)?;
        bed.map(UDP, (HOST, 5000), 20000, 0)?;
        bed.reconfigure(|config| {
            config.ports = PortRange {
                min: 20000,
                max: 20000,
                hole_min: 1,
                hole_max: 0,
            };
        })?;
        let own = Frame::udp((WAN, 20000), (REMOTE, 53));
        bed.egress(&own, false)?.is_untouched(
            TC_DROP,
            Delta::counted(&["drop_ports_exhausted"]),
            &own,
        );
        assert_eq!(bed.refused()?, None);
        Ok(())
    })
}

#[test]
fn a_large_packet_is_noted_by_its_head() -> Result<()> {
    with_both(|bed| {
        answer(bed)?;
        bed.reconfigure(|config| config.host_mappings = 0)?;
        for len in [0, 1, 2, 3, 1000, 1400] {
            let mut flow = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
            flow.payload = (0..len).map(|at: u32| at as u8).collect();
            bed.lan_in(&flow)?;
            let mut expected = packet(&flow);
            expected.truncate(REFUSED_OCTETS);
            assert_eq!(bed.refused()?, Some((Side::Lan, expected)), "{len}");
        }
        Ok(())
    })
}

/// A flood costs the daemon no more than that, and the LAN nothing of its own share.
#[test]
fn a_flood_of_syns_is_noted_within_its_budget() -> Result<()> {
    with_bed(|bed| {
        answer(bed)?;
        bed.reconfigure(|config| (config.host_mappings, config.hz) = (0, u32::MAX))?;
        let syn = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), SYN));
        let most = REFUSED_PER_SECOND as usize;
        let mut noted = 0;
        // A run may be on another CPU than the one before.
        let budget = std::thread::available_parallelism()?.get() * most;
        for _ in 0..=budget {
            bed.wan_in(&syn)?;
            noted += usize::from(bed.refused()?.is_some());
        }
        assert!(noted >= most && noted <= budget, "{noted}");
        let counters = bed.plane.state()?.counters;
        assert_eq!(counters["refusals_noted"], noted as u64);
        assert_eq!(counters["refusals_lost"], (budget + 1 - noted) as u64);
        let flow = lan_frame(Frame::udp((HOST, 5000), (REMOTE, 53)));
        is_noted(bed, &flow, Side::Lan, "drop_host_mappings")
    })
}

/// What the daemon answers leaves by the program on WAN egress as any error of the router's own: it quotes no session,
/// or a mapping that lets others in.
#[test]
fn the_answer_leaves_the_wan_as_it_is() -> Result<()> {
    with_bed(|bed| {
        let syn = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), SYN));
        let error = Frame::icmp_error(WAN, REMOTE, (3, 3), packet(&syn));
        let passed = Delta::counted(&["egress_untouched"]);
        bed.egress(&error, false)?
            .is_untouched(TC_NEXT, passed.clone(), &error);
        bed.lan_in(&lan_frame(Frame::tcp((HOST, 5000), (REMOTE2, 80), SYN)))?;
        bed.egress(&error, false)?
            .is_untouched(TC_NEXT, passed, &error);
        Ok(())
    })
}

/// The SYN that comes first belongs to a connection that the host opens as well, a moment later: there is a session
/// when the daemon looks (RFC 5382 REQ-2 and REQ-4).
#[test]
fn a_simultaneous_open_has_a_session_for_the_refused_syn() -> Result<()> {
    with_both(|bed| {
        answer(bed)?;
        bed.reconfigure(|config| config.filter = Filter::AddressAndPortDependent as u8)?;
        let syn = wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), SYN));
        is_noted(bed, &syn, Side::Wan, "drop_unsolicited")?;
        bed.lan_in(&lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), SYN)))?;
        let state = bed.plane.state()?;
        let arrives = |key: &iwf_common::flow::SessionKey| {
            (key.src, key.dst) == (REMOTE, WAN) && key.dst_port == 5000u16.to_be_bytes()
        };
        assert!(state.sessions.keys().any(arrives));
        Ok(())
    })
}
