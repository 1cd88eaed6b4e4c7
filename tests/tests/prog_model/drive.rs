//! Gives the same packets to the programs and to the model, and compares all there is: here, what a run is; in `send.rs`
//! its packets, in `tend.rs` what the daemon does meanwhile, in `compare.rs` the tables.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use iwf_common::config::{Config, FdbKey, IdleTimes};
use iwf_common::limits;
use iwf_tests::prog::State;
use iwf_userspace::daemon::dataplane::sweep::Sweeper;

use super::nat::{
    Endpoint, Filtering, Half, ICMP, Key, Name, Nat, Remote, Remotes, Rules, Via, Way,
};
use super::quota::Shares;
use super::step::{Kind, PLAIN, Setting, Shape, Step};
use super::tcp::SYN;
use super::tend::{filter_of, set_addresses};
use crate::bed::{Bed, HOST, HOST2, REMOTE, REMOTE2, Through, WAN, mac_of};

/// Ticks per second of the configuration. More than any kernel has: what passes while a run lasts is nothing.
pub(crate) const HZ: u32 = 4000;
/// A run that took more of the kernel's ticks than this, on a machine that is busy with something else, says nothing.
pub(crate) const UNDISTURBED: u32 = HZ;

/// The idle times end in 10 s and the steps of time in 0, so that nothing is ever decided by a tick.
const IDLE: IdleTimes = IdleTimes {
    udp: 310 * HZ,
    tcp_established: 7450 * HZ,
    tcp_transitory: 250 * HZ,
    icmp: 70 * HZ,
};
const STEPS_OF_TIME: [u32; 8] = [20, 60, 80, 240, 260, 300, 320, 7460];
const LIVES: [Option<u32>; 5] = [None, None, Some(50), Some(90), Some(310)];

/// Whom explicit mappings let in.
const REMOTES: [Remotes; 8] = [
    Remotes::Everybody,
    Remotes::Everybody,
    Remotes::Host(REMOTE),
    Remotes::Listed(&[listed(REMOTE, 32, Some(53)), listed(REMOTE2, 32, None)]),
    Remotes::Listed(&LONGEST),
    Remotes::SentTo(Filtering::AddressDependent),
    Remotes::SentTo(Filtering::AddressDependent),
    Remotes::SentTo(Filtering::AddressAndPortDependent),
];
/// As long as a list may be, and the last one counts.
const LONGEST: [Remote; limits::FILTER_ENTRIES] = {
    let mut list = [listed([11, 22, 44, 0], 24, None); limits::FILTER_ENTRIES];
    list[1] = listed(WAN, 32, None);
    list[limits::FILTER_ENTRIES - 1] = listed(REMOTE, 31, Some(5000));
    list
};

const fn listed(addr: [u8; 4], len: u8, port: Option<u16>) -> Remote {
    Remote { addr, len, port }
}

/// What may be ours. The kernel has the first address, so that it is always among them.
const ADDRESSES: [&[[u8; 4]]; 5] = [
    &[WAN],
    &[WAN, ALSO],
    &[THIRD, WAN],
    &[WAN, THIRD, ALSO],
    &[ALSO, WAN],
];
pub(crate) const ALSO: [u8; 4] = [100, 64, 0, 77];
pub(crate) const THIRD: [u8; 4] = [100, 64, 0, 78];

const PORTS: [u16; 4] = [5000, 5001, 500, 40_000];
const MAPPED: [u16; 3] = [5000, 6000, 500];
const ELSEWHERE: [u8; 4] = [10, 0, 0, 5];

/// What a run has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Agreement,
    /// Too much else went on.
    Nothing,
}

pub(crate) struct Driver<'b> {
    pub(crate) bed: &'b mut Bed,
    pub(crate) sweeper: Sweeper,
    pub(crate) nat: Nat,
    /// The tick at which the run began.
    pub(crate) began: u32,
    pub(crate) generation: u32,
    /// What stands on addresses that are gone may still be there.
    unswept: bool,
    /// The tables as they were read last.
    pub(crate) state: State,
    /// What the last packet was counted as.
    pub(crate) counted: BTreeMap<&'static str, u64>,
    /// How often each fate was met, in all runs.
    pub(crate) fates: &'b mut BTreeMap<Name, u32>,
}

