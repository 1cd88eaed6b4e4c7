//! A data plane in memory, for tests of what is above it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::inspect::{
    DynamicFilter, DynamicRow, HostRow, Inspector, SessionFilter, SessionRow, TableRow, Take, Usage,
};
use super::{
    Change, DataPlane, DataPlaneError, Found, Pinhole, PlaneConfig, PlaneEvent, SweepStep, Turn,
    same_endpoints,
};
use crate::mapping::untranslated;
use crate::reconcile::run::Seen;
use crate::types::{ExternalEndpoint, Generation, NatEntry, Protocol};

/// Entries that a slice of observing shows.
const OBSERVED: usize = 3;

/// What a call that was told to fail answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// [`DataPlaneError::Full`].
    Full,
    /// [`DataPlaneError::InUse`].
    InUse,
    /// [`DataPlaneError::Kernel`].
    Kernel,
}

/// Mappings in memory, with the same refusals as the kernel's and faults on demand.
#[derive(Debug, Default)]
pub struct FakePlane {
    config: PlaneConfig,
    entries: BTreeMap<(Protocol, ExternalEndpoint), NatEntry>,
    /// Endpoints another owner holds.
    taken: BTreeSet<(Protocol, u16)>,
    faults: BTreeMap<u64, Fault>,
    changes: u64,
    sweeps: u64,
    events: Vec<PlaneEvent>,
    shown: Tables,
    /// While it is set, removals do not settle.
    held: Option<Arc<AtomicBool>>,
    /// Those that have not.
    searches: VecDeque<Turn>,
    newest: Turn,
    settle_fails: bool,
    /// The last entry that a slice has shown.
    observed: Option<(Protocol, ExternalEndpoint)>,
    /// Slices of observing that work before one fails.
    blind_after: Option<u64>,
}

/// What the tables show to those who look.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Sessions.
    pub sessions: Vec<SessionRow>,
    /// Mappings that nobody asked for.
    pub dynamic: Vec<DynamicRow>,
    /// What went through each explicit mapping.
    pub usage: BTreeMap<Generation, Usage>,
    /// LAN hosts.
    pub hosts: Vec<HostRow>,
}

impl FakePlane {
    /// An empty plane.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the `n`th [`DataPlane::write`] or [`DataPlane::remove`] from the start (counted from 1) fail.
    pub fn fail_change(&mut self, n: u64, fault: Fault) {
        self.faults.insert(n, fault);
    }

    /// Lets no removal settle as long as the flag is set, as it is when it is returned.
    pub fn hold(&mut self) -> Arc<AtomicBool> {
        let held = Arc::new(AtomicBool::new(true));
        self.held = Some(Arc::clone(&held));
        held
    }

    /// Lets removals fail to settle.
    pub fn fail_to_settle(&mut self) {
        self.hold();
        self.settle_fails = true;
    }

    /// Lets so many more slices of observing work, and the next one fail.
    pub fn go_blind_after(&mut self, slices: u64) {
        self.blind_after = Some(slices);
    }

    /// Marks an external port as the CPE's own.
    pub fn take_port(&mut self, protocol: Protocol, port: u16) {
        self.taken.insert((protocol, port));
    }

    /// How often `write` and `remove` were called.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How often `sweep_slice` was called.
    pub fn sweeps(&self) -> u64 {
        self.sweeps
    }

    /// What was configured last.
    pub fn config(&self) -> &PlaneConfig {
        &self.config
    }

    /// Sets what the tables show.
    pub fn show(&mut self, tables: Tables) {
        self.shown = tables;
    }

    /// Lets the programs tell something.
    pub fn tell(&mut self, event: PlaneEvent) {
        self.events.push(event);
    }

    /// Puts an entry there behind the owner's back, or takes it away: drift for a reconciler to find.
    pub fn tamper(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<(Protocol, ExternalEndpoint), NatEntry>),
    ) {
        change(&mut self.entries);
    }

    fn count_change(&mut self) -> Result<(), DataPlaneError> {
        self.changes += 1;
        match self.faults.remove(&self.changes) {
            None => Ok(()),
            Some(fault) => Err(fault.error()),
        }
    }

    fn search(&mut self) -> Change {
        if self.held.is_none() {
            return Change::Settled;
        }
        self.newest = Turn(self.newest.0 + 1);
        self.searches.push_back(self.newest);
        Change::Settling(self.newest)
    }
}

