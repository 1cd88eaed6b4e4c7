//! XDP and tc, as far as the programs must know the difference.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_pull_data, bpf_xdp_get_buff_len};
use aya_ebpf::programs::{TcContext, XdpContext};
use iwf_common::flow::SessionValue;
use iwf_common::fragment::FragmentValue;
use iwf_common::limits::HELD_OCTETS;
use iwf_common::reason::DropReason;

use crate::cursor::{Cursor, store16, store32};
use crate::fragment::Later;
use crate::headers::{Mac, ethernet, ipv4, tcp};
use crate::maps::IFACES;
use crate::outcome::Step;
use crate::parse::Packet;
use crate::rewrite::{self, Hop};

/// Whether the kernel knows frames of more than one buffer (Linux 5.18). The loader sets it; a constant for the
/// verifier, which removes the branch that is not taken and so never meets a helper that is not there.
#[unsafe(no_mangle)]
static MULTI_BUFFER: u8 = 1;

/// Where a program runs.
pub trait Hook {
    /// Whether a packet can leave from here; otherwise the stack forwards what is translated.
    const REDIRECTS: bool;

    /// The linear part of the packet.
    fn cursor(&self) -> Cursor;
    /// Octets of the frame, linear or not.
    fn frame_len(&self) -> usize;
    /// The interface the packet came in by; 0: it was made here.
    fn ingress(&self) -> u32;
    /// The kernel's context, for helpers.
    fn context(&self) -> *mut c_void;
    /// Makes the first `len` octets linear, if it can. Pointers into the packet are void after it.
    fn make_linear(&self, len: usize);
    /// Writes two octets. Pointers into the packet are void after it; no checksum is touched.
    fn put16(&self, offset: usize, octets: [u8; 2]) -> Step<()>;
    /// Writes four octets. Pointers into the packet are void after it; no checksum is touched.
    fn put32(&self, offset: usize, octets: [u8; 4]) -> Step<()>;
    /// Whether the link layer has addressed the frame to the CPE.
    fn is_for_us(&self) -> bool;
    /// Copies `len` octets of the packet, at least 8 and at most [`HELD_OCTETS`], to `into`; `false`: they are not
    /// all there.
    fn capture(&self, offset: usize, into: *mut u8, len: usize) -> bool;
    /// Translates the packet.
    fn rewrite(&self, packet: &Packet, session: &SessionValue, hop: Hop) -> Step<()>;
    /// Translates a fragment that is not the first.
    fn rewrite_fragment(&self, fragment: &Later, value: &FragmentValue, hop: Hop) -> Step<()>;
    /// Changes the identification of an IPv4 packet.
    fn set_identification(&self, old: [u8; 2], new: [u8; 2]) -> Step<()>;
    /// Changes the size in a TCP maximum segment size option; the size is `at` octets into the frame, and `option`
    /// points to the option, in bounds.
    fn set_mss(
        &self,
        packet: &Packet,
        at: usize,
        option: *mut u8,
        old: [u8; 2],
        new: [u8; 2],
    ) -> Step<()>;
}

impl Hook for XdpContext {
    const REDIRECTS: bool = true;

    #[inline(always)]
    fn cursor(&self) -> Cursor {
        Cursor::new(self.data(), self.data_end())
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        // SAFETY: a static of our own; volatile, because the loader may have changed it.
        if unsafe { core::ptr::read_volatile(&raw const MULTI_BUFFER) } == 0 {
            return self.cursor().len();
        }
        // SAFETY: the context is the kernel's own.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.as_ptr()
    }

    /// What lies in fragments of the buffer stays there.
    #[inline(always)]
    fn make_linear(&self, _len: usize) {}

    #[inline(always)]
    fn put16(&self, offset: usize, octets: [u8; 2]) -> Step<()> {
        let field = self
            .cursor()
            .at::<2>(offset)
            .ok_or(DropReason::RewriteFailed)?;
        // SAFETY: `at` proved the bounds; nothing else holds a pointer into the packet.
        unsafe { store16::<0>(field, octets) };
        Ok(())
    }

    #[inline(always)]
    fn put32(&self, offset: usize, octets: [u8; 4]) -> Step<()> {
        let field = self
            .cursor()
            .at::<4>(offset)
            .ok_or(DropReason::RewriteFailed)?;
        // SAFETY: as in `put16`.
        unsafe { store32::<0>(field, octets) };
        Ok(())
    }

