//! The options of IPv4 and TCP headers, which have the same form, and what is done because of them.

use core::arch::asm;

use iwf_common::reason::{Done, DropReason};

use crate::cursor::{Cursor, load16};
use crate::headers::{ipv4, tcp};
use crate::hook::Hook;
use crate::maps::CONFIG;
use crate::outcome::Outcome;
use crate::parse::Packet;
use crate::stats;

/// Options of one octet that an IPv4 header has room for.
const MOST_IPV4: usize = 40;
/// Options of a SYN that are looked at. No stack sends more, and the verifier walks through each anew on every way
/// that leads here.
const MOST_TCP: usize = 12;
/// Both headers' options without a length (RFC 791 section 3.1, RFC 9293 section 3.1).
const END: u8 = 0;
const NOP: u8 = 1;
/// RFC 791: loose and strict source route, as two kinds in one.
const SOURCE_ROUTE: u16 = 131 | 137 << 8;
/// RFC 9293 section 3.7.1, twice, and its length.
const MSS: u16 = 2 | 2 << 8;
const MSS_LEN: usize = 4;

/// No such option.
const NONE: u32 = 0;
/// The options contradict their lengths, or there are too many.
const BAD: u32 = u32::MAX;

/// Where among the first `MOST` options in the `room` octets at `from` one of two `kinds` is; [`NONE`] or [`BAD`].
#[inline(never)]
fn find<const MOST: usize>(cursor: Cursor, from: usize, room: usize, kinds: u16) -> u32 {
    let mut at = 0;
    for _ in 0..MOST {
        if at >= room {
            return NONE;
        }
        let Some(option) = cursor.plainly_at::<1>(from + at) else {
            return BAD;
        };
        // SAFETY: `at` proved the bounds.
        let kind = unsafe { *option };
        if kind == END {
            return NONE;
        }
        let mut len = 1;
        if kind != NOP {
            let Some(option) = cursor.plainly_at::<2>(from + at) else {
                return BAD;
            };
            // SAFETY: see above.
            len = usize::from(unsafe { *option.add(1) });
            if len < 2 || at + len > room {
                return BAD;
            }
            let kind = u16::from(kind);
            if kind == kinds & 0xff || kind == kinds >> 8 {
                return (from + at) as u32;
            }
        }
        at = within(at + len);
    }
    if at < room { BAD } else { NONE }
}

/// `at` as it is, below 64. In assembly, so that the verifier sees one state at the head of each turn, whichever
/// way the turn before took, and not one for each combination of ways.
#[inline(always)]
fn within(at: usize) -> usize {
    let mut at = at;
    // SAFETY: changes a register.
    unsafe {
        asm!(
            "{at} &= 63",
            at = inout(reg) at,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    at
}

/// What is wrong with an IPv4 header that does not begin as most do: another version, a length that cannot be, or
/// options that are not let through.
#[inline(never)]
pub fn check_ipv4<H: Hook>(cursor: Cursor, version_ihl: u8) -> Outcome {
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_len < ipv4::LEN {
        return DropReason::Malformed.into();
    }
    match find::<MOST_IPV4>(
        cursor,
        H::L3 + ipv4::LEN,
        header_len - ipv4::LEN,
        SOURCE_ROUTE,
    ) {
        NONE => Outcome::NONE,
        BAD => DropReason::Malformed.into(),
        // The route's last hop is in the option: it would pass by the translation.
        _ => DropReason::SourceRoute.into(),
    }
}

/// Lowers the maximum segment size of a SYN to what the configuration says, so that no segment is too large for the
/// WAN and nobody has to learn so by an ICMP error that may not arrive. The packet is translated already.
#[inline(never)]
pub fn clamp_mss<H: Hook>(hook: &H, packet: &Packet) -> Outcome {
    let most = match CONFIG.get(0) {
        Some(config) => config.mss,
        None => 0,
    };
    if most == 0 {
        return Outcome::NONE;
    }
    let cursor = hook.cursor();
    let Some(header) = cursor.at::<{ tcp::LEN }>(packet.l4) else {
        return Outcome::NONE;
    };
    // SAFETY: `at` proved the bounds, here and below.
    let header_len = usize::from(unsafe { *header.add(tcp::DATA_OFFSET) } >> 4) * 4;
    let room = header_len.saturating_sub(tcp::LEN);
    let at = find::<MOST_TCP>(cursor, packet.l4 + tcp::LEN, room, MSS);
    if at == NONE || at == BAD {
        return Outcome::NONE;
    }
    let at = at as usize;
    let Some(option) = cursor.at::<MSS_LEN>(at) else {
        return Outcome::NONE;
    };
    // SAFETY: see above.
    let announced = unsafe { load16::<2>(option) };
    // SAFETY: see above.
    let len = usize::from(unsafe { *option.add(1) });
    if len != MSS_LEN || u16::from_be_bytes(announced) <= most {
        return Outcome::NONE;
    }
    let done = hook.set_mss(packet, at + 2, option, announced, most.to_be_bytes());
    if done.is_ok() {
        stats::count(Done::MssClamped);
    }
    Outcome::of(done)
}
