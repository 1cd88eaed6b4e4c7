//! Where an IPv6 packet goes: route, neighbour, bridge port. As [`crate::next_hop`] does for IPv4.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LKUP_RET_UNREACHABLE, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibParams,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use iwf_common::config::Config;
use iwf_common::flow::NO_NEXT_HOP;
use iwf_common::flow6::{SessionFlags6, SessionKey6, SessionValue6};
use iwf_common::reason::{Done, PassReason};
use iwf_common::softwire::{Softwire, SoftwireHop};

use super::parse::Packet6;
use crate::clock::tick;
use crate::maps::{CONFIG, DEVMAP};
use crate::next_hop::{l3_interface, port_towards};
use crate::outcome::{Outcome, Step};
use crate::session::Direction;
use crate::stats;

const AF_INET6: u8 = 10;

/// What a session caches.
pub struct NextHop6 {
    egress: u32,
    generation: u32,
    mac: [u8; 6],
    egress_mac: [u8; 6],
    mtu: u16,
}

impl NextHop6 {
    /// Not known: the first packet that needs it looks it up.
    pub const NONE: Self = Self {
        egress: 0,
        generation: NO_NEXT_HOP,
        mac: [0; 6],
        egress_mac: [0; 6],
        mtu: 0,
    };

    /// Writes it into a session, the generation last.
    #[inline(always)]
    pub fn store(&self, session: &mut SessionValue6) {
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

/// What the routing table says of an address, as far as the filter asks.
pub enum Route {
    /// The CPE's own address, or none that anything is known about.
    Local,
    /// Refused by a route.
    Refused,
    /// To some interface.
    Unicast,
}

/// Looks up a way for the packet of `key`. Every answer but success means that the stack must have it.
#[inline(never)]
pub fn look_up(
    ctx: *mut c_void,
    iif: u32,
    packet: &Packet6,
    found: &mut NextHop6,
    direction: Direction,
) -> Outcome {
    Outcome::of(try_look_up(ctx, iif, packet, found, direction))
}

#[inline(always)]
fn try_look_up(
    ctx: *mut c_void,
    iif: u32,
    packet: &Packet6,
    found: &mut NextHop6,
    direction: Direction,
) -> Step<()> {
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    let mut params = MaybeUninit::uninit();
    let params = self::params(&mut params, iif, &packet.key.src, &packet.key.dst);
    // Jumbograms are longer, and are no flows.
    params.__bindgen_anon_1.tot_len = packet.total_len as u16;
    match ask(ctx, params) {
        BPF_FIB_LKUP_RET_SUCCESS => {}
        BPF_FIB_LKUP_RET_FRAG_NEEDED => return Err(PassReason::TooBig.into()),
        BPF_FIB_LKUP_RET_NO_NEIGH
            if (params.ifindex == config.wan) == (direction == Direction::Out) =>
        {
            return Err(PassReason::Unresolved.into());
        }
        _ => return Err(PassReason::NotToWan.into()),
    }
    if (params.ifindex == config.wan) != (direction == Direction::Out) {
        return Err(PassReason::NotToWan.into());
    }
    found.egress = port_towards(params.ifindex, params.dmac);
    found.generation = config.next_hop_generation;
    found.mac = params.dmac;
    found.egress_mac = params.smac;
    // SAFETY: on success the kernel has put the MTU where the length was.
    found.mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    Ok(())
}

/// What kind of destination a packet from the WAN has.
#[inline(never)]
pub fn is_local(ctx: *mut c_void, iif: u32, key: &SessionKey6) -> bool {
    matches!(route(ctx, iif, key), Route::Local)
}

/// Whom an address of the LAN leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Home(u64);

impl Home {
    /// To no station: it is the CPE's own, or led out of the WAN.
    pub const NONE: Self = Self(1 << 48);

    /// The station it is behind, [`iwf_common::host::UNKNOWN_STATION`] if no neighbour is known for it.
    #[inline(always)]
    pub const fn station(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }
}

/// The station behind an address of the LAN, as packets from `remote` would find it. What the CPE's
/// neighbour discovery says, and not the frame: no station answers for as many addresses as it can make up, and the
/// packets of a session that is begun from outside or through the stack have none to show.
#[inline(always)]
fn home(ctx: *mut c_void, remote: &[u8; 16], internal: &[u8; 16]) -> Home {
    let wan = CONFIG.get(0).map_or(0, |config| config.wan);
    let mut params = MaybeUninit::uninit();
    let params = self::params(&mut params, wan, remote, internal);
    // The shortest that is a packet: of none tc would ask for its own.
    params.__bindgen_anon_1.tot_len = 1;
    let answer = ask(ctx, params);
    if answer == BPF_FIB_LKUP_RET_NOT_FWDED {
        return Home::NONE;
    }
    if answer != BPF_FIB_LKUP_RET_SUCCESS {
        return Home(0);
    }
    if params.ifindex == wan {
        return Home::NONE;
    }
    let [a, b, c, d, e, f] = params.dmac;
    Home(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
}

/// [`Home`] of who has sent a packet to the WAN.
#[inline(never)]
pub fn home_of_source(ctx: *mut c_void, key: &SessionKey6) -> Home {
    home(ctx, &key.dst, &key.src)
}

/// [`Home`] of whom a packet from the WAN is for.
#[inline(never)]
pub fn home_of_destination(ctx: *mut c_void, key: &SessionKey6) -> Home {
    home(ctx, &key.src, &key.dst)
}

#[inline(always)]
fn route(ctx: *mut c_void, iif: u32, key: &SessionKey6) -> Route {
    let mut params = MaybeUninit::uninit();
    let params = self::params(&mut params, iif, &key.src, &key.dst);
    match ask(ctx, params) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_NO_NEIGH => {
            Route::Unicast
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            Route::Refused
        }
        // Not forwarded: local, or there is no route; also where forwarding is switched off.
        _ => Route::Local,
    }
}

/// The way to the AFTR for what the CPE itself sends by the WAN.
#[inline(always)]
pub fn to_aftr(
    ctx: *mut c_void,
    config: &Config,
    tunnel: &Softwire,
    hop: &mut SoftwireHop,
) -> Step<()> {
    // Before the question: what is found good while the network changes must not be good for the next generation.
    // SAFETY: a reference is valid for reads; volatile keeps the order of the program text.
    let generation = unsafe { core::ptr::read_volatile(&raw const config.next_hop_generation) };
    let mut space = MaybeUninit::uninit();
    let params = self::params(&mut space, config.wan, &tunnel.local, &tunnel.remote);
    // The shortest that is a packet: the answer has the MTU of the path then, whatever it is.
    params.__bindgen_anon_1.tot_len = 1;
    let len = size_of::<FibParams>() as i32;
    // SAFETY: the context is the kernel's own and the length is the struct's.
    let answer = unsafe { bpf_fib_lookup(ctx, params, len, BPF_FIB_LOOKUP_OUTPUT) } as u32;
    if answer != BPF_FIB_LKUP_RET_SUCCESS || params.ifindex != config.wan {
        return Err(PassReason::Unresolved.into());
    }
    if params.smac == [0; 6] {
        // Without an Ethernet address there is no Ethernet header either.
        return Err(PassReason::NoRedirect.into());
    }
    hop.egress = params.ifindex;
    hop.egress_mac = params.smac;
    hop.mac = params.dmac;
    // SAFETY: on success the kernel has put the MTU where the length was.
    hop.mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    hop.asked = tick();
    hop.generation = generation;
    Ok(())
}

#[inline(always)]
fn params<'a>(
    space: &'a mut MaybeUninit<FibParams>,
    iif: u32,
    src: &[u8; 16],
    dst: &[u8; 16],
) -> &'a mut FibParams {
    let params = crate::next_hop::params(space, AF_INET6, iif);
    params.__bindgen_anon_3.ipv6_src = words(src);
    params.__bindgen_anon_4.ipv6_dst = words(dst);
    params
}