impl Fault {
    fn error(self) -> DataPlaneError {
        match self {
            Self::Full => DataPlaneError::Full { map: "MAP_EXT" },
            Self::InUse => DataPlaneError::InUse,
            Self::Kernel => DataPlaneError::Kernel {
                action: "do as the test planned",
                source: std::io::ErrorKind::Other.into(),
            },
        }
    }
}

impl DataPlane for FakePlane {
    fn configure(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError> {
        if config.routed {
            let stays = |held: &NatEntry| held.external == untranslated(held.internal);
            self.entries.retain(|_, held| stays(held));
        } else if let Some(first) = config.external_addr {
            let ours = |addr| addr == first || config.pool.contains(&addr);
            self.entries.retain(|_, held| ours(held.external.addr));
        }
        self.config = config.clone();
        Ok(())
    }

    fn write(&mut self, entry: &NatEntry) -> Result<Change, DataPlaneError> {
        self.count_change()?;
        let port = entry.external.port.get();
        let service = (entry.protocol, port);
        if self.taken.contains(&service)
            || self.config.host_ports.contains(&service)
            || self.config.own_ports.contains(&service)
        {
            return Err(DataPlaneError::InUse);
        }
        let conflict = self
            .entries
            .get(&(entry.protocol, entry.external))
            .is_some_and(|held| !same_endpoints(held, entry));
        if conflict {
            return Err(DataPlaneError::InUse);
        }
        self.entries
            .insert((entry.protocol, entry.external), *entry);
        Ok(Change::Settled)
    }

    fn remove(&mut self, entry: &NatEntry) -> Result<Change, DataPlaneError> {
        self.count_change()?;
        let key = (entry.protocol, entry.external);
        if self
            .entries
            .get(&key)
            .is_some_and(|held| same_endpoints(held, entry))
        {
            self.entries.remove(&key);
        }
        Ok(self.search())
    }

    fn is_settling(&self) -> bool {
        !self.searches.is_empty()
    }

    fn settle_slice(&mut self) -> Result<Turn, DataPlaneError> {
        if self.settle_fails {
            self.searches.clear();
            return Err(Fault::Kernel.error());
        }
        let held = self.held.as_ref();
        if held.is_some_and(|held| held.load(Ordering::SeqCst))
            && let Some(oldest) = self.searches.front()
        {
            return Ok(Turn(oldest.0 - 1));
        }
        self.searches.clear();
        Ok(self.newest)
    }

    fn observe(&self) -> Result<Vec<NatEntry>, DataPlaneError> {
        Ok(self.entries.values().copied().collect())
    }

    fn observe_anew(&mut self) {
        self.observed = None;
    }

    fn observe_slice(&mut self) -> Result<Seen, DataPlaneError> {
        match &mut self.blind_after {
            None => {}
            Some(0) => {
                self.blind_after = None;
                return Err(Fault::Kernel.error());
            }
            Some(left) => *left -= 1,
        }
        let from = self.observed.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.entries.range((from, Bound::Unbounded));
        let shown: Vec<_> = rest.by_ref().take(OBSERVED).collect();
        self.observed = shown.last().map(|(key, _)| **key).or(self.observed);
        Ok(Seen {
            entries: shown.into_iter().map(|(_, entry)| *entry).collect(),
            more: rest.next().is_some(),
        })
    }

    fn find(&self, like: &NatEntry) -> Result<Option<NatEntry>, DataPlaneError> {
        let held = self.entries.get(&(like.protocol, like.external));
        Ok(held.filter(|held| same_endpoints(held, like)).copied())
    }

    fn set_pinholes(&mut self, pinholes: &[Pinhole]) -> Result<(), DataPlaneError> {
        self.count_change()?;
        self.config.pinholes = pinholes.to_vec();
        Ok(())
    }

    fn observe_pinholes(&self) -> Result<Vec<Pinhole>, DataPlaneError> {
        Ok(self.config.pinholes.clone())
    }

    fn pinhole_packets(&self) -> Result<Vec<(u16, u64)>, DataPlaneError> {
        Ok(self.config.pinholes.iter().map(|p| (p.id, 0)).collect())
    }

    fn hosts(&self) -> Result<BTreeMap<Ipv4Addr, u64>, DataPlaneError> {
        Ok(BTreeMap::new())
    }

    fn counters(&self) -> Result<Vec<(&'static str, u64)>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn sweep_slice(&mut self) -> Result<SweepStep, DataPlaneError> {
        self.sweeps += 1;
        Ok(SweepStep {
            again: Duration::from_secs(5),
            found: Some(Found {
                sessions: self.shown.sessions.len() as u64,
                tables: vec![TableRow::new(
                    "sessions",
                    self.shown.sessions.len() as u64,
                    Some(65_536),
                )],
            }),
        })
    }

    fn events(&mut self) -> Vec<PlaneEvent> {
        std::mem::take(&mut self.events)
    }

    fn inspector(&mut self) -> Result<Box<dyn Inspector>, DataPlaneError> {
        Ok(Box::new(self.shown.clone()))
    }
}

impl Inspector for Tables {
    fn sessions(
        &mut self,
        filter: &SessionFilter,
        take: Take<'_, SessionRow>,
    ) -> Result<(), DataPlaneError> {
        show(self.sessions.iter().filter(|row| filter.admits(row)), take);
        Ok(())
    }

