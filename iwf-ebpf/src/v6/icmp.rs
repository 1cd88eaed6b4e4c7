//! ICMPv6 errors belong to the flow of the packet they quote.
//!
//! Read before editing: RFC 4443 section 2.4, RFC 4890 section 4.3, RFC 6092 REC-10, 18, 19, 36, 37.
//!
//! An error never changes a session: it is let through or not.

use core::mem::MaybeUninit;

use iwf_common::reason::DropReason;

use super::parse::{self, Packet6, special};
use super::{fragment, session};
use crate::clock::tick;
use crate::cursor::Cursor;
use crate::maps::CONFIG;
use crate::outcome::{Outcome, Step};
use crate::session::Direction;

/// Whether the error quotes a packet that went by in the other direction than the error goes: `direction` is the
/// error's. From outside it must be for who had sent that packet.
#[inline(never)]
pub fn judge(cursor: &Cursor, error: &Packet6, direction: Direction) -> Outcome {
    Outcome::of(try_judge(cursor, error, direction))
}

#[inline(always)]
fn try_judge(cursor: &Cursor, error: &Packet6, direction: Direction) -> Step<()> {
    let stray = DropReason::IcmpErrorStray;
    let mut quoted = MaybeUninit::uninit();
    let quoted = parse::quoted(cursor, error, &mut quoted)?;
    if quoted.special & (special::ERROR | special::MESSAGE) != 0 {
        // RFC 4443 section 2.4 (e.1): no error about an error.
        return Err(stray.into());
    }
    if quoted.special & special::LATER != 0 {
        let config = CONFIG.get(0).ok_or(stray)?;
        fragment::follow(config, tick(), quoted)
            .step()
            .map_err(|_| stray)?;
    }
    if quoted.key.src != error.key.dst {
        return Err(stray.into());
    }
    let other = match direction {
        Direction::Out => Direction::In,
        Direction::In => Direction::Out,
    };
    match session::find(&quoted.key, other) {
        Some(_) => Ok(()),
        None => Err(stray.into()),
    }
}
