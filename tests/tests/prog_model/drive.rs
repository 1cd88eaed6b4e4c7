//! Gives the same packets to the programs and to the model, and compares all there is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use iwf_common::config::{Config, FdbKey, IdleTimes};
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::nat::{EndpointKey, Filter, MappingKind, MappingValue};
use iwf_common::sweep::SweepMode;
use iwf_common::tcp::{Phase, phase};
use iwf_common::{limits, names, tick};
use iwf_tests::packet::{Frame, Transport};
use iwf_tests::prog::State;
use iwf_userspace::daemon::dataplane::sweep::{self, Judge, Sweeper};

use super::nat::{
    Bound, Endpoint, Fate, Filtering, Half, ICMP, Key, Mapping, Name, Nat, Packet, Rules, TCP,
    Terms, Time, UDP, Way, Went,
};
use super::step::{Kind, Setting, Shape, Step};
use super::tcp::{self, ACK, FIN, SYN};
use crate::bed::{
    BRIDGE_MAC, Bed, DROP, GATEWAY_MAC, HOST, HOST2, PASS, REDIRECT, REMOTE, REMOTE2, Through, WAN,
    WAN_MAC, endpoint, explicit, lan_frame, mac_of, verdict_of, wan_frame,
};

/// Ticks per second of the configuration. More than any kernel has: what passes while a run lasts is nothing.
const HZ: u32 = 4000;
/// A run that took more of the kernel's ticks than this, on a machine that is busy with something else, says nothing.
const UNDISTURBED: u32 = HZ;

/// The idle times end in 10 s and the steps of time in 0, so that nothing is ever decided by a tick.
const IDLE: IdleTimes = IdleTimes {
    udp: 310 * HZ,
    tcp_established: 7450 * HZ,
    tcp_transitory: 250 * HZ,
    icmp: 70 * HZ,
};
const STEPS_OF_TIME: [u32; 8] = [20, 60, 80, 240, 260, 300, 320, 7460];
const LIVES: [Option<u32>; 5] = [None, None, Some(50), Some(90), Some(310)];

/// Counters that say nothing of the packet.
const ASIDE: [&str; 4] = [
    "next_hops_refreshed",
    "events_lost",
    "refusals_noted",
    "refusals_lost",
];

const PORTS: [u16; 4] = [5000, 5001, 500, 40_000];
const MAPPED: [u16; 3] = [5000, 6000, 500];
const ELSEWHERE: [u8; 4] = [10, 0, 0, 5];
/// Octets of a quoted packet's data: the least of RFC 792, TCP's without its checksum and with it, all.
const QUOTED: [usize; 5] = [8, 9, 16, 18, 1500];
const ROUTER: [u8; 4] = [11, 99, 0, 1];

/// What a run has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Agreement,
    /// Too much else went on.
    Nothing,
}