    fn dynamic(
        &mut self,
        filter: &DynamicFilter,
        take: Take<'_, DynamicRow>,
    ) -> Result<(), DataPlaneError> {
        show(self.dynamic.iter().filter(|row| filter.admits(row)), take);
        Ok(())
    }

    fn usage(&mut self) -> Result<BTreeMap<Generation, Usage>, DataPlaneError> {
        Ok(self.usage.clone())
    }

    fn hosts(&mut self) -> Result<Vec<HostRow>, DataPlaneError> {
        Ok(self.hosts.clone())
    }

    fn small_tables(&mut self) -> Result<Vec<TableRow>, DataPlaneError> {
        Ok(vec![TableRow::new("filters", 0, Some(1024))])
    }
}

fn show<'a, T: Clone + 'a>(rows: impl Iterator<Item = &'a T>, take: Take<'_, T>) {
    for row in rows {
        if take(row.clone()) == ControlFlow::Break(()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::types::{ExternalPort, Generation, InternalEndpoint, InternalPort, RemotePeer};

    #[test]
    fn the_planned_change_fails_and_leaves_nothing() {
        let mut plane = FakePlane::new();
        plane.fail_change(2, Fault::Full);
        plane.write(&entry(1000, 10, 1)).expect("first");
        assert!(matches!(
            plane.write(&entry(1001, 11, 2)),
            Err(DataPlaneError::Full { .. })
        ));
        assert_eq!(plane.observe().expect("observe"), [entry(1000, 10, 1)]);
        plane.write(&entry(1001, 11, 2)).expect("only once");
    }

    #[test]
    fn another_owner_is_in_the_way_and_a_renewal_is_not() {
        let mut plane = FakePlane::new();
        plane.take_port(Protocol::Udp, 68);
        plane.write(&entry(1000, 10, 1)).expect("new");
        plane.write(&entry(1000, 10, 2)).expect("renewal");
        plane.write(&entry(1001, 10, 3)).expect("one port more");
        plane.remove(&entry(1001, 10, 3)).expect("and one less");
        for taken in [entry(1000, 11, 3), entry(68, 12, 3)] {
            assert!(matches!(plane.write(&taken), Err(DataPlaneError::InUse)));
        }
        plane.remove(&entry(1000, 11, 3)).expect("foreign stays");
        assert_eq!(plane.observe().expect("observe"), [entry(1000, 10, 2)]);
    }

    #[test]
    fn a_new_external_address_ends_the_old_mappings() {
        let mut plane = FakePlane::new();
        plane.write(&entry(1000, 10, 1)).expect("new");
        plane.configure(&PlaneConfig::default()).expect("down");
        assert_eq!(plane.observe().expect("observe").len(), 1);
        let moved = PlaneConfig {
            external_addr: Some(Ipv4Addr::new(100, 64, 0, 9)),
            ..PlaneConfig::default()
        };
        plane.configure(&moved).expect("moved");
        assert_eq!(plane.observe().expect("observe"), []);
    }

    fn entry(external: u16, internal: u16, generation: u32) -> NatEntry {
        NatEntry {
            protocol: Protocol::Udp,
            external: ExternalEndpoint {
                addr: Ipv4Addr::new(100, 64, 0, 2),
                port: ExternalPort::new(external).expect("not 0"),
            },
            internal: InternalEndpoint {
                addr: Ipv4Addr::new(192, 168, 1, 2),
                port: InternalPort::new(internal).expect("not 0"),
            },
            remote: RemotePeer::Any,
            generation: Generation(generation),
            expires: None,
        }
    }
}
