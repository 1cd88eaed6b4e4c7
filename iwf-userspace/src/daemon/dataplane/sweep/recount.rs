//! Counting again what each host holds, while a pass goes by (see `iwf_common::host::HostValue`).
#![forbid(unsafe_code)]

use std::collections::{HashMap, hash_map};

use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::flow6::{SessionFlags6, SessionValue6};
use iwf_common::host::HostKey;
use iwf_common::nat::{EndpointKey, MappingKind, MappingValue};
use iwf_common::sweep::{SweepItem, SweepTask};

/// The hosts there were when the pass began, and what it has met of each.
#[derive(Debug, Default)]
pub(super) struct Recount {
    hosts: HashMap<[u8; 16], Holding>,
}

/// What a host holds.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    sessions: u32,
    mappings: u32,
}

impl Recount {
    /// These hosts are counted for from here on.
    pub(super) fn begin<'a>(
        &mut self,
        hosts: impl Iterator<Item = &'a HostKey>,
        items: &mut Vec<SweepItem>,
    ) {
        for host in hosts {
            self.hosts.insert(host.addr, Holding::default());
            items.push(SweepItem::of_host(SweepTask::BeginRecount, *host, 0, 0));
        }
    }

    /// An entry of SESSIONS. An ended one counts for its host until it is removed.
    pub(super) fn meet_session(&mut self, key: &SessionKey, value: &SessionValue) {
        if value.flags & (SessionFlags::INBOUND | SessionFlags::HOST) == 0
            && let Some(holding) = self.hosts.get_mut(&HostKey::v4(key.src).addr)
        {
            holding.sessions += 1;
        }
    }

    /// An entry of SESSIONS6.
    pub(super) fn meet_session6(&mut self, value: &SessionValue6) {
        if value.flags & SessionFlags6::INBOUND == 0
            && let Some(holding) = self.hosts.get_mut(&HostKey::station(value.station).addr)
        {
            holding.sessions += 1;
        }
    }

    /// An entry of MAPPINGS_INT.
    pub(super) fn meet_mapping(&mut self, internal: &EndpointKey, value: &MappingValue) {
        if value.kind == MappingKind::Dynamic as u8
            && let Some(holding) = self.hosts.get_mut(&HostKey::v4(internal.addr).addr)
        {
            holding.mappings += 1;
        }
    }

    /// Everything was met.
    pub(super) fn end(self) -> Ending {
        Ending(self.hosts.into_iter())
    }
}

/// A recount that is told.
#[derive(Debug)]
pub(super) struct Ending(hash_map::IntoIter<[u8; 16], Holding>);

impl Ending {
    /// Tells of the next hosts, `most` of them; `false` if there are no more.
    pub(super) fn tell(&mut self, most: usize, items: &mut Vec<SweepItem>) -> bool {
        for (addr, holding) in self.0.by_ref().take(most) {
            items.push(SweepItem::of_host(
                SweepTask::EndRecount,
                HostKey { addr },
                holding.sessions,
                holding.mappings,
            ));
        }
        self.0.len() != 0
    }
}
