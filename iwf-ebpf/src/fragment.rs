//! Fragments. The first one has the ports and goes the way of every packet; it leaves an entry in FRAGMENTS, and the
//! others follow it by that. One that comes before its first is copied to the daemon, which sends it on when the
//! first has come.
//!
//! Read before editing: RFC 4787 REQ-14, RFC 1858 section 3, RFC 3128, RFC 6864 section 5.3.1, RFC 7857 section 10.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use iwf_common::config::{Config, Ends};
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::fragment::{FragmentFlags, FragmentKey, FragmentValue, HeldFlags, HeldFragment};
use iwf_common::limits::{HELD_OCTETS, HELD_PER_SECOND, REASSEMBLY};
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::{csum, tick};

use crate::clock::tick as now_tick;
use crate::cursor::{load16, load32};
use crate::headers::{ICMP, TCP, UDP, ipv4};
use crate::hook::Hook;
use crate::inbound::check_flow;
use crate::maps::{
    CONFIG, FRAGMENTS, FRAGMENTS_HELD, HELD_BUDGET, in_lan, is_external, is_place, owns,
};
use crate::next_hop::{self, NextHop, Query};
use crate::options;
use crate::outcome::{Outcome, Step, Verdict};
use crate::parse::{Marks, Packet, is_unicast};
use crate::rewrite::Hop;
use crate::session::Direction;
use crate::stats;

/// Identifications that are tried for one datagram. They are rarely needed: the host's own is the first.
const CANDIDATES: u32 = 4;

/// Where a fragment was met.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On its way in from the LAN.
    Lan,
    /// On its way in from the WAN.
    Wan,
    /// On its way out of the WAN, from the stack.
    Egress,
}

impl Place {
    /// Back from `as u32`.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Lan,
            1 => Self::Wan,
            _ => Self::Egress,
        }
    }
}

/// A fragment that is not the first of its datagram.
pub struct Later {
    /// Its datagram.
    pub key: FragmentKey,
    /// Time to live.
    pub ttl: u8,
    total_len: u16,
}

/// What [`Packet::marks`] asks for, once the packet is translated. `via`: [`FragmentFlags::STACK`] or 0.
#[inline(never)]
pub fn marked<H: Hook>(hook: &H, packet: &Packet, session: &SessionValue, via: u16) -> Outcome {
    if packet.marks & Marks::SYN != 0 {
        let outcome = options::clamp_mss(hook, packet);
        if outcome != Outcome::NONE {
            return outcome;
        }
    }
    if packet.marks & Marks::FIRST != 0 {
        return first(hook, packet, session, via);
    }
    Outcome::NONE
}

/// What a program answers for a frame that [`crate::parse`] finds bad: only one that is for us is dropped, since
/// others are bridged past us.
#[inline(always)]
pub fn refuse<H: Hook>(hook: &H, outcome: Outcome) -> Outcome {
    if matches!(outcome.verdict(), Verdict::Drop) && !hook.is_for_us() {
        return PassReason::NotOurMac.into();
    }
    outcome
}

/// Remembers what the datagram of a first fragment is translated to, and gives it an identification of its own if
/// hosts share its new source address.
#[inline(never)]
fn first<H: Hook>(hook: &H, packet: &Packet, session: &SessionValue, via: u16) -> Outcome {
    Outcome::of(try_first(hook, packet, session, via))
}

