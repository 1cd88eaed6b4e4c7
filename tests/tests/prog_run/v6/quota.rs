//! What one station may hold, and what a full table does to whom (RFC 6092 has no word on it; RFC 6888 REQ-4 has for
//! IPv4).

use anyhow::Result;
use iwf_common::event::{Event, EventKind};
use iwf_common::flow6::{EndpointKey6, EndpointValue6, PinholeKey, Shape};
use iwf_common::host::{HostKey, HostValue, OWN_STATION, UNKNOWN_STATION};
use iwf_common::nat::EndpointKey;
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{
    BEHIND, Bed6, DOWNSTREAM_MAC, HOST, HOST_ALIAS, HOST_MAC, OTHER, OTHER_MAC, REMOTE, REMOTE2,
    ROUTER, WAN, gone_in, in_lan, with_bed6, with_sized_bed6,
};
use crate::bed::{ACK, DROP, HZ, REDIRECT, SYN, TC_DROP, TC_NEXT};

fn flow(host: [u8; 16], port: u16) -> Frame6 {
    Frame6::udp((host, port), (REMOTE, 53))
}

/// The `n`th address that nobody has.
fn made_up(n: u16) -> [u8; 16] {
    let mut addr = in_lan(0);
    addr[8] = 0xee;
    addr[14..].copy_from_slice(&n.to_be_bytes());
    addr
}

fn refused() -> Delta {
    Delta::counted(&["drop_host_sessions"])
}

fn with_share(share: u32, test: impl FnOnce(&mut Bed6) -> Result<()> + Send) -> Result<()> {
    with_bed6(|bed| {
        bed.reconfigure(|config| config.host_sessions6 = share)?;
        test(bed)
    })
}

#[test]
fn a_station_gets_no_more_than_its_share_whatever_addresses_it_has() -> Result<()> {
    with_share(3, |bed| {
        for frame in [flow(HOST, 1), flow(HOST, 2), flow(HOST_ALIAS, 1)] {
            assert_eq!(bed.lan_in(&frame)?.action, REDIRECT);
        }
        assert_eq!(bed.counted(HOST_MAC)?, 3);
        for host in [HOST, HOST_ALIAS] {
            bed.lan_in(&flow(host, 9))?.is(DROP, refused());
            // Nor by way of the stack.
            bed.egress(&flow(host, 9), true)?.is(TC_DROP, refused());
        }
        // Not for what it has, and not for another one.
        bed.lan_in(&flow(HOST, 1))?
            .is(REDIRECT, Delta::counted(&["forwarded6_out"]));
        for port in 0..3 {
            assert_eq!(bed.lan_in(&flow(OTHER, port))?.action, REDIRECT);
        }
        assert_eq!(bed.counted(OTHER_MAC)?, 3);
        Ok(())
    })
}

/// Nobody answers for them, so they are one station's worth together, and no host's.
#[test]
fn made_up_addresses_starve_nobody() -> Result<()> {
    with_share(8, |bed| {
        for n in 0..8 {
            let seen = bed.lan_in(&flow(made_up(n), 1))?;
            assert_eq!(seen.action, REDIRECT, "{n}");
        }
        for n in 8..100 {
            bed.lan_in(&flow(made_up(n), 1))?.is(DROP, refused());
        }
        assert_eq!(bed.counted(UNKNOWN_STATION)?, 8);
        let state = bed.plane.state()?;
        assert_eq!((state.sessions6.len(), state.endpoints6.len()), (16, 8));
        assert_eq!(bed.plane.hosts()?.len(), 1, "entries of HOSTS");
        for host in [HOST, OTHER] {
            for port in 0..8 {
                assert_eq!(bed.lan_in(&flow(host, port))?.action, REDIRECT);
            }
        }
        Ok(())
    })
}

#[test]
fn a_prefix_behind_another_router_counts_for_that_router() -> Result<()> {
    with_share(2, |bed| {
        let behind = |last: u8| {
            let mut addr = [0; 16];
            addr[..8].copy_from_slice(&BEHIND);
            addr[15] = last;
            addr
        };
        for last in 1..=2 {
            assert_eq!(bed.lan_in(&flow(behind(last), 1))?.action, REDIRECT);
        }
        bed.lan_in(&flow(behind(3), 1))?.is(DROP, refused());
        assert_eq!(bed.counted(DOWNSTREAM_MAC)?, 2);
        assert_eq!(bed.lan_in(&flow(HOST, 1))?.action, REDIRECT);
        Ok(())
    })
}

#[test]
fn what_comes_in_counts_for_the_station_it_is_for() -> Result<()> {
    with_share(2, |bed| {
        let pinhole = PinholeKey {
            internal: HOST,
            internal_port: 80u16.to_be_bytes(),
            proto: 17,
            shape: Shape::ANY_REMOTE | Shape::ANY_REMOTE_PORT,
            ..PinholeKey::default()
        };
        bed.pinhole(pinhole, 1, 0)?;
        for port in 1..=2 {
            let frame = Frame6::udp((REMOTE, port), (HOST, 80));
            assert_eq!(bed.wan_in(&frame)?.bytes, gone_in(&frame));
        }
        bed.wan_in(&Frame6::udp((REMOTE, 3), (HOST, 80)))?
            .is(DROP, refused());
        assert_eq!(bed.counted(HOST_MAC)?, 2);
        Ok(())
    })
}

