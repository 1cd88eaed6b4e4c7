//! What happens to the NAT in a run: few hosts, ports and remotes, so that they meet.

use proptest::prelude::*;

use super::nat::{Filtering, ICMP, TCP, UDP};
use super::tcp::{ACK, FIN, RST, SYN};

/// One event. Numbers choose among what there is, modulo its count, so that a step that is left out by shrinking
/// changes little for the others.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A LAN host sends to a remote one.
    Out {
        host: u8,
        port: u8,
        remote: u8,
        kind: Kind,
        shape: Shape,
    },
    /// A remote host sends to an external endpoint.
    In {
        to: u8,
        remote: u8,
        kind: Kind,
        shape: Shape,
    },
    /// A LAN host sends to an external endpoint.
    Turn {
        host: u8,
        port: u8,
        to: u8,
        kind: Kind,
        shape: Shape,
    },
    /// The stack sends out of the WAN, for a LAN host or for itself.
    Leave {
        host: u8,
        port: u8,
        remote: u8,
        how: u8,
        kind: Kind,
        shape: Shape,
    },
    /// A packet of a session, in either direction.
    Along {
        session: u8,
        flags: u8,
        shape: Shape,
    },
    /// A datagram of a session, or of a new one, in fragments.
    Fragments {
        session: u8,
        order: u8,
        id: u8,
        shape: Shape,
    },
    /// All packets of a TCP handshake and more, by the numbers of their directions and flags.
    Open {
        session: u8,
    },
    /// An ICMP error about a packet of a session.
    Error {
        session: u8,
        quoted: u8,
        shape: Shape,
    },
    /// An explicit mapping is written.
    Map {
        external: u8,
        host: u8,
        port: u8,
        proto: u8,
        /// Whom it lets in.
        remotes: u8,
        life: u8,
    },
    /// And removed.
    Unmap {
        which: u8,
    },
    /// Other external addresses are ours.
    Move {
        which: u8,
        /// And what stands on those that are gone is swept.
        swept: bool,
        /// Else a host sends anew that had one of those.
        again: u8,
    },
    /// Time passes; at its beginning the tables are swept.
    Pass {
        time: u8,
    },
    Sweep,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) proto: u8,
    /// Of TCP; of ICMP FIN makes an answer of a query and the other way round.
    pub(crate) flags: u8,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) ttl: u8,
    /// UDP has one.
    pub(crate) checksum: bool,
    pub(crate) octets: u8,
}

/// Nothing remarkable.
pub(crate) const PLAIN: Shape = Shape {
    ttl: 64,
    checksum: true,
    octets: 9,
};

/// How a run is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) tc: bool,
    pub(crate) filtering: Filtering,
    pub(crate) narrow: bool,
    pub(crate) quotas: bool,
    /// Which addresses are ours at first, mostly one.
    pub(crate) addresses: u8,
}

pub(crate) fn setting() -> impl Strategy<Value = Setting> {
    let one_in_four = || prop::bool::weighted(0.25);
    let filtering = prop_oneof![
        2 => Just(Filtering::AddressAndPortDependent),
        1 => Just(Filtering::AddressDependent),
        1 => Just(Filtering::EndpointIndependent),
    ];
    let addresses = prop_oneof![Just(0), any::<u8>()];
    (
        any::<bool>(),
        filtering,
        one_in_four(),
        one_in_four(),
        addresses,
    )
        .prop_map(|(tc, filtering, narrow, quotas, addresses)| Setting {
            tc,
            filtering,
            narrow,
            quotas,
            addresses,
        })
}

pub(crate) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..most)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (few(), any::<u8>(), few(), kind(), shape()).prop_map(
            |(host, port, remote, kind, shape)| Step::Out { host, port, remote, kind, shape }
        ),
        6 => (any::<u8>(), few(), kind(), shape()).prop_map(
            |(to, remote, kind, shape)| Step::In { to, remote, kind, shape }
        ),
        4 => (few(), any::<u8>(), any::<u8>(), kind(), shape()).prop_map(
            |(host, port, to, kind, shape)| Step::Turn { host, port, to, kind, shape }
        ),
        4 => (few(), any::<u8>(), few(), any::<u8>(), kind(), shape()).prop_map(
            |(host, port, remote, how, kind, shape)| {
                Step::Leave { host, port, remote, how, kind, shape }
            }
        ),
        12 => (any::<u8>(), flags(), shape()).prop_map(
            |(session, flags, shape)| Step::Along { session, flags, shape }
        ),
        4 => (any::<u8>(), any::<u8>(), any::<u8>(), shape()).prop_map(
            |(session, order, id, shape)| Step::Fragments { session, order, id, shape }
        ),
        2 => any::<u8>().prop_map(|session| Step::Open { session }),
        3 => (any::<u8>(), any::<u8>(), shape()).prop_map(
            |(session, quoted, shape)| Step::Error { session, quoted, shape }
        ),
        5 => (any::<u8>(), few(), any::<u8>(), proto(), any::<u8>(), any::<u8>()).prop_map(
            |(external, host, port, proto, remotes, life)| Step::Map {
                external, host, port, proto, remotes, life,
            }
        ),
        1 => any::<u8>().prop_map(|which| Step::Unmap { which }),
        2 => any::<(u8, bool, u8)>().prop_map(|(which, swept, again)| Step::Move { which, swept, again }),
        3 => any::<u8>().prop_map(|time| Step::Pass { time }),
        2 => Just(Step::Sweep),
    ]
}

/// Mostly the first ones: the others are not supposed to be there.
fn few() -> impl Strategy<Value = u8> {
    prop_oneof![20 => 0..3u8, 1 => 3..8u8]
}

fn proto() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(UDP), 3 => Just(TCP), 1 => Just(ICMP)]
}

fn kind() -> impl Strategy<Value = Kind> {
    (proto(), opening()).prop_map(|(proto, flags)| Kind { proto, flags })
}

fn opening() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(SYN), 1 => flags()]
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        4 => Just(ACK),
        3 => Just(SYN | ACK),
        2 => Just(SYN),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
        1 => any::<u8>(),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let ttl = prop_oneof![12 => Just(64u8), 1 => 0..4u8];
    (ttl, prop::bool::weighted(0.8), 0..20u8).prop_map(|(ttl, checksum, octets)| Shape {
        ttl,
        checksum,
        octets,
    })
}
