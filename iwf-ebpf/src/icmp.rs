//! ICMP errors: translated with the packet they quote.
//!
//! Read before editing: RFC 5508 sections 4, 5 and 7.2, RFC 792, RFC 4884 sections 4 and 5, RFC 7857 section 12.
//!
//! An error goes back to where packet E came from, and quotes E as it was seen there. So the session of the
//! error's own direction is the one of an answer to E, and what it does to an answer undoes what was done to E:
//! the quoted destination is treated like the answer's source, the quoted source like its destination. An error
//! only reads the session. It begins, keeps, changes and ends nothing (RFC 4787 REQ-12, RFC 5508 REQ-6).

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_csum_diff;
use iwf_common::config::Config;
use iwf_common::csum;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::nat::EndpointKey;
use iwf_common::reason::{Done, DropReason, PassReason};

use crate::cursor::{Cursor, load16, load32};
use crate::headers::{
    ICMP, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_PARAMETER_PROBLEM, ICMP_REDIRECT,
    ICMP_TIME_EXCEEDED, ICMP_UNREACHABLE, Mac, TCP, UDP, ethernet, icmp, ipv4, ports, tcp, udp,
};
use crate::hook::Hook;
use crate::maps::{CONFIG, is_external, is_place};
use crate::outcome::{Outcome, Step, Verdict};
use crate::session::{self, Direction};
use crate::{inbound, mapping, next_hop, stats};

/// Octets of an ICMP message that are checked, at most; a longer one is dropped. RFC 1812 section 4.3.2.3 ends
/// errors at 576 octets.
const LONGEST: usize = 1536;

/// Where an error is when it is looked at, and so what can be done with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Came in by the WAN.
    Wan,
    /// Came in by a LAN port.
    Lan,
    /// Leaves the WAN, sent or forwarded by the stack.
    Egress,
}

impl At {
    /// Back from `as u32`.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Wan,
            1 => Self::Lan,
            _ => Self::Egress,
        }
    }
}

/// What an error says, as it arrived.
struct Report {
    /// An answer to the quoted packet: key of the session of this error's direction.
    key: SessionKey,
    src: [u8; 4],
    dst: [u8; 4],
    total_len: u16,
    ttl: u8,
    /// Whether the quoted packet is an ICMP query, and its identifier the source's.
    asked: bool,
    /// Where the ICMP header begins.
    icmp: usize,
    /// Where the quoted IPv4 header begins.
    quote: usize,
    /// Where the quoted transport header begins.
    transport: usize,
}

/// Translates an ICMP error, if it is one about a session.
///
/// [`PassReason::IcmpError`] says that it was not touched and is no business of the NAT's. A function of its own:
/// nothing of it may cost the others stack.
#[inline(always)]
pub fn translate<H: Hook>(hook: &H, place: At) -> Outcome {
    hook.icmp_error(place)
}

/// [`translate`], on the far side.
#[inline(always)]
pub fn run<H: Hook>(hook: &H, place: At) -> Outcome {
    try_translate(hook, place).unwrap_or_else(|outcome| outcome)
}

#[inline(always)]
fn try_translate<H: Hook>(hook: &H, place: At) -> Step<Outcome> {
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    let mut report = MaybeUninit::uninit();
    let report = match read(hook, config, place, &mut report) {
        Ok(report) => report,
        // Nothing that the WAN could have done to a session: the stack and its egress judge.
        Err(outcome) if place != At::Wan && matches!(outcome.verdict(), Verdict::Drop) => {
            return Err(PassReason::IcmpError.into());
        }
        Err(outcome) if place == At::Wan => return Err(inbound::unjudged(hook, outcome)),
        Err(outcome) => return Err(outcome),
    };
    let direction = match place {
        At::Wan => Direction::In,
        At::Lan | At::Egress => Direction::Out,
    };
    let Some(session) = session::find(&report.key, direction) else {
        return Err(without_session(place, report));
    };
    session::check_address(config, &report.key, session)?;
    check_sums(hook, report).step()?;
    let way = way(hook, config, place, report, session);
    // Outbound, the stack gets it as it came: the program on WAN egress translates it then. What a session turns
    // back to the LAN never comes by there.
    if let Err(outcome) = way
        && place == At::Lan
        && session.flags & SessionFlags::HAIRPIN == 0
    {
        return Err(outcome);
    }
    let src = match place {
        // RFC 5508 REQ-4: whoever outside reports is known by the same address inside.
        At::Wan => report.src,
        // What is routed is shown as it is.
        At::Lan | At::Egress if config.is_routed() => report.src,
        // RFC 5508 REQ-5: nothing of the LAN is shown, neither the host nor a router in between.
        At::Lan | At::Egress => session.src,
    };
    edit(hook, report, session, src, way.is_ok()).step()?;
    match way {
        Err(outcome) if place != At::Egress => {
            stats::count(Done::IcmpErrorTranslated);
            Err(outcome)
        }
        _ => Ok(Done::IcmpErrorTranslated.into()),
    }
}

