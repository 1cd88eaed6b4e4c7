//! XDP and tc, as far as the programs must know the difference.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::TC_ACT_REDIRECT;
use aya_ebpf::helpers::{
    bpf_redirect, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_xdp_adjust_head, bpf_xdp_get_buff_len,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use iwf_common::flow::SessionValue;
use iwf_common::fragment::FragmentValue;
use iwf_common::reason::{DropReason, PassReason};

use crate::cursor::{Cursor, load16, store16, store32, within};
use crate::far::Far;
use crate::fragment::Later;
use crate::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac, TCP, ethernet, tcp, udp};
use crate::maps::{DEVMAP, IFACES};
use crate::outcome::Step;
use crate::parse::Packet;
use crate::rewrite::{self, Hop};

/// Whether the kernel knows frames of more than one buffer (Linux 5.18). The loader sets it; a constant for the
/// verifier, which removes the branch that is not taken and so never meets a helper that is not there.
#[unsafe(no_mangle)]
static MULTI_BUFFER: u8 = 1;

/// Where a program runs.
pub trait Hook: Far {
    /// Where the IPv4 header begins: behind an Ethernet header, or at once on links that have none.
    const L3: usize;
    /// Whether a packet can leave from here; otherwise the stack forwards what is translated.
    const REDIRECTS: bool;
    /// The same for IPv6.
    const REDIRECTS6: bool;
    /// Whether what leaves from the LAN by the WAN comes by the program on WAN egress as well.
    const MEETS_EGRESS: bool;

    /// The linear part of the packet.
    fn cursor(&self) -> Cursor;
    /// Octets of the frame, linear or not.
    fn frame_len(&self) -> usize;
    /// Whether the packet is IPv4. Of plain values, as the next: an `Option` would leave the verifier a register that
    /// is not set.
    fn is_ipv4(&self, cursor: &Cursor) -> bool;
    /// Whether the packet is IPv6.
    fn is_ipv6(&self, cursor: &Cursor) -> bool;
    /// Where the frame goes to; zero on links without Ethernet.
    fn frame_dst(&self, cursor: &Cursor) -> Mac;
    /// Octets of the largest IPv4 packet that this one leaves as: a segment's, if it is yet to be segmented.
    fn longest(&self, packet: &Packet) -> u16;
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
    /// Copies `len` octets of the packet, at least 8 and at most `MOST`, to `into`; `false`: they are not
    /// all there.
    fn capture<const MOST: usize>(&self, offset: usize, into: *mut u8, len: usize) -> bool;
    /// Notes the device the packet leaves by, if it can be sent there from here.
    fn leave_by(&self, egress: u32) -> Step<()>;
    /// Translates the packet.
    fn rewrite(&self, packet: &Packet, session: &SessionValue, hop: Hop) -> Step<()>;
    /// Translates a fragment that is not the first.
    fn rewrite_fragment(&self, fragment: &Later, value: &FragmentValue, hop: Hop) -> Step<()>;
    /// Moves the beginning of the frame by `by` octets: backwards makes room. Pointers into the packet are void after
    /// it; `false`: nothing was moved.
    fn move_start(&self, by: i32) -> bool;
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
    const L3: usize = ethernet::LEN;
    const REDIRECTS: bool = true;
    const REDIRECTS6: bool = true;
    const MEETS_EGRESS: bool = false;

