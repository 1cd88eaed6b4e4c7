//! The least a session hit can cost: what the bench compares the real programs with. Run, never attached.

use core::mem::MaybeUninit;

use aya_ebpf::programs::XdpContext;
use iwf_common::reason::{DropReason, PassReason};

use crate::hook::Hook as _;
use crate::maps::{DEVMAP, SESSIONS};
use crate::outcome::Step;
use crate::parse::parse;
use crate::rewrite::{self, Hop};

/// Reads the headers, finds the session, rewrites and redirects. Asks nothing, counts nothing.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Step<()> {
    let mut packet = MaybeUninit::uninit();
    let packet = parse(&ctx.cursor(), &mut packet, || ctx.frame_len())?;
    let session = SESSIONS
        .get_ptr(&packet.key)
        .ok_or(DropReason::Unsolicited)?;
    // SAFETY: entries live as long as the program runs.
    let session = unsafe { &*session };
    if DEVMAP.redirect(session.egress, 0).is_err() {
        return Err(PassReason::NoRedirect.into());
    }
    rewrite::direct(&ctx.cursor(), packet, session, Hop::Forward)
}
