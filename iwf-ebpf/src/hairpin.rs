//! From a LAN host to a LAN host by an external endpoint.
//!
//! Read before editing: RFC 4787 section 6 (REQ-9), RFC 5382 REQ-8, RFC 5508 section 5, RFC 7857 section 12.
//!
//! Sender and target meet as if both were outside: the sender sends from its external endpoint, and the target's
//! filter judges that endpoint. Each of the two sessions is an outbound one of its own host's mapping, with both
//! ends translated. An ICMP query to an external address has no endpoint that could be a LAN host's (RFC 5508
//! REQ-7 asks it of Basic NAT only): the CPE answers it.

use iwf_common::config::Config;
use iwf_common::csum;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::fragment::FragmentFlags;
use iwf_common::nat::{EndpointKey, MappingKind};
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::{tcp, tick};

use crate::clock::tick as now_tick;
use crate::filter;
use crate::fragment;
use crate::headers::{ICMP, TCP};
use crate::hook::Hook;
use crate::host::{self, Wants};
use crate::mapping::{self, Grant};
use crate::maps::{MAPPINGS_EXT, SESSIONS, in_lan};
use crate::next_hop;
use crate::outcome::{Outcome, Step};
use crate::parse::Packet;
use crate::rewrite::Hop;
use crate::session::{self, Direction, Flow};
use crate::stats;

/// A packet of a LAN host to an external address of ours, without a session: begins both, or says why not.
#[inline(never)]
pub fn admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Outcome {
    Outcome::of(try_admit(hook, config, packet))
}

#[inline(always)]
fn try_admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Step<()> {
    let key = &packet.key;
    if H::REDIRECTS {
        next_hop::check_mac(hook.ingress(), packet).step()?;
    }
    if !next_hop::is_from_lan(next_hop::l3_interface(hook.ingress()), &key.src) {
        return Err(if in_lan(&key.src) {
            DropReason::SpoofedLan.into()
        } else {
            PassReason::NotLanSource.into()
        });
    }
    if key.proto == ICMP {
        return Err(if packet.asks() {
            PassReason::EchoRequest.into()
        } else {
            PassReason::Hairpin.into()
        });
    }
    let target = key.destination();
    // A port that is mapped for no LAN host is the CPE's own, open or not.
    let mapping = MAPPINGS_EXT.get_ptr(target).ok_or(PassReason::Hairpin)?;
    // SAFETY: entries live as long as the program runs; none of it decides a memory access.
    let mapping = unsafe { &*mapping };
    if mapping.kind == MappingKind::Host as u8 {
        return Err(PassReason::Hairpin.into());
    }
    if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
        return Err(DropReason::TcpStray.into());
    }
    let now = now_tick();
    let mut pair = Pair {
        flow: Flow {
            internal: key.source(),
            grant: Grant::NONE,
            remote: target,
            trigger: Direction::Out,
            host: false,
        },
        inner: mapping.endpoint(key.proto),
        deadline: mapping.expires,
        flags: SessionFlags::HAIRPIN,
    };
    let (internal, grant) = (&pair.flow.internal, &mut pair.flow.grant);
    mapping::find_or_make(now, internal, MappingKind::Dynamic, grant)?;
    if grant.made {
        host::began(&internal.addr, Wants::MAPPING);
    }
    let invited = let_in(config, now, &mut pair);
    if invited == DropReason::HairpinRefused.into() {
        // Noted, so that its peer's packet is an answer: two hosts that send to each other at once (RFC 5128
        // section 3.3) meet. An ended entry, which no packet uses and the sweep removes; without room for it they
        // meet by a later packet.
        pair.flags |= SessionFlags::ENDED;
        write(config, now, packet, &pair, Direction::Out);
    }
    invited.step()?;
    // That of the answers first. A host that has sent to its own external endpoint is both.
    if pair.flow.grant.external != pair.flow.remote {
        write(config, now, packet, &pair, Direction::In).step()?;
    }
    pair.flags = SessionFlags::HAIRPIN;
    write(config, now, packet, &pair, Direction::Out).step()?;
    filter::note(now, &pair.flow);
    stats::count(Done::SessionCreated);
    Ok(())
}

/// Two LAN hosts that meet at external endpoints.
struct Pair {
    /// The sender's: its mapping, and the target's external endpoint as the remote one.
    flow: Flow,
    /// The target's internal endpoint.
    inner: EndpointKey,
    /// When the target's mapping ends; 0: not by itself.
    deadline: u32,
    /// [`SessionFlags`] of the entry that is written next.
    flags: u8,
}

impl Pair {
    /// Key of the packets of the sender, or of the target.
    #[inline(always)]
    fn key(&self, direction: Direction) -> SessionKey {
        let (from, to) = match direction {
            Direction::Out => (&self.flow.internal, &self.flow.remote),
            Direction::In => (&self.inner, &self.flow.grant.external),
        };
        SessionKey::new(from.addr, from.port, to.addr, to.port, from.proto)
    }

