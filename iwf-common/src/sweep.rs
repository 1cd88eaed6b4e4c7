//! Ageing: what the daemon asks the sweep program to look at, and the judgement both share.
//!
//! Read before editing: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5, RFC 7857 section 2.
//!
//! The daemon reads the tables in slices and picks what may be over; the program looks at each of those again,
//! among packets, and has the last word. So the daemon may pick too much, but never too little.
#![forbid(unsafe_code)]

use crate::config::{Config, IdleTimes};
use crate::flow::{SessionFlags, SessionKey, SessionValue};
use crate::flow6::{EndpointKey6, SessionKey6, SessionValue6};
use crate::host::{HostKey, Totals};
use crate::nat::{EndpointKey, PeerKey};
use crate::tcp::{self, Phase, Shown};
use crate::{limits, tick};

/// The only entry of SWEEP: what holds for all items of one run, and what came of them. One run at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct SweepRequest {
    /// [`SweepMode`].
    pub mode: u32,
    /// Tick at which the daemon began to read the tables. A mapping is judged as of then: sessions used since
    /// have not all been seen.
    pub as_of: u32,
    /// Index of the item that the next repetition looks at.
    pub next: u32,
    /// Result: sessions of [`SweepTask::JudgeSession`] that are over, one for each item, whoever has marked them.
    pub sessions_over: u32,
    /// Result: session entries marked as ended.
    pub sessions_ended: u32,
    /// Result: session entries removed.
    pub sessions_removed: u32,
    /// Result: entries removed from both mapping tables.
    pub mappings_removed: u32,
    /// Zero.
    pub pad: u32,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SweepMode {
    /// End what is idle, expired or orphaned, or stands on an address that is not ours, as long as we have one; refresh
    /// mappings that sessions use.
    Age = 1,
    /// Remove mappings of every external address that is not one of ours by CONFIG; static entries stay.
    KeepOurs = 3,
    /// Mappings or addresses have changed or gone: sessions get the expiry of the mapping that is there, and those end
    /// that have none any more, that stand on an address that is not ours, or that somebody began whom their mapping no
    /// longer admits.
    Recheck = 4,
}

/// An entry of SWEEP_ITEMS: something that may be over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct SweepItem {
    /// [`SweepTask`].
    pub task: u32,
    /// For [`SweepTask::JudgeMapping`]: the last use that a session tells of, as a tick. For
    /// [`SweepTask::EndRecount`]: how many sessions of the host were met.
    pub used: u32,
    /// For [`SweepTask::EndRecount`]: how many dynamic mappings of the host were met.
    pub met_mappings: u32,
    /// Zero.
    pub pad: u32,
    /// A session's key, or an endpoint as its source, or a host's address as source, destination and ports.
    pub key: SessionKey,
    /// An IPv6 session's key, or an entry of ENDPOINTS6 as address, peer and source port, or what [`Totals`] lacks as
    /// source and destination.
    pub key6: SessionKey6,
}

/// What an item wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SweepTask {
    /// Marks both entries of a session as ended, if it is over.
    JudgeSession = 1,
    /// Removes the entries of a session that has been marked long enough ago, and adds what they counted to their
    /// mapping.
    RemoveSession = 2,
    /// Notes the last use of an entry of MAPPINGS_EXT; removes the mapping if it is over.
    JudgeMapping = 3,
    /// Removes an entry of MAPPINGS_INT that MAPPINGS_EXT does not confirm.
    JudgeInternal = 4,
    /// Before a pass: what the host's numbers are compared with begins here.
    BeginRecount = 5,
    /// After a pass: corrects the host's numbers, and removes a host that has nothing.
    EndRecount = 6,
    /// Marks both entries of an IPv6 session as ended, if it is over; removes one that was marked long enough ago.
    JudgeSession6 = 7,
    /// Removes an entry of ENDPOINTS6, if it is over.
    JudgeEndpoint6 = 8,
    /// Notes for the remote address of a session out that its mapping is in use with it.
    NotePeer = 9,
    /// Removes an entry of PEERS, if it is over. Its key is external endpoint and remote address, as source and
    /// destination.
    JudgePeer = 10,
    /// Adds what [`Totals`] lacks.
    AddUp = 11,
}

