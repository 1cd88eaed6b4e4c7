//! What one LAN host may hold.

use anyhow::Result;
use iwf_common::host::{HostKey, HostValue, Totals};
use iwf_common::names;
use iwf_common::nat::{MappingKind, MappingValue};
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;

use crate::bed::{
    Bed, DROP, HOST, HOST2, REDIRECT, REMOTE, REMOTE2, UDP, WAN, endpoint, lan_frame, wan_frame,
    with_bed,
};

fn flow(host: [u8; 4], port: u16, remote: [u8; 4]) -> Frame {
    lan_frame(Frame::udp((host, port), (remote, 53)))
}

/// Sessions and mappings that the host is counted to have.
fn counted(bed: &Bed, host: [u8; 4]) -> Result<Option<(u64, u64)>> {
    let hosts = bed.plane.hosts()?;
    let value = hosts.get(&HostKey::v4(host));
    Ok(value.map(|value| (value.sessions, value.mappings)))
}

fn age(bed: &mut Bed) -> Result<()> {
    bed.sweep()?;
    Ok(())
}

/// NAT-40, NAT-44: what one host may not have any more, another still may.
#[test]
fn a_host_gets_no_more_than_its_share() -> Result<()> {
    with_bed(|bed| {
        bed.reconfigure(|config| (config.host_sessions, config.host_mappings) = (3, 2))?;
        for frame in [flow(HOST, 1001, REMOTE), flow(HOST, 1002, REMOTE)] {
            bed.lan_in(&frame)?;
        }
        assert_eq!(counted(bed, HOST)?, Some((2, 2)));
        let third = flow(HOST, 1003, REMOTE);
        bed.lan_in(&third)?
            .is_untouched(DROP, Delta::counted(&["drop_host_mappings"]), &third);
        let made = Delta::counted(&["forwarded_out", "sessions_created"]).sessions(2);
        bed.lan_in(&flow(HOST, 1001, REMOTE2))?.is(REDIRECT, made);
        let fourth = flow(HOST, 1002, REMOTE2);
        bed.lan_in(&fourth)?
            .is_untouched(DROP, Delta::counted(&["drop_host_sessions"]), &fourth);
        // Not for what it has, not for another host, and not for the CPE's own flows.
        let hit = Delta::counted(&["forwarded_out"]);
        bed.lan_in(&flow(HOST, 1001, REMOTE2))?.is(REDIRECT, hit);
        assert_eq!(bed.lan_in(&flow(HOST2, 1003, REMOTE))?.action, REDIRECT);
        for port in 2000..2004 {
            bed.egress(&Frame::udp((WAN, port), (REMOTE, 53)), false)?;
        }
        assert_eq!(counted(bed, HOST)?, Some((3, 2)));
        assert_eq!(counted(bed, HOST2)?, Some((1, 1)));
        assert_eq!(counted(bed, WAN)?, None);
        Ok(())
    })
}

/// What comes in by an explicit mapping counts for the host it goes to.
#[test]
fn sessions_from_outside_count_for_the_host() -> Result<()> {
    with_bed(|bed| {
        bed.reconfigure(|config| config.host_sessions = 1)?;
        bed.map(UDP, (HOST, 5000), 40000, 0)?;
        bed.wan_in(&wan_frame(Frame::udp((REMOTE, 9), (WAN, 40000))))?;
        assert_eq!(counted(bed, HOST)?, Some((1, 0)));
        let other = wan_frame(Frame::udp((REMOTE2, 9), (WAN, 40000)));
        bed.wan_in(&other)?
            .is_untouched(DROP, Delta::counted(&["drop_host_sessions"]), &other);
        Ok(())
    })
}

#[test]
fn what_ends_is_given_back_and_an_empty_host_forgotten() -> Result<()> {
    with_bed(|bed| {
        bed.lan_in(&flow(HOST, 1001, REMOTE))?;
        bed.lan_in(&flow(HOST, 1002, REMOTE))?;
        bed.lan_in(&flow(HOST, 1002, REMOTE2))?;
        age(bed)?;
        assert_eq!(counted(bed, HOST)?, Some((3, 2)));
        bed.let_pass(bed.config.idle.udp + 1)?;
        // In two steps at most: sessions, then what they hold.
        for _ in 0..3 {
            age(bed)?;
        }
        assert!(bed.plane.state()?.internal.is_empty());
        let key = HostKey::v4(HOST);
        if let Some(mut host) = bed.plane.hosts()?.get(&key).copied() {
            assert_eq!((host.sessions, host.mappings), (0, 0));
            host.last_used = host.last_used.wrapping_sub(10 * bed.config.hz);
            bed.plane.set_host(key, host)?;
        }
        age(bed)?;
        assert_eq!(counted(bed, HOST)?, None);
        Ok(())
    })
}