#[test]
fn the_router_has_a_share_of_its_own() -> Result<()> {
    with_share(2, |bed| {
        for port in 1..=2 {
            assert_eq!(bed.egress(&flow(WAN, port), false)?.action, TC_NEXT);
        }
        bed.egress(&flow(ROUTER, 1), false)?.is(TC_DROP, refused());
        assert_eq!(bed.counted(OWN_STATION)?, 2);
        assert_eq!(bed.lan_in(&flow(HOST, 1))?.action, REDIRECT);
        Ok(())
    })
}

#[test]
fn what_ends_is_given_back_and_the_sweep_counts_again() -> Result<()> {
    with_share(3, |bed| {
        for port in 0..3 {
            bed.lan_in(&flow(HOST, port))?;
        }
        let key = HostKey::station(HOST_MAC);
        for sessions in [0, 9, u64::MAX] {
            let held = bed.plane.hosts()?[&key];
            bed.plane.set_host(key, HostValue { sessions, ..held })?;
            bed.age()?;
            assert_eq!(bed.counted(HOST_MAC)?, 3);
        }
        bed.let_pass(301 * HZ)?;
        bed.age()?;
        assert_eq!(bed.counted(HOST_MAC)?, 0);
        assert_eq!(bed.lan_in(&flow(HOST, 9))?.action, REDIRECT);
        assert_eq!(bed.counted(HOST_MAC)?, 1);
        Ok(())
    })
}

/// A flow that comes again before its ended session was removed takes its place, and counts once.
#[test]
fn a_flow_that_comes_again_counts_once() -> Result<()> {
    with_share(3, |bed| {
        bed.lan_in(&flow(HOST, 1))?;
        bed.let_pass(301 * HZ)?;
        crate::bed::sweep(&mut bed.plane)?;
        let ended = bed.plane.state()?.sessions6;
        assert_eq!(ended.len(), 2, "marked and not removed");
        bed.wan_in(&Frame6::udp((REMOTE, 53), (HOST, 1)))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        assert_eq!(bed.lan_in(&flow(HOST, 1))?.action, REDIRECT);
        assert_eq!(bed.counted(HOST_MAC)?, 1);
        bed.age()?;
        assert_eq!(bed.plane.state()?.sessions6.len(), 2);
        assert_eq!(bed.counted(HOST_MAC)?, 1);
        Ok(())
    })
}

/// The policy of a full table: the new flow is refused and counted, an established connection is never evicted for
/// a half-open one, and no half-open one either.
#[test]
fn an_established_connection_is_never_evicted_for_a_half_open_one() -> Result<()> {
    with_sized_bed6(8, |bed| {
        let remote = (REMOTE, 80);
        bed.lan_in(&Frame6::tcp((HOST, 1), remote, SYN))?;
        bed.wan_in(&Frame6::tcp(remote, (HOST, 1), SYN | ACK))?;
        bed.lan_in(&Frame6::tcp((HOST, 1), remote, ACK))?;
        for port in 2..=4 {
            let half_open = Frame6::tcp((HOST, port), remote, SYN);
            assert_eq!(bed.lan_in(&half_open)?.action, REDIRECT);
        }
        let full = Delta::counted(&["drop_sessions6_full"]);
        for port in 100..200 {
            bed.lan_in(&Frame6::tcp((OTHER, port), remote, SYN))?
                .is(DROP, full.clone());
        }
        assert_eq!(bed.counted(OTHER_MAC)?, 0, "nothing of it counts");
        bed.wan_in(&Frame6::tcp(remote, (HOST, 1), ACK))?
            .is(REDIRECT, Delta::counted(&["forwarded6_in"]));
        for port in 2..=4 {
            let answer = Frame6::tcp(remote, (HOST, port), SYN | ACK);
            assert_eq!(bed.wan_in(&answer)?.action, REDIRECT);
        }
        Ok(())
    })
}

/// Without room for its endpoint a flow goes on, and lets in only whom it has sent to.
#[test]
fn an_endpoint_without_room_is_counted_and_not_open() -> Result<()> {
    with_sized_bed6(8, |bed| {
        let now = bed.now()?;
        for n in 0..8 {
            let key = EndpointKey6 {
                addr: made_up(n),
                proto: 17,
                ..EndpointKey6::default()
            };
            bed.plane
                .set_endpoint6(key, EndpointValue6 { last_used: now })?;
        }
        bed.lan_in(&flow(HOST, 1))?.is(
            REDIRECT,
            Delta::counted(&["sessions6_created", "endpoints6_lost", "forwarded6_out"])
                .sessions6(2),
        );
        let answer = Frame6::udp((REMOTE, 53), (HOST, 1));
        assert_eq!(bed.wan_in(&answer)?.bytes, gone_in(&answer));
        bed.wan_in(&Frame6::udp((REMOTE2, 53), (HOST, 1)))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        Ok(())
    })
}

