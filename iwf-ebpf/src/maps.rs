//! The maps. Names, keys and values are `iwf-common`'s; the loader may lower the sizes.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use iwf_common::config::{Config, Ends, FdbKey, IfaceValue};
use iwf_common::event::{Event, EventBudget};
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::flow6::{
    EndpointKey6, EndpointValue6, FragmentKey6, FragmentValue6, PinholeKey, PinholeValue,
    SessionKey6, SessionValue6,
};
use iwf_common::fragment::{FragmentKey, FragmentValue, HeldFragment};
use iwf_common::host::{HostKey, HostValue, Totals};
use iwf_common::nat::{EndpointKey, FilterList, MappingValue, PeerKey, PeerValue};
use iwf_common::refusal::RefusedPacket;
use iwf_common::softwire::{Softwire, SoftwireHop};
use iwf_common::sweep::{SweepItem, SweepRequest};
use iwf_common::tick::ClockSample;
use iwf_common::{limits, reason};

use crate::cursor::load64;

pub type Sessions = HashMap<SessionKey, SessionValue, { limits::SESSIONS as usize }>;
pub type Mappings = HashMap<EndpointKey, MappingValue, { limits::MAPPINGS as usize }>;

#[btf_map]
pub static SESSIONS: Sessions = HashMap::new();
#[btf_map]
pub static MAPPINGS_INT: Mappings = HashMap::new();
#[btf_map]
pub static MAPPINGS_EXT: Mappings = HashMap::new();
#[btf_map]
pub static FILTERS: HashMap<EndpointKey, FilterList, { limits::FILTERS as usize }> = HashMap::new();
/// Not preallocated: most configurations have no use for it, and nothing depends on an insertion.
#[btf_map]
pub static PEERS: HashMap<
    PeerKey,
    PeerValue,
    { limits::PEERS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
pub static HOSTS: HashMap<HostKey, HostValue, { limits::HOSTS as usize }> = HashMap::new();
#[btf_map]
pub static TOTALS: Array<Totals, 1> = Array::new();
#[btf_map]
pub static PAIRED: HashMap<[u8; 4], [u8; 4], { limits::PAIRED as usize }> = HashMap::new();
#[btf_map]
pub static SESSIONS6: HashMap<SessionKey6, SessionValue6, { limits::SESSIONS6 as usize }> =
    HashMap::new();
#[btf_map]
pub static ENDPOINTS6: HashMap<EndpointKey6, EndpointValue6, { limits::ENDPOINTS6 as usize }> =
    HashMap::new();
#[btf_map]
pub static FRAGMENTS6: LruHashMap<FragmentKey6, FragmentValue6, { limits::FRAGMENTS6 as usize }> =
    LruHashMap::new();
#[btf_map]
pub static PINHOLES: HashMap<PinholeKey, PinholeValue, { limits::PINHOLES as usize }> =
    HashMap::new();
#[btf_map]
pub static PINHOLE_HOSTS: HashMap<[u8; 16], u32, { limits::PINHOLES as usize }> = HashMap::new();
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { reason::SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub static IFACES: HashMap<u32, IfaceValue, { limits::IFACES as usize }> = HashMap::new();
#[btf_map]
pub static DEVMAP: DevMapHash<{ limits::IFACES as usize }> = DevMapHash::new();
#[btf_map]
pub static BRIDGE_FDB: HashMap<FdbKey, u32, { limits::BRIDGE_FDB as usize }> = HashMap::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { limits::EVENT_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub static EVENT_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
#[btf_map]
pub static SWEEP: Array<SweepRequest, 1> = Array::new();
#[btf_map]
pub static SWEEP_ITEMS: Array<SweepItem, { limits::SWEEP_ITEMS as usize }> = Array::new();
#[btf_map]
pub static CLOCK: Array<ClockSample, 1> = Array::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue, { limits::FRAGMENTS as usize }> =
    LruHashMap::new();
#[btf_map]
pub static FRAGMENTS_HELD: RingBuf<HeldFragment, { limits::HELD_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub static HELD_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();

#[btf_map]
pub static REFUSED: RingBuf<RefusedPacket, { limits::REFUSED_BYTES as usize }> = RingBuf::new();
/// Of the LAN, of the WAN.
#[btf_map]
pub static REFUSED_BUDGET: PerCpuArray<EventBudget, 2> = PerCpuArray::new();

#[btf_map]
pub static SOFTWIRE: Array<Softwire, 1> = Array::new();
/// Per CPU, so that nobody reads what another is writing.
#[btf_map]
pub static SOFTWIRE_HOP: PerCpuArray<SoftwireHop, 1> = PerCpuArray::new();

/// Whether `addr` is a LAN host's. It is asked in many places, never on the fast path.
#[inline(always)]
pub fn in_lan(addr: &[u8; 4]) -> bool {
    config_in_lan(u32::from_ne_bytes(*addr)) != 0
}

/// Whether a session may go on. As [`Config::owns_ends`], but of two functions: older verifiers follow the comparisons
/// of the one for every way through those of the other.
#[inline(always)]
pub fn owns(ends: &Ends) -> bool {
    admits(&ends.internal, &ends.external) && is_external(&ends.remote) == ends.turns_back
}

/// Whether `addr` is one of our external addresses.
#[inline(always)]
pub fn is_external(addr: &[u8; 4]) -> bool {
    config_is_external(u32::from_ne_bytes(*addr)) != 0
}

/// Whether a mapping of `internal` may be at `external`. As [`Config::admits`].
#[inline(always)]
pub fn admits(internal: &[u8; 4], external: &[u8; 4]) -> bool {
    if is_routed() {
        internal == external && is_place(external)
    } else {
        is_external(external)
    }
}

/// Whether `addr` is one where mappings may be: one of our external addresses, or with a routed LAN a host's own.
#[inline(always)]
pub fn is_place(addr: &[u8; 4]) -> bool {
    is_external(addr) || (is_routed() && in_lan(addr))
}

/// Whether the provider's device translates.
#[inline(always)]
pub fn is_routed() -> bool {
    CONFIG.get(0).is_some_and(Config::is_routed)
}

/// Whether `addr` is a LAN host's. As above.
#[inline(always)]
pub fn in_lan6(config: &Config, addr: &[u8; 16]) -> bool {
    config_in_lan6(config, addr) != 0
}

// Many comparisons, asked in many places: judged once ([`crate::far`]), and of numbers alone.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn config_in_lan(addr: u32) -> u32 {
    match CONFIG.get(0) {
        Some(config) => config.in_lan(addr.to_ne_bytes()).into(),
        None => 0,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn config_is_external(addr: u32) -> u32 {
    match CONFIG.get(0) {
        Some(config) => config.is_external(addr.to_ne_bytes()).into(),
        None => 0,
    }
}

/// [`in_lan6`], judged once. As [`Config::in_lan6`], but by words: octets need much of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn config_in_lan6(config: *const Config, addr: *const [u8; 16]) -> u32 {
    // SAFETY: null or whole, by its type.
    let config = unsafe { config.as_ref() };
    let (Some(config), false) = (config, addr.is_null()) else {
        return 0;
    };
    // SAFETY: not null, and so whole.
    let (low, high) = unsafe { words(addr.cast()) };
    for prefix in &config.lan6 {
        // SAFETY: a field's octets.
        let (net_low, net_high) = unsafe { words(prefix.addr.as_ptr()) };
        // SAFETY: as above.
        let (mask_low, mask_high) = unsafe { words(prefix.mask.as_ptr()) };
        if (low & mask_low ^ net_low) | (high & mask_high ^ net_high) == 0 {
            return 1;
        }
    }
    0
}

/// The two halves of an address, as they lie in memory.
///
/// # Safety
/// 16 octets are there.
#[inline(always)]
unsafe fn words(addr: *const u8) -> (u64, u64) {
    // SAFETY: the caller's promise.
    let low = unsafe { load64::<0>(addr) };
    // SAFETY: the caller's promise.
    let high = unsafe { load64::<8>(addr) };
    (low, high)
}
