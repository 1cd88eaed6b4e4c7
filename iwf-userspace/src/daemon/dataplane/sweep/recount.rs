//! Counting again what each host holds, while a pass goes by (see `iwf_common::host::HostValue`).
#![forbid(unsafe_code)]

use std::collections::{HashMap, hash_map};

use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::flow6::{SessionFlags6, SessionValue6};
use iwf_common::host::{HostKey, HostValue, Totals};
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

/// What all hosts have together, read as one: between `before` and `after`.
#[derive(Debug)]
pub(super) struct Sums {
    /// TOTALS, read before HOSTS.
    pub(super) before: Totals,
    /// What HOSTS adds up to.
    pub(super) met: Totals,
    /// TOTALS, read after HOSTS.
    pub(super) after: Totals,
}

impl Sums {
    /// What is to be added to TOTALS, if anything. Packets that have changed something meanwhile account for a
    /// difference of as much: that is left to a pass which meets fewer of them.
    pub(super) fn lacking(&self) -> Option<Totals> {
        let moved = self.after.changes.wrapping_sub(self.before.changes);
        let lacking = |is: u64, should: u64| {
            let difference = should.wrapping_sub(is).cast_signed();
            let certain = difference.unsigned_abs().saturating_sub(moved);
            if difference < 0 {
                certain.wrapping_neg()
            } else {
                certain
            }
        };
        let lacking = Totals {
            changes: 0,
            sessions: lacking(self.before.sessions, self.met.sessions),
            mappings: lacking(self.before.mappings, self.met.mappings),
            sessions6: lacking(self.before.sessions6, self.met.sessions6),
        };
        (lacking != Totals::default()).then_some(lacking)
    }

    /// Some more of what HOSTS has.
    pub(super) fn meet<'a>(&mut self, hosts: impl Iterator<Item = (&'a HostKey, &'a HostValue)>) {
        for (key, host) in hosts {
            let sum = if key.is_station() {
                &mut self.met.sessions6
            } else {
                &mut self.met.sessions
            };
            *sum = sum.wrapping_add(host.sessions);
            self.met.mappings = self.met.mappings.wrapping_add(host.mappings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn totals(changes: u64, sessions: u64, mappings: u64, sessions6: u64) -> Totals {
        Totals {
            changes,
            sessions,
            mappings,
            sessions6,
        }
    }

    fn lacking(before: Totals, moved: u64) -> Option<Totals> {
        let host = |sessions, mappings| HostValue {
            sessions,
            mappings,
            ..HostValue::default()
        };
        let mut sums = Sums {
            before,
            met: Totals::default(),
            after: totals(before.changes.wrapping_add(moved), 0, 0, 0),
        };
        let hosts = [
            (HostKey::v4([192, 168, 1, 10]), host(70, 20)),
            (HostKey::v4([192, 168, 1, 11]), host(30, 5)),
            (HostKey::station([2; 6]), host(9, 0)),
        ];
        sums.meet(hosts.iter().map(|(key, host)| (key, host)));
        sums.lacking()
    }

    #[test]
    fn right_sums_lack_nothing() {
        assert_eq!(lacking(totals(7, 100, 25, 9), 0), None);
        assert_eq!(lacking(totals(7, 100, 25, 9), 50), None);
    }

    #[test]
    fn wrong_sums_are_set_right_while_nothing_moves() {
        for wrong in [
            totals(u64::MAX, 101, 25, 8),
            totals(0, 0, 1 << 63, u64::MAX),
            totals(5, u64::MAX, 0, 0),
        ] {
            let lacking = lacking(wrong, 0).unwrap();
            let right = |is: u64, lacking| is.wrapping_add(lacking);
            assert_eq!(right(wrong.sessions, lacking.sessions), 100);
            assert_eq!(right(wrong.mappings, lacking.mappings), 25);
            assert_eq!(right(wrong.sessions6, lacking.sessions6), 9);
        }
    }

    /// Each packet may have begun or ended something that only one of the two readings has.
    #[test]
    fn what_packets_may_account_for_is_left() {
        assert_eq!(lacking(totals(u64::MAX, 103, 22, 9), 3), None);
        let much = lacking(totals(u64::MAX, 1100, 25, 0), 3).unwrap();
        assert_eq!(
            much,
            totals(0, 997u64.wrapping_neg(), 0, 6),
            "as far as it is certain"
        );
    }
}