#[inline(always)]
fn ask(ctx: *mut c_void, params: &mut FibParams) -> u32 {
    // SAFETY: the context is the kernel's own and the length is the struct's.
    unsafe { bpf_fib_lookup(ctx, params, size_of::<FibParams>() as i32, 0) as u32 }
}

#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    let word = |at: usize| u32::from_ne_bytes([addr[at], addr[at + 1], addr[at + 2], addr[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// Looks up the next hop of a session again and caches it.
#[inline(never)]
pub fn refresh(
    ctx: *mut c_void,
    packet: &Packet6,
    session: &mut SessionValue6,
    ingress: u32,
) -> Outcome {
    let (iif, direction) = if session.flags & SessionFlags6::INBOUND == 0 {
        (l3_interface(ingress), Direction::Out)
    } else {
        (ingress, Direction::In)
    };
    let mut found = NextHop6::NONE;
    let outcome = look_up(ctx, iif, packet, &mut found, direction);
    if outcome == Outcome::NONE {
        found.store(session);
        stats::count(Done::NextHopRefreshed);
    }
    outcome
}

/// Chooses the device a frame leaves by.
#[inline(always)]
pub fn redirect(session: &mut SessionValue6) -> Step<()> {
    match DEVMAP.redirect(session.egress, 0) {
        Ok(_) => Ok(()),
        Err(_) => {
            session.next_hop_generation = NO_NEXT_HOP;
            Err(PassReason::NoRedirect.into())
        }
    }
}

/// A frame that is not for the CPE's MAC address is bridged past us.
#[inline(never)]
pub fn check_mac(ingress: u32, packet: &Packet6) -> Outcome {
    Outcome::of(crate::next_hop::check_frame(ingress, packet.frame_dst).map(|_| ()))
}