pub(crate) struct Driver<'b> {
    bed: &'b mut Bed,
    sweeper: Sweeper,
    nat: Nat,
    /// The tick at which the run began.
    began: u32,
    generation: u32,
    /// The tables as they were read last.
    state: State,
    /// What the last packet was counted as.
    counted: BTreeMap<&'static str, u64>,
    /// How often each fate was met, in all runs.
    fates: &'b mut BTreeMap<Name, u32>,
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
            external: WAN,
            lan: [192, 168, 1],
            ports: 1024..=u16::MAX,
            filtering: setting.filtering,
            sessions_per_host: usize::MAX,
            mappings_per_host: usize::MAX,
            idle_udp: IDLE.udp.into(),
            idle_tcp_open: IDLE.tcp_established.into(),
            idle_tcp_transitory: IDLE.tcp_transitory.into(),
            idle_icmp: IDLE.icmp.into(),
            knock: (limits::GRACE * HZ).into(),
        };
        if setting.narrow {
            rules.ports = 5000..=5003;
        }
        if setting.quotas {
            (rules.sessions_per_host, rules.mappings_per_host) = (4, 3);
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
            (config.ports.min, config.ports.max) = (*rules.ports.start(), *rules.ports.end());
            config.filter = match setting.filtering {
                Filtering::EndpointIndependent => Filter::EndpointIndependent,
                Filtering::AddressDependent => Filter::AddressDependent,
                Filtering::AddressAndPortDependent => Filter::AddressAndPortDependent,
            } as u8;
            if setting.quotas {
                (config.host_sessions, config.host_mappings) = (4, 3);
            }
        })?;
        Ok(Self {
            sweeper: bed.sweeper()?,
            nat: Nat::new(rules),
            began: bed.now()?,
            generation: 1,
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
                self.packet(false, kind, src, remote_of(remote), shape)
            }
            Step::In {
                to,
                remote,
                kind,
                shape,
            } => {
                let dst = self.external(kind.proto, to);
                self.packet(true, kind, remote_of(remote), dst, shape)
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
                self.packet(false, kind, src, dst, shape)
            }
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
                only,
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
                    addr: WAN,
                    port: pick(&MAPPED, external),
                };
                let remote = only.then_some(REMOTE);
                self.map((proto, external), internal, remote, pick(&LIVES, life))?;
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
                let internal = (external.0, self.nat.by_external[&external].internal);
                self.bed
                    .plane
                    .remove_mapping(names::MAPPINGS_INT, key_of(internal))?;
                self.bed
                    .plane
                    .remove_mapping(names::MAPPINGS_EXT, key_of(external))?;
                self.end_sessions(SweepMode::Recheck, external)?;
                self.nat.unmap(external);
                self.sweep()
            }
            Step::Pass { time } => {
                self.sweep()?;
                self.let_pass(pick(&STEPS_OF_TIME, time) * HZ)?;
                self.compare()
            }
            Step::Sweep => self.sweep(),
        }
    }

    // Packets.

    fn packet(
        &mut self,
        from_wan: bool,
        kind: Kind,
        src: Endpoint,
        dst: Endpoint,
        shape: Shape,
    ) -> Result<()> {
        let mut answers = kind.proto == ICMP && from_wan != (kind.flags & FIN != 0);
        // Inside, an answer with identifier 0 cannot be told from the query.
        answers &= from_wan || dst.port != 0;
        self.send(from_wan, kind, answers, src, dst, shape)
    }

    /// A packet that has come this way before.
    fn along(&mut self, key: &Key, half: &Half, flags: u8, shape: Shape) -> Result<()> {
        let kind = Kind {
            proto: key.proto,
            flags,
        };
        let from_wan = half.way == Way::In;
        self.send(
            from_wan,
            kind,
            key.proto == ICMP && from_wan,
            key.src,
            key.dst,
            shape,
        )
    }

    /// The rest of a TCP handshake, and data.
    fn open(&mut self, session: u8) -> Result<()> {
        let Some((key, half)) = self.session(session) else {
            return Ok(());
        };
        let shape = Shape {
            ttl: 64,
            checksum: true,
            octets: 9,
        };
        let back = half.reverse(&key);
        for (key, flags) in [(key, SYN), (back, SYN | ACK), (key, ACK), (back, ACK)] {
            self.let_pass(1)?;
            if let Some(half) = self.nat.halves.get(&key).cloned() {
                self.along(&key, &half, flags, shape)?;
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        from_wan: bool,
        kind: Kind,
        answers: bool,
        src: Endpoint,
        dst: Endpoint,
        shape: Shape,
    ) -> Result<()> {
        let mut key = Key {
            proto: kind.proto,
            src,
            dst,
        };
        let mut frame = match kind.proto {
            UDP => {
                let ports = (src.port, dst.port);
                Frame::new(
                    src.addr,
                    dst.addr,
                    Transport::Udp {
                        ports,
                        checksum: shape.checksum,
                    },
                )
            }
            TCP => Frame::tcp((src.addr, src.port), (dst.addr, dst.port), kind.flags),
            _ if answers => {
                key.src.port = 0;
                Frame::icmp(src.addr, dst.addr, 0, dst.port)
            }
            _ => {
                key.dst.port = 0;
                Frame::icmp(src.addr, dst.addr, 8, src.port)
            }
        };
        frame.ttl = shape.ttl;
        frame.payload.truncate(usize::from(shape.octets));
        let packet = Packet {
            key,
            tcp_flags: if kind.proto == TCP { kind.flags } else { 0 },
            ttl: shape.ttl,
            len: u16::try_from(frame.bytes().len() - 14)?,
            asks: !answers,
        };
        let frame = arriving(frame, from_wan);
        let (action, bytes) = self.run_program(&frame, from_wan)?;
        let internal = &self.state.internal;
        let chosen = |bound: Bound| {
            let entry = internal.get(&key_of(bound))?;
            Some(u16::from_be_bytes(entry.port))
        };
        let fate = if from_wan {
            self.nat.wan_packet(&packet)
        } else {
            self.nat.lan_packet(&packet, &chosen)
        };
        let expected = expected(&frame, &fate, answers);
        self.judge(&fate, action, &bytes, &expected)
    }

    /// An ICMP error about a packet that went where those of a session's direction come from.
    fn error(&mut self, session: u8, quoted: u8, shape: Shape) -> Result<()> {
        let nobodys = Endpoint {
            addr: WAN,
            port: 7777,
        };
        let (key, from_wan) = match self.session(session) {
            Some((key, half)) if !quoted.is_multiple_of(8) => (key, half.way == Way::In),
            _ => (
                Key {
                    proto: UDP,
                    src: remote_of(0),
                    dst: nobodys,
                },
                true,
            ),
        };
        let octets = pick(&QUOTED, quoted);
        let about = |from: Endpoint, to: Endpoint| match key.proto {
            UDP => Frame::udp((from.addr, from.port), (to.addr, to.port)),
            TCP => Frame::tcp((from.addr, from.port), (to.addr, to.port), ACK),
            // The packet was a query, if the answers have this direction.
            _ if from_wan => Frame::icmp(from.addr, to.addr, 8, from.port),
            _ => Frame::icmp(from.addr, to.addr, 0, to.port),
        };
        let quote = about(key.dst, key.src).quoted(octets);
        let src = if from_wan && quoted.is_multiple_of(2) {
            ROUTER
        } else {
            key.src.addr
        };
        let mut frame = Frame::icmp_error(src, key.dst.addr, (3, 3), quote);
        frame.ttl = shape.ttl;
        let frame = arriving(frame, from_wan);
        let (action, bytes) = self.run_program(&frame, from_wan)?;
        let fate = self.nat.error(&key, from_wan, shape.ttl);
        let mut expected = expected(&frame, &fate, false);
        if let Went::Forwarded(becomes, to) | Went::StackAs(becomes, to) = fate.went {
            expected.payload = about(to, becomes).quoted(octets);
            if from_wan {
                expected.src = frame.src;
            }
        }
        self.judge(&fate, action, &bytes, &expected)
    }

    fn run_program(&mut self, frame: &Frame, from_wan: bool) -> Result<(u32, Vec<u8>)> {
        let bed = &mut *self.bed;
        let ingress = if from_wan { bed.wan } else { bed.lan };
        let name = match (bed.through, from_wan) {
            (Through::Xdp, false) => names::XDP_LAN,
            (Through::Xdp, true) => names::XDP_WAN,
            (Through::Tc, false) => names::TC_LAN,
            (Through::Tc, true) => names::TC_INGRESS,
        };
        bed.plane.ready(name)?;
        let before = std::mem::take(&mut self.state.counters);
        let ran = match bed.through {
            Through::Xdp => bed.plane.xdp(name, &frame.bytes(), ingress, 1)?,
            Through::Tc => bed.plane.tc(name, &frame.bytes(), ingress, 0)?,
        };
        self.state = bed.plane.state()?;
        self.counted = difference(&self.state.counters, &before);
        Ok((verdict_of(bed.through, ran.action), ran.frame))
    }

    fn judge(&mut self, fate: &Fate, action: u32, bytes: &[u8], expected: &Frame) -> Result<()> {
        *self.fates.entry(fate.name).or_default() += 1;
        let mut counted: Vec<_> = self.counted.iter().map(|(name, n)| (*name, *n)).collect();
        counted.retain(|(name, _)| !ASIDE.contains(name));
        let mut names: Vec<_> = fate
            .also
            .iter()
            .chain([&fate.name])
            .map(|name| (*name, 1))
            .collect();
        names.sort_unstable();
        ensure!(
            counted == names,
            "counted {counted:?}, and it should be {names:?}"
        );
        let wanted = match fate.went {
            Went::Forwarded(..) => REDIRECT,
            Went::StackAs(..) | Went::Stack => PASS,
            Went::Dropped => DROP,
        };
        ensure!(action == wanted, "verdict {action} of {fate:?}");
        if bytes != expected.bytes() {
            let seen = Frame::parse(bytes);
            bail!("{fate:?}\n   out: {seen:?}\nwanted: {expected:?}");
        }
        self.compare()
    }

    // Mappings.

    fn map(
        &mut self,
        external: Bound,
        internal: Endpoint,
        remote: Option<[u8; 4]>,
        life: Option<u32>,
    ) -> Result<()> {
        let expires = life.map(|life| self.nat.now + Time::from(life * HZ));
        let held = self.nat.by_external.get(&external).cloned();
        let inner = (external.0, internal);
        let other = self.nat.by_internal.get(&inner).copied();
        if !self.nat.map(external, internal, Terms { remote, expires }) {
            return Ok(());
        }
        // What the daemon does.
        self.generation += 1;
        let mut value = MappingValue {
            generation: self.generation,
            remote_addr: remote.unwrap_or_default(),
            remote_mask: remote.map_or([0; 4], |_| [255; 4]),
            ..explicit(
                (internal.addr, internal.port),
                life.map_or(0, |life| {
                    self.bed
                        .now()
                        .map_or(1, |now| now.wrapping_add(life * HZ).max(1))
                }),
            )
        };
        let same = held.as_ref().filter(|held| held.internal == internal);
        if same.is_some() {
            let old = self.state.external[&key_of(external)];
            value.last_used = old.last_used;
            (value.packets_out, value.octets_out) = (old.packets_out, old.octets_out);
            (value.packets_in, value.octets_in) = (old.packets_in, old.octets_in);
        }
        self.bed.map_with(external.0, external.1.port, value)?;
        if let Some(other) = other.filter(|other| *other != external.1) {
            let other = (external.0, other);
            self.bed
                .plane
                .remove_mapping(names::MAPPINGS_EXT, key_of(other))?;
            self.end_sessions(SweepMode::Recheck, other)?;
        }
        if let Some(held) = held {
            if held.internal == internal {
                return self.end_sessions(SweepMode::Recheck, external);
            }
            let loser = (external.0, held.internal);
            self.bed
                .plane
                .remove_mapping(names::MAPPINGS_INT, key_of(loser))?;
            self.end_sessions(SweepMode::Recheck, external)?;
        }
        Ok(())
    }

    fn end_sessions(&mut self, mode: SweepMode, external: Bound) -> Result<()> {
        let (plane, sweeper) = (&mut self.bed.plane, &mut self.sweeper);
        let (config, now) = (plane.config()?, plane.clock()?.jiffies as u32);
        let program = plane.tc_program(names::RUN_SWEEP)?;
        let run = |count| sweep::run_items(program, count);
        let judge = Judge {
            run: &run,
            config: &config,
            now,
        };
        sweeper.run(mode, key_of(external), &judge)?;
        Ok(())
    }

    // Time.

    /// As often as there is something to do.
    fn sweep(&mut self) -> Result<()> {
        loop {
            let mut skew = 0;
            let totals = loop {
                let (plane, sweeper) = (&mut self.bed.plane, &mut self.sweeper);
                let (config, now) = (plane.config()?, plane.clock()?.jiffies as u32);
                let program = plane.tc_program(names::RUN_SWEEP)?;
                let run = |count| sweep::run_items(program, count);
                let judge = Judge {
                    run: &run,
                    config: &config,
                    now: now.wrapping_add(skew),
                };
                if let Some(totals) = sweeper.step(&judge)?.done {
                    break totals;
                }
                // What was ended rests for some ticks before it is removed: they are let pass instead of waited for.
                self.state = self.bed.plane.state()?;
                self.let_pass(1)?;
                skew += 1;
            };
            self.state = self.bed.plane.state()?;
            let changed = totals.sessions_ended + totals.sessions_removed + totals.mappings_removed;
            if changed == 0 && !self.is_something_ended()? {
                break;
            }
        }
        self.nat.sweep();
        self.adopt_peers()?;
        self.compare()
    }

    /// The sweep may note whom a connection has led to that it ends in the same pass: that goes by the order it reads.
    fn adopt_peers(&mut self) -> Result<()> {
        let now = self.bed.now()?;
        for (key, value) in &self.state.peers {
            if key.external.proto == TCP {
                let age = Time::from(tick::age(now, value.last_used));
                let used = self.nat.now.saturating_sub(age);
                let host = at(value.internal.addr, value.internal.port);
                let peer = (bound_of(&key.external), key.remote);
                let (_, last) = self.nat.peers.entry(peer).or_insert((host, used));
                *last = used.max(*last);
            }
        }
        Ok(())
    }

    /// Whether there are ended sessions that may be removed. On a busy machine a pass may have come too early for them.
    fn is_something_ended(&mut self) -> Result<bool> {
        let now = self.bed.now()?;
        Ok(self.state.sessions.values().any(|value| {
            let kept = value.flags & SessionFlags::HAIRPIN != 0
                && tick::age(now, value.last_seen) <= limits::GRACE * HZ;
            value.flags & SessionFlags::ENDED != 0 && !kept
        }))
    }

    /// For the tables and for the model.
    fn let_pass(&mut self, ticks: u32) -> Result<()> {
        self.nat.now += Time::from(ticks);
        let earlier = |deadline: u32| match deadline {
            0 => 0,
            deadline => deadline.wrapping_sub(ticks).max(1),
        };
        let plane = &mut self.bed.plane;
        for (key, value) in &mut self.state.peers {
            value.last_used = value.last_used.wrapping_sub(ticks);
            plane.set_peer(*key, *value)?;
        }
        for (key, value) in &mut self.state.sessions {
            value.last_seen = value.last_seen.wrapping_sub(ticks);
            value.deadline = earlier(value.deadline);
            plane.set_session(*key, *value)?;
        }
        for (map, entries) in [
            (names::MAPPINGS_EXT, &mut self.state.external),
            (names::MAPPINGS_INT, &mut self.state.internal),
        ] {
            for (key, value) in entries {
                value.last_used = value.last_used.wrapping_sub(ticks);
                value.expires = earlier(value.expires);
                plane.set_mapping(map, *key, *value)?;
            }
        }
        Ok(())
    }

    // What there is.

    fn session(&self, which: u8) -> Option<(Key, Half)> {
        let live = self.nat.halves.iter().filter(|(_, half)| !half.ended);
        let live: Vec<_> = live.map(|(key, half)| (*key, half.clone())).collect();
        chosen_of(&live, which)
    }

    fn external(&self, proto: u8, which: u8) -> Endpoint {
        let known = self.nat.by_external.keys().filter(|(of, _)| *of == proto);
        let mut ports: Vec<_> = known.map(|(_, external)| external.port).collect();
        ports.push(MAPPED[0]);
        Endpoint {
            addr: WAN,
            port: pick(&ports, which),
        }
    }

    fn compare(&self) -> Result<()> {
        let elapsed = i64::from(UNDISTURBED);
        // The same moment, or up to so many ticks of the kernel later.
        let since = |stamp: u32, model: Time| {
            let seen = stamp
                .wrapping_sub(self.began)
                .wrapping_add(self.nat.now as u32);
            i64::from(seen.wrapping_sub(model as u32) as i32)
        };
        let same = |what: &str, seen: String, wanted: String| {
            ensure!(seen == wanted, "{what}\n  seen {seen}\nwanted {wanted}");
            Ok(())
        };
        let inner = self.state.internal.iter();
        let inner: BTreeMap<Bound, Endpoint> = inner
            .map(|(key, value)| (bound_of(key), value_endpoint(value)))
            .collect();
        same(
            "MAPPINGS_INT",
            show(inner.iter()),
            show(self.nat.by_internal.iter()),
        )?;
        let outer: BTreeSet<Bound> = self.state.external.keys().map(bound_of).collect();
        same(
            "MAPPINGS_EXT",
            show(outer.iter()),
            show(self.nat.by_external.keys()),
        )?;
        for (key, value) in &self.state.external {
            let model = &self.nat.by_external[&bound_of(key)];
            same(&format!("{key:?}"), facts_of(value), model_facts(model))?;
            // The sweep leaves less than a second to the next time.
            if let Some(expires) = model.explicit.and_then(|terms| terms.expires) {
                let late = since(value.expires, expires);
                ensure!(
                    (0..=elapsed).contains(&late),
                    "{key:?}: ends {late} ticks after {expires}"
                );
            }
            let late = since(value.last_used, model.last_used);
            let lag = -i64::from(HZ);
            ensure!(
                model.explicit.is_some() || (lag..=elapsed).contains(&late),
                "{key:?}: used {late} ticks after {}",
                model.last_used
            );
        }
        let peers = self.state.peers.keys();
        let peers: BTreeSet<(Bound, [u8; 4])> = peers
            .map(|key| (bound_of(&key.external), key.remote))
            .collect();
        same("PEERS", show(peers.iter()), show(self.nat.peers.keys()))?;
        let keys: BTreeSet<Key> = self.state.sessions.keys().map(session_key).collect();
        same("SESSIONS", show(keys.iter()), show(self.nat.halves.keys()))?;
        for (key, value) in &self.state.sessions {
            let model = &self.nat.halves[&session_key(key)];
            let wanted = model_session(model);
            same(&format!("{key:?}"), session_facts(value), wanted)?;
            let late = since(value.last_seen, model.last);
            let lag = if model.ended { -i64::from(HZ) } else { 0 };
            ensure!(
                (lag..=elapsed).contains(&late),
                "{key:?}: last seen {late} ticks after {}",
                model.last
            );
            self.compare_tcp(key, value, model)?;
        }
        Ok(())
    }

    fn compare_tcp(&self, key: &SessionKey, value: &SessionValue, model: &Half) -> Result<()> {
        let reverse = value.reverse_key(key.proto);
        let (Some(other), Some(other_half)) = (
            self.state.sessions.get(&reverse),
            self.nat.halves.get(&session_key(&reverse)),
        ) else {
            return Ok(());
        };
        if key.proto != TCP || model.ended || other_half.ended {
            return Ok(());
        }
        let seen = phase(value.shown(), other.shown()) == Phase::Established;
        let wanted = tcp::is_open(&model.shown, &other_half.shown);
        ensure!(
            seen == wanted,
            "{key:?}: open {seen} by {:#x} and {:#x}, and it should be {wanted} by {:?} and {:?}",
            value.tcp,
            other.tcp,
            model.shown,
            other_half.shown
        );
        Ok(())
    }
}

fn difference(
    after: &BTreeMap<&'static str, u64>,
    before: &BTreeMap<&'static str, u64>,
) -> BTreeMap<&'static str, u64> {
    let more = after
        .iter()
        .map(|(name, n)| (*name, n - before.get(name).unwrap_or(&0)));
    more.filter(|(_, n)| *n > 0).collect()
}

