//! Entry points: run, count the outcome, turn it into the hook's action.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::bindings::{TC_ACT_OK, xdp_action};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::{classifier, raw_tracepoint, xdp};
use aya_ebpf::programs::{RawTracePointContext, TcContext, XdpContext};
use iwf_common::tick::ClockSample;

/// Every LAN port.
#[xdp(frags)]
pub fn iwf_xdp_lan(_ctx: XdpContext) -> u32 {
    maps::SESSIONS.get_ptr(iwf_common::flow::SessionKey::default());
    maps::MAPPINGS_INT.get_ptr(iwf_common::nat::EndpointKey::default());
    maps::MAPPINGS_EXT.get_ptr(iwf_common::nat::EndpointKey::default());
    maps::CONFIG.get(0);
    maps::COUNTERS.get_ptr_mut(0);
    maps::IFACES.get_ptr(0);
    maps::DEVMAP.redirect(0, 0).ok();
    maps::BRIDGE_FDB.get_ptr(iwf_common::config::FdbKey::default());
    maps::EVENTS.output(iwf_common::event::Event::default(), 0).ok();
    maps::EVENT_BUDGET.get_ptr_mut(0);
    maps::SWEEP.get_ptr_mut(0);
    xdp_action::XDP_PASS
}

/// The WAN port.
#[xdp(frags)]
pub fn iwf_xdp_wan(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// WAN egress.
#[classifier]
pub fn iwf_tc_egress(_ctx: TcContext) -> i32 {
    TC_ACT_OK
}

/// WAN ingress, where XDP cannot run.
#[classifier]
pub fn iwf_tc_ingress(_ctx: TcContext) -> i32 {
    TC_ACT_OK
}

/// Ages the tables. Run, never attached.
#[raw_tracepoint]
pub fn iwf_sweep(_ctx: RawTracePointContext) -> i32 {
    0
}

/// Reads both clocks at one moment. Run, never attached.
#[raw_tracepoint]
pub fn iwf_clock(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: the helper has no preconditions.
    let jiffies = unsafe { bpf_jiffies64() };
    // SAFETY: the helper has no preconditions.
    let boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    match maps::CLOCK.set(0, ClockSample { jiffies, boot_ns }, 0) {
        Ok(()) => 0,
        Err(errno) => errno,
    }
}

/// Passes every frame.
#[xdp(frags)]
pub fn iwf_xdp_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// What the programs are licensed under; the kernel lets only GPL-compatible ones use all helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
