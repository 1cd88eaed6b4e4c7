//! Connections through the NAT: every order of segments that RFC 5382 and RFC 7857 name.

use anyhow::Result;
use iwf_tests::packet::Frame;
use iwf_tests::prog::Delta;

use crate::bed::{
    ACK, Bed, DROP, HOST, HZ, REDIRECT, REMOTE, RST, SYN, TCP, WAN, lan_frame, wan_frame, with_bed,
};

const FIN: u8 = 1;

fn out(flags: u8) -> Frame {
    lan_frame(Frame::tcp((HOST, 5000), (REMOTE, 80), flags))
}

fn back(flags: u8) -> Frame {
    wan_frame(Frame::tcp((REMOTE, 80), (WAN, 5000), flags))
}

fn open(bed: &mut Bed) -> Result<()> {
    bed.lan_in(&out(SYN))?;
    bed.wan_in(&back(SYN | ACK))?;
    bed.lan_in(&out(ACK))?;
    Ok(())
}

/// Whether the connection outlives so many seconds of silence.
fn outlives(bed: &mut Bed, seconds: u32) -> Result<bool> {
    bed.let_pass(seconds * HZ)?;
    bed.sweep()?;
    let gone = bed.lan_in(&out(ACK))?.action == DROP;
    Ok(!gone)
}

/// RFC 7857 section 2.2: four minutes after a RST, unless something comes before they are over.
#[test]
fn what_comes_after_a_reset_keeps_the_connection() -> Result<()> {
    for later in [None, Some(true), Some(false)] {
        with_bed(|bed| {
            open(bed)?;
            bed.wan_in(&back(RST))?;
            bed.let_pass(100 * HZ)?;
            match later {
                Some(true) => drop(bed.lan_in(&out(ACK))?),
                Some(false) => drop(bed.wan_in(&back(ACK))?),
                None => {}
            }
            assert_eq!(outlives(bed, 250)?, later.is_some());
            Ok(())
        })?;
    }
    Ok(())
}

/// RFC 5382 REQ-2b: both ends send a SYN, and the one from outside is there first and finds no session.
#[test]
fn a_simultaneous_open_works_though_the_first_syn_is_refused() -> Result<()> {
    with_bed(|bed| {
        let refused = back(SYN);
        bed.wan_in(&refused)?
            .is_untouched(DROP, Delta::counted(&["drop_unsolicited"]), &refused);
        assert_eq!(bed.lan_in(&out(SYN))?.action, REDIRECT);
        // The other end sends it again.
        assert_eq!(bed.wan_in(&back(SYN))?.action, REDIRECT);
        assert_eq!(bed.lan_in(&out(SYN | ACK))?.action, REDIRECT);
        assert_eq!(bed.wan_in(&back(SYN | ACK))?.action, REDIRECT);
        assert!(outlives(bed, 7000)?);
        Ok(())
    })
}

/// The same by an explicit mapping, which lets the first SYN in.
#[test]
fn a_simultaneous_open_by_an_explicit_mapping_makes_one_session() -> Result<()> {
    with_bed(|bed| {
        bed.map(TCP, (HOST, 5000), 5000, 0)?;
        for (outbound, flags) in [
            (false, SYN),
            (true, SYN),
            (false, SYN | ACK),
            (true, SYN | ACK),
        ] {
            let seen = if outbound {
                bed.lan_in(&out(flags))?
            } else {
                bed.wan_in(&back(flags))?
            };
            assert_eq!(seen.action, REDIRECT);
        }
        assert_eq!(bed.plane.state()?.sessions.len(), 2);
        assert!(outlives(bed, 7000)?);
        Ok(())
    })
}

/// RFC 6191: the ports of an ended connection begin another, whichever side ended it; those of an open one do not.
#[test]
fn a_new_connection_on_old_ports_has_its_own_time() -> Result<()> {
    let endings: [&[(bool, u8)]; 4] = [
        &[(true, FIN | ACK), (false, FIN | ACK)],
        &[(false, RST)],
        &[(true, RST)],
        &[],
    ];
    for ending in endings {
        with_bed(|bed| {
            open(bed)?;
            for (outbound, flags) in ending {
                if *outbound {
                    bed.lan_in(&out(*flags))?;
                } else {
                    bed.wan_in(&back(*flags))?;
                }
            }
            assert_eq!(bed.lan_in(&out(SYN))?.action, REDIRECT);
            // Nobody answers it: a connection that opens has four minutes, one that was open keeps its time.
            assert_eq!(outlives(bed, 250)?, ending.is_empty());
            Ok(())
        })?;
    }
    Ok(())
}

/// RFC 7857 section 2.2: a connection that goes on was not reset. A SYN that somebody forges besides does not make it a
/// new one, which would have four minutes.
#[test]
fn a_reset_that_was_taken_back_opens_nothing() -> Result<()> {
    for forged_outbound in [false, true] {
        with_bed(|bed| {
            open(bed)?;
            let send = |bed: &mut Bed, forged: bool, flags| {
                bed.let_pass(10)?;
                if forged == forged_outbound {
                    bed.lan_in(&out(flags))
                } else {
                    bed.wan_in(&back(flags))
                }
            };
            for (forged, flags) in [(true, RST), (false, ACK), (true, SYN)] {
                assert_eq!(send(bed, forged, flags)?.action, REDIRECT);
            }
            assert!(outlives(bed, 7000)?);
            Ok(())
        })?;
    }
    Ok(())
}