    #[inline(always)]
    fn cursor(&self) -> Cursor {
        // Volatile: a function on the far side voids the pointers (far.rs), which the compiler does not know.
        // SAFETY: the context is the kernel's own, here and below.
        let start = unsafe { (&raw const (*self.ctx).data).read_volatile() };
        // SAFETY: see above.
        let end = unsafe { (&raw const (*self.ctx).data_end).read_volatile() };
        Cursor::new(start as usize, end as usize)
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
    fn is_ipv4(&self, cursor: &Cursor) -> bool {
        ethertype(cursor) == ETHERTYPE_IPV4
    }

    #[inline(always)]
    fn is_ipv6(&self, cursor: &Cursor) -> bool {
        ethertype(cursor) == ETHERTYPE_IPV6
    }

    #[inline(always)]
    fn frame_dst(&self, cursor: &Cursor) -> Mac {
        ethernet_dst(cursor)
    }

    #[inline(always)]
    fn longest(&self, packet: &Packet) -> u16 {
        packet.total_len
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

    /// Any device that the daemon has entered.
    #[inline(always)]
    fn leave_by(&self, egress: u32) -> Step<()> {
        match DEVMAP.redirect(egress, 0) {
            Ok(_) => Ok(()),
            Err(_) => Err(PassReason::NoRedirect.into()),
        }
    }

    #[inline(always)]
    fn rewrite(&self, packet: &Packet, session: &SessionValue, hop: Hop) -> Step<()> {
        rewrite::direct(&self.cursor(), packet, session, hop)
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        has_our_mac(self)
    }

    #[inline(always)]
    fn capture<const MOST: usize>(&self, offset: usize, into: *mut u8, len: usize) -> bool {
        self.cursor().copy::<MOST>(offset, into, len)
    }

    #[inline(always)]
    fn rewrite_fragment(&self, fragment: &Later, value: &FragmentValue, hop: Hop) -> Step<()> {
        rewrite::fragment_direct(&self.cursor(), fragment, value, hop)
    }

    #[inline(always)]
    fn move_start(&self, by: i32) -> bool {
        // SAFETY: the context is the kernel's own, and no pointer into the packet is held.
        unsafe { bpf_xdp_adjust_head(self.ctx, by) == 0 }
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

/// What both kinds of packets of the stack have in common.
macro_rules! of_the_stack {
    ($l3:expr) => {
        const L3: usize = $l3;

        #[inline(always)]
        fn cursor(&self) -> Cursor {
            // SAFETY: the context is the kernel's own, here and below; volatile as in XDP.
            let start = unsafe { (&raw const (*self.skb.skb).data).read_volatile() };
            // SAFETY: see above.
            let end = unsafe { (&raw const (*self.skb.skb).data_end).read_volatile() };
            Cursor::new(start as usize, end as usize)
        }

        #[inline(always)]
        fn frame_len(&self) -> usize {
            self.len() as usize
        }

        #[inline(always)]
        fn longest(&self, packet: &Packet) -> u16 {
            // SAFETY: the context is the kernel's own.
            let segment = unsafe { (*self.skb.skb).gso_size };
            if segment == 0 {
                return packet.total_len;
            }
            segment_len(self, packet, segment)
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
        fn capture<const MOST: usize>(&self, offset: usize, into: *mut u8, len: usize) -> bool {
            let Some(len) = within::<8, MOST>(len) else {
                return false;
            };
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

        /// Nothing is sent through the softwire from here.
        #[inline(always)]
        fn move_start(&self, _by: i32) -> bool {
            false
        }

        #[inline(always)]
        fn set_identification(&self, old: [u8; 2], new: [u8; 2]) -> Step<()> {
            rewrite::identification_through_helpers::<{ $l3 }>(self, old, new)
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
    };
}

/// tc on a device with Ethernet headers.
impl Hook for TcContext {
    of_the_stack!(ethernet::LEN);

    const REDIRECTS: bool = true;
    const REDIRECTS6: bool = false;
    const MEETS_EGRESS: bool = true;

    #[inline(always)]
    fn is_ipv4(&self, cursor: &Cursor) -> bool {
        ethertype(cursor) == ETHERTYPE_IPV4
    }

    #[inline(always)]
    fn is_ipv6(&self, cursor: &Cursor) -> bool {
        ethertype(cursor) == ETHERTYPE_IPV6
    }

    #[inline(always)]
    fn frame_dst(&self, cursor: &Cursor) -> Mac {
        ethernet_dst(cursor)
    }

    /// Any device with Ethernet headers: the next hop has no other.
    #[inline(always)]
    fn leave_by(&self, egress: u32) -> Step<()> {
        // SAFETY: the helper has no preconditions.
        if egress == 0 || unsafe { bpf_redirect(egress, 0) } != i64::from(TC_ACT_REDIRECT) {
            return Err(PassReason::NoRedirect.into());
        }
        Ok(())
    }

    #[inline(always)]
    fn rewrite(&self, packet: &Packet, session: &SessionValue, hop: Hop) -> Step<()> {
        rewrite::through_helpers::<{ ethernet::LEN }>(self, packet, session)?;
        if hop == Hop::Forward {
            let (dst, src) = (&session.next_hop_mac, &session.egress_mac);
            rewrite::forward(self, packet.ttl, packet.key.proto, dst, src)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        has_our_mac(self)
    }

    #[inline(always)]
    fn rewrite_fragment(&self, fragment: &Later, value: &FragmentValue, hop: Hop) -> Step<()> {
        rewrite::fragment_through_helpers::<{ ethernet::LEN }>(self, fragment, value)?;
        if hop == Hop::Forward {
            let (dst, src) = (&value.next_hop_mac, &value.egress_mac);
            rewrite::forward(self, fragment.ttl, fragment.key.proto, dst, src)?;
        }
        Ok(())
    }
}

/// tc on a device without Ethernet headers: PPP, tunnels. The stack does the forwarding there.
pub struct BareContext(TcContext);

impl BareContext {
    /// Of the same packet.
    pub const fn new(ctx: TcContext) -> Self {
        Self(ctx)
    }
}

impl aya_ebpf::EbpfContext for BareContext {
    fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

impl core::ops::Deref for BareContext {
    type Target = TcContext;

    #[inline(always)]
    fn deref(&self) -> &TcContext {
        &self.0
    }
}

impl Hook for BareContext {
    of_the_stack!(0);

    const REDIRECTS: bool = false;
    const REDIRECTS6: bool = false;
    const MEETS_EGRESS: bool = true;

    #[inline(always)]
    fn is_ipv4(&self, _cursor: &Cursor) -> bool {
        // ETH_P_IP as the stack notes it for every packet, in network order.
        const IPV4: u32 = u16::from_ne_bytes(ETHERTYPE_IPV4) as u32;
        self.skb.protocol() == IPV4
    }

    #[inline(always)]
    fn is_ipv6(&self, _cursor: &Cursor) -> bool {
        const IPV6: u32 = u16::from_ne_bytes(ETHERTYPE_IPV6) as u32;
        self.skb.protocol() == IPV6
    }

    #[inline(always)]
    fn frame_dst(&self, _cursor: &Cursor) -> Mac {
        Mac::new(&[0; 6])
    }

    #[inline(always)]
    fn leave_by(&self, _egress: u32) -> Step<()> {
        Err(PassReason::NoRedirect.into())
    }

    #[inline(always)]
    fn rewrite(&self, packet: &Packet, session: &SessionValue, _hop: Hop) -> Step<()> {
        rewrite::through_helpers::<0>(self, packet, session)
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        true
    }

    #[inline(always)]
    fn rewrite_fragment(&self, fragment: &Later, value: &FragmentValue, _hop: Hop) -> Step<()> {
        rewrite::fragment_through_helpers::<0>(self, fragment, value)
    }
}

/// Whether hardware has taken a VLAN tag out of the frame: it is another network's.
#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: the context is the kernel's own.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// 0 if there is none: no device hands up less than an Ethernet header.
#[inline(always)]
fn ethertype(cursor: &Cursor) -> [u8; 2] {
    match cursor.at::<{ ethernet::LEN }>(0) {
        // SAFETY: `at` proved the bounds.
        Some(frame) => unsafe { load16::<{ ethernet::ETHERTYPE }>(frame) },
        None => [0; 2],
    }
}

/// As [`ethertype`].
#[inline(always)]
fn ethernet_dst(cursor: &Cursor) -> Mac {
    match cursor.at::<{ ethernet::LEN }>(0) {
        // SAFETY: `at` proved the bounds.
        Some(frame) => unsafe { Mac::destination(frame) },
        None => Mac::new(&[0; 6]),
    }
}

/// Whether a frame is addressed to the interface it came in by, or to the bridge that this is a port of: the stack
/// compares with the port's own address.
#[inline(always)]
fn has_our_mac<H: Hook>(hook: &H) -> bool {
    let dst = hook.frame_dst(&hook.cursor());
    match IFACES.get_ptr(hook.ingress()) {
        // SAFETY: entries live as long as the program runs.
        Some(iface) => dst == Mac::new(unsafe { &(*iface).mac }),
        None => false,
    }
}

/// Octets of an IPv4 packet with `payload` octets of this one's. A function of its own, for the stack of the callers.
#[inline(never)]
fn segment_len<H: Hook>(hook: &H, packet: &Packet, payload: u32) -> u16 {
    let transport = if packet.key.proto == TCP {
        match hook.cursor().at::<{ tcp::LEN }>(packet.l4) {
            // SAFETY: `at` proved the bounds.
            Some(header) => usize::from(unsafe { *header.add(tcp::DATA_OFFSET) } >> 4) * 4,
            None => tcp::LEN,
        }
    } else {
        udp::LEN
    };
    let len = packet.l4 - H::L3 + transport + payload as usize;
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Makes the headers of a packet of the stack linear, as far as it has them.
#[inline(always)]
pub fn pull_headers<H: Hook>(hook: &H) {
    // Of IPv6 with extension headers, as an ICMPv6 error quotes it.
    const LONGEST: usize = 512;
    let shortest = H::L3 + 40 + tcp::LEN;
    if hook.cursor().len() < shortest {
        hook.make_linear(hook.frame_len().min(LONGEST));
    }
}