impl SweepItem {
    /// An item about a session.
    pub const fn session(task: SweepTask, key: SessionKey) -> Self {
        Self {
            task: task as u32,
            used: 0,
            met_mappings: 0,
            pad: 0,
            key,
            key6: NO_KEY6,
        }
    }

    /// An item about an entry of a mapping table.
    pub const fn endpoint(task: SweepTask, endpoint: EndpointKey, used: u32) -> Self {
        Self {
            task: task as u32,
            used,
            met_mappings: 0,
            pad: 0,
            key6: NO_KEY6,
            key: SessionKey::new(endpoint.addr, endpoint.port, [0; 4], [0; 2], endpoint.proto),
        }
    }
}

impl SweepItem {
    /// An item about an entry of PEERS.
    pub const fn of_peer(peer: &PeerKey) -> Self {
        let external = &peer.external;
        let key = SessionKey::new(
            external.addr,
            external.port,
            peer.remote,
            [0; 2],
            external.proto,
        );
        Self::session(SweepTask::JudgePeer, key)
    }

    /// The entry of PEERS that an item is about.
    #[inline(always)]
    pub const fn peer(&self) -> PeerKey {
        PeerKey {
            external: self.key.source(),
            remote: self.key.dst,
        }
    }
}

const NO_KEY6: SessionKey6 = SessionKey6::new([0; 16], [0; 2], [0; 16], [0; 2], 0);

impl SweepItem {
    /// An item about an IPv6 session.
    pub fn session6(key6: SessionKey6) -> Self {
        Self {
            task: SweepTask::JudgeSession6 as u32,
            key6,
            ..Self::default()
        }
    }

    /// An item about an entry of ENDPOINTS6.
    pub fn of_endpoint6(key: &EndpointKey6) -> Self {
        Self {
            task: SweepTask::JudgeEndpoint6 as u32,
            key6: SessionKey6::new(key.addr, key.port, key.peer, [0; 2], key.proto),
            ..Self::default()
        }
    }

    /// The entry of ENDPOINTS6 that an item is about.
    #[inline(always)]
    pub fn endpoint6(&self) -> EndpointKey6 {
        EndpointKey6 {
            addr: self.key6.src,
            peer: self.key6.dst,
            port: self.key6.src_port,
            proto: self.key6.proto,
            ..EndpointKey6::default()
        }
    }

    /// An item about what [`Totals`] lacks, in each sum.
    pub fn add_up(lacking: &Totals) -> Self {
        let word = |number: u64| u128::from(number);
        let src = (word(lacking.sessions) << 64 | word(lacking.mappings)).to_be_bytes();
        let dst = word(lacking.sessions6).to_be_bytes();
        Self {
            task: SweepTask::AddUp as u32,
            key6: SessionKey6::new(src, [0; 2], dst, [0; 2], 0),
            ..Self::default()
        }
    }

    /// What [`Totals`] lacks.
    #[inline(always)]
    pub const fn lacking(&self) -> Totals {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.key6.src;
        let [.., q, r, s, t, u, v, w, x] = self.key6.dst;
        Totals {
            changes: 0,
            sessions: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            mappings: u64::from_be_bytes([i, j, k, l, m, n, o, p]),
            sessions6: u64::from_be_bytes([q, r, s, t, u, v, w, x]),
        }
    }

