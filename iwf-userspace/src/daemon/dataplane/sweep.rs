//! Ageing in slices: reads the tables, picks what may be over, lets the sweep program judge that among packets.
//!
//! Read before editing: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5; `iwf_common::sweep` for who judges what.
//!
//! A pass reads HOSTS, MAPPINGS_EXT, SESSIONS and MAPPINGS_INT, in that order and each entry once, then judges the mappings by
//! what the sessions told. It keeps 40 octets per mapping while it lasts and nothing per session. One slice is
//! [`SLICE`] entries: some tenths of a millisecond, in which the kernel may do something else at any moment.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet, hash_map};
use std::io;
use std::time::Duration;

use aya::maps::MapData;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::flow6::{EndpointKey6, EndpointValue6, SessionFlags6, SessionKey6, SessionValue6};
use iwf_common::host::{HostKey, HostValue};
use iwf_common::nat::{
    EndpointKey, Filter, MappingFlags, MappingKind, MappingValue, PeerKey, PeerValue,
};
use iwf_common::sweep::{self, SweepItem, SweepMode, SweepRequest, SweepTask};
use iwf_common::tcp::{self, Shown};
use iwf_common::{limits, tick};

use super::Turn;
use super::batch::{BatchMap, Cursor, Slice};
use super::settle::Settling;

/// Entries read in one slice.
const SLICE: usize = limits::SWEEP_ITEMS as usize;

/// From the beginning of one pass to that of the next, unless the pass takes longer.
pub const PERIOD: Duration = Duration::from_secs(5);
/// Between two slices. A pass over more than a million entries takes longer than [`PERIOD`], because slices are not
/// closer together than this.
const CLOSEST: Duration = Duration::from_millis(5);
/// Between two slices of small tables.
const FURTHEST: Duration = Duration::from_millis(50);
/// Sessions that are remembered from their mark to their removal. The others are found by the next pass.
const REMEMBERED: usize = 16 * SLICE;

const TCP: u8 = 6;

/// The maps a sweep works on.
#[derive(Debug)]
pub struct SweepMaps<'a> {
    /// SESSIONS.
    pub sessions: &'a MapData,
    /// MAPPINGS_EXT.
    pub external: &'a MapData,
    /// MAPPINGS_INT.
    pub internal: &'a MapData,
    /// SESSIONS6.
    pub sessions6: &'a MapData,
    /// ENDPOINTS6.
    pub endpoints6: &'a MapData,
    /// PEERS.
    pub peers: &'a MapData,
    /// HOSTS.
    pub hosts: &'a MapData,
    /// SWEEP.
    pub request: &'a MapData,
    /// SWEEP_ITEMS.
    pub items: &'a MapData,
}

/// What a pass found and did, in entries: two per session, two per mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Session entries that go on.
    pub sessions_left: u64,
    /// Session entries marked as ended.
    pub sessions_ended: u64,
    /// Session entries removed, also those that an earlier pass had marked.
    pub sessions_removed: u64,
    /// Mappings left in MAPPINGS_EXT.
    pub mappings_left: u64,
    /// Entries removed from both mapping tables.
    pub mappings_removed: u64,
    /// Entries met in the tables, also those that were removed then.
    pub met: Met,
}

/// Entries that a pass met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// In SESSIONS: two per session, ended ones included until they are removed.
    pub sessions: u64,
    /// In SESSIONS6, likewise.
    pub sessions6: u64,
    /// In ENDPOINTS6.
    pub endpoints6: u64,
    /// In PEERS.
    pub peers: u64,
    /// In HOSTS.
    pub hosts: u64,
    /// Dynamic mappings in MAPPINGS_EXT.
    pub dynamic: u64,
    /// Explicit ones.
    pub explicit: u64,
    /// Those of the CPE itself.
    pub router: u64,
}

impl Met {
    fn count_mapping(&mut self, kind: u8) {
        let place = if kind == MappingKind::Dynamic as u8 {
            &mut self.dynamic
        } else if kind == MappingKind::Explicit as u8 {
            &mut self.explicit
        } else {
            &mut self.router
        };
        *place += 1;
    }
}