/// No room to count one more station: it is refused, those that are there go on.
#[test]
fn stations_beyond_the_table_are_refused() -> Result<()> {
    with_bed6(|bed| {
        bed.lan_in(&flow(OTHER, 1))?;
        for n in 0..iwf_common::limits::HOSTS - 1 {
            bed.plane
                .set_host(HostKey::v4(n.to_be_bytes()), HostValue::default())?;
        }
        bed.lan_in(&flow(HOST, 1))?
            .is(DROP, Delta::counted(&["drop_hosts_full"]));
        assert_eq!(bed.lan_in(&flow(OTHER, 2))?.action, REDIRECT);
        let echo = Frame6::new(OTHER, REMOTE, Upper::Other(253));
        assert_eq!(bed.lan_in(&echo)?.action, REDIRECT);
        Ok(())
    })
}

/// What the daemon is told of a refused flow: of whom, and of which station. Within the budget of all events.
#[test]
fn refused_flows_are_told() -> Result<()> {
    with_share(1, |bed| {
        let told = |bed: &mut Bed6| -> Result<Vec<Event>> {
            let mut events = bed.plane.events()?;
            for event in &mut events {
                assert_ne!(event.tick, 0);
                event.tick = 0;
            }
            Ok(events)
        };
        let event = |kind: EventKind, addr6, port: u16, station| Event {
            kind: kind as u32,
            tick: 0,
            internal: EndpointKey::new([0; 4], port.to_be_bytes(), 17),
            addr6,
            station,
            ..Event::default()
        };
        assert_eq!(bed.lan_in(&flow(HOST, 1))?.action, REDIRECT);
        assert_eq!(told(bed)?, []);
        bed.lan_in(&flow(HOST, 2))?.is(DROP, refused());
        bed.egress(&flow(HOST_ALIAS, 3), true)?
            .is(TC_DROP, refused());
        assert_eq!(
            told(bed)?,
            [(HOST, 2), (HOST_ALIAS, 3)].map(|(host, port)| event(
                EventKind::HostSessions,
                host,
                port,
                HOST_MAC
            ))
        );
        // From outside: the host it is for.
        let pinhole = PinholeKey {
            internal: HOST,
            internal_port: 80u16.to_be_bytes(),
            proto: 17,
            shape: Shape::ANY_REMOTE | Shape::ANY_REMOTE_PORT,
            ..PinholeKey::default()
        };
        bed.pinhole(pinhole, 1, 0)?;
        bed.wan_in(&Frame6::udp((REMOTE, 9), (HOST, 80)))?
            .is(DROP, refused());
        assert_eq!(
            told(bed)?,
            [event(EventKind::HostSessions, HOST, 80, HOST_MAC)]
        );
        // The router itself.
        assert_eq!(bed.egress(&flow(WAN, 4), false)?.action, TC_NEXT);
        bed.egress(&flow(WAN, 5), false)?.is(TC_DROP, refused());
        assert_eq!(
            told(bed)?,
            [event(EventKind::HostSessions, WAN, 5, OWN_STATION)]
        );
        for n in 0..iwf_common::limits::HOSTS - 2 {
            bed.plane
                .set_host(HostKey::v4(n.to_be_bytes()), HostValue::default())?;
        }
        bed.lan_in(&flow(OTHER, 6))?
            .is(DROP, Delta::counted(&["drop_hosts_full"]));
        assert_eq!(
            told(bed)?,
            [event(EventKind::HostsFull, OTHER, 6, OTHER_MAC)]
        );
        // All of the budget, on the one CPU that a test runs on or on several; of a second that does not pass, as
        // a slow machine would use up none.
        bed.reconfigure(|config| config.hz = u32::MAX)?;
        let mut lost = 0;
        for _ in 0..4096 {
            let seen = bed.lan_in(&flow(HOST, 7))?;
            lost +=
                usize::from(seen.delta == Delta::counted(&["drop_host_sessions", "events_lost"]));
            if lost > 0 {
                break;
            }
        }
        assert!(lost > 0);
        let told = told(bed)?;
        assert!(told.contains(&event(EventKind::HostSessions, HOST, 7, HOST_MAC)));
        Ok(())
    })
}

#[test]
fn a_full_table_is_told() -> Result<()> {
    with_sized_bed6(8, |bed| {
        for port in 1..=4 {
            assert_eq!(bed.lan_in(&flow(HOST, port))?.action, REDIRECT);
        }
        assert_eq!(bed.plane.events()?, []);
        bed.lan_in(&flow(OTHER, 5))?
            .is(DROP, Delta::counted(&["drop_sessions6_full"]));
        let events = bed.plane.events()?;
        let [event] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!(event.kind, EventKind::SessionsFull as u32);
        assert_eq!((event.addr6, event.station), (OTHER, OTHER_MAC));
        assert_eq!(event.internal.port, 5u16.to_be_bytes());
        Ok(())
    })
}