#[inline(always)]
fn try_first<H: Hook>(hook: &H, packet: &Packet, session: &SessionValue, via: u16) -> Step<()> {
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    let outbound = session.flags & SessionFlags::INBOUND == 0;
    let host = session.flags & SessionFlags::HOST != 0;
    let id = identification(hook)?;
    let key = datagram(&packet.key, id);
    let now = now_tick();
    let mut value = FragmentValue {
        src: session.src,
        dst: session.dst,
        id,
        l3_delta: session.l3_delta,
        egress: session.egress,
        next_hop_generation: session.next_hop_generation,
        tick: now,
        next_hop_mac: session.next_hop_mac,
        egress_mac: session.egress_mac,
        mtu: session.mtu,
        flags: via | if outbound { 0 } else { FragmentFlags::INBOUND },
    };
    if session.flags & SessionFlags::HAIRPIN != 0 {
        value.flags |= FragmentFlags::HAIRPIN;
    }
    if host {
        if outbound {
            // Its later fragments have the same addresses before and after; only the identification is taken.
            claim(config, now, &key, &value);
            return Ok(());
        }
        value.flags |= FragmentFlags::AS_IS;
    } else if outbound && value.src != key.src {
        value.id = match find(config, now, &key) {
            Some(known)
                if known.flags & FragmentFlags::AS_IS == 0
                    && known.src == value.src
                    && known.dst == value.dst =>
            {
                known.id
            }
            _ => claim(config, now, &key, &value),
        };
        if value.id != id {
            hook.set_identification(id, value.id)?;
            value.l3_delta = csum::add(value.l3_delta, csum::delta16(id, value.id));
        }
    }
    remember(&key, &value);
    Ok(())
}

/// A first fragment that was given to the stack as it came: the later ones go there as well. `way`:
/// [`FragmentFlags::INBOUND`] or 0.
#[inline(never)]
pub fn first_passed<H: Hook>(hook: &H, packet: &Packet, outcome: Outcome, way: u16) -> Outcome {
    if matches!(outcome.verdict(), Verdict::Pass)
        && let Ok(id) = identification(hook)
    {
        let value = FragmentValue {
            tick: now_tick(),
            flags: FragmentFlags::AS_IS | way,
            ..FragmentValue::default()
        };
        remember(&datagram(&packet.key, id), &value);
    }
    outcome
}

/// The fate of a fragment that is not the first.
#[inline(always)]
pub fn later<H: Hook>(hook: &H, place: Place) -> Outcome {
    hook.later_fragment(place)
}

/// [`later`], on the far side.
#[inline(always)]
pub fn run<H: Hook>(hook: &H, place: Place) -> Outcome {
    match follow(hook, place) {
        Outcome::NONE => unknown(hook, place),
        outcome => outcome,
    }
}

