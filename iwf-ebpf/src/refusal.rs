//! Gives the daemon a copy of what was refused, if its sender may be told. The programs answer nobody.
//!
//! Read before editing: RFC 5382 REQ-4, RFC 5508 REQ-8, RFC 6092 REC-34.
//!
//! A packet is dropped before anything of it is changed, so that the copy is as it came.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use iwf_common::config::Config;
use iwf_common::limits::{REFUSED_OCTETS, REFUSED_PER_SECOND};
use iwf_common::reason::Done;
use iwf_common::refusal::{RefusedPacket, Side};
use iwf_common::tcp as flags;

use crate::clock::tick;
use crate::cursor::{Cursor, load16, load32};
use crate::headers::{TCP, ipv4, tcp};
use crate::hook::{BareContext, Hook};
use crate::maps::{CONFIG, REFUSED, REFUSED_BUDGET, is_place};
use crate::outcome::Outcome;
use crate::stats;

/// The way to a function that the verifier judges once ([`crate::far`]), by hook.
pub trait Refuse {
    /// [`run`].
    fn refused(&self, side: Side, slot: u32);
}

/// A packet of that side is dropped.
#[inline(always)]
pub fn note<H: Refuse>(hook: &H, side: Side, outcome: Outcome) {
    if side.tells(outcome.slot()) {
        hook.refused(side, outcome.slot());
    }
}

#[inline(always)]
fn run<H: Hook>(hook: &H, side: Side, slot: u32) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return 0;
    };
    if config.flags & side.flag() == 0 {
        return 0;
    }
    // What the router sends itself is told to its sockets.
    if side == Side::Forwarded && hook.ingress() == 0 {
        return 0;
    }
    if let Some(len) = worth(hook, side)
        && !hand_over(hook, config, side, slot, len)
    {
        stats::count(Done::RefusalLost);
    }
    0
}

/// Octets of the packet that are copied; `None` if its sender is not told.
#[inline(always)]
fn worth<H: Hook>(hook: &H, side: Side) -> Option<usize> {
    let cursor = &hook.cursor();
    if hook.is_ipv4(cursor) {
        return worth4::<H>(cursor, side);
    }
    if hook.is_ipv6(cursor) {
        return worth6::<H>(cursor, side);
    }
    None
}

#[inline(always)]
fn worth4<H: Hook>(cursor: &Cursor, side: Side) -> Option<usize> {
    let ip = cursor.at::<{ ipv4::LEN }>(H::L3)?;
    // SAFETY: `at` proved the bounds of each header, here and below.
    let total = u16::from_be_bytes(unsafe { load16::<{ ipv4::TOTAL_LEN }>(ip) });
    if side == Side::Wan {
        // SAFETY: see above.
        let header = usize::from(unsafe { *ip.add(ipv4::VERSION_IHL) } & 0x0f) * 4;
        // SAFETY: see above.
        let proto = unsafe { *ip.add(ipv4::PROTO) };
        // SAFETY: see above.
        let dst = unsafe { load32::<{ ipv4::DST }>(ip) };
        if proto != TCP || !opens(cursor, H::L3 + header) {
            return None;
        }
        let len = there::<H>(cursor, usize::from(total));
        return len.filter(|_| is_place(&dst));
    }
    there::<H>(cursor, usize::from(total))
}

#[inline(always)]
fn worth6<H: Hook>(cursor: &Cursor, side: Side) -> Option<usize> {
    /// RFC 8200 section 3.
    const LEN: usize = 40;
    const PAYLOAD_LEN: usize = 4;
    const NEXT_HEADER: usize = 6;
    let ip = cursor.at::<LEN>(H::L3)?;
    // SAFETY: `at` proved the bounds, here and below.
    let payload = u16::from_be_bytes(unsafe { load16::<PAYLOAD_LEN>(ip) });
    if side == Side::Wan {
        // SAFETY: see above.
        match unsafe { *ip.add(NEXT_HEADER) } {
            TCP if opens(cursor, H::L3 + LEN) => {}
            // Whether a SYN is behind extension headers is for the daemon to see.
            0 | 43 | 44 | 60 => {}
            _ => return None,
        }
    }
    there::<H>(cursor, LEN + usize::from(payload))
}

/// Whether the TCP header at `at` begins a connection.
#[inline(always)]
fn opens(cursor: &Cursor, at: usize) -> bool {
    match cursor.at::<{ tcp::LEN }>(at) {
        // SAFETY: `at` proved the bounds.
        Some(header) => flags::opens(unsafe { *header.add(tcp::FLAGS) }),
        None => false,
    }
}

/// As many octets of a packet of `total` as are in the linear part and may be copied.
#[inline(always)]
fn there<H: Hook>(cursor: &Cursor, total: usize) -> Option<usize> {
    let linear = cursor.len().checked_sub(H::L3)?;
    Some(total.min(linear).min(REFUSED_OCTETS))
}

/// Gives the daemon a copy, within what one CPU may give per second.
#[inline(never)]
fn hand_over<H: Hook>(hook: &H, config: &Config, side: Side, slot: u32, len: usize) -> bool {
    if len > REFUSED_OCTETS {
        return false;
    }
    let Some(budget) = REFUSED_BUDGET.get_ptr_mut((side == Side::Wan).into()) else {
        return false;
    };
    // SAFETY: the entry is this CPU's.
    if !unsafe { (*budget).take_of(tick(), config.hz, REFUSED_PER_SECOND) } {
        return false;
    }
    let Some(mut record) = REFUSED.reserve(0) else {
        return false;
    };
    let refused: *mut RefusedPacket = record.as_mut_ptr();
    // SAFETY: the record is as large as the struct, and nobody else has it before it is submitted. So below.
    unsafe { (*refused).slot = slot };
    // SAFETY: see above.
    unsafe { (*refused).side = side as u32 };
    // SAFETY: see above.
    unsafe { (*refused).len = len as u32 };
    // SAFETY: see above.
    unsafe { (*refused).pad = 0 };
    // SAFETY: see above.
    let packet = unsafe { &raw mut (*refused).packet }.cast::<u8>();
    if hook.capture::<REFUSED_OCTETS>(H::L3, packet, len) {
        record.submit(0);
        stats::count(Done::RefusalNoted);
        true
    } else {
        record.discard(0);
        false
    }
}

macro_rules! refuse {
    ($context:ty, $raw:ty, $make:expr; $refused:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $refused(ctx: *mut $raw, side: u32, slot: u32) -> u32 {
            match Side::from_number(side) {
                Some(side) => run(&$make(ctx), side, slot),
                None => 0,
            }
        }

        impl Refuse for $context {
            #[inline(always)]
            fn refused(&self, side: Side, slot: u32) {
                $refused(self.as_ptr().cast(), side as u32, slot);
            }
        }
    };
}

refuse!(XdpContext, xdp_md, XdpContext::new; xdp_refused);
refuse!(TcContext, __sk_buff, TcContext::new; tc_refused);
refuse!(BareContext, __sk_buff, |ctx| BareContext::new(TcContext::new(ctx)); bare_refused);