/// Reads the error and the head of what it quotes.
#[inline(always)]
fn read<'a, H: Hook>(
    hook: &H,
    config: &Config,
    place: At,
    report: &'a mut MaybeUninit<Report>,
) -> Step<&'a mut Report> {
    let outer = hook.cursor();
    let ip = outer
        .at::<{ ipv4::LEN }>(H::L3)
        .ok_or(PassReason::Malformed)?;
    // SAFETY: `at` proved the bounds of each header, here and below.
    let icmp = H::L3 + usize::from(unsafe { *ip.add(ipv4::VERSION_IHL) } & 0x0f) * 4;
    // SAFETY: see above.
    let total_len = u16::from_be_bytes(unsafe { load16::<{ ipv4::TOTAL_LEN }>(ip) });
    let end = H::L3 + usize::from(total_len);
    // SAFETY: see above.
    let (src, dst) = unsafe { addresses(ip) };
    // SAFETY: see above.
    let ttl = unsafe { *ip.add(ipv4::TTL) };
    if place == At::Wan {
        inbound::check_flow(src, dst)?;
        if !config.serves() {
            return Err(PassReason::NotConfigured.into());
        }
        if !is_place(&dst) {
            return Err(PassReason::NotExternalAddr.into());
        }
    }
    if place != At::Egress && H::REDIRECTS {
        let frame = outer_frame(&hook.cursor()).ok_or(PassReason::Malformed)?;
        next_hop::check_frame(hook.ingress(), frame)?;
    }
    // No pointer into the packet is held across this.
    hook.make_linear(end);
    let cursor = hook.cursor();
    let header = cursor
        .at::<{ icmp::LEN }>(icmp)
        .ok_or(PassReason::Malformed)?;
    // SAFETY: see above. Source quench is not supported (RFC 5508 REQ-10, RFC 6633), and a redirect is for the
    // neighbour it is sent to.
    match unsafe { *header.add(icmp::KIND) } {
        ICMP_UNREACHABLE | ICMP_TIME_EXCEEDED | ICMP_PARAMETER_PROBLEM => {}
        _ => return Err(PassReason::IcmpError.into()),
    }
    let quote = icmp + icmp::LEN;
    let ip = cursor
        .at::<{ ipv4::LEN }>(quote)
        .ok_or(DropReason::IcmpErrorBad)?;
    // SAFETY: see above.
    let version_ihl = unsafe { *ip.add(ipv4::VERSION_IHL) };
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let transport = quote + header_len;
    // RFC 792: 64 bits of the quoted packet's data are always there.
    if version_ihl >> 4 != 4 || header_len < ipv4::LEN || transport + QUOTED_DATA > end {
        return Err(DropReason::IcmpErrorBad.into());
    }
    // SAFETY: see above.
    let fragment = unsafe { load16::<{ ipv4::FRAGMENT }>(ip) };
    if u16::from_ne_bytes(fragment) & FRAGMENT_OFFSET != 0 {
        return Err(DropReason::IcmpErrorStray.into());
    }
    // SAFETY: see above.
    let (quoted_src, quoted_dst) = unsafe { addresses(ip) };
    // SAFETY: see above.
    let proto = unsafe { *ip.add(ipv4::PROTO) };
    let data = cursor
        .at::<QUOTED_DATA>(transport)
        .ok_or(DropReason::IcmpErrorBad)?;
    let (src_port, dst_port, asked) = match proto {
        UDP | TCP => (
            // SAFETY: see above.
            unsafe { load16::<{ ports::SRC }>(data) },
            // SAFETY: see above.
            unsafe { load16::<{ ports::DST }>(data) },
            false,
        ),
        ICMP => {
            // SAFETY: see above.
            let id = unsafe { load16::<{ icmp::ID }>(data) };
            // SAFETY: see above.
            match unsafe { *data.add(icmp::KIND) } {
                ICMP_ECHO_REQUEST => (id, [0; 2], true),
                ICMP_ECHO_REPLY => ([0; 2], id, false),
                // No error is sent about an error (RFC 1122 section 3.2.2).
                ICMP_UNREACHABLE..=ICMP_REDIRECT | ICMP_TIME_EXCEEDED | ICMP_PARAMETER_PROBLEM => {
                    return Err(DropReason::IcmpErrorStray.into());
                }
                _ => return Err(PassReason::IcmpError.into()),
            }
        }
        // Never translated: if the quoted packet was sent by us, it was the CPE itself.
        _ => return Err(PassReason::IcmpError.into()),
    };
    // An error is sent to the source of what it quotes.
    if quoted_src != dst {
        return Err(DropReason::IcmpErrorBad.into());
    }
    Ok(report.write(Report {
        key: SessionKey::new(quoted_dst, dst_port, quoted_src, src_port, proto),
        src,
        dst,
        total_len,
        ttl,
        asked,
        icmp,
        quote,
        transport,
    }))
}

