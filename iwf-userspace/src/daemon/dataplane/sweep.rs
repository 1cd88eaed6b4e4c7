//! Ageing in slices: reads the tables, picks what may be over, lets the sweep program judge that among packets.
//!
//! Read before editing: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5; `iwf_common::sweep` for who judges what.
//!
//! A pass reads HOSTS, MAPPINGS_EXT, SESSIONS and MAPPINGS_INT, in that order and each entry once, then judges the mappings by
//! what the sessions told. It keeps 40 octets per mapping while it lasts and nothing per session. One slice reads,
//! judges and removes [`SLICE`] entries at most, and the kernel may do something else in it at any moment. So the
//! daemon's other work waits for a slice, and packets wait for an entry. Only HOSTS, which is small, is read once more
//! as a whole, when the pass adds up.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use aya::maps::MapData;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::flow6::{EndpointKey6, EndpointValue6, SessionKey6, SessionValue6};
use iwf_common::host::{self, HostKey, HostValue};
use iwf_common::nat::{EndpointKey, MappingFlags, MappingKind, MappingValue, PeerKey, PeerValue};
use iwf_common::sweep::{SweepItem, SweepMode, SweepTask};
use iwf_common::{limits, tick};

use super::Turn;
use super::batch::{BatchMap, Cursor, Slice, Walked};
use super::pair::Side;
use super::settle::Settling;
use judge::Runs;
pub use judge::{Judge, run_items};
use pass::{Pass, Phase, endpoint};
use recount::Sums;
use removal::Marked;

mod judge;
pub(super) mod pass;
mod recount;
mod removal;

/// Entries read in one slice, judged in it, and removed in it, at most.
const SLICE: usize = 256;
const _: () = assert!(SLICE <= limits::SWEEP_ITEMS as usize);

/// From the beginning of one pass to that of the next, unless the pass takes longer.
pub const PERIOD: Duration = Duration::from_secs(5);
/// Between two slices. A pass over more than some hundred thousand entries takes longer than [`PERIOD`], because slices
/// are not closer together than this.
const CLOSEST: Duration = Duration::from_millis(3);
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
    /// TOTALS.
    pub totals: &'a MapData,
    /// SWEEP.
    pub request: &'a MapData,
    /// SWEEP_ITEMS.
    pub items: &'a MapData,
}

/// What a pass found and did, in entries: two per session, two per mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Session entries that were met and go on.
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
    tables: Tables,
    runs: Runs,
    /// What the slice under way hands over.
    items: Vec<SweepItem>,
    pass: Option<Pass>,
    marked: Marked,
    settling: Settling,
    /// Slices of the last whole pass, or before there was one, of a pass over full tables.
    last_slices: u32,
}

#[derive(Debug)]
struct Tables {
    sessions: Walked<SessionKey, SessionValue>,
    external: Walked<EndpointKey, MappingValue>,
    internal: Walked<EndpointKey, MappingValue>,
    sessions6: Walked<SessionKey6, SessionValue6>,
    endpoints6: Walked<EndpointKey6, EndpointValue6>,
    peers: Walked<PeerKey, PeerValue>,
    hosts: Walked<HostKey, HostValue>,
    totals: BatchMap<u32, host::Totals>,
}

impl Tables {
    /// All of HOSTS, and TOTALS before and after.
    fn sums(&mut self) -> io::Result<Sums> {
        let before = self.totals()?;
        let mut sums = Sums {
            before,
            met: host::Totals::default(),
            after: before,
        };
        let mut cursor = Cursor::Start;
        while cursor != Cursor::End {
            sums.meet(self.hosts.read(&mut cursor)?.iter());
        }
        sums.after = self.totals()?;
        Ok(sums)
    }