    #[inline(always)]
    fn rewrite(&self, packet: &Packet, session: &SessionValue, hop: Hop) -> Step<()> {
        rewrite::direct(&self.cursor(), packet, session, hop)
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        let cursor = self.cursor();
        let (Some(frame), Some(iface)) = (
            cursor.at::<{ ethernet::LEN }>(0),
            IFACES.get_ptr(self.ingress()),
        ) else {
            return false;
        };
        // SAFETY: entries live as long as the program runs.
        let ours = Mac::new(unsafe { &(*iface).mac });
        // SAFETY: `at` proved the bounds.
        ours == unsafe { Mac::destination(frame) }
    }

    #[inline(always)]
    fn capture(&self, offset: usize, into: *mut u8, len: usize) -> bool {
        self.cursor().copy(offset, into, len)
    }

    #[inline(always)]
    fn rewrite_fragment(&self, fragment: &Later, value: &FragmentValue, hop: Hop) -> Step<()> {
        rewrite::fragment_direct(&self.cursor(), fragment, value, hop)
    }

    #[inline(always)]
    fn set_identification(&self, old: [u8; 2], new: [u8; 2]) -> Step<()> {
        rewrite::identification_direct(&self.cursor(), old, new)
    }

    #[inline(always)]
    fn set_mss(
        &self,
        packet: &Packet,
        at: usize,
        option: *mut u8,
        old: [u8; 2],
        new: [u8; 2],
    ) -> Step<()> {
        rewrite::mss_direct(&self.cursor(), packet, at, option, old, new)
    }
}

impl Hook for TcContext {
    const REDIRECTS: bool = false;

    #[inline(always)]
    fn cursor(&self) -> Cursor {
        Cursor::new(self.data(), self.data_end())
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: the context is the kernel's own.
        unsafe { (*self.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.as_ptr()
    }

    #[inline(always)]
    fn make_linear(&self, len: usize) {
        // A failure leaves the packet as it is, and the bounds checks say so.
        // SAFETY: no pointer into the packet is held.
        unsafe { bpf_skb_pull_data(self.skb.skb, len as u32) };
    }

    #[inline(always)]
    fn put16(&self, offset: usize, octets: [u8; 2]) -> Step<()> {
        self.store(offset, &octets, 0)
            .map_err(|_| DropReason::RewriteFailed.into())
    }

    #[inline(always)]
    fn put32(&self, offset: usize, octets: [u8; 4]) -> Step<()> {
        self.store(offset, &octets, 0)
            .map_err(|_| DropReason::RewriteFailed.into())
    }

    #[inline(always)]
    fn rewrite(&self, packet: &Packet, session: &SessionValue, _hop: Hop) -> Step<()> {
        rewrite::through_helpers(self, packet, session)
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        /// What the stack has noted of the frame's destination.
        const PACKET_HOST: u32 = 0;
        // SAFETY: the context is the kernel's own.
        unsafe { (*self.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn capture(&self, offset: usize, into: *mut u8, len: usize) -> bool {
        if len == 0 || len > HELD_OCTETS {
            return false;
        }
        // SAFETY: the context is the kernel's own, and the caller has room for `len` octets.
        let copied = unsafe {
            bpf_skb_load_bytes(
                self.as_ptr().cast_const(),
                offset as u32,
                into.cast(),
                len as u32,
            )
        };
        copied == 0
    }

    #[inline(always)]
    fn rewrite_fragment(&self, fragment: &Later, value: &FragmentValue, _hop: Hop) -> Step<()> {
        rewrite::fragment_through_helpers(self, fragment, value)
    }

    #[inline(always)]
    fn set_identification(&self, old: [u8; 2], new: [u8; 2]) -> Step<()> {
        rewrite::identification_through_helpers(self, old, new)
    }

    #[inline(always)]
    fn set_mss(
        &self,
        packet: &Packet,
        at: usize,
        _option: *mut u8,
        old: [u8; 2],
        new: [u8; 2],
    ) -> Step<()> {
        rewrite::mss_through_helpers(self, packet, at, old, new)
    }
}

/// Makes the headers of a packet of the stack linear, as far as it has them.
#[inline(always)]
pub fn pull_headers(ctx: &TcContext) {
    // Of IPv6 with extension headers, as an ICMPv6 error quotes it.
    const LONGEST: u32 = 512;
    const SHORTEST: usize = ethernet::LEN + 40 + tcp::LEN;
    if ctx.data() + SHORTEST > ctx.data_end() {
        let want = if ctx.len() < LONGEST {
            ctx.len()
        } else {
            LONGEST
        };
        // A failure leaves the headers where they are, and the parser says so.
        // SAFETY: no pointer into the packet is held.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, want) };
    }
}
