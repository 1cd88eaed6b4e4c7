//! Pinholes with every wildcard, their time and their account (S6-08).

use anyhow::Result;
use iwf_common::flow6::{PinholeKey, SessionKey6, Shape};
use iwf_tests::packet6::{Frame6, Upper};
use iwf_tests::prog::Delta;

use super::bed::{Bed6, HOST, REMOTE, REMOTE2, gone_in, with_bed6};
use crate::bed::{DROP, REDIRECT, SYN};

const ADMITTED: [&str; 3] = ["sessions6_created", "next_hops_refreshed", "forwarded6_in"];

/// The pinhole of `shape` for TCP from port 9 of the remote host to port 80 of the LAN host.
fn key(shape: u8) -> PinholeKey {
    let packet = SessionKey6::new(REMOTE, 9u16.to_be_bytes(), HOST, 80u16.to_be_bytes(), 6);
    PinholeKey::of_inbound(&packet, shape)
}

fn syn() -> Frame6 {
    Frame6::tcp((REMOTE, 9), (HOST, 80), SYN)
}

#[test]
fn each_shape_lets_in_what_it_names_and_no_more() -> Result<()> {
    with_bed6(|bed| {
        let mut elsewhere = syn();
        elsewhere.dst[15] = 0x11;
        for shape in 0..Shape::COUNT {
            bed.pinhole(key(shape), 1, 0)?;
            let cases = [
                (syn(), 0),
                (
                    Frame6::tcp((REMOTE2, 9), (HOST, 80), SYN),
                    Shape::ANY_REMOTE,
                ),
                (
                    Frame6::tcp((REMOTE, 8), (HOST, 80), SYN),
                    Shape::ANY_REMOTE_PORT,
                ),
                (
                    Frame6::tcp((REMOTE, 9), (HOST, 81), SYN),
                    Shape::ANY_INTERNAL_PORT,
                ),
                (Frame6::udp((REMOTE, 9), (HOST, 80)), Shape::ANY_PROTO),
                (elsewhere.clone(), 0xff),
            ];
            for (frame, needs) in cases {
                let seen = bed.wan_in(&frame)?;
                if shape & needs == needs {
                    seen.is(REDIRECT, Delta::counted(&ADMITTED).sessions6(2));
                    assert_eq!(seen.bytes, gone_in(&frame));
                } else {
                    seen.is(DROP, Delta::counted(&["drop_unsolicited6"]));
                }
            }
            bed.plane.remove_pinhole(key(shape))?;
            // Its sessions end with it.
            bed.age()?;
            assert_eq!(bed.plane.state()?.sessions6.len(), 0, "shape {shape}");
        }
        Ok(())
    })
}

#[test]
fn a_protocol_without_ports_has_pinholes_as_well() -> Result<()> {
    with_bed6(|bed| {
        let any_ports = Shape::ANY_REMOTE | Shape::ANY_REMOTE_PORT | Shape::ANY_INTERNAL_PORT;
        let pinhole = PinholeKey {
            proto: 253,
            ..PinholeKey::of_inbound(
                &SessionKey6::new([0; 16], [0; 2], HOST, [0; 2], 253),
                any_ports,
            )
        };
        bed.pinhole(pinhole, 3, 0)?;
        let ping = PinholeKey {
            proto: 58,
            ..pinhole
        };
        bed.pinhole(ping, 4, 0)?;
        for frame in [
            Frame6::new(REMOTE, HOST, Upper::Other(253)),
            Frame6::echo(REMOTE, HOST, 128, 5),
        ] {
            bed.wan_in(&frame)?
                .is(REDIRECT, Delta::counted(&ADMITTED).sessions6(2));
        }
        // A reply answers nothing here.
        bed.wan_in(&Frame6::echo(REMOTE2, HOST, 129, 5))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        bed.lan_in(&Frame6::echo(HOST, REMOTE, 129, 5))?;
        Ok(())
    })
}

#[test]
fn a_connection_begins_with_a_syn_here_too() -> Result<()> {
    with_bed6(|bed| {
        bed.pinhole(key(15), 1, 0)?;
        bed.wan_in(&Frame6::tcp((REMOTE, 9), (HOST, 80), 0x10))?
            .is(DROP, Delta::counted(&["drop_tcp_stray"]));
        Ok(())
    })
}

/// What a pinhole has let in by sessions that have ended.
fn account(bed: &mut Bed6) -> Result<u64> {
    let state = bed.plane.state()?;
    Ok(state.pinholes.values().map(|value| value.packets).sum())
}

#[test]
fn a_pinhole_ends_on_its_tick_and_its_sessions_with_it() -> Result<()> {
    with_bed6(|bed| {
        let now = bed.now()?;
        bed.pinhole(key(0), 7, now.wrapping_add(1_000_000))?;
        let seen = bed.wan_in(&syn())?;
        assert_eq!(seen.action, REDIRECT);
        for _ in 0..4 {
            assert_eq!(bed.wan_in(&syn())?.action, REDIRECT);
        }
        // Prolonged: the session finds out when its own deadline comes.
        let set_deadline = |bed: &mut Bed6, tick: u32| -> Result<()> {
            for (key, mut value) in bed.plane.state()?.sessions6 {
                assert_eq!(value.pinhole, 7);
                value.deadline = tick;
                bed.plane.set_session6(key, value)?;
            }
            Ok(())
        };
        set_deadline(bed, now)?;
        bed.wan_in(&syn())?.is(
            REDIRECT,
            Delta::counted(&["forwarded6_in"]).sessions6_changed(1),
        );
        // Over: for new sessions, for the old one in both directions, and before any sweep.
        bed.pinhole(key(0), 7, now)?;
        set_deadline(bed, now)?;
        let over = Delta::counted(&["drop_mapping_expired"]);
        bed.wan_in(&syn())?.is(DROP, over.clone());
        bed.lan_in(&Frame6::tcp((HOST, 80), (REMOTE, 9), 0x12))?
            .is(DROP, over);
        bed.wan_in(&Frame6::tcp((REMOTE, 9), (HOST, 81), SYN))?
            .is(DROP, Delta::counted(&["drop_unsolicited6"]));
        assert_eq!(account(bed)?, 0);
        bed.age()?;
        assert_eq!(bed.plane.state()?.sessions6.len(), 0);
        assert_eq!(account(bed)?, 6);
        Ok(())
    })
}

#[test]
fn the_number_of_a_pinhole_is_not_its_successors() -> Result<()> {
    with_bed6(|bed| {
        bed.pinhole(key(0), 7, 0)?;
        bed.wan_in(&syn())?;
        bed.plane.remove_pinhole(key(0))?;
        bed.pinhole(key(0), 8, 0)?;
        bed.age()?;
        assert_eq!(bed.plane.state()?.sessions6.len(), 0);
        assert_eq!(account(bed)?, 0);
        Ok(())
    })
}