    fn totals(&self) -> io::Result<host::Totals> {
        let mut totals = Slice::new(1);
        self.totals.read(&mut Cursor::Start, &mut totals)?;
        let first = totals.iter().next();
        first
            .map(|(_, totals)| *totals)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Sweeper {
    /// Everything but dynamic mappings in the table of the external endpoints, or in that of the internal ones.
    pub(super) fn written_by_us(&self, side: Side) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        let table = match side {
            Side::Ext => &self.tables.external,
            Side::Int => &self.tables.internal,
        };
        table.select(|value| value.kind != MappingKind::Dynamic as u8)
    }

    /// The next entries of that kind at `cursor`, as many as one slice has.
    pub(super) fn read_written_by_us(
        &mut self,
        side: Side,
        cursor: &mut Cursor,
    ) -> io::Result<Vec<(EndpointKey, MappingValue)>> {
        let table = match side {
            Side::Ext => &mut self.tables.external,
            Side::Int => &mut self.tables.internal,
        };
        let read = table.read(cursor)?.iter();
        let ours = read.filter(|(_, value)| value.kind != MappingKind::Dynamic as u8);
        Ok(ours.map(|(key, value)| (*key, *value)).collect())
    }

    /// A sweeper of these maps.
    ///
    /// # Errors
    /// A map is none of ours.
    pub fn new(maps: &SweepMaps<'_>) -> io::Result<Self> {
        let tables = Tables {
            sessions: Walked::new(maps.sessions, SLICE)?,
            external: Walked::new(maps.external, SLICE)?,
            internal: Walked::new(maps.internal, SLICE)?,
            sessions6: Walked::new(maps.sessions6, SLICE)?,
            endpoints6: Walked::new(maps.endpoints6, SLICE)?,
            peers: Walked::new(maps.peers, SLICE)?,
            hosts: Walked::new(maps.hosts, SLICE)?,
            totals: BatchMap::new(maps.totals)?,
        };
        let slices = tables.sessions.capacity() as usize / SLICE;
        Ok(Self {
            tables,
            runs: Runs::new(maps.request, maps.items)?,
            items: Vec::new(),
            pass: None,
            marked: Marked::default(),
            settling: Settling::default(),
            last_slices: u32::try_from(slices).unwrap_or(u32::MAX),
        })
    }

    /// How much the tables have room for.
    pub fn capacities(&self) -> Capacities {
        Capacities {
            sessions: self.tables.sessions.capacity(),
            sessions6: self.tables.sessions6.capacity(),
            endpoints6: self.tables.endpoints6.capacity(),
            peers: self.tables.peers.capacity(),
            hosts: self.tables.hosts.capacity(),
            mappings: self.tables.external.capacity(),
        }
    }

    /// The next slice of ageing; the first one of a pass if none is under way.
    ///
    /// # Errors
    /// Only what the kernel refuses. The pass is given up; the next one begins anew.
    pub fn step(&mut self, judge: &Judge<'_>) -> io::Result<Progress> {
        let mut pass = self.pass.take().unwrap_or_else(|| Pass::new(judge.now));
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
        self.items.clear();
        for (key, value) in self.tables.sessions.read(&mut cursor)?.iter() {
            let ended = value.flags & SessionFlags::ENDED != 0;
            if !ended && self.settling.concerns(key, value, judge) {
                let item = SweepItem::session(SweepTask::JudgeSession, *key);
                self.items.push(item);
            }
        }
        let judged = self
            .runs
            .judge(&self.items, SweepMode::Recheck, judge.now, judge)?;
        if judged.sessions_ended > 0 {
            self.marked.remember(&self.items, judge.marked_by());
        }
        self.settling.advance(cursor);
        Ok(())
    }

    /// External addresses are others: removes the mappings of those that are gone, all of them before it returns, and
    /// lets their sessions end, which are looked for by [`Self::settle`]. Neither is used by packets any more.
    ///
    /// # Errors
    /// Only what the kernel refuses. A pass of ageing finds what is left.
    pub fn keep_ours(&mut self, judge: &Judge<'_>) -> io::Result<()> {
        self.settling.begin_ours();
        let mut cursor = Cursor::Start;
        while cursor != Cursor::End {
            self.items.clear();
            for (external, value) in self.tables.external.read(&mut cursor)?.iter() {
                let ours = judge.admits(value.addr, external.addr);
                if !ours && value.flags & MappingFlags::STATIC == 0 {
                    let task = SweepTask::JudgeMapping;
                    let item = SweepItem::endpoint(task, *external, value.last_used);
                    self.items.push(item);
                }
            }
            self.runs
                .judge(&self.items, SweepMode::KeepOurs, judge.now, judge)?;
        }
        // What a packet has left between the two tables.
        let mut cursor = Cursor::Start;
        while cursor != Cursor::End {
            self.items.clear();
            for (internal, value) in self.tables.internal.read(&mut cursor)?.iter() {
                if !judge.admits(internal.addr, value.addr) {
                    let task = SweepTask::JudgeInternal;
                    self.items.push(SweepItem::endpoint(task, *internal, 0));
                }
            }
            self.runs
                .judge(&self.items, SweepMode::KeepOurs, judge.now, judge)?;
        }
        Ok(())
    }

    /// Pinholes are others: ends the IPv6 sessions of those that are gone, all of them before it returns. Only sessions
    /// that came by a pinhole are looked at.
    ///
    /// # Errors
    /// Only what the kernel refuses. A pass of ageing finds what is left.
    pub fn follow_pinholes(&mut self, judge: &Judge<'_>) -> io::Result<()> {
        let mut cursor = Cursor::Start;
        while cursor != Cursor::End {
            self.items.clear();
            let sessions = self.tables.sessions6.read(&mut cursor)?.iter();
            let by_pinhole = sessions.filter(|(_, value)| value.pinhole != 0);
            self.items
                .extend(by_pinhole.map(|(key, _)| SweepItem::session6(*key)));
            self.runs
                .judge(&self.items, SweepMode::Age, judge.now, judge)?;
        }
        Ok(())
    }

    fn advance(&mut self, pass: &mut Pass, judge: &Judge<'_>) -> io::Result<()> {
        let Self { tables, items, .. } = self;
        items.clear();
        let next = match &mut pass.phase {
            Phase::Hosts(cursor) => {
                let slice = tables.hosts.read(cursor)?;
                pass.totals.met.hosts += slice.len() as u64;
                pass.recount
                    .begin(slice.iter().map(|(host, _)| host), items);
                (*cursor == Cursor::End).then_some(Phase::Mappings(Cursor::Start))
            }
            Phase::Mappings(cursor) => {
                let slice = tables.external.read(cursor)?;
                let at_end = *cursor == Cursor::End;
                pass.take_mappings(slice, judge);
                at_end.then_some(Phase::Sessions(Cursor::Start))
            }
            Phase::Sessions(cursor) => {
                let slice = tables.sessions.read(cursor)?;
                let at_end = *cursor == Cursor::End;
                pass.take_sessions(slice, judge, items);
                at_end.then_some(Phase::Internals(Cursor::Start))
            }
            Phase::Internals(cursor) => {
                let slice = tables.internal.read(cursor)?;
                let at_end = *cursor == Cursor::End;
                pass.take_internals(slice, items);
                at_end.then(|| Phase::Judging(std::mem::take(&mut pass.mappings).into_iter()))
            }
            Phase::Judging(mappings) => {
                for (external, held) in mappings.take(SLICE) {
                    let external = endpoint(external);
                    if held.may_be_over(&external, pass.as_of, judge) || held.is_used(judge) {
                        let task = SweepTask::JudgeMapping;
                        items.push(SweepItem::endpoint(task, external, held.used));
                    }
                }
                (mappings.len() == 0).then_some(Phase::Sessions6(Cursor::Start))
            }
            Phase::Sessions6(cursor) => {
                // All of them: the program notes for their endpoints that they are used.
                let slice = tables.sessions6.read(cursor)?;
                pass.totals.met.sessions6 += slice.len() as u64;
                for (key, value) in slice.iter() {
                    items.push(SweepItem::session6(*key));
                    pass.recount.meet_session6(value);
                }
                (*cursor == Cursor::End).then_some(Phase::Endpoints6(Cursor::Start))
            }
            Phase::Endpoints6(cursor) => {
                let slice = tables.endpoints6.read(cursor)?;
                pass.totals.met.endpoints6 += slice.len() as u64;
                // The shortest of all protocols'; the program knows which one counts.
                let idle = &judge.config.idle;
                let shortest = limits::OTHER_IDLE.saturating_mul(judge.config.hz);
                let shortest = shortest.min(idle.udp).min(idle.tcp_transitory);
                let idle = |last_used| tick::age(pass.as_of, last_used) > shortest;
                let over = slice.iter().filter(|(_, value)| idle(value.last_used));
                items.extend(over.map(|(key, _)| SweepItem::of_endpoint6(key)));
                (*cursor == Cursor::End).then_some(Phase::Peers(Cursor::Start))
            }
            Phase::Peers(cursor) => {
                let slice = tables.peers.read(cursor)?;
                pass.totals.met.peers += slice.len() as u64;
                // All of them: the program looks whether their mapping is still there.
                items.extend(slice.iter().map(|(peer, _)| SweepItem::of_peer(peer)));
                let recount = (*cursor == Cursor::End).then(|| std::mem::take(&mut pass.recount));
                recount.map(|recount| Phase::Recounting(recount.end()))
            }
            Phase::Recounting(ending) => {
                let more = ending.tell(SLICE, items);
                (!more).then_some(Phase::AddingUp)
            }
            Phase::AddingUp => {
                if let Some(lacking) = tables.sums()?.lacking() {
                    items.push(SweepItem::add_up(&lacking));
                }
                Some(Phase::Resting)
            }
            Phase::Resting => self.marked.is_empty().then_some(Phase::Over),
            Phase::Over => None,
        };
        let judged = self
            .runs
            .judge(&self.items, SweepMode::Age, pass.as_of, judge)?;
        pass.add(&judged);
        if judged.sessions_ended > 0 {
            self.marked.remember(&self.items, judge.marked_by());
        }
        if let Some(next) = next {
            pass.phase = next;
        }
        Ok(())
    }

    /// Removes what earlier slices have marked, as far as it is at rest.
    fn remove_marked(&mut self, pass: &mut Pass, judge: &Judge<'_>) -> io::Result<()> {
        self.items.clear();
        self.marked.take(SLICE, judge.now, &mut self.items);
        let judged = self
            .runs
            .judge(&self.items, SweepMode::Age, pass.as_of, judge)?;
        pass.add(&judged);
        Ok(())
    }
}