/// How many entries each swept table has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacities {
    /// SESSIONS.
    pub sessions: u32,
    /// SESSIONS6.
    pub sessions6: u32,
    /// ENDPOINTS6.
    pub endpoints6: u32,
    /// PEERS.
    pub peers: u32,
    /// HOSTS.
    pub hosts: u32,
    /// MAPPINGS_EXT.
    pub mappings: u32,
}

/// What comes after a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// When the next slice is due.
    pub again: Duration,
    /// What the pass did, if this was its last slice.
    pub done: Option<Totals>,
}

/// Sweeps one set of tables.
#[derive(Debug)]
pub struct Sweeper {
    maps: Handles,
    slices: Slices,
    pass: Option<Pass>,
    marked: Marked,
    settling: Settling,
    /// Slices of the last whole pass.
    last_slices: u32,
}

#[derive(Debug)]
struct Handles {
    sessions: BatchMap<SessionKey, SessionValue>,
    external: BatchMap<EndpointKey, MappingValue>,
    internal: BatchMap<EndpointKey, MappingValue>,
    sessions6: BatchMap<SessionKey6, SessionValue6>,
    endpoints6: BatchMap<EndpointKey6, EndpointValue6>,
    peers: BatchMap<PeerKey, PeerValue>,
    hosts: BatchMap<HostKey, HostValue>,
    request: BatchMap<u32, SweepRequest>,
    items: BatchMap<u32, SweepItem>,
}

/// Buffers, made once.
#[derive(Debug)]
struct Slices {
    sessions: Slice<SessionKey, SessionValue>,
    mappings: Slice<EndpointKey, MappingValue>,
    sessions6: Slice<SessionKey6, SessionValue6>,
    endpoints6: Slice<EndpointKey6, EndpointValue6>,
    peers: Slice<PeerKey, PeerValue>,
    hosts: Slice<HostKey, HostValue>,
    request: Slice<u32, SweepRequest>,
    numbers: Vec<u32>,
    items: Vec<SweepItem>,
}

/// Sessions that were marked and are to be removed.
#[derive(Debug, Default)]
struct Marked {
    keys: Vec<SessionKey>,
    /// Tick of the last mark.
    at: u32,
}

/// One walk through the tables.
#[derive(Debug)]
struct Pass {
    mode: SweepMode,
    external: EndpointKey,
    as_of: u32,
    slices: u32,
    phase: Phase,
    mappings: HashMap<EndpointBits, Held>,
    /// Sessions and dynamic mappings met of each host.
    hosts: HashMap<[u8; 16], (u32, u32)>,
    totals: Totals,
}

#[derive(Debug)]
enum Phase {
    Hosts(Cursor),
    Mappings(Cursor),
    Sessions(Cursor),
    Internals(Cursor),
    Judging(hash_map::IntoIter<EndpointBits, Held>),
    Sessions6(Cursor),
    Endpoints6(Cursor),
    Peers(Cursor),
    Recounting(hash_map::IntoIter<[u8; 16], (u32, u32)>),
    /// What was marked last waits for its removal.
    Resting,
    Over,
}

/// An endpoint as one word.
type EndpointBits = u64;

/// What a pass remembers of an entry of MAPPINGS_EXT.
#[derive(Clone, Copy, Debug)]
struct Held {
    internal: EndpointBits,
    last_used: u32,
    /// The newest use that sessions told of.
    used: u32,
    expires: u32,
    kind: u8,
    /// Its filter asks which addresses it has sent to.
    by_address: bool,
    is_static: bool,
}

/// The program that judges, and the clock and configuration it goes by.
pub struct Judge<'a> {
    /// Looks at so many items.
    pub run: &'a dyn Fn(u32) -> io::Result<()>,
    /// CONFIG.
    pub config: &'a Config,
    /// The tick now.
    pub now: u32,
}

impl Judge<'_> {
    /// Whether nothing is known against an external endpoint's address. While there is none of ours, nothing is.
    fn is_ours(&self, external: &EndpointKey) -> bool {
        self.config.external_addr == [0; 4] || self.config.is_external(external.addr)
    }

    /// The same of what a session stands on.
    fn owns(&self, key: &SessionKey, value: &SessionValue) -> bool {
        self.config.external_addr == [0; 4] || self.config.owns(key, value)
    }
}

