//! Names of programs and maps, and the version of everything in this crate that is pinned.
//!
//! A name is what aya knows the object by and, as at most 15 characters, what the kernel shows for it.
#![forbid(unsafe_code)]

/// Version of the pinned layout. Part of the pin path: a daemon never adopts maps of another layout.
pub const LAYOUT_VERSION: u32 = 5;

/// XDP program of every LAN port (of the bridge's ports, not of the bridge).
pub const XDP_LAN: &str = "iwf_xdp_lan";
/// XDP program of the WAN port.
pub const XDP_WAN: &str = "iwf_xdp_wan";
/// tc program of WAN egress; always attached, also when the WAN runs XDP.
pub const TC_EGRESS: &str = "iwf_tc_egress";
/// tc program of WAN ingress; only where the WAN device cannot run XDP.
pub const TC_INGRESS: &str = "iwf_tc_ingress";
/// tc program of a LAN port's ingress; only where the device cannot run XDP.
pub const TC_LAN: &str = "iwf_tc_lan";
/// [`TC_EGRESS`] for a WAN without Ethernet headers (PPP, a tunnel).
pub const L3_EGRESS: &str = "iwf_l3_egress";
/// [`TC_INGRESS`] for a WAN without Ethernet headers.
pub const L3_INGRESS: &str = "iwf_l3_ingress";
/// tc program, never attached: each repetition of a run looks at one [`crate::sweep::SweepItem`] of [`SWEEP_ITEMS`],
/// as [`crate::sweep::SweepRequest`] in [`SWEEP`] says. The kernel reschedules between repetitions.
pub const RUN_SWEEP: &str = "iwf_sweep";
/// Raw tracepoint program, never attached: one run writes [`crate::tick::ClockSample`] to [`CLOCK`].
pub const RUN_CLOCK: &str = "iwf_clock";
/// XDP program that passes everything: for the far ends of veth pairs, which need one to receive redirects.
pub const XDP_PASS: &str = "iwf_xdp_pass";
/// XDP program, never loaded by the daemon: the least a session hit can cost, for the bench.
pub const FLOOR: &str = "iwf_floor";

/// Constant of the programs, `u8`: 0 on kernels that know no frames of more than one buffer.
pub const MULTI_BUFFER: &str = "MULTI_BUFFER";

