//! Functions that the verifier judges once, whatever they are called with.
//!
//! It walks through an ordinary function anew for every state of its caller, so that the paths of a chain of calls
//! multiply until a kernel refuses the program. A function with external linkage ("global") is judged by itself: the
//! paths only add up. What it takes must say all of it in its type: numbers, the context, and pointers to whole
//! structs, which may be null as far as the verifier knows. Pointers into the packet are void after the call.
//!
//! Here are those that take the context; [`crate::mapping`] and [`crate::session`] have others.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::fragment::{self, Place};
use crate::hook::{BareContext, Hook as _};
use crate::icmp::{self, At};
use crate::outbound;
use crate::outcome::Outcome;
use crate::softwire;
use crate::v6;

/// The way there, by hook.
pub trait Far {
    /// [`icmp::translate`].
    fn icmp_error(&self, place: At) -> Outcome;
    /// [`fragment::later`].
    fn later_fragment(&self, place: Place) -> Outcome;
    /// [`v6::inbound::run`].
    fn v6_inbound(&self) -> Outcome;
    /// [`v6::outbound::run`].
    fn v6_outbound(&self) -> Outcome;
    /// [`v6::egress::run`].
    fn v6_egress(&self) -> Outcome;
    /// [`outbound::judge_stranger`].
    fn lan_stranger(&self, outcome: Outcome) -> Outcome;
    /// [`softwire::outbound`].
    fn softwire_out(&self) -> Outcome;
    /// [`softwire::inbound`].
    fn softwire_in(&self) -> Outcome;
    /// [`icmp::sum`].
    fn sum(&self, from: usize, len: usize) -> u32;
}

macro_rules! far {
    ($context:ty, $raw:ty, $make:expr; $icmp:ident $fragment:ident $v6in:ident $v6out:ident $v6egress:ident $stranger:ident $swout:ident $swin:ident $sum:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $icmp(ctx: *mut $raw, place: u32) -> u32 {
            icmp::run(&$make(ctx), At::from_number(place)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $fragment(ctx: *mut $raw, place: u32) -> u32 {
            fragment::run(&$make(ctx), Place::from_number(place)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $v6in(ctx: *mut $raw) -> u32 {
            v6::inbound::run(&$make(ctx)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $v6out(ctx: *mut $raw) -> u32 {
            v6::outbound::run(&$make(ctx)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $v6egress(ctx: *mut $raw) -> u32 {
            v6::egress::run(&$make(ctx)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $stranger(ctx: *mut $raw, outcome: u32) -> u32 {
            outbound::judge_stranger(&$make(ctx), Outcome::from_slot(outcome)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $swout(ctx: *mut $raw) -> u32 {
            softwire::outbound(&$make(ctx)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $swin(ctx: *mut $raw) -> u32 {
            softwire::inbound(&$make(ctx)).slot()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $sum(ctx: *mut $raw, from: u32, len: u32) -> u32 {
            icmp::sum(&$make(ctx), from as usize, len as usize)
        }

        impl Far for $context {
            #[inline(always)]
            fn icmp_error(&self, place: At) -> Outcome {
                Outcome::from_slot($icmp(self.context().cast(), place as u32))
            }

            #[inline(always)]
            fn later_fragment(&self, place: Place) -> Outcome {
                Outcome::from_slot($fragment(self.context().cast(), place as u32))
            }

            #[inline(always)]
            fn v6_inbound(&self) -> Outcome {
                Outcome::from_slot($v6in(self.context().cast()))
            }

            #[inline(always)]
            fn v6_outbound(&self) -> Outcome {
                Outcome::from_slot($v6out(self.context().cast()))
            }

            #[inline(always)]
            fn v6_egress(&self) -> Outcome {
                Outcome::from_slot($v6egress(self.context().cast()))
            }

            #[inline(always)]
            fn lan_stranger(&self, outcome: Outcome) -> Outcome {
                Outcome::from_slot($stranger(self.context().cast(), outcome.slot()))
            }

            #[inline(always)]
            fn softwire_out(&self) -> Outcome {
                Outcome::from_slot($swout(self.context().cast()))
            }

            #[inline(always)]
            fn softwire_in(&self) -> Outcome {
                Outcome::from_slot($swin(self.context().cast()))
            }

            #[inline(always)]
            fn sum(&self, from: usize, len: usize) -> u32 {
                $sum(self.context().cast(), from as u32, len as u32)
            }
        }
    };
}

far!(XdpContext, xdp_md, XdpContext::new;
    xdp_icmp xdp_fragment xdp_v6_in xdp_v6_out xdp_v6_egress xdp_stranger xdp_sw_out xdp_sw_in xdp_sum);
far!(TcContext, __sk_buff, TcContext::new;
    tc_icmp tc_fragment tc_v6_in tc_v6_out tc_v6_egress tc_stranger tc_sw_out tc_sw_in tc_sum);
far!(BareContext, __sk_buff, bare;
    bare_icmp bare_fragment bare_v6_in bare_v6_out bare_v6_egress bare_stranger bare_sw_out bare_sw_in bare_sum);

#[inline(always)]
const fn bare(ctx: *mut __sk_buff) -> BareContext {
    BareContext::new(TcContext::new(ctx))
}