/// Lets the sweep program look at `count` items: one per repetition of a run on an empty frame.
///
/// # Errors
/// The kernel refuses, or was interrupted.
pub fn run_items(program: &SchedClassifier, count: u32) -> io::Result<()> {
    const FRAME: [u8; 64] = [0; 64];
    let options = TestRunOptions {
        data_in: Some(&FRAME),
        repeat: count,
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).map_err(io::Error::other)?;
    match result.return_value {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(
            code.cast_signed().saturating_neg(),
        )),
    }
}

impl Sweeper {
    /// A sweeper of these maps.
    ///
    /// # Errors
    /// A map is none of ours.
    pub fn new(maps: &SweepMaps<'_>) -> io::Result<Self> {
        Ok(Self {
            maps: Handles {
                sessions: BatchMap::new(maps.sessions)?,
                external: BatchMap::new(maps.external)?,
                internal: BatchMap::new(maps.internal)?,
                sessions6: BatchMap::new(maps.sessions6)?,
                endpoints6: BatchMap::new(maps.endpoints6)?,
                peers: BatchMap::new(maps.peers)?,
                hosts: BatchMap::new(maps.hosts)?,
                request: BatchMap::new(maps.request)?,
                items: BatchMap::new(maps.items)?,
            },
            slices: Slices {
                sessions: Slice::new(SLICE),
                mappings: Slice::new(SLICE),
                sessions6: Slice::new(SLICE),
                endpoints6: Slice::new(SLICE),
                peers: Slice::new(SLICE),
                hosts: Slice::new(SLICE),
                request: Slice::new(1),
                numbers: (0..limits::SWEEP_ITEMS).collect(),
                items: Vec::new(),
            },
            pass: None,
            marked: Marked::default(),
            settling: Settling::default(),
            last_slices: 0,
        })
    }

    /// How much the tables have room for.
    pub fn capacities(&self) -> Capacities {
        Capacities {
            sessions: self.maps.sessions.capacity(),
            sessions6: self.maps.sessions6.capacity(),
            endpoints6: self.maps.endpoints6.capacity(),
            peers: self.maps.peers.capacity(),
            hosts: self.maps.hosts.capacity(),
            mappings: self.maps.external.capacity(),
        }
    }

    /// The next slice of ageing; the first one of a pass if none is under way.
    ///
    /// # Errors
    /// Only what the kernel refuses. The pass is given up; the next one begins anew.
    pub fn step(&mut self, judge: &Judge<'_>) -> io::Result<Progress> {
        let mut pass = self
            .pass
            .take()
            .unwrap_or_else(|| Pass::new(SweepMode::Age, EndpointKey::default(), judge.now));
        pass.slices += 1;
        self.remove_marked(&mut pass, judge)?;
        self.advance(&mut pass, judge)?;
        let pace = PERIOD / self.last_slices.max(pass.slices).max(1);
        let pace = pace.clamp(CLOSEST, FURTHEST);
        if matches!(pass.phase, Phase::Over) {
            self.last_slices = pass.slices;
            let took = pace * pass.slices;
            return Ok(Progress {
                again: PERIOD.saturating_sub(took).max(pace),
                done: Some(pass.totals),
            });
        }
        self.pass = Some(pass);
        Ok(Progress {
            again: pace,
            done: None,
        })
    }

    /// Lets sessions of `external` follow its mapping: those end that it does not let be any more. If the mapping went,
    /// `internal` was behind it. They are looked for by [`Self::settle`].
    pub fn recheck(&mut self, external: EndpointKey, internal: Option<EndpointKey>) {
        self.settling.begin(external, internal);
    }

    /// The newest call of [`Self::recheck`].
    pub fn newest(&self) -> Turn {
        self.settling.newest()
    }

    /// Whether there is anything for [`Self::settle`] to do.
    pub fn is_settling(&self) -> bool {
        !self.settling.is_idle()
    }

    /// Whether sessions of this mapping are still to be ended.
    pub fn ends(&self, external: &EndpointKey, internal: &EndpointKey) -> bool {
        self.settling.ends(external, internal)
    }

    /// One slice of what [`Self::recheck`] asks for; returns the call up to which all is done.
    ///
    /// # Errors
    /// Only what the kernel refuses. Nothing is looked for any more then.
    pub fn settle(&mut self, judge: &Judge<'_>) -> io::Result<Turn> {
        let outcome = self.settle_slice(judge);
        if outcome.is_err() {
            self.settling.give_up();
        }
        outcome.map(|()| self.settling.settled())
    }