/// The same if the first one has been seen, else [`Outcome::NONE`]: one function after the other, for the stack.
#[inline(never)]
fn follow<H: Hook>(hook: &H, place: Place) -> Outcome {
    match try_follow(hook, place) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_follow<H: Hook>(hook: &H, place: Place) -> Step<Outcome> {
    let fragment = read(hook)?;
    let key = &fragment.key;
    if !matches!(key.proto, UDP | TCP | ICMP) {
        return Err(PassReason::OtherProtocol.into());
    }
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    if place == Place::Wan {
        check_flow(key.src, key.dst)?;
    }
    let now = now_tick();
    let inbound = place == Place::Wan;
    let Some(value) = find(config, now, key)
        .filter(|value| (value.flags & FragmentFlags::INBOUND != 0) == inbound)
    else {
        return Ok(Outcome::NONE);
    };
    if value.flags & FragmentFlags::AS_IS != 0 {
        return match place {
            // The first one is still on its way here through the stack, or was not let through.
            Place::Egress => Ok(Outcome::NONE),
            Place::Lan | Place::Wan => Err(PassReason::Fragment.into()),
        };
    }
    // The addresses may have changed since the first one.
    if !owns(&Ends::of_fragment(key, value)) {
        return Err(DropReason::AddressGone.into());
    }
    if place == Place::Egress {
        hook.rewrite_fragment(&fragment, value, Hop::Stack)?;
        return Ok(Done::FragmentForwarded.into());
    }
    match way(hook, config, &fragment, value) {
        Ok(()) => {
            hook.rewrite_fragment(&fragment, value, Hop::Forward)?;
            Ok(Done::FragmentForwarded.into())
        }
        Err(outcome)
            if value.flags & (FragmentFlags::INBOUND | FragmentFlags::HAIRPIN) != 0
                && matches!(outcome.verdict(), Verdict::Pass) =>
        {
            hook.rewrite_fragment(&fragment, value, Hop::Stack)?;
            Err(outcome)
        }
        Err(outcome) => Err(outcome),
    }
}

/// Whether the fragment leaves from here, and else why not. To the stack it goes as it came from the LAN, and
/// translated from the WAN.
#[inline(always)]
fn way<H: Hook>(hook: &H, config: &Config, fragment: &Later, value: &FragmentValue) -> Step<()> {
    if value.flags & FragmentFlags::STACK != 0 {
        return Err(PassReason::Fragment.into());
    }
    if !H::REDIRECTS || value.next_hop_generation != config.next_hop_generation {
        return Err(PassReason::NoRedirect.into());
    }
    if !hook.is_for_us() {
        return Err(PassReason::NotOurMac.into());
    }
    if fragment.ttl <= 1 {
        // The stack reports first fragments only (RFC 1122 section 3.2.2), so that nobody misses a translated one.
        return Err(
            if value.flags & (FragmentFlags::INBOUND | FragmentFlags::HAIRPIN) != 0 {
                DropReason::TtlExceeded.into()
            } else {
                PassReason::TtlExceeded.into()
            },
        );
    }
    if fragment.total_len > value.mtu {
        return Err(PassReason::TooBig.into());
    }
    hook.leave_by(value.egress)
}

/// A fragment of a datagram whose first one has not been seen.
#[inline(never)]
fn unknown<H: Hook>(hook: &H, place: Place) -> Outcome {
    Outcome::of(try_unknown(hook, place))
}

#[inline(always)]
fn try_unknown<H: Hook>(hook: &H, place: Place) -> Step<()> {
    let fragment = &read(hook)?;
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    let key = &fragment.key;
    if !config.serves() && place != Place::Egress {
        return Err(PassReason::NotConfigured.into());
    }
    if place != Place::Egress && !hook.is_for_us() {
        return Err(PassReason::NotOurMac.into());
    }
    match place {
        // What for will be known when the first one comes. The stack gets it as well, untranslated: if the first
        // one is for the CPE itself, the stack puts them together, and else it forgets this one.
        Place::Wan => {
            if !is_place(&key.dst) {
                return Err(PassReason::NotExternalAddr.into());
            }
            let held = hold(hook, config, &Held::v4(fragment, 0));
            // The stack would forward it to a host with an address of its own, unseen.
            Err(match (is_external(&key.dst), held) {
                (true, _) => PassReason::Fragment.into(),
                (false, true) => DropReason::FragmentEarly.into(),
                (false, false) => DropReason::FragmentsFull.into(),
            })
        }
        Place::Lan => {
            check_route(hook, config, fragment)?;
            Err(if hold(hook, config, &Held::v4(fragment, 0)) {
                DropReason::FragmentEarly.into()
            } else {
                DropReason::FragmentsFull.into()
            })
        }
        Place::Egress => {
            if is_external(&key.src) {
                return Err(Done::HostOut.into());
            }
            if !config.serves() || !in_lan(&key.src) {
                return Err(PassReason::Fragment.into());
            }
            Err(
                if hold(hook, config, &Held::v4(fragment, HeldFlags::FORWARDED)) {
                    DropReason::FragmentEarly.into()
                } else {
                    DropReason::FragmentsFull.into()
                },
            )
        }
    }
}

/// Only what would be translated is held: from a LAN host to an external address, or out of the WAN by route.
#[inline(always)]
fn check_route<H: Hook>(hook: &H, config: &Config, fragment: &Later) -> Step<()> {
    let key = &fragment.key;
    if !is_unicast(key.dst) {
        return Err(PassReason::NotUnicast.into());
    }
    let l3 = next_hop::l3_interface(hook.ingress());
    if !next_hop::is_from_lan(l3, &key.src) {
        return Err(PassReason::NotLanSource.into());
    }
    if in_lan(&key.dst) {
        return Err(PassReason::NotToWan.into());
    }
    if is_external(&key.dst) {
        return Ok(());
    }
    let query = Query {
        direction: Direction::Out,
        iif: l3,
        src: key.src,
        dst: key.dst,
        total_len: fragment.total_len,
    };
    let mut found = NextHop::NONE;
    let outcome = next_hop::look_up(hook.context(), config, &query, &mut found);
    if outcome == PassReason::NotToWan.into() {
        return Err(outcome);
    }
    Ok(())
}

/// What the daemon is told of a fragment beside the packet.
pub struct Held {
    key: FragmentKey,
    len: u16,
    flags: u16,
    id6: [u8; 4],
    at6: u16,
}

impl Held {
    /// Of IPv4, with [`HeldFlags`].
    #[inline(always)]
    const fn v4(fragment: &Later, flags: u16) -> Self {
        Self {
            key: fragment.key,
            len: fragment.total_len,
            flags,
            id6: [0; 4],
            at6: 0,
        }
    }

    /// Of an IPv6 packet of `len` octets: identification and offset of the fragment, and [`HeldFlags`].
    #[inline(always)]
    pub const fn v6(len: u16, id6: [u8; 4], at6: u16, flags: u16) -> Self {
        Self {
            key: FragmentKey {
                src: [0; 4],
                dst: [0; 4],
                id: [0; 2],
                proto: 0,
                pad: 0,
            },
            len,
            flags: flags | HeldFlags::IPV6,
            id6,
            at6,
        }
    }
}

/// Gives the daemon a copy, within what one CPU may give per second.
#[inline(never)]
pub fn hold<H: Hook>(hook: &H, config: &Config, fragment: &Held) -> bool {
    let now = now_tick();
    let len = usize::from(fragment.len);
    if len > HELD_OCTETS {
        return false;
    }
    let Some(budget) = HELD_BUDGET.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the entry is this CPU's.
    if !unsafe { (*budget).take_of(now, config.hz, HELD_PER_SECOND) } {
        return false;
    }
    let Some(mut record) = FRAGMENTS_HELD.reserve(0) else {
        return false;
    };
    let held: *mut HeldFragment = record.as_mut_ptr();
    // SAFETY: the record is as large as the struct, and nobody else has it before it is submitted. So below.
    unsafe { (*held).key = fragment.key };
    // SAFETY: see above.
    unsafe { (*held).tick = now };
    // SAFETY: see above.
    unsafe { (*held).len = fragment.len };
    // SAFETY: see above.
    unsafe { (*held).flags = fragment.flags };
    // SAFETY: see above.
    unsafe { (*held).id6 = fragment.id6 };
    // SAFETY: see above.
    unsafe { (*held).at6 = fragment.at6 };
    // SAFETY: see above.
    unsafe { (*held).pad = 0 };
    // SAFETY: see above.
    unsafe { (*held).pad_word = 0 };
    // SAFETY: see above.
    let packet = unsafe { &raw mut (*held).packet }.cast::<u8>();
    if hook.capture::<HELD_OCTETS>(H::L3, packet, len) {
        record.submit(0);
        stats::count(Done::FragmentHeld);
        true
    } else {
        record.discard(0);
        false
    }
}

/// Takes an identification for a datagram with the addresses that `value` gives it: the host's own if no other
/// datagram between them has had it within the reassembly time, else a random one.
#[inline(never)]
fn claim(config: &Config, now: u32, key: &FragmentKey, value: &FragmentValue) -> [u8; 2] {
    let mut wanted = FragmentKey {
        src: value.src,
        dst: value.dst,
        id: key.id,
        proto: key.proto,
        pad: 0,
    };
    let claim = FragmentValue {
        src: key.src,
        id: key.id,
        tick: now,
        flags: FragmentFlags::CLAIM,
        ..FragmentValue::default()
    };
    for _ in 0..CANDIDATES {
        if FRAGMENTS
            .insert(&wanted, &claim, BPF_NOEXIST.into())
            .is_ok()
        {
            return wanted.id;
        }
        let taken = FRAGMENTS.get_ptr(&wanted).is_some_and(|other| {
            // SAFETY: entries live as long as the program runs.
            let other = unsafe { &*other };
            let ours = other.src == claim.src && other.id == claim.id;
            !ours && tick::age(now, other.tick) <= REASSEMBLY.saturating_mul(config.hz)
        });
        if !taken {
            // A failure leaves the identification unclaimed and the datagram as it would be without us.
            FRAGMENTS.insert(&wanted, &claim, BPF_ANY.into()).ok();
            return wanted.id;
        }
        // SAFETY: the helper has no preconditions.
        let random = unsafe { bpf_get_prandom_u32() };
        wanted.id = (random as u16).to_be_bytes();
    }
    wanted.id
}

/// The entry of a datagram whose first fragment came within the reassembly time.
#[inline(always)]
fn find(config: &Config, now: u32, key: &FragmentKey) -> Option<&'static FragmentValue> {
    let value = FRAGMENTS.get_ptr(key)?;
    // SAFETY: the table is preallocated. An entry may be given to another datagram under us if so many others
    // come within this one packet that it has become the oldest; then one fragment goes astray, and nothing of it
    // is used for memory access.
    let value = unsafe { &*value };
    let fresh = tick::age(now, value.tick) <= REASSEMBLY.saturating_mul(config.hz);
    (fresh && value.flags & FragmentFlags::CLAIM == 0).then_some(value)
}

