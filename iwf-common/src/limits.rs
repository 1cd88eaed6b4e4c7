//! Default sizes and timers. Everything is bounded; what happens at a bound stands beside it.
#![forbid(unsafe_code)]

/// Entries of SESSIONS, two per session. Preallocated: insertion from a packet must not depend on the state
/// of the kernel's allocator, and a burst of new flows would outrun the refill of its caches. 128 octets each;
/// the daemon sizes it down on small machines. Full: the new flow is dropped and counted, no old one suffers.
pub const SESSIONS: u32 = 131_072;
/// Entries of each mapping table, preallocated for the same reason. Full: as for sessions.
pub const MAPPINGS: u32 = 65_536;
/// Entries of SESSIONS6, two per IPv6 session. 144 octets each. A table of its own, so that neither protocol can
/// fill the other's. Preallocated, and full: as for SESSIONS.
pub const SESSIONS6: u32 = 65_536;
/// Entries of ENDPOINTS6, 96 octets each. Full: the flow is made all the same, but its endpoint is open only to
/// who it has sent to; counted.
pub const ENDPOINTS6: u32 = 32_768;
/// Entries of FRAGMENTS6, 104 octets each. Full: the oldest gives way, and the rest of its packet is dropped.
pub const FRAGMENTS6: u32 = 4096;
/// Pinholes, the CPE's own open ports among them. Full: the daemon refuses the new one.
pub const PINHOLES: u32 = 4096;
/// Interfaces with one of our programs, and devices to redirect to.
pub const IFACES: u32 = 64;
/// Neighbours behind bridge ports. Full: frames to the others go by way of the stack.
pub const BRIDGE_FDB: u32 = 4096;
/// Remote prefixes that one explicit mapping may admit: what fits a PCP request besides the other options. More:
/// the mapping is refused (EXCESSIVE_REMOTE_PEERS).
pub const FILTER_ENTRIES: usize = 8;
/// Mappings with a list of remote prefixes. Full: the mapping is refused.
pub const FILTERS: u32 = 1024;
/// Remote addresses that mappings with address-dependent filtering have sent to, 80 octets each while there is one.
/// Full: the flow is made all the same, but only the endpoint it goes to may answer; counted.
pub const PEERS: u32 = 65_536;
/// Octets of the event ring. Full: events are lost and counted.
pub const EVENT_BYTES: u32 = 1 << 16;
/// Events one CPU may write per second. More: lost and counted.
pub const EVENTS_PER_SECOND: u32 = 256;
/// Datagrams whose first fragment is remembered, the least recently used giving way to new ones. That is wrong for
/// sessions and right here: a datagram is through within milliseconds, so that a flood of first fragments pushes
/// out those that nobody asks for any more, and refusing new ones would stop everybody for the reassembly time.
pub const FRAGMENTS: u32 = 8192;
/// Seconds for which a first fragment is remembered: what Linux gives a reassembly (RFC 1122 section 3.3.2 asks
/// for 60 to 120 at the receiver). A fragment that comes later finds nobody who still waits for it.
pub const REASSEMBLY: u32 = 30;
/// Largest IPv4 packet, in octets, that is held when it comes before its first fragment. Larger: dropped.
pub const HELD_OCTETS: usize = 2000;
/// Octets of the ring that held fragments go to the daemon by: 256 of them. Full: they are lost and counted.
pub const HELD_BYTES: u32 = 1 << 19;
/// Fragments one CPU may hold per second. More: dropped and counted.
pub const HELD_PER_SECOND: u32 = 512;
/// Octets of a refused packet that the daemon gets, to quote them: what fits an ICMPv6 error (RFC 4443 section 2.4).
pub const REFUSED_OCTETS: usize = 1232;
/// Octets of the ring that refused packets go to the daemon by: 209 of them. Full: they are lost and counted.
pub const REFUSED_BYTES: u32 = 1 << 18;
/// Refused packets of one side that one CPU may give per second. More: lost and counted.
pub const REFUSED_PER_SECOND: u32 = 128;
/// LAN prefixes.
pub const LAN_PREFIXES: usize = 8;
/// External addresses besides the first.
pub const POOL: usize = 7;
/// LAN hosts with sessions or mappings: IPv4 addresses, and for IPv6 stations by their MAC address, preallocated. Full:
/// flows of a host that has none yet are dropped and counted, the others go on.
pub const HOSTS: u32 = 8192;
/// LAN hosts with explicit mappings whose other mappings follow them to their external address. Full: those of the
/// other hosts do not follow, which is no matter with one external address.
pub const PAIRED: u32 = 4096;
/// Sessions of one LAN host, a quarter of the default table. More: the new flow is dropped and counted.
pub const HOST_SESSIONS: u32 = SESSIONS / 2 / 4;
/// IPv6 sessions of one station, whatever addresses it uses; also of all whose station is not known, and of the CPE
/// itself. More: as for sessions.
pub const HOST_SESSIONS6: u32 = SESSIONS6 / 2 / 4;
/// Dynamic mappings of one LAN host. More: as for sessions.
pub const HOST_MAPPINGS: u32 = MAPPINGS / 4;

/// Seconds without outbound traffic until a UDP mapping ends. RFC 4787 REQ-5 recommends 5 minutes or more.
pub const UDP_IDLE: u32 = 300;
/// Seconds of silence until an open TCP connection is forgotten: 2 h 4 min, RFC 5382 REQ-5.
pub const TCP_ESTABLISHED_IDLE: u32 = 7440;
/// The same for connections that open or close: 4 min, RFC 5382 REQ-5.
pub const TCP_TRANSITORY_IDLE: u32 = 240;
/// The same for ICMP queries. RFC 5508 REQ-2: at least 60 s.
pub const ICMP_IDLE: u32 = 60;
/// The same for IPv6 flows of protocols without a time of their own. RFC 6092 REC-12: at least 2 min, 5 by default.
pub const OTHER_IDLE: u32 = 300;
/// The same for DCCP flows that open or close: 8 min, RFC 6092 REC-44. SCTP's have TCP's times (REC-40).
pub const DCCP_TRANSITORY_IDLE: u32 = 480;
/// Seconds for which later fragments may follow the first (RFC 8200 section 4.5).
pub const FRAGMENT_TIME6: u32 = 60;
/// Extension headers that are walked, and octets of them. More: the packet is dropped.
pub const HEADERS6: usize = 8;
/// See [`HEADERS6`].
pub const HEADER_OCTETS6: usize = 256;
/// Seconds for which half of a pair is left alone: its other half is being written.
pub const GRACE: u32 = 2;
/// How many times [`GRACE`] an unused half is asked after its other half; later only when it is idle.
pub const LONE_HALF: u32 = 30;
/// What one run of the sweep program looks at, at most. The daemon hands over more in several runs.
pub const SWEEP_ITEMS: u32 = 1024;