    /// The translation of these packets.
    #[inline(always)]
    fn aim(&self, value: &mut SessionValue, direction: Direction) {
        let (from, to) = match direction {
            Direction::Out => (&self.flow.grant.external, &self.inner),
            Direction::In => (&self.flow.remote, &self.flow.internal),
        };
        let key = self.key(direction);
        value.src = from.addr;
        value.src_port = from.port;
        value.dst = to.addr;
        value.dst_port = to.port;
        value.l3_delta = csum::add(
            csum::delta32(key.src, value.src),
            csum::delta32(key.dst, value.dst),
        );
        let ports = csum::add(
            csum::delta16(key.src_port, value.src_port),
            csum::delta16(key.dst_port, value.dst_port),
        );
        value.l4_delta = csum::add(value.l3_delta, ports);
    }
}

/// Whether the target lets the sender in: by its filter, or because it has sent to the sender itself.
#[inline(never)]
fn let_in(config: &Config, now: u32, pair: &mut Pair) -> Outcome {
    let (source, target) = (&pair.flow.grant.external, &pair.flow.remote);
    let Some(mapping) = MAPPINGS_EXT.get_ptr(target) else {
        return DropReason::HairpinRefused.into();
    };
    // SAFETY: as in `try_admit`.
    let mapping = unsafe { &*mapping };
    match filter::admit(config, now, mapping, target, source) {
        Ok(()) => {
            pair.flags |= SessionFlags::INVITED;
            Outcome::NONE
        }
        Err(refused) if refused == DropReason::MappingExpired.into() => refused,
        Err(_) if source == target || has_sent(pair) => Outcome::NONE,
        Err(_) => DropReason::HairpinRefused.into(),
    }
}

/// Writes the entry of one direction. Once for each, because both at a time would need too much stack.
#[inline(never)]
fn write(config: &Config, now: u32, packet: &Packet, pair: &Pair, direction: Direction) -> Outcome {
    let mut value = SessionValue {
        last_seen: now,
        deadline: earlier(pair.flow.grant.deadline, pair.deadline),
        flags: pair.flags,
        ..SessionValue::default()
    };
    pair.aim(&mut value, direction);
    if direction == Direction::Out {
        value.router_mac = packet.frame_dst.octets();
        value.tcp = tcp::observe(0, packet.tcp_flags);
    }
    let key = pair.key(direction);
    match session::insert(config, now, &pair.flow, &key, &value) {
        Ok(true) => {
            // Both entries are of the direction out, each of its own host.
            host::began(&key.src, Wants::SESSION);
            Outcome::NONE
        }
        Ok(false) => Outcome::NONE,
        Err(outcome) => outcome,
    }
}

/// Whether the target has sent to the sender's external endpoint, and lately: as a session of another sender, or
/// in vain.
#[inline(always)]
fn has_sent(pair: &Pair) -> bool {
    let Some(sent) = SESSIONS.get_ptr(pair.key(Direction::In)) else {
        return false;
    };
    // SAFETY: as in `session::find`.
    let sent = unsafe { &*sent };
    sent.flags & SessionFlags::HAIRPIN != 0
        && EndpointKey::new(sent.src, sent.src_port, pair.inner.proto) == pair.flow.remote
}

/// A packet of a session that cannot leave from here: the stack gets it translated, because it would take an
/// external address for its own. It could not tell the sender that the TTL is used up: the sender has our own
/// address by then.
#[inline(never)]
pub fn hand_up<H: Hook>(
    hook: &H,
    packet: &Packet,
    session: &mut SessionValue,
    now: u32,
    outcome: Outcome,
) -> Outcome {
    if outcome == PassReason::TtlExceeded.into() {
        return DropReason::TtlExceeded.into();
    }
    if outcome == DropReason::AddressGone.into() {
        return outcome;
    }
    session::touch(session, packet, now);
    if let Err(failed) = hook.rewrite(packet, session, Hop::Stack) {
        return failed;
    }
    if packet.marks != 0 {
        let failed = fragment::marked(hook, packet, session, FragmentFlags::STACK);
        if failed != Outcome::NONE {
            return failed;
        }
    }
    outcome
}

/// Whether the mapping of the other end still stands. Its expiry is the session's too.
#[inline(always)]
pub fn recheck(now: u32, key: &SessionKey, session: &mut SessionValue) -> bool {
    let inner = EndpointKey::new(session.dst, session.dst_port, key.proto);
    match mapping::behind(&key.destination(), &inner) {
        Some(mapping) if !mapping.expired(now) => {
            let deadline = earlier(session.deadline, mapping.expires);
            if deadline != session.deadline {
                session.deadline = deadline;
            }
            true
        }
        _ => false,
    }
}

/// The earlier of two deadlines, where 0 is none.
#[inline(always)]
const fn earlier(a: u32, b: u32) -> u32 {
    if a == 0 || (b != 0 && tick::age(a, b) > 0) {
        b
    } else {
        a
    }
}