#[inline(always)]
fn remember(key: &FragmentKey, value: &FragmentValue) {
    // Without an entry the later fragments are unknown, which is counted when they come.
    FRAGMENTS.insert(key, value, BPF_ANY.into()).ok();
}

#[inline(always)]
fn datagram(key: &SessionKey, id: [u8; 2]) -> FragmentKey {
    FragmentKey {
        src: key.src,
        dst: key.dst,
        id,
        proto: key.proto,
        pad: 0,
    }
}

#[inline(always)]
fn identification<H: Hook>(hook: &H) -> Step<[u8; 2]> {
    let ip = hook
        .cursor()
        .at::<{ ipv4::LEN }>(H::L3)
        .ok_or(DropReason::Malformed)?;
    // SAFETY: `at` proved the bounds.
    Ok(unsafe { load16::<{ ipv4::ID }>(ip) })
}

/// Reads a fragment that is not the first, and refuses what no datagram can be made of.
#[inline(always)]
fn read<H: Hook>(hook: &H) -> Step<Later> {
    let cursor = hook.cursor();
    let ip = cursor
        .at::<{ ipv4::LEN }>(H::L3)
        .ok_or(DropReason::Malformed)?;
    // SAFETY: `at` proved the bounds, here and below.
    let header_len = u16::from(unsafe { *ip.add(ipv4::VERSION_IHL) } & 0x0f) * 4;
    // SAFETY: see above.
    let total_len = u16::from_be_bytes(unsafe { load16::<{ ipv4::TOTAL_LEN }>(ip) });
    // SAFETY: see above.
    let field = u16::from_be_bytes(unsafe { load16::<{ ipv4::FRAGMENT }>(ip) });
    // SAFETY: see above.
    let proto = unsafe { *ip.add(ipv4::PROTO) };
    let offset = (field & OFFSET) << 3;
    let end = H::L3 + usize::from(total_len);
    let malformed = total_len <= header_len
        || (field & MORE != 0 && (total_len - header_len) & 7 != 0)
        || u32::from(offset) + u32::from(total_len) > 0xffff
        || end > hook.frame_len();
    if malformed {
        return Err(refuse(hook, DropReason::Malformed.into()));
    }
    // RFC 3128: with the flags of a TCP header in it, whatever the first fragment was like.
    if proto == TCP && offset == 8 {
        return Err(refuse(hook, DropReason::TinyFragment.into()));
    }
    Ok(Later {
        key: FragmentKey {
            // SAFETY: see above.
            src: unsafe { load32::<{ ipv4::SRC }>(ip) },
            // SAFETY: see above.
            dst: unsafe { load32::<{ ipv4::DST }>(ip) },
            // SAFETY: see above.
            id: unsafe { load16::<{ ipv4::ID }>(ip) },
            proto,
            pad: 0,
        },
        // SAFETY: see above.
        ttl: unsafe { *ip.add(ipv4::TTL) },
        total_len,
    })
}

/// Of the flags and offset of an IPv4 header, in host order (RFC 791 section 3.1).
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
