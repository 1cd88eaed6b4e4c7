//! Where a translated packet goes: route, neighbour, bridge port.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as FibParams,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use iwf_common::config::{Config, Ends, FdbKey};
use iwf_common::flow::{NO_NEXT_HOP, SessionFlags, SessionValue};
use iwf_common::reason::{Done, DropReason, PassReason};

use crate::headers::Mac;
use crate::hook::Hook;
use crate::maps::{BRIDGE_FDB, CONFIG, IFACES, owns};
use crate::outcome::{Outcome, Step};
use crate::parse::{Packet, is_unicast};
use crate::session::Direction;
use crate::stats;

const AF_INET: u8 = 2;

/// No device has this index: what goes to a link without Ethernet is the stack's to send.
const NOWHERE: u32 = 0;

/// What a session caches.
pub struct NextHop {
    pub egress: u32,
    generation: u32,
    pub mac: [u8; 6],
    pub egress_mac: [u8; 6],
    pub mtu: u16,
}

impl NextHop {
    /// Not known: the first packet that needs it looks it up.
    pub const NONE: Self = Self {
        egress: 0,
        generation: NO_NEXT_HOP,
        mac: [0; 6],
        egress_mac: [0; 6],
        mtu: 0,
    };

    /// Writes it into a session, the generation last: a reader that sees it sees the rest, or at worst sends
    /// one frame to the hop before.
    #[inline(always)]
    pub fn store(&self, session: &mut SessionValue) {
        session.egress = self.egress;
        session.next_hop_mac = self.mac;
        session.egress_mac = self.egress_mac;
        session.mtu = self.mtu;
        // SAFETY: a reference is valid for writes; volatile keeps the order of the program text.
        unsafe {
            core::ptr::write_volatile(&raw mut session.next_hop_generation, self.generation);
        }
    }
}

/// What the routing table is asked.
pub struct Query {
    /// Which way; outbound packets must leave by the WAN and inbound ones must not.
    pub direction: Direction,
    /// The interface the packet came in by, as the routing table knows it.
    pub iif: u32,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Octets of the packet, or of the largest segment it becomes.
    pub total_len: u16,
}

/// Looks up a way. Every answer but success means that the stack must have the packet.
///
/// A function of its own: its stack is free again when the rest of a miss needs it.
#[inline(never)]
pub fn look_up(ctx: *mut c_void, config: &Config, query: &Query, found: &mut NextHop) -> Outcome {
    Outcome::of(try_look_up(ctx, config, query, found))
}

#[inline(always)]
fn try_look_up(ctx: *mut c_void, config: &Config, query: &Query, found: &mut NextHop) -> Step<()> {
    let mut params = MaybeUninit::uninit();
    let params = self::params(&mut params, AF_INET, query.iif);
    params.__bindgen_anon_1.tot_len = query.total_len;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(query.src);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(query.dst);
    // SAFETY: the context is the kernel's own and the length is the struct's.
    let answer = unsafe { bpf_fib_lookup(ctx, params, size_of::<FibParams>() as i32, 0) } as u32;
    // Too large is answered before the kernel names the interface; the other two come after.
    match answer {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {}
        BPF_FIB_LKUP_RET_FRAG_NEEDED => return Err(PassReason::TooBig.into()),
        _ => return Err(PassReason::NotToWan.into()),
    }
    if (params.ifindex == config.wan) != (query.direction == Direction::Out) {
        return Err(PassReason::NotToWan.into());
    }
    if answer == BPF_FIB_LKUP_RET_NO_NEIGH {
        return Err(PassReason::Unresolved.into());
    }
    // Without an Ethernet address there is no Ethernet header either, and frames are not what such a device takes.
    found.egress = if params.smac == [0; 6] {
        NOWHERE
    } else {
        port_towards(params.ifindex, params.dmac)
    };
    found.generation = config.next_hop_generation;
    found.mac = params.dmac;
    found.egress_mac = params.smac;
    // SAFETY: on success the kernel has put the MTU where the length was.
    found.mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    Ok(())
}

/// A question to the routing table, without its addresses. Written in place: a copy would cost stack.
#[inline(always)]
pub fn params(space: &mut MaybeUninit<FibParams>, family: u8, iif: u32) -> &mut FibParams {
    let first: *mut u32 = space.as_mut_ptr().cast();
    // Word by word: for all at once the compiler calls a function that goes octet by octet, and the verifier with it.
    const _: () = assert!(size_of::<FibParams>() == 64 && align_of::<FibParams>() >= 4);
    for word in 0..16 {
        // SAFETY: inside of the struct; volatile, so that the stores stay what they are.
        unsafe { core::ptr::write_volatile(first.add(word), 0) };
    }
    // SAFETY: integers and arrays of them; zero is a value of each.
    let params = unsafe { space.assume_init_mut() };
    params.family = family;
    params.ifindex = iif;
    params
}