impl<'b> Driver<'b> {
    /// The bed as new, and a model of it.
    pub(crate) fn new(
        bed: &'b mut Bed,
        setting: Setting,
        fates: &'b mut BTreeMap<Name, u32>,
    ) -> Result<Self> {
        bed.plane.empty()?;
        bed.furnish()?;
        bed.through = if setting.tc {
            Through::Tc
        } else {
            Through::Xdp
        };
        let station = FdbKey {
            bridge: bed.bridge,
            mac: mac_of(HOST2),
            pad: [0; 2],
        };
        bed.plane.set_station(station, bed.lan)?;
        let mut rules = Rules {
            addresses: pick(&ADDRESSES, setting.addresses).to_vec(),
            lan: [192, 168, 1],
            ports: 1024..=u16::MAX,
            filtering: setting.filtering,
            sessions: Shares::UNBOUNDED,
            mappings: Shares::UNBOUNDED,
            idle_udp: IDLE.udp.into(),
            idle_tcp_open: IDLE.tcp_established.into(),
            idle_tcp_transitory: IDLE.tcp_transitory.into(),
            idle_icmp: IDLE.icmp.into(),
            reassembly: (limits::REASSEMBLY * HZ).into(),
            knock: (limits::GRACE * HZ).into(),
        };
        if setting.narrow {
            rules.ports = 5000..=5003;
        }
        if setting.quotas {
            rules.sessions = Shares { each: 4, all: 9 };
            rules.mappings = Shares { each: 3, all: 7 };
        }
        bed.reconfigure(|config| {
            *config = Config {
                external_addr: config.external_addr,
                wan: config.wan,
                lan_len: config.lan_len,
                lan: config.lan,
                idle: IDLE,
                ..Config::empty(HZ)
            };
            set_addresses(config, &rules.addresses);
            (config.ports.min, config.ports.max) = (*rules.ports.start(), *rules.ports.end());
            config.filter = filter_of(setting.filtering) as u8;
            if setting.quotas {
                (config.host_sessions, config.room_sessions) = (4, 9);
                (config.host_mappings, config.room_mappings) = (3, 7);
            }
        })?;
        Ok(Self {
            sweeper: bed.sweeper()?,
            nat: Nat::new(rules),
            began: bed.now()?,
            generation: 1,
            unswept: false,
            state: bed.plane.state()?,
            counted: BTreeMap::new(),
            fates,
            bed,
        })
    }

    /// # Errors
    /// Model and programs disagree, or the kernel refuses.
    pub(crate) fn run(mut self, steps: &[Step]) -> Result<Shown> {
        for (at, step) in steps.iter().enumerate() {
            let outcome = self.step(*step);
            if self.bed.now()?.wrapping_sub(self.began) > UNDISTURBED {
                return Ok(Shown::Nothing);
            }
            outcome.with_context(|| format!("step {at}, {step:?}"))?;
        }
        Ok(Shown::Agreement)
    }

    fn step(&mut self, step: Step) -> Result<()> {
        // Every event has a tick of its own.
        self.let_pass(1)?;
        match step {
            Step::Out {
                host,
                port,
                remote,
                kind,
                shape,
            } => {
                let src = Endpoint {
                    addr: host_of(host),
                    port: pick(ports_of(kind.proto), port),
                };
                self.packet(Via::Lan, kind, src, remote_of(remote), shape)
            }
            Step::In {
                to,
                remote,
                kind,
                shape,
            } => {
                let dst = self.external(kind.proto, to);
                self.packet(Via::Wan, kind, remote_of(remote), dst, shape)
            }
            Step::Turn {
                host,
                port,
                to,
                kind,
                shape,
            } => {
                let src = Endpoint {
                    addr: host_of(host),
                    port: pick(ports_of(kind.proto), port),
                };
                let dst = self.external(kind.proto, to);
                self.packet(Via::Lan, kind, src, dst, shape)
            }
            Step::Leave {
                host,
                port,
                remote,
                how,
                kind,
                shape,
            } => self.leave((host, port), remote_of(remote), how, kind, shape),
            Step::Along {
                session,
                flags,
                shape,
            } => {
                let Some((key, half)) = self.session(session) else {
                    return Ok(());
                };
                self.along(&key, &half, flags, shape)
            }
            Step::Fragments {
                session,
                order,
                id,
                shape,
            } => self.fragments(session, order, id, shape),
            Step::Open { session } => self.open(session),
            Step::Error {
                session,
                quoted,
                shape,
            } => self.error(session, quoted, shape),
            Step::Map {
                external,
                host,
                port,
                proto,
                remotes,
                life,
            } => {
                if proto == ICMP {
                    return Ok(());
                }
                let internal = Endpoint {
                    addr: host_of(host % 2),
                    port: pick(&PORTS, port),
                };
                let external = Endpoint {
                    addr: pick(&self.nat.rules.addresses, external / 8),
                    port: pick(&MAPPED, external),
                };
                let remotes = pick(&REMOTES, remotes);
                self.map((proto, external), internal, remotes, pick(&LIVES, life))?;
                self.pair()?;
                self.sweep()
            }
            Step::Unmap { which } => {
                let all = self.nat.by_external.iter();
                let all: Vec<_> = all
                    .filter(|(_, m)| m.explicit.is_some())
                    .map(|(key, _)| *key)
                    .collect();
                let Some(external) = chosen_of(&all, which) else {
                    return Ok(());
                };
                self.unmap(external)?;
                self.pair()?;
                self.sweep()
            }
            Step::Move {
                which,
                swept,
                again,
            } => {
                self.change_addresses(which)?;
                self.unswept = !swept;
                if swept {
                    self.leave_gone()?;
                    return self.sweep();
                }
                self.compare()?;
                let moved = self.nat.by_external.iter();
                let moved: Vec<_> = moved
                    .filter(|((_, external), _)| !self.nat.is_ours(external.addr))
                    .map(|((proto, _), mapping)| (*proto, mapping.internal))
                    .collect();
                let Some((proto, internal)) = chosen_of(&moved, again) else {
                    return Ok(());
                };
                let kind = Kind { proto, flags: SYN };
                self.packet(Via::Lan, kind, internal, remote_of(again % 3), PLAIN)
            }
            Step::Pass { time } => {
                self.sweep()?;
                self.let_pass(pick(&STEPS_OF_TIME, time) * HZ)?;
                self.compare()
            }
            Step::Sweep => self.sweep(),
        }
    }