/// However many sources a host makes up, and however much each of them takes, a host that has little may have more.
#[test]
fn made_up_sources_starve_nobody() -> Result<()> {
    with_bed(|bed| {
        bed.reconfigure(|config| {
            (config.host_sessions, config.room_sessions) = (10, 40);
            (config.host_mappings, config.room_mappings) = (10, 40);
        })?;
        let mut made_up = [0; 9];
        for port in 1001..1021 {
            for (n, held) in (100..).zip(&mut made_up) {
                let frame = flow([HOST[0], HOST[1], HOST[2], n], port, REMOTE);
                match bed.lan_in(&frame)?.action {
                    REDIRECT => *held += 1,
                    other => assert_eq!(other, DROP),
                }
            }
        }
        assert_eq!(made_up, [4; 9], "one part in ten each");
        let totals = bed.plane.totals()?;
        assert_eq!((totals.sessions, totals.mappings), (36, 36));
        for port in 1001..1003 {
            assert_eq!(
                bed.lan_in(&flow(HOST, port, REMOTE))?.action,
                REDIRECT,
                "{port}"
            );
        }
        // Two of the four that were left. What one has by now, and as much as is free, are the same.
        let third = flow(HOST, 1003, REMOTE);
        bed.lan_in(&third)?
            .is_untouched(DROP, Delta::counted(&["drop_host_mappings"]), &third);
        assert_eq!(counted(bed, HOST)?, Some((2, 2)));
        bed.let_pass(bed.config.idle.udp + 1)?;
        for _ in 0..3 {
            age(bed)?;
        }
        let totals = bed.plane.totals()?;
        assert_eq!((totals.sessions, totals.mappings), (0, 0));
        Ok(())
    })
}

/// Whatever went wrong with the counts, the sweep finds the truth in the tables.
#[test]
fn the_sweep_counts_again() -> Result<()> {
    with_bed(|bed| {
        bed.lan_in(&flow(HOST, 1001, REMOTE))?;
        bed.lan_in(&flow(HOST, 1002, REMOTE))?;
        let key = HostKey::v4(HOST);
        for (sessions, mappings) in [(0, 0), (7, 9), (u64::MAX, 1)] {
            let held = bed.plane.hosts()?[&key];
            bed.plane.set_host(
                key,
                HostValue {
                    sessions,
                    mappings,
                    ..held
                },
            )?;
            age(bed)?;
            assert_eq!(counted(bed, HOST)?, Some((2, 2)));
        }
        // A mapping that the daemon has put in the place of a dynamic one.
        let value = MappingValue {
            kind: MappingKind::Explicit as u8,
            ..bed.plane.state()?.internal[&endpoint((HOST, 1001), UDP)]
        };
        let internal = endpoint((HOST, 1001), UDP);
        bed.plane
            .set_mapping(names::MAPPINGS_INT, internal, value)?;
        age(bed)?;
        assert_eq!(counted(bed, HOST)?, Some((2, 1)));
        Ok(())
    })
}

/// Whatever went wrong with the sums of all hosts, the sweep makes them what the hosts have: a sum that is too high
/// would refuse flows for ever.
#[test]
fn the_sweep_adds_up_again() -> Result<()> {
    with_bed(|bed| {
        bed.reconfigure(|config| (config.room_sessions, config.room_mappings) = (40, 40))?;
        bed.lan_in(&flow(HOST, 1001, REMOTE))?;
        bed.lan_in(&flow(HOST2, 1002, REMOTE))?;
        bed.lan_in(&flow(HOST2, 1002, REMOTE2))?;
        let right = bed.plane.totals()?;
        assert_eq!(sums(&right), (3, 2, 0));
        assert!(right.changes >= 3);
        for (sessions, mappings, sessions6) in [(40, 0, 7), (0, 50, u64::MAX), (1 << 40, 2, 1)] {
            bed.plane.set_totals(Totals {
                sessions,
                mappings,
                sessions6,
                ..right
            })?;
            age(bed)?;
            assert_eq!(sums(&bed.plane.totals()?), (3, 2, 0));
        }
        let next = flow(HOST, 1003, REMOTE);
        assert_eq!(bed.lan_in(&next)?.action, REDIRECT);
        assert_eq!(sums(&bed.plane.totals()?), (4, 3, 0));
        // A host that was removed while packets counted for it.
        bed.plane.remove_host(HostKey::v4(HOST2))?;
        age(bed)?;
        assert_eq!(sums(&bed.plane.totals()?), (2, 2, 0));
        Ok(())
    })
}

fn sums(totals: &Totals) -> (u64, u64, u64) {
    (totals.sessions, totals.mappings, totals.sessions6)
}

/// No room to count one more host: its flow is refused, those of the others go on.
#[test]
fn hosts_beyond_the_table_are_refused() -> Result<()> {
    with_bed(|bed| {
        for n in 0..iwf_common::limits::HOSTS {
            let addr = n.to_be_bytes();
            bed.plane
                .set_host(HostKey::v4(addr), HostValue::default())?;
        }
        let frame = flow(HOST, 1001, REMOTE);
        bed.lan_in(&frame)?
            .is_untouched(DROP, Delta::counted(&["drop_hosts_full"]), &frame);
        Ok(())
    })
}