/// What a frame looks like when it comes to the router.
fn arriving(frame: Frame, from_wan: bool) -> Frame {
    if from_wan {
        return wan_frame(frame);
    }
    Frame {
        src_mac: mac_of(frame.src),
        ..lan_frame(frame)
    }
}

/// And when it leaves.
fn expected(frame: &Frame, fate: &Fate, answers: bool) -> Frame {
    let mut out = frame.clone();
    let (Went::Forwarded(src, dst) | Went::StackAs(src, dst)) = fate.went else {
        return out;
    };
    (out.src, out.dst) = (src.addr, dst.addr);
    match out.transport {
        Transport::Icmp { .. } if answers => out.set_dst_port(dst.port),
        Transport::Icmp { .. } => out.set_src_port(src.port),
        Transport::Udp { .. }
        | Transport::Tcp { .. }
        | Transport::IcmpError { .. }
        | Transport::Other(_) => {
            out.set_src_port(src.port);
            out.set_dst_port(dst.port);
        }
    }
    if matches!(fate.went, Went::Forwarded(..)) {
        out.ttl -= 1;
        let to_lan = dst.addr.starts_with(&[192, 168, 1]);
        (out.dst_mac, out.src_mac) = match to_lan {
            true => (mac_of(dst.addr), BRIDGE_MAC),
            false => (GATEWAY_MAC, WAN_MAC),
        };
    }
    out
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

fn remote_of(which: u8) -> Endpoint {
    let (addr, port) = match which {
        0 => (REMOTE, 53),
        1 => (REMOTE, 5000),
        2 => (REMOTE2, 53),
        3 => (HOST2, 53),
        4 => (WAN, 5000),
        _ => (REMOTE2, 5001),
    };
    Endpoint { addr, port }
}

fn pick<T: Copy>(all: &[T], which: u8) -> T {
    all[usize::from(which) % all.len()]
}

fn chosen_of<T: Clone>(all: &[T], which: u8) -> Option<T> {
    let at = usize::from(which).checked_rem(all.len())?;
    all.get(at).cloned()
}

fn show<T: std::fmt::Debug>(all: impl Iterator<Item = T>) -> String {
    let lines: Vec<_> = all.map(|one| format!("{one:?}")).collect();
    lines.join("\n       ")
}

fn key_of((proto, at): Bound) -> EndpointKey {
    endpoint((at.addr, at.port), proto)
}

fn bound_of(key: &EndpointKey) -> Bound {
    (key.proto, at(key.addr, key.port))
}

fn at(addr: [u8; 4], port: [u8; 2]) -> Endpoint {
    Endpoint {
        addr,
        port: u16::from_be_bytes(port),
    }
}

fn value_endpoint(value: &MappingValue) -> Endpoint {
    at(value.addr, value.port)
}

fn session_key(key: &SessionKey) -> Key {
    Key {
        proto: key.proto,
        src: at(key.src, key.src_port),
        dst: at(key.dst, key.dst_port),
    }
}

/// What must be the same of a mapping, but for times.
fn facts_of(value: &MappingValue) -> String {
    let explicit = (value.kind == MappingKind::Explicit as u8).then_some((
        (value.remote_mask == [255; 4]).then_some(value.remote_addr),
        value.expires != 0,
    ));
    let counted = [
        (value.packets_out, value.octets_out),
        (value.packets_in, value.octets_in),
    ];
    format!("{:?}", (value_endpoint(value), explicit, counted))
}

fn model_facts(mapping: &Mapping) -> String {
    let explicit = mapping
        .explicit
        .map(|terms| (terms.remote, terms.expires.is_some()));
    format!("{:?}", (mapping.internal, explicit, mapping.counted))
}

/// The same of one direction of a session.
fn session_facts(value: &SessionValue) -> String {
    let has = |flag: u8| value.flags & flag != 0;
    let way = match (has(SessionFlags::INBOUND), has(SessionFlags::HAIRPIN)) {
        (true, _) => Way::In,
        (false, true) => Way::Turned,
        (false, false) => Way::Out,
    };
    let becomes = (at(value.src, value.src_port), at(value.dst, value.dst_port));
    let [ended, invited, explicit] = [
        SessionFlags::ENDED,
        SessionFlags::INVITED,
        SessionFlags::EXPLICIT,
    ]
    .map(has);
    let resolved = value.next_hop_generation != 0;
    let counted = (value.packets, value.octets());
    format!(
        "{way:?} {becomes:?} ended {ended} invited {invited} explicit {explicit} resolved {resolved} {counted:?}"
    )
}

fn model_session(half: &Half) -> String {
    let Half {
        way,
        becomes,
        ended,
        invited,
        explicit,
        resolved,
        ..
    } = half;
    let counted = (half.packets, half.octets);
    format!(
        "{way:?} {becomes:?} ended {ended} invited {invited} explicit {explicit} resolved {resolved} {counted:?}"
    )
}