    /// An item about a host.
    #[inline(always)]
    pub const fn of_host(task: SweepTask, host: HostKey, sessions: u32, mappings: u32) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = host.addr;
        Self {
            task: task as u32,
            used: sessions,
            met_mappings: mappings,
            pad: 0,
            key6: NO_KEY6,
            key: SessionKey {
                src: [a, b, c, d],
                dst: [e, f, g, h],
                src_port: [i, j],
                dst_port: [k, l],
                proto: m,
                pad: n,
                pad_word: u16::from_ne_bytes([o, p]),
            },
        }
    }

    /// The host an item is about.
    #[inline(always)]
    pub const fn host(&self) -> HostKey {
        let key = &self.key;
        let [a, b, c, d] = key.src;
        let [e, f, g, h] = key.dst;
        let ([i, j], [k, l]) = (key.src_port, key.dst_port);
        let [o, p] = key.pad_word.to_ne_bytes();
        HostKey {
            addr: [a, b, c, d, e, f, g, h, i, j, k, l, key.proto, key.pad, o, p],
        }
    }
}

/// How long a session may be silent, in ticks, by what a connection has shown in both directions. A TCP mapping without
/// a connection has the transitory time.
#[inline(always)]
pub const fn idle_time(idle: &IdleTimes, proto: u8, tcp_a: Shown, tcp_b: Shown) -> u32 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    match proto {
        UDP => idle.udp,
        TCP => match tcp::phase(tcp_a, tcp_b) {
            Phase::Established => idle.tcp_established,
            Phase::Transitory => idle.tcp_transitory,
        },
        _ => idle.icmp,
    }
}

/// As [`idle_time`] for IPv6. SCTP and DCCP are open once both sides have spoken: their states are not followed.
#[inline(always)]
pub const fn idle_time6(config: &Config, proto: u8, a: &SessionValue6, b: &SessionValue6) -> u32 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const DCCP: u8 = 33;
    const ICMPV6: u8 = 58;
    const SCTP: u8 = 132;
    const UDP_LITE: u8 = 136;
    let both = a.packets != 0 && b.packets != 0;
    match proto {
        UDP | UDP_LITE => config.idle.udp,
        TCP => match tcp::phase(a.shown(), b.shown()) {
            Phase::Established => config.idle.tcp_established,
            Phase::Transitory => config.idle.tcp_transitory,
        },
        SCTP | DCCP if both => config.idle.tcp_established,
        SCTP => config.idle.tcp_transitory,
        DCCP => limits::DCCP_TRANSITORY_IDLE.saturating_mul(config.hz),
        ICMPV6 => config.idle.icmp,
        _ => limits::OTHER_IDLE.saturating_mul(config.hz),
    }
}

/// Whether one entry of a session alone leaves it possible that the session is over: ended, past its deadline,
/// silent for the shortest time that any other half could make it, or a half whose other one never came.
pub fn may_be_over(
    now: u32,
    hz: u32,
    idle: &IdleTimes,
    key: &SessionKey,
    value: &SessionValue,
) -> bool {
    let silence = tick::age(now, value.last_seen);
    let grace = limits::GRACE.saturating_mul(hz);
    value.flags & SessionFlags::ENDED != 0
        || tick::deadline_passed(now, value.deadline)
        || silence > idle_time(idle, key.proto, value.shown(), at_worst(value))
        // Only while it is young: an unanswered flow looks the same for all of its life.
        || (value.packets == 0
            && silence > grace
            && silence <= grace.saturating_mul(limits::LONE_HALF))
}

/// What the other direction has shown if it makes the time as short as it can without ending the connection by itself:
/// it has closed it, and sent nothing since.
const fn at_worst(value: &SessionValue) -> Shown {
    Shown {
        flags: tcp::SYN | tcp::ACK | tcp::FIN,
        last: value.last_seen,
    }
}

/// Whether a session marked at `ended` is held by no packet any more at `now`: a packet is done within
/// microseconds, and a tick is at least a millisecond.
#[inline(always)]
pub const fn is_at_rest(now: u32, ended: u32) -> bool {
    tick::age(now, ended) > REST
}

/// Ticks for which a session stays marked before it is removed.
pub const REST: u32 = 2;

