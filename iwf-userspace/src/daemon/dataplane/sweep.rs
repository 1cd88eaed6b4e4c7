//! Ageing in slices: reads the tables, picks what may be over, lets the sweep program judge that among packets.
//!
//! Read before editing: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5; `iwf_common::sweep` for who judges what.
//!
//! A pass reads HOSTS, MAPPINGS_EXT, SESSIONS and MAPPINGS_INT, in that order and each entry once, then judges the mappings by
//! what the sessions told. It keeps 40 octets per mapping while it lasts and nothing per session. One slice is
//! [`SLICE`] entries: some tenths of a millisecond, in which the kernel may do something else at any moment.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use aya::maps::MapData;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::flow6::{EndpointKey6, EndpointValue6, SessionKey6, SessionValue6};
use iwf_common::host::{HostKey, HostValue};
use iwf_common::nat::{EndpointKey, MappingKind, MappingValue, PeerKey, PeerValue};
use iwf_common::sweep::{self, SweepItem, SweepMode, SweepTask};
use iwf_common::{limits, tick};

use super::Turn;
use super::batch::{BatchMap, Cursor, Slice};
use super::settle::Settling;
use judge::Runs;
pub use judge::{Judge, run_items};
use pass::{Pass, Phase, bits, endpoint};
use removal::Marked;

mod judge;
mod pass;
mod recount;
mod removal;

/// Entries read in one slice.
const SLICE: usize = limits::SWEEP_ITEMS as usize;

/// From the beginning of one pass to that of the next, unless the pass takes longer.
pub const PERIOD: Duration = Duration::from_secs(5);
/// Between two slices. A pass over more than a million entries takes longer than [`PERIOD`], because slices are not
/// closer together than this.
const CLOSEST: Duration = Duration::from_millis(5);
/// Between two slices of small tables.
const FURTHEST: Duration = Duration::from_millis(50);
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
    runs: Runs,
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
    items: Vec<SweepItem>,
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
            },
            slices: Slices {
                sessions: Slice::new(SLICE),
                mappings: Slice::new(SLICE),
                sessions6: Slice::new(SLICE),
                endpoints6: Slice::new(SLICE),
                peers: Slice::new(SLICE),
                hosts: Slice::new(SLICE),
                items: Vec::new(),
            },
            runs: Runs::new(maps.request, maps.items)?,
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
        let judged = self.runs.judge(&items, &pass, judge)?;
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
                let hosts = self.slices.hosts.iter().map(|(host, _)| host);
                pass.recount.begin(hosts, &mut self.slices.items);
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
                    pass.recount.meet_session6(value);
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
                let recount = (*cursor == Cursor::End).then(|| std::mem::take(&mut pass.recount));
                recount.map(|recount| Phase::Recounting(recount.end()))
            }
            Phase::Recounting(ending) => {
                let more = ending.tell(SLICE, &mut self.slices.items);
                (!more).then_some(Phase::Resting)
            }
            Phase::Resting => self.marked.keys.is_empty().then_some(Phase::Over),
            Phase::Over => None,
        };
        let items = std::mem::take(&mut self.slices.items);
        let judged = self.runs.judge(&items, pass, judge);
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
        let judged = self.runs.judge(&items, pass, judge)?;
        pass.add(&judged);
        Ok(())
    }
}
