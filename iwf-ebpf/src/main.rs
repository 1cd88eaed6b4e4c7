//! Entry points: run, count the outcome, turn it into the hook's action.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod clock;
mod cursor;
mod egress;
mod far;
mod filter;
mod floor;
mod fragment;
mod hairpin;
mod headers;
mod hook;
mod host;
mod icmp;
mod inbound;
mod mapping;
mod maps;
mod next_hop;
mod options;
mod outbound;
mod outcome;
mod parse;
mod refusal;
mod rewrite;
mod session;
mod softwire;
mod stats;
mod sweep;
mod v6;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::{classifier, raw_tracepoint, xdp};
use aya_ebpf::programs::{RawTracePointContext, TcContext, XdpContext};
use iwf_common::reason::{Done, PassReason};
use iwf_common::refusal::Side;
use iwf_common::tick::ClockSample;

use crate::hook::{BareContext, Hook};
use crate::outcome::{Outcome, Step, Verdict};
use crate::refusal::Refuse;

/// Every LAN port.
#[xdp(frags)]
pub fn iwf_xdp_lan(ctx: XdpContext) -> u32 {
    xdp_verdict(&ctx, Side::Lan, outbound::run(&ctx))
}

/// The WAN port.
#[xdp(frags)]
pub fn iwf_xdp_wan(ctx: XdpContext) -> u32 {
    xdp_verdict(&ctx, Side::Wan, inbound::run(&ctx))
}

/// WAN egress.
#[classifier]
pub fn iwf_tc_egress(ctx: TcContext) -> i32 {
    if hook::is_tagged(&ctx) {
        return tc_verdict(
            &ctx,
            Side::Forwarded,
            Ok(Done::EgressUntouched.into()),
            TC_ACT_UNSPEC,
        );
    }
    hook::pull_headers(&ctx);
    tc_verdict(&ctx, Side::Forwarded, egress::run(&ctx), TC_ACT_UNSPEC)
}

/// Ingress of a LAN port that cannot run XDP.
#[classifier]
pub fn iwf_tc_lan(ctx: TcContext) -> i32 {
    if hook::is_tagged(&ctx) {
        return tc_verdict(
            &ctx,
            Side::Lan,
            Err(PassReason::NotIpv4.into()),
            TC_ACT_UNSPEC,
        );
    }
    hook::pull_headers(&ctx);
    tc_verdict(&ctx, Side::Lan, outbound::run(&ctx), TC_ACT_REDIRECT)
}

/// Ingress of a WAN that cannot run XDP.
#[classifier]
pub fn iwf_tc_ingress(ctx: TcContext) -> i32 {
    if hook::is_tagged(&ctx) {
        return tc_verdict(
            &ctx,
            Side::Wan,
            Err(PassReason::NotIpv4.into()),
            TC_ACT_UNSPEC,
        );
    }
    hook::pull_headers(&ctx);
    tc_verdict(&ctx, Side::Wan, inbound::run(&ctx), TC_ACT_REDIRECT)
}

/// Egress of a WAN without Ethernet headers.
#[classifier]
pub fn iwf_l3_egress(ctx: TcContext) -> i32 {
    let ctx = BareContext::new(ctx);
    hook::pull_headers(&ctx);
    tc_verdict(&ctx, Side::Forwarded, egress::run(&ctx), TC_ACT_UNSPEC)
}

/// Ingress of a WAN without Ethernet headers.
#[classifier]
pub fn iwf_l3_ingress(ctx: TcContext) -> i32 {
    let ctx = BareContext::new(ctx);
    hook::pull_headers(&ctx);
    tc_verdict(&ctx, Side::Wan, inbound::run(&ctx), TC_ACT_UNSPEC)
}

/// Looks at the next item of SWEEP_ITEMS. Run, never attached.
#[classifier]
pub fn iwf_sweep(_ctx: TcContext) -> i32 {
    sweep::step()
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

/// What a hit costs at least, for the bench. Run, never attached.
#[xdp(frags)]
pub fn iwf_floor(ctx: XdpContext) -> u32 {
    match floor::run(&ctx) {
        Ok(()) => xdp_action::XDP_REDIRECT,
        Err(_) => xdp_action::XDP_ABORTED,
    }
}

/// Counts the outcome. A drop is logged as well if the daemon has asked for that when it loaded the programs
/// (AYA_LOG_LEVEL, a constant for the verifier: without it the kernel removes the branch), and its sender may be told.
#[inline(always)]
fn settle<H: Hook + Refuse + EbpfContext>(hook: &H, side: Side, step: Step<Outcome>) -> Outcome {
    let outcome = step.unwrap_or_else(|outcome| outcome);
    stats::count(outcome);
    if matches!(outcome.verdict(), Verdict::Drop) {
        aya_log_ebpf::debug!(hook, "{}", outcome.slot());
        refusal::note(hook, side, outcome);
    }
    outcome
}

#[inline(always)]
fn xdp_verdict(ctx: &XdpContext, side: Side, step: Step<Outcome>) -> u32 {
    let outcome = settle(ctx, side, step);
    match outcome.verdict() {
        Verdict::Forward => xdp_action::XDP_REDIRECT,
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// "Unspecified" lets the next program at the hook have the packet, as if we were not there. `forward` is what
/// forwarding means here: the redirect that was noted, or the same.
#[inline(always)]
fn tc_verdict<H: Hook + Refuse + EbpfContext>(
    hook: &H,
    side: Side,
    step: Step<Outcome>,
    forward: i32,
) -> i32 {
    let outcome = settle(hook, side, step);
    match outcome.verdict() {
        Verdict::Forward => forward,
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

/// What the programs are licensed under; the kernel lets only GPL-compatible ones use all helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