const _: () = assert!(size_of::<SweepRequest>() == 32);
const _: () = assert!(size_of::<SweepItem>() == 72);

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u32 = 250;
    const NOW: u32 = 5_000_000;
    const FLAGS: [u8; 7] = [
        0,
        tcp::SYN,
        tcp::SYN | tcp::ACK,
        tcp::SYN | tcp::ACK | tcp::FIN,
        tcp::SYN | tcp::ACK | tcp::RST,
        tcp::SYN | tcp::RST,
        tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST,
    ];

    fn picks(proto: u8, flags: u8, silence: u32) -> bool {
        let key = SessionKey {
            proto,
            ..SessionKey::default()
        };
        let value = SessionValue {
            tcp: flags,
            last_seen: NOW - silence,
            packets: 1,
            ..SessionValue::default()
        };
        may_be_over(NOW, HZ, &IdleTimes::defaults(HZ), &key, &value)
    }

    /// Whichever half is seen, and whatever the other one remembers.
    #[test]
    fn nothing_that_is_over_is_missed() {
        let idle = IdleTimes::defaults(HZ);
        let ages = [(0, 0), (0, 9), (9, 0)];
        for (proto, (before, after)) in [1, 6, 17].into_iter().flat_map(|p| ages.map(|a| (p, a))) {
            for ours in FLAGS {
                for theirs in FLAGS {
                    let shown = |flags, ago| Shown {
                        flags,
                        last: NOW - ago,
                    };
                    let limit = idle_time(&idle, proto, shown(ours, before), shown(theirs, after));
                    assert!(
                        picks(proto, ours, limit + 1 + before)
                            || picks(proto, theirs, limit + 1 + after),
                        "{proto} {ours:#x} {theirs:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_open_connection_is_left_alone_until_it_may_be_over() {
        let open = tcp::SYN | tcp::ACK;
        assert!(!picks(6, open, 7440 * HZ));
        assert!(picks(6, open, 7440 * HZ + 1));
        assert!(picks(6, open | tcp::FIN, 240 * HZ + 1));
        assert!(!picks(17, 0, 300 * HZ));
        assert!(picks(17, 0, 300 * HZ + 1));
    }

    #[test]
    fn a_lone_half_is_looked_at_when_its_grace_is_over() {
        let idle = IdleTimes::defaults(HZ);
        let key = SessionKey {
            proto: 17,
            ..SessionKey::default()
        };
        let after = |seconds: u32| {
            let value = SessionValue {
                last_seen: NOW - seconds * HZ,
                ..SessionValue::default()
            };
            may_be_over(NOW, HZ, &idle, &key, &value)
        };
        assert!(!after(limits::GRACE));
        assert!(after(limits::GRACE + 1));
        assert!(!after(limits::GRACE * limits::LONE_HALF + 1));
    }

    #[test]
    fn an_item_keeps_a_host() {
        let mut host = HostKey::v4([192, 168, 1, 10]);
        host.addr[0] = 0x20;
        let item = SweepItem::of_host(SweepTask::EndRecount, host, 7, 3);
        assert_eq!(item.host(), host);
    }

    #[test]
    fn an_item_keeps_what_sums_lack() {
        let lacking = Totals {
            changes: 0,
            sessions: 0x0102_0304_0506_0708,
            mappings: u64::MAX,
            sessions6: 7,
        };
        assert_eq!(SweepItem::add_up(&lacking).lacking(), lacking);
    }

    #[test]
    fn deadline_and_mark_count_at_once() {
        let idle = IdleTimes::defaults(HZ);
        let key = SessionKey::default();
        let fresh = SessionValue {
            last_seen: NOW,
            packets: 1,
            ..SessionValue::default()
        };
        let over = |value: SessionValue| may_be_over(NOW, HZ, &idle, &key, &value);
        assert!(!over(fresh));
        assert!(over(SessionValue {
            deadline: NOW,
            ..fresh
        }));
        assert!(over(SessionValue {
            flags: SessionFlags::ENDED,
            ..fresh
        }));
        assert!(!is_at_rest(NOW + REST, NOW));
        assert!(is_at_rest(NOW + REST + 1, NOW));
    }
}