    // What there is.

    /// Other addresses are ours, and nothing is swept yet. Between two changes the daemon ends all that the first has
    /// taken the address from.
    pub(crate) fn change_addresses(&mut self, which: u8) -> Result<()> {
        if self.unswept {
            self.leave_gone()?;
            self.sweep()?;
        }
        self.unswept = true;
        self.move_to(pick(&ADDRESSES, which))
    }

    /// A packet that the stack sends.
    fn leave(
        &mut self,
        (host, port): (u8, u8),
        remote: Endpoint,
        how: u8,
        kind: Kind,
        shape: Shape,
    ) -> Result<()> {
        let ours = &self.nat.rules.addresses;
        // The stack has no other way out for these.
        if remote.addr == HOST2 || ours.contains(&remote.addr) {
            return Ok(());
        }
        let (addr, forwarded) = match how % 8 {
            0..4 => (host_of(host), !how.is_multiple_of(8)),
            4..7 => (pick(ours, port), how % 8 == 6),
            _ => {
                // What the program at LAN ingress has translated.
                let Some((key, half)) = self.session(host ^ port) else {
                    return Ok(());
                };
                if half.way != Way::Out || half.own || key.proto == ICMP {
                    return Ok(());
                }
                let (src, dst) = half.becomes;
                let kind = Kind {
                    proto: key.proto,
                    ..kind
                };
                return self.packet(Via::Stack { forwarded: true }, kind, src, dst, shape);
            }
        };
        let port = pick(ports_of(kind.proto), port);
        let src = Endpoint { addr, port };
        // An identifier of the router's own is never 0.
        if port == 0 && ours.contains(&addr) {
            return Ok(());
        }
        self.packet(Via::Stack { forwarded }, kind, src, remote, shape)
    }

    pub(crate) fn session(&self, which: u8) -> Option<(Key, Half)> {
        let live = self.nat.halves.iter().filter(|(_, half)| !half.ended);
        let live: Vec<_> = live.map(|(key, half)| (*key, half.clone())).collect();
        chosen_of(&live, which)
    }

    fn external(&self, proto: u8, which: u8) -> Endpoint {
        let known = self.nat.by_external.keys().filter(|(of, _)| *of == proto);
        let mut all: Vec<_> = known.map(|(_, external)| *external).collect();
        all.push(Endpoint {
            addr: WAN,
            port: MAPPED[0],
        });
        pick(&all, which)
    }
}

fn host_of(which: u8) -> [u8; 4] {
    match which {
        1 | 2 => HOST2,
        3 => ELSEWHERE,
        4 => WAN,
        _ => HOST,
    }
}

/// Identifiers of ICMP queries may be any number.
const fn ports_of(proto: u8) -> &'static [u16] {
    match proto {
        ICMP => &[5000, 0, 1, 500],
        _ => &PORTS,
    }
}

pub(crate) fn remote_of(which: u8) -> Endpoint {
    let (addr, port) = match which {
        0 => (REMOTE, 53),
        1 => (REMOTE, 5000),
        2 => (REMOTE2, 53),
        3 => (HOST2, 53),
        4 => (WAN, 5000),
        5 => (ALSO, 5000),
        _ => (REMOTE2, 5001),
    };
    Endpoint { addr, port }
}

pub(crate) fn pick<T: Copy>(all: &[T], which: u8) -> T {
    all[usize::from(which) % all.len()]
}

fn chosen_of<T: Clone>(all: &[T], which: u8) -> Option<T> {
    let at = usize::from(which).checked_rem(all.len())?;
    all.get(at).cloned()
}
