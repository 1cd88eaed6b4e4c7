//! What the bench programs and the bench binary both read. Included by path on the host side, so that no
//! byte of it reaches the product's own tables.

/// Octets of the smallest frame, without the FCS.
pub const SMALL: usize = 60;

/// Octets of the largest frame of an ordinary Ethernet, without the FCS.
pub const LARGE: usize = 1514;

/// Most flows a run can have; the flow number is masked, so a power of two.
pub const MAX_FLOWS: u32 = 1 << 20;

/// Internal endpoints. The flow number selects the endpoint below it and the remote address above.
pub const ENDPOINTS: u32 = 16_384;

/// Endpoints of one internal host: the endpoint's number selects the source port below it and the host above.
pub const FLOWS_PER_HOST: u32 = 1024;

/// First source port of every internal host.
pub const FIRST_PORT: u16 = 20_000;

/// Port the flows go to.
pub const SINK_PORT: u16 = 9;

/// TTL of the frames as they enter the router.
pub const TTL: u8 = 64;

/// First octets of the payload: tells our frames from everything else at the far end.
pub const MAGIC: u32 = 0x6977_6662;

/// What to send and what to expect. Addresses and MACs in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// Interface in the generator's namespace the frames are redirected into.
    pub ifindex: u32,
    /// Flow count minus one.
    pub flow_mask: u32,
    /// Address of the first internal host; others follow.
    pub first_host: [u8; 4],
    /// Destination of the first [`ENDPOINTS`] flows; the next addresses follow.
    pub dest: [u8; 4],
    /// Source the far end must see; all zero: the internal host's own, untranslated.
    pub external: [u8; 4],
    /// MAC of the router's LAN port.
    pub router_mac: [u8; 6],
    /// MAC of the generator's port.
    pub own_mac: [u8; 6],
    /// MAC of the router's WAN port.
    pub wan_mac: [u8; 6],
    /// MAC of the far end.
    pub far_mac: [u8; 6],
    /// Frames of a burst. A power of two no larger than a veth ring.
    pub burst: u64,
    /// Frames after which the generator stops, counted since it was loaded.
    pub limit: u64,
}

/// What the generator did since it was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Frames handed to the router.
    pub frames: u64,
    /// Frames given up: nobody waits for them any more.
    pub written_off: u64,
    /// Runs without a frame, since the last frame, because the last burst has not arrived.
    pub waits: u64,
    /// When the newest burst was complete, in nanoseconds of the monotonic clock.
    pub complete: u64,
}

/// What arrived at the far end since it was loaded. Each frame with our magic counts in `frames` and in
/// exactly one of the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// All frames of ours.
    pub frames: u64,
    /// Right in every respect.
    pub good: u64,
    /// Source address is not the expected one.
    pub bad_source: u64,
    /// Source port changed within a flow, is below 1024, or changed where nothing should translate.
    pub bad_port: u64,
    /// IPv4 or UDP checksum wrong or absent.
    pub bad_checksum: u64,
    /// TTL not lowered by exactly one, or other damage to the headers.
    pub bad_header: u64,
    /// Longest time from the completion of a burst to the arrival of its last frame, in nanoseconds. The generator's
    /// pauses are not in it: a burst waits for nobody but the router.
    pub longest: u64,
    /// Bursts that took longer than [`LATE`].
    pub late: u64,
}

/// Nanoseconds after which a burst is late: many times what one takes.
pub const LATE: u64 = 1_000_000;