/// RFC 792: what of the quoted packet's data is always there, in octets.
const QUOTED_DATA: usize = 8;

/// Fragment offset, in network order (RFC 791 section 3.1).
const FRAGMENT_OFFSET: u16 = u16::from_be(0x1fff);

/// Source and destination of an IPv4 header.
///
/// # Safety
/// The header is in bounds.
#[inline(always)]
unsafe fn addresses(ip: *const u8) -> ([u8; 4], [u8; 4]) {
    // SAFETY: the caller's promise.
    let src = unsafe { load32::<{ ipv4::SRC }>(ip) };
    // SAFETY: the caller's promise.
    let dst = unsafe { load32::<{ ipv4::DST }>(ip) };
    (src, dst)
}

#[inline(always)]
fn outer_frame(cursor: &Cursor) -> Option<Mac> {
    let frame = cursor.at::<{ ethernet::LEN }>(0)?;
    // SAFETY: `at` proved the bounds.
    Some(unsafe { Mac::destination(frame) })
}

/// The fate of an error about no session: dropped if it came from the WAN (RFC 5508 REQ-4), unless what it
/// quotes is a service of the CPE, which has no sessions. Elsewhere the stack and its egress judge.
#[inline(always)]
fn without_session(place: At, report: &Report) -> Outcome {
    if place != At::Wan {
        return PassReason::IcmpError.into();
    }
    let key = &report.key;
    let service = EndpointKey::new(key.dst, key.dst_port, key.proto);
    // An echo reply is the CPE's: those of LAN hosts to the WAN answer nobody.
    let answered = key.proto == ICMP && !report.asked;
    if is_external(&key.dst) && (answered || mapping::is_static_service(&service)) {
        PassReason::Host.into()
    } else {
        DropReason::IcmpErrorStray.into()
    }
}

/// Whether the error leaves from here by the session's cached next hop, which is the way to its destination,
/// and else why not. It is not looked up again: that would change the session.
#[inline(always)]
fn way<H: Hook>(
    hook: &H,
    config: &Config,
    place: At,
    report: &Report,
    session: &SessionValue,
) -> Step<()> {
    if session.flags & SessionFlags::HOST != 0 {
        return Err(PassReason::Host.into());
    }
    if place == At::Egress || !H::REDIRECTS {
        return Err(PassReason::NoRedirect.into());
    }
    if report.ttl <= 1 {
        return Err(PassReason::TtlExceeded.into());
    }
    if session.next_hop_generation != config.next_hop_generation {
        return Err(PassReason::Unresolved.into());
    }
    if report.total_len > session.mtu {
        return Err(PassReason::TooBig.into());
    }
    hook.leave_by(session.egress)
}