/// Hash, [`crate::flow::SessionKey`] to [`crate::flow::SessionValue`]; one entry per direction.
pub const SESSIONS: &str = "SESSIONS";
/// Hash, internal [`crate::nat::EndpointKey`] to [`crate::nat::MappingValue`] with the external endpoint.
pub const MAPPINGS_INT: &str = "MAPPINGS_INT";
/// Hash, external [`crate::nat::EndpointKey`] to [`crate::nat::MappingValue`] with the internal endpoint.
pub const MAPPINGS_EXT: &str = "MAPPINGS_EXT";
/// Hash, external [`crate::nat::EndpointKey`] to the [`crate::nat::FilterList`] of its mapping.
pub const FILTERS: &str = "FILTERS";
/// Hash, [`crate::nat::PeerKey`] to [`crate::nat::PeerValue`]: whom a mapping lets in that is address-dependent.
pub const PEERS: &str = "PEERS";
/// Hash, [`crate::host::HostKey`] to [`crate::host::HostValue`]: every LAN host with sessions or mappings.
pub const HOSTS: &str = "HOSTS";
/// Array of one [`crate::host::Totals`].
pub const TOTALS: &str = "TOTALS";
/// Hash, IPv4 address of a LAN host to the external address of its explicit mappings: the daemon says so for each host
/// that has some, and its other mappings follow.
pub const PAIRED: &str = "PAIRED";
/// Hash, [`crate::flow6::SessionKey6`] to [`crate::flow6::SessionValue6`]; one entry per direction.
pub const SESSIONS6: &str = "SESSIONS6";
/// Hash, [`crate::flow6::EndpointKey6`] to [`crate::flow6::EndpointValue6`]: who is open to strangers.
pub const ENDPOINTS6: &str = "ENDPOINTS6";
/// LRU hash, [`crate::flow6::FragmentKey6`] to [`crate::flow6::FragmentValue6`].
pub const FRAGMENTS6: &str = "FRAGMENTS6";
/// Hash, [`crate::flow6::PinholeKey`] to [`crate::flow6::PinholeValue`].
pub const PINHOLES: &str = "PINHOLES";
/// Hash, internal IPv6 address to a mask (`u32`) of the shapes its pinholes have: bit n is shape n.
pub const PINHOLE_HOSTS: &str = "PINHOLE_HOSTS";
/// Array of one [`crate::config::Config`].
pub const CONFIG: &str = "CONFIG";
/// Per-CPU array of `u64`, indexed by the slots of [`crate::reason`].
pub const COUNTERS: &str = "COUNTERS";
/// Hash, ifindex (`u32`) to [`crate::config::IfaceValue`]: every interface that runs one of our XDP programs.
pub const IFACES: &str = "IFACES";
/// Device hash map keyed by ifindex: every device that frames may be redirected to.
pub const DEVMAP: &str = "DEVMAP";
/// Hash, [`crate::config::FdbKey`] to the ifindex (`u32`) of the bridge port that address is behind.
pub const BRIDGE_FDB: &str = "BRIDGE_FDB";
/// Ring buffer of [`crate::event::Event`].
pub const EVENTS: &str = "EVENTS";
/// Per-CPU array of one [`crate::event::EventBudget`].
pub const EVENT_BUDGET: &str = "EVENT_BUDGET";
/// Array of one [`crate::sweep::SweepRequest`].
pub const SWEEP: &str = "SWEEP";
/// Array of [`crate::sweep::SweepItem`].
pub const SWEEP_ITEMS: &str = "SWEEP_ITEMS";
/// Array of one [`crate::tick::ClockSample`].
pub const CLOCK: &str = "CLOCK";
/// See [`crate::softwire::Softwire`].
pub const SOFTWIRE: &str = "SOFTWIRE";
/// See [`crate::softwire::SoftwireHop`].
pub const SOFTWIRE_HOP: &str = "SOFTWIRE_HOP";

/// LRU hash, [`crate::fragment::FragmentKey`] to [`crate::fragment::FragmentValue`]: datagrams that come in parts.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// Ring buffer of [`crate::fragment::HeldFragment`].
pub const FRAGMENTS_HELD: &str = "FRAGMENTS_HELD";
/// Per-CPU array of one [`crate::event::EventBudget`] for [`FRAGMENTS_HELD`].
pub const HELD_BUDGET: &str = "HELD_BUDGET";

/// Ring buffer of [`crate::refusal::RefusedPacket`].
pub const REFUSED: &str = "REFUSED";
/// Per-CPU array of [`crate::event::EventBudget`] for [`REFUSED`]: of the LAN, of the WAN.
pub const REFUSED_BUDGET: &str = "REFUSED_BUDGET";

/// Every map that is pinned, in the order it is created.
pub const PINNED_MAPS: [&str; 30] = [
    CONFIG,
    IFACES,
    DEVMAP,
    BRIDGE_FDB,
    COUNTERS,
    HOSTS,
    TOTALS,
    PAIRED,
    MAPPINGS_EXT,
    MAPPINGS_INT,
    FILTERS,
    PEERS,
    SESSIONS,
    SESSIONS6,
    ENDPOINTS6,
    FRAGMENTS6,
    PINHOLES,
    PINHOLE_HOSTS,
    EVENTS,
    EVENT_BUDGET,
    SWEEP,
    SWEEP_ITEMS,
    CLOCK,
    FRAGMENTS,
    FRAGMENTS_HELD,
    HELD_BUDGET,
    REFUSED,
    REFUSED_BUDGET,
    SOFTWIRE,
    SOFTWIRE_HOP,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// BPF_OBJ_NAME_LEN is 16 with the final NUL.
    #[test]
    fn kernel_keeps_names_whole() {
        let programs = [
            XDP_LAN, XDP_WAN, TC_EGRESS, TC_INGRESS, TC_LAN, L3_EGRESS, L3_INGRESS, RUN_SWEEP,
            RUN_CLOCK, XDP_PASS, FLOOR,
        ];
        for name in PINNED_MAPS.iter().chain(&programs) {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