    fn settle_slice(&mut self, judge: &Judge<'_>) -> io::Result<()> {
        if self.settling.is_idle() {
            return Ok(());
        }
        let mut cursor = self.settling.cursor();
        self.maps
            .sessions
            .read(&mut cursor, &mut self.slices.sessions)?;
        let wanted: HashSet<_> = self.settling.externals().map(bits).collect();
        let sessions = self.slices.sessions.iter();
        let of_them = sessions.filter(|(key, value)| {
            value.flags & SessionFlags::ENDED == 0
                && wanted.contains(&bits(&value.endpoints(key).1))
        });
        let items: Vec<_> = of_them
            .map(|(key, _)| SweepItem::session(SweepTask::JudgeSession, *key))
            .collect();
        let pass = Pass::new(SweepMode::Recheck, EndpointKey::default(), judge.now);
        let judged = self.judge(&items, &pass, judge)?;
        if judged.sessions_ended > 0 {
            self.marked.remember(&items, judge.now);
        }
        self.settling.advance(cursor);
        Ok(())
    }

    /// Ends or removes what [`SweepMode`] says, all of it before it returns. Ended sessions are found by no packet any
    /// more; their room comes free a little later.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    pub fn run(
        &mut self,
        mode: SweepMode,
        external: EndpointKey,
        judge: &Judge<'_>,
    ) -> io::Result<Totals> {
        let mut pass = Pass::new(mode, external, judge.now);
        while !matches!(pass.phase, Phase::Over | Phase::Resting) {
            self.advance(&mut pass, judge)?;
        }
        Ok(pass.totals)
    }

    fn advance(&mut self, pass: &mut Pass, judge: &Judge<'_>) -> io::Result<()> {
        self.slices.items.clear();
        let next = match &mut pass.phase {
            Phase::Hosts(cursor) => {
                self.maps.hosts.read(cursor, &mut self.slices.hosts)?;
                pass.totals.met.hosts += self.slices.hosts.len() as u64;
                for (host, _) in self.slices.hosts.iter() {
                    pass.hosts.insert(host.addr, (0, 0));
                    let task = SweepTask::BeginRecount;
                    self.slices
                        .items
                        .push(SweepItem::of_host(task, *host, 0, 0));
                }
                (*cursor == Cursor::End).then_some(Phase::Mappings(Cursor::Start))
            }
            Phase::Mappings(cursor) => {
                self.maps.external.read(cursor, &mut self.slices.mappings)?;
                let at_end = *cursor == Cursor::End;
                pass.take_mappings(&self.slices.mappings, judge, &mut self.slices.items);
                at_end.then_some(Phase::Sessions(Cursor::Start))
            }
            Phase::Sessions(cursor) => {
                self.maps.sessions.read(cursor, &mut self.slices.sessions)?;
                let at_end = *cursor == Cursor::End;
                pass.take_sessions(&self.slices.sessions, judge, &mut self.slices.items);
                at_end.then_some(match pass.mode {
                    SweepMode::Recheck => Phase::Resting,
                    SweepMode::Age | SweepMode::KeepOurs => Phase::Internals(Cursor::Start),
                })
            }
            Phase::Internals(cursor) => {
                self.maps.internal.read(cursor, &mut self.slices.mappings)?;
                let at_end = *cursor == Cursor::End;
                pass.take_internals(&self.slices.mappings, &mut self.slices.items);
                at_end.then(|| Phase::Judging(std::mem::take(&mut pass.mappings).into_iter()))
            }
            Phase::Judging(mappings) => {
                for (external, held) in mappings.take(SLICE) {
                    let external = endpoint(external);
                    if held.may_be_over(&external, pass.as_of, judge) || held.is_used(judge) {
                        self.slices.items.push(SweepItem::endpoint(
                            SweepTask::JudgeMapping,
                            external,
                            held.used,
                        ));
                    }
                }
                (mappings.len() == 0).then_some(match pass.mode {
                    SweepMode::Age => Phase::Sessions6(Cursor::Start),
                    SweepMode::KeepOurs | SweepMode::Recheck => Phase::Resting,
                })
            }
            Phase::Sessions6(cursor) => {
                // All of them: the program notes for their endpoints that they are used.
                let slice = &mut self.slices.sessions6;
                self.maps.sessions6.read(cursor, slice)?;
                pass.totals.met.sessions6 += slice.len() as u64;
                for (key, value) in slice.iter() {
                    self.slices.items.push(SweepItem::session6(*key));
                    let station = HostKey::station(value.station).addr;
                    if value.flags & SessionFlags6::INBOUND == 0
                        && let Some((sessions, _)) = pass.hosts.get_mut(&station)
                    {
                        *sessions += 1;
                    }
                }
                (*cursor == Cursor::End).then_some(Phase::Endpoints6(Cursor::Start))
            }
            Phase::Endpoints6(cursor) => {
                let slice = &mut self.slices.endpoints6;
                self.maps.endpoints6.read(cursor, slice)?;
                pass.totals.met.endpoints6 += slice.len() as u64;
                // The shortest of all protocols'; the program knows which one counts.
                let idle = &judge.config.idle;
                let shortest = limits::OTHER_IDLE.saturating_mul(judge.config.hz);
                let shortest = shortest.min(idle.udp).min(idle.tcp_transitory);
                let idle = |last_used| tick::age(pass.as_of, last_used) > shortest;
                let over = slice.iter().filter(|(_, value)| idle(value.last_used));
                let items = over.map(|(key, _)| SweepItem::of_endpoint6(key));
                self.slices.items.extend(items);
                (*cursor == Cursor::End).then_some(Phase::Peers(Cursor::Start))
            }
            Phase::Peers(cursor) => {
                let slice = &mut self.slices.peers;
                self.maps.peers.read(cursor, slice)?;
                pass.totals.met.peers += slice.len() as u64;
                // All of them: the program looks whether their mapping is still there.
                let items = slice.iter().map(|(peer, _)| SweepItem::of_peer(peer));
                self.slices.items.extend(items);
                let hosts = (*cursor == Cursor::End).then(|| std::mem::take(&mut pass.hosts));
                hosts.map(|hosts| Phase::Recounting(hosts.into_iter()))
            }
            Phase::Recounting(hosts) => {
                for (addr, (sessions, mappings)) in hosts.take(SLICE) {
                    let task = SweepTask::EndRecount;
                    let host = HostKey { addr };
                    self.slices
                        .items
                        .push(SweepItem::of_host(task, host, sessions, mappings));
                }
                (hosts.len() == 0).then_some(Phase::Resting)
            }
            Phase::Resting => self.marked.keys.is_empty().then_some(Phase::Over),
            Phase::Over => None,
        };
        let items = std::mem::take(&mut self.slices.items);
        let judged = self.judge(&items, pass, judge);
        self.slices.items = items;
        let ended_before = pass.totals.sessions_ended;
        pass.add(&judged?);
        if pass.totals.sessions_ended > ended_before {
            self.marked.remember(&self.slices.items, judge.now);
        }
        if let Some(next) = next {
            pass.phase = next;
        }
        Ok(())
    }

    /// Removes what earlier slices have marked, when it is at rest.
    fn remove_marked(&mut self, pass: &mut Pass, judge: &Judge<'_>) -> io::Result<()> {
        if self.marked.keys.is_empty() || !sweep::is_at_rest(judge.now, self.marked.at) {
            return Ok(());
        }
        let keys = std::mem::take(&mut self.marked.keys);
        let item = |key| SweepItem::session(SweepTask::RemoveSession, key);
        let items: Vec<_> = keys.into_iter().map(item).collect();
        let judged = self.judge(&items, pass, judge)?;
        pass.add(&judged);
        Ok(())
    }

    /// Hands items to the program.
    fn judge(
        &mut self,
        items: &[SweepItem],
        pass: &Pass,
        judge: &Judge<'_>,
    ) -> io::Result<SweepRequest> {
        let mut sum = SweepRequest::default();
        for chunk in items.chunks(SLICE) {
            let numbers = self.slices.numbers.get(..chunk.len()).unwrap_or_default();
            self.maps.items.write(numbers, chunk)?;
            let request = SweepRequest {
                mode: pass.mode as u32,
                as_of: pass.as_of,
                external: pass.external,
                ..SweepRequest::default()
            };
            self.maps.request.write(&[0], &[request])?;
            let count = u32::try_from(chunk.len()).map_err(io::Error::other)?;
            let mut before = 0;
            let done = loop {
                let outcome = (judge.run)(count - before);
                let done = self.answer()?;
                if done.next >= count {
                    break done;
                }
                // A signal ends a run between two items.
                if done.next == before {
                    outcome?;
                    return Err(io::Error::other("the sweep program does not go on"));
                }
                before = done.next;
            };
            sum.sessions_ended += done.sessions_ended;
            sum.sessions_removed += done.sessions_removed;
            sum.mappings_removed += done.mappings_removed;
        }
        Ok(sum)
    }

    fn answer(&mut self) -> io::Result<SweepRequest> {
        self.maps
            .request
            .read(&mut Cursor::Start, &mut self.slices.request)?;
        let first = self.slices.request.iter().next();
        first
            .map(|(_, request)| *request)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Marked {
    /// Remembers the sessions among the items, as far as there is room.
    fn remember(&mut self, items: &[SweepItem], now: u32) {
        self.at = now;
        let room = REMEMBERED.saturating_sub(self.keys.len());
        let keys = items
            .iter()
            .filter(|item| item.task == SweepTask::JudgeSession as u32)
            .map(|item| item.key);
        self.keys.extend(keys.take(room));
    }
}

impl Pass {
    fn new(mode: SweepMode, external: EndpointKey, now: u32) -> Self {
        Self {
            mode,
            external,
            as_of: now,
            slices: 0,
            phase: match mode {
                SweepMode::Recheck => Phase::Sessions(Cursor::Start),
                SweepMode::Age => Phase::Hosts(Cursor::Start),
                SweepMode::KeepOurs => Phase::Mappings(Cursor::Start),
            },
            mappings: HashMap::new(),
            hosts: HashMap::new(),
            totals: Totals::default(),
        }
    }

    fn add(&mut self, judged: &SweepRequest) {
        let totals = &mut self.totals;
        totals.sessions_ended += u64::from(judged.sessions_ended);
        totals.sessions_left = totals
            .sessions_left
            .saturating_sub(u64::from(judged.sessions_ended));
        totals.sessions_removed += u64::from(judged.sessions_removed);
        totals.mappings_removed += u64::from(judged.mappings_removed);
        totals.mappings_left = totals
            .mappings_left
            .saturating_sub(u64::from(judged.mappings_removed.div_ceil(2)));
    }

    fn take_mappings(
        &mut self,
        slice: &Slice<EndpointKey, MappingValue>,
        judge: &Judge<'_>,
        items: &mut Vec<SweepItem>,
    ) {
        for (external, value) in slice.iter() {
            self.totals.mappings_left += 1;
            self.totals.met.count_mapping(value.kind);
            let held = Held {
                internal: bits(&value.endpoint(external.proto)),
                last_used: value.last_used,
                used: value.last_used,
                expires: value.expires,
                kind: value.kind,
                by_address: value.filter_in_force(judge.config.filter)
                    == Filter::AddressDependent as u8,
                is_static: value.flags & MappingFlags::STATIC != 0,
            };
            if self.mode == SweepMode::KeepOurs {
                if !judge.is_ours(external) && !held.is_static {
                    let task = SweepTask::JudgeMapping;
                    items.push(SweepItem::endpoint(task, *external, held.used));
                }
                continue;
            }
            self.mappings.insert(bits(external), held);
        }
    }

    fn take_sessions(
        &mut self,
        slice: &Slice<SessionKey, SessionValue>,
        judge: &Judge<'_>,
        items: &mut Vec<SweepItem>,
    ) {
        self.totals.met.sessions += slice.len() as u64;
        for (key, value) in slice.iter() {
            let (internal, external) = value.endpoints(key);
            let ended = value.flags & SessionFlags::ENDED != 0;
            // An ended one counts for its host until it is removed.
            if value.flags & (SessionFlags::INBOUND | SessionFlags::HOST) == 0
                && let Some((sessions, _)) = self.hosts.get_mut(&HostKey::v4(key.src).addr)
            {
                *sessions += 1;
            }
            let over = match self.mode {
                SweepMode::Recheck => !ended,
                SweepMode::KeepOurs => !ended && !judge.owns(key, value),
                SweepMode::Age => {
                    if ended {
                        // Its other half was ended by this pass, and both were taken off.
                        if tick::age(self.as_of, value.last_seen) == 0 {
                            self.totals.sessions_left += 1;
                        }
                        // Nobody remembered it: the daemon was restarted, or there were too many.
                        items.push(SweepItem::session(SweepTask::RemoveSession, *key));
                        continue;
                    }
                    let config = judge.config;
                    let over = sweep::may_be_over(judge.now, config.hz, &config.idle, key, value)
                        || !judge.owns(key, value);
                    match self.mappings.get_mut(&bits(&external)) {
                        Some(held) if held.internal == bits(&internal) => {
                            if !over {
                                held.note_use(key, value, judge.now);
                            }
                            let out = SessionFlags::INBOUND | SessionFlags::HOST;
                            if held.by_address && value.flags & out == 0 {
                                items.push(SweepItem::session(SweepTask::NotePeer, *key));
                            }
                            // A hairpin session has the earlier deadline of two mappings.
                            let changed = value.deadline != held.expires
                                && value.flags & SessionFlags::HAIRPIN == 0;
                            let explicit = held.kind == MappingKind::Explicit as u8;
                            let other = !explicit && value.flags & SessionFlags::EXPLICIT != 0;
                            over || changed || other
                        }
                        Some(_) | None => true,
                    }
                }
            };
            if !ended {
                self.totals.sessions_left += 1;
            }
            if over {
                items.push(SweepItem::session(SweepTask::JudgeSession, *key));
            }
        }
    }

    fn take_internals(
        &mut self,
        slice: &Slice<EndpointKey, MappingValue>,
        items: &mut Vec<SweepItem>,
    ) {
        for (internal, value) in slice.iter() {
            if value.kind == MappingKind::Dynamic as u8
                && let Some((_, mappings)) = self.hosts.get_mut(&HostKey::v4(internal.addr).addr)
            {
                *mappings += 1;
            }
            let external = bits(&value.endpoint(internal.proto));
            let confirmed = self
                .mappings
                .get(&external)
                .is_some_and(|held| held.internal == bits(internal));
            if !confirmed {
                let task = SweepTask::JudgeInternal;
                items.push(SweepItem::endpoint(task, *internal, 0));
            }
        }
    }
}

impl Held {
    /// A live session keeps its mapping (RFC 4787 REQ-6): any packet of a connection that its host takes part in, else
    /// only what goes out. The entry of the direction out tells.
    fn note_use(&mut self, key: &SessionKey, value: &SessionValue, now: u32) {
        if value.flags & SessionFlags::INBOUND != 0 {
            return;
        }
        let invited = value.flags & SessionFlags::INVITED != 0;
        let used = if key.proto != TCP {
            value.last_seen
        } else if tcp::uses_mapping(value.tcp, invited) {
            now
        } else {
            return;
        };
        if tick::age(used, self.used) > 0 {
            self.used = used;
        }
    }

    fn may_be_over(&self, external: &EndpointKey, as_of: u32, judge: &Judge<'_>) -> bool {
        if self.is_static {
            return false;
        }
        if !judge.is_ours(external) {
            return true;
        }
        if self.kind == MappingKind::Explicit as u8 {
            return tick::deadline_passed(judge.now, self.expires);
        }
        let none = Shown::default();
        let idle = sweep::idle_time(&judge.config.idle, external.proto, none, none);
        tick::age(as_of, self.used) > idle
    }

    /// Whether the table should hear of the last use: it is a second or more behind.
    fn is_used(&self, judge: &Judge<'_>) -> bool {
        tick::age(self.used, self.last_used) >= judge.config.hz.max(1)
    }
}

fn bits(endpoint: &EndpointKey) -> EndpointBits {
    let [a, b, c, d] = endpoint.addr;
    let [high, low] = endpoint.port;
    u64::from_ne_bytes([a, b, c, d, high, low, endpoint.proto, 0])
}

fn endpoint(bits: EndpointBits) -> EndpointKey {
    let [a, b, c, d, high, low, proto, _] = bits.to_ne_bytes();
    EndpointKey::new([a, b, c, d], [high, low], proto)
}