/// RFC 5508 REQ-3: the checksum of the message and the quoted header's must be right. The quoted transport's is
/// not looked at.
#[inline(never)]
fn check_sums<H: Hook>(hook: &H, report: &Report) -> Outcome {
    let end = H::L3 + usize::from(report.total_len);
    let message = hook.sum(report.icmp, end.wrapping_sub(report.icmp));
    let header = hook.sum(report.quote, report.transport.wrapping_sub(report.quote));
    if message == SUM_OF_GOOD && header == SUM_OF_GOOD {
        Outcome::NONE
    } else {
        DropReason::IcmpErrorBad.into()
    }
}

/// The sum over data that has its right checksum in it (RFC 1071 section 1).
const SUM_OF_GOOD: u32 = 0xffff;
/// Octets that are summed by one call of the kernel. A size that is not constant is refused by its verifier.
const CHUNK: usize = 64;

/// The folded one's complement sum of `len` octets at `from`; 0, which no good data has, if they are not there.
#[inline(always)]
pub fn sum<H: Hook>(hook: &H, from: usize, len: usize) -> u32 {
    if from > LONGEST {
        return 0;
    }
    try_sum(&hook.cursor(), from, len).unwrap_or(0)
}

#[inline(always)]
fn try_sum(cursor: &Cursor, from: usize, len: usize) -> Option<u32> {
    if len > LONGEST {
        return None;
    }
    let mut at = from;
    let mut left = len;
    let mut sum = 0;
    for _ in 0..LONGEST / CHUNK {
        if left < CHUNK {
            break;
        }
        sum = add_chunk::<CHUNK>(cursor, at, sum)?;
        at += CHUNK;
        left -= CHUNK;
    }
    if left & 32 != 0 {
        sum = add_chunk::<32>(cursor, at, sum)?;
        at += 32;
    }
    if left & 16 != 0 {
        sum = add_chunk::<16>(cursor, at, sum)?;
        at += 16;
    }
    if left & 8 != 0 {
        sum = add_chunk::<8>(cursor, at, sum)?;
        at += 8;
    }
    if left & 4 != 0 {
        sum = add_chunk::<4>(cursor, at, sum)?;
        at += 4;
    }
    let mut tail = 0;
    if left & 2 != 0 {
        let word = cursor.at_moving::<2>(at)?;
        // SAFETY: `at` proved the bounds.
        tail = u32::from(u16::from_ne_bytes(unsafe { load16::<0>(word) }));
        at += 2;
    }
    if left & 1 != 0 {
        let octet = cursor.at_moving::<1>(at)?;
        // RFC 1071: padded with a zero octet.
        // SAFETY: `at` proved the bounds.
        tail += u32::from(u16::from_ne_bytes([unsafe { *octet }, 0]));
    }
    let folded = (sum & 0xffff) + (sum >> 16) + tail;
    let folded = (folded & 0xffff) + (folded >> 16);
    Some((folded & 0xffff) + (folded >> 16))
}

#[inline(always)]
fn add_chunk<const LEN: usize>(cursor: &Cursor, at: usize, sum: u32) -> Option<u32> {
    let chunk = cursor.at_moving::<LEN>(at)?;
    // SAFETY: `at` proved the bounds; nothing is subtracted.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, chunk.cast(), LEN as u32, sum) };
    Some(sum as u32)
}

/// Writes the translation. The sums change by what the fields change by, so that everything that is not written,
/// padding and extensions (RFC 4884) included, stays as it is and covered.
#[inline(never)]
fn edit<H: Hook>(
    hook: &H,
    report: &Report,
    session: &SessionValue,
    src: [u8; 4],
    forward: bool,
) -> Outcome {
    Outcome::of(try_edit(hook, report, session, src, forward))
}

