//! The least a session hit can cost: what the bench compares the real programs with. Run, never attached.

use core::mem::MaybeUninit;

use aya_ebpf::programs::XdpContext;
use iwf_common::reason::DropReason;

use crate::hook::Hook as _;
use crate::maps::SESSIONS;
use crate::outcome::Step;
use crate::parse::parse;
use crate::rewrite::{self, Hop};

/// Reads the headers, finds the session, rewrites and redirects. Asks nothing, counts nothing.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Step<()> {
    let mut packet = MaybeUninit::uninit();
    let packet = parse(ctx, &ctx.cursor(), &mut packet)?;
    let session = SESSIONS
        .get_ptr(&packet.key)
        .ok_or(DropReason::Unsolicited)?;
    // SAFETY: entries live as long as the program runs.
    let session = unsafe { &*session };
    ctx.leave_by(session.egress)?;
    rewrite::direct(&ctx.cursor(), packet, session, Hop::Forward)
}