/// Looks up the next hop of a session again and caches it. Also the only question, once per session and generation,
/// whether the addresses are still ours: the generation is stepped with every change of them.
#[inline(never)]
pub fn refresh(
    ctx: *mut c_void,
    packet: &Packet,
    session: &mut SessionValue,
    ingress: u32,
    longest: u16,
) -> Outcome {
    let Some(config) = CONFIG.get(0) else {
        return PassReason::NotConfigured.into();
    };
    // Before the addresses: what is found good while they are written must not be good for the next generation.
    // SAFETY: a reference is valid for reads; volatile keeps the order of the program text.
    let generation = unsafe { core::ptr::read_volatile(&raw const config.next_hop_generation) };
    if !owns(&Ends::of(&packet.key, session)) {
        return DropReason::AddressGone.into();
    }
    let (direction, iif, src) = if session.flags & SessionFlags::INBOUND != 0 {
        (Direction::In, ingress, session.src)
    } else if session.flags & SessionFlags::HAIRPIN != 0 {
        // What turns back to the LAN must not leave by the WAN either.
        (Direction::In, l3_interface(ingress), session.src)
    } else {
        (Direction::Out, l3_interface(ingress), packet.key.src)
    };
    let query = Query {
        direction,
        iif,
        src,
        dst: session.dst,
        total_len: longest,
    };
    let mut found = NextHop::NONE;
    let outcome = look_up(ctx, config, &query, &mut found);
    if outcome == Outcome::NONE {
        found.generation = generation;
        found.store(session);
        stats::count(Done::NextHopRefreshed);
    }
    outcome
}

/// Chooses the device a frame leaves by. Only notes it: the packet may still be changed, or passed after all.
///
/// What cannot be redirected to is not worth remembering: behind a bridge it only means that the station's port
/// was not known yet, and the stack, which has the packet now, is what makes the bridge learn it.
#[inline(always)]
pub fn redirect<H: Hook>(hook: &H, session: &mut SessionValue) -> Step<()> {
    let noted = hook.leave_by(session.egress);
    if noted.is_err() && session.egress != NOWHERE {
        session.next_hop_generation = NO_NEXT_HOP;
    }
    noted
}

/// A frame that is not for the CPE's MAC address is bridged past us; whoever it is for will do with it what he
/// does. Checked when a session does not know the address yet, or another than it knows was used.
#[inline(never)]
pub fn check_mac(ingress: u32, packet: &Packet) -> Outcome {
    Outcome::of(check_frame(ingress, packet.frame_dst).map(|_| ()))
}

/// The same of a frame's destination; the interface that has the addresses, as [`l3_interface`].
#[inline(always)]
pub fn check_frame(ingress: u32, frame_dst: Mac) -> Step<u32> {
    let iface = IFACES.get_ptr(ingress).ok_or(PassReason::NotConfigured)?;
    // SAFETY: entries live as long as the program runs.
    let iface = unsafe { &*iface };
    if Mac::new(&iface.mac) != frame_dst {
        return Err(PassReason::NotOurMac.into());
    }
    Ok(iface.l3)
}

/// Whether a source is that of a LAN host behind the interface (as [`l3_interface`] names it) that a frame came in by.
#[inline(always)]
pub fn is_from_lan(l3: u32, src: &[u8; 4]) -> bool {
    lan_source(l3, u32::from_ne_bytes(*src)) != 0
}

/// [`is_from_lan`], judged once ([`crate::far`]), and on a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lan_source(l3: u32, src: u32) -> u32 {
    match CONFIG.get(0) {
        Some(config) => config.in_lan_at(src.to_ne_bytes(), l3).into(),
        None => 0,
    }
}

/// Whether a packet with a source that is no LAN host's behind `ingress` is for the WAN, and nobody's behind that interface by the
/// routing table (RFC 3704 section 2.2). What the link uses for itself is not asked: DHCP, link-local addresses, groups.
#[inline(always)]
pub fn is_spoofed(ctx: *mut c_void, ingress: u32, src: [u8; 4], dst: [u8; 4]) -> bool {
    let Some(config) = CONFIG.get(0) else {
        return false;
    };
    if config.wan == 0 || src == [0; 4] || matches!(src, [169, 254, ..]) || !is_unicast(dst) {
        return false;
    }
    let egress = leaves_by(ctx, ingress, src, dst);
    (egress == config.wan || (config.softwire != 0 && egress == config.softwire))
        && leaves_by(ctx, config.wan, dst, src) != ingress
}

/// The interface that a packet is sent by; 0: it is not forwarded.
#[inline(never)]
pub fn leaves_by(ctx: *mut c_void, iif: u32, src: [u8; 4], dst: [u8; 4]) -> u32 {
    let mut space = MaybeUninit::uninit();
    let params = params(&mut space, AF_INET, iif);
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    // SAFETY: the context is the kernel's own and the length is the struct's.
    let answer = unsafe { bpf_fib_lookup(ctx, params, size_of::<FibParams>() as i32, 0) } as u32;
    match answer {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => params.ifindex,
        _ => 0,
    }
}

/// The interface that has the addresses: a bridge, when packets come in by its ports.
#[inline(always)]
pub fn l3_interface(ingress: u32) -> u32 {
    match IFACES.get_ptr(ingress) {
        // SAFETY: entries live as long as the program runs.
        Some(iface) => unsafe { (*iface).l3 },
        None => ingress,
    }
}

/// The bridge port that `mac` is behind, or `egress` itself if that is no bridge or the port is not known.
#[inline(always)]
pub fn port_towards(egress: u32, mac: [u8; 6]) -> u32 {
    let key = FdbKey {
        bridge: egress,
        mac,
        pad: [0; 2],
    };
    match BRIDGE_FDB.get_ptr(key) {
        // SAFETY: entries live as long as the program runs.
        Some(port) => unsafe { *port },
        None => egress,
    }
}