#[inline(always)]
fn try_edit<H: Hook>(
    hook: &H,
    report: &Report,
    session: &SessionValue,
    src: [u8; 4],
    forward: bool,
) -> Step<()> {
    // What changes in the quote but its IPv4 header: that one's checksum makes up for its addresses.
    let changed = edit_transport(hook, report, session)?;
    let at = report.quote + ipv4::CHECKSUM;
    let field = csum::apply(word(hook, at)?, session.l3_delta);
    hook.put16(at, field.to_ne_bytes())?;
    hook.put32(report.quote + ipv4::SRC, session.dst)?;
    hook.put32(report.quote + ipv4::DST, session.src)?;

    let at = report.icmp + icmp::CHECKSUM;
    let field = csum::apply(word(hook, at)?, changed);
    hook.put16(at, field.to_ne_bytes())?;

    let mut delta = csum::add(
        csum::delta32(report.src, src),
        csum::delta32(report.dst, session.dst),
    );
    if forward {
        delta = csum::add(delta, csum::TTL_DELTA);
    }
    let at = H::L3 + ipv4::CHECKSUM;
    let field = csum::apply(word(hook, at)?, delta);
    hook.put16(at, field.to_ne_bytes())?;
    hook.put32(H::L3 + ipv4::SRC, src)?;
    hook.put32(H::L3 + ipv4::DST, session.dst)?;
    if !forward {
        return Ok(());
    }
    // The protocol number is the octet behind the TTL.
    hook.put16(H::L3 + ipv4::TTL, [report.ttl.wrapping_sub(1), ICMP])?;
    let (dst, src) = (&session.next_hop_mac, &session.egress_mac);
    hook.put32(0, [dst[0], dst[1], dst[2], dst[3]])?;
    hook.put32(4, [dst[4], dst[5], src[0], src[1]])?;
    hook.put32(8, [src[2], src[3], src[4], src[5]])
}

/// The quoted ports or identifier, and the quoted transport checksum if it is there. Yields what the sum of the
/// message changes by.
#[inline(always)]
fn edit_transport<H: Hook>(hook: &H, report: &Report, session: &SessionValue) -> Step<u16> {
    let key = &report.key;
    let at = report.transport;
    if key.proto == ICMP {
        let (old, new) = if report.asked {
            (key.dst_port, session.dst_port)
        } else {
            (key.src_port, session.src_port)
        };
        hook.put16(at + icmp::ID, new)?;
        let at = at + icmp::CHECKSUM;
        let was = word(hook, at)?;
        let field = csum::apply(was, session.l4_delta);
        hook.put16(at, field.to_ne_bytes())?;
        return Ok(csum::add(
            csum::delta16(old, new),
            csum::delta16(was.to_ne_bytes(), field.to_ne_bytes()),
        ));
    }
    hook.put16(at + ports::SRC, session.dst_port)?;
    hook.put16(at + ports::DST, session.src_port)?;
    let ports = csum::add(
        csum::delta16(key.dst_port, session.dst_port),
        csum::delta16(key.src_port, session.src_port),
    );
    let (at, was, field) = if key.proto == UDP {
        let at = at + udp::CHECKSUM;
        let was = word(hook, at)?;
        (at, was, csum::apply_udp(was, session.l4_delta))
    } else {
        let end = H::L3 + usize::from(report.total_len);
        if at + tcp::CHECKSUM + 2 > end || !is_header(hook, at) {
            return Ok(ports);
        }
        let at = at + tcp::CHECKSUM;
        let was = word(hook, at)?;
        (at, was, csum::apply(was, session.l4_delta))
    };
    hook.put16(at, field.to_ne_bytes())?;
    Ok(csum::add(
        ports,
        csum::delta16(was.to_ne_bytes(), field.to_ne_bytes()),
    ))
}

/// Whether the quote goes on as a TCP header behind its first 8 octets. RFC 4884 pads a shorter one with zeros,
/// and no header has a length of zero.
#[inline(always)]
fn is_header<H: Hook>(hook: &H, at: usize) -> bool {
    match hook.cursor().at::<{ tcp::CHECKSUM + 2 }>(at) {
        // SAFETY: `at` proved the bounds.
        Some(header) => unsafe { *header.add(tcp::DATA_OFFSET) >> 4 != 0 },
        None => false,
    }
}

/// The 16-bit field at `at`, as it lies in memory.
#[inline(always)]
fn word<H: Hook>(hook: &H, at: usize) -> Step<u16> {
    let field = hook.cursor().at::<2>(at).ok_or(DropReason::RewriteFailed)?;
    // SAFETY: `at` proved the bounds.
    Ok(u16::from_ne_bytes(unsafe { load16::<0>(field) }))
}
