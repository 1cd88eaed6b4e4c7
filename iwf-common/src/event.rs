//! What the daemon hears about as it happens. Never from the fast path.
#![forbid(unsafe_code)]

use crate::nat::EndpointKey;

/// One record of the EVENTS ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Event {
    /// [`EventKind`].
    pub kind: u32,
    /// Tick at which it happened.
    pub tick: u32,
    /// The internal endpoint concerned; of IPv6 only its port and protocol.
    pub internal: EndpointKey,
    /// The external endpoint concerned; all zero if there is none.
    pub external: EndpointKey,
    /// Address of the internal endpoint, if it is one of IPv6; else all zero.
    pub addr6: [u8; 16],
    /// Who an IPv6 flow counts for (see [`crate::host::HostKey::station`]).
    pub station: [u8; 6],
    /// Zero.
    pub pad: u16,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// An outbound packet made a dynamic mapping.
    MappingCreated = 1,
    /// An internal endpoint lost its dynamic mapping to somebody with a better right to the external one.
    MappingDisplaced = 2,
    /// No room in a mapping table.
    MappingsFull = 3,
    /// No room for a session.
    SessionsFull = 4,
    /// No free external port was found.
    PortsExhausted = 5,
    /// No resolved neighbour for a destination; the stack was given the packet and will resolve it.
    NextHopUnresolved = 6,
    /// A host, or station, has as many sessions as one may have.
    HostSessions = 7,
    /// A host has as many dynamic mappings as one host may have.
    HostMappings = 8,
    /// No room to count one more host.
    HostsFull = 9,
}

impl EventKind {
    /// The kind with this number.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::MappingCreated,
            2 => Self::MappingDisplaced,
            3 => Self::MappingsFull,
            4 => Self::SessionsFull,
            5 => Self::PortsExhausted,
            6 => Self::NextHopUnresolved,
            7 => Self::HostSessions,
            8 => Self::HostMappings,
            9 => Self::HostsFull,
            _ => return None,
        })
    }
}

/// What one CPU may still write in the current second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EventBudget {
    /// Tick at which the second began.
    pub since: u32,
    /// Events written in it.
    pub used: u32,
}

impl EventBudget {
    /// Takes one event from the budget of the second `now` is in; `false` if it is used up.
    #[inline(always)]
    pub const fn take(&mut self, now: u32, hz: u32) -> bool {
        self.take_of(now, hz, crate::limits::EVENTS_PER_SECOND)
    }

    /// The same of a budget of `limit` per second.
    #[inline(always)]
    pub const fn take_of(&mut self, now: u32, hz: u32, limit: u32) -> bool {
        if now.wrapping_sub(self.since) >= hz {
            self.since = now;
            self.used = 0;
        }
        if self.used >= limit {
            return false;
        }
        self.used += 1;
        true
    }
}

const _: () = assert!(size_of::<Event>() == 48);
const _: () = assert!(size_of::<EventBudget>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::EVENTS_PER_SECOND;

    #[test]
    fn budget_is_per_second() {
        let mut budget = EventBudget::default();
        let start = u32::MAX - 10;
        for _ in 0..EVENTS_PER_SECOND {
            assert!(budget.take(start, 250));
        }
        assert!(!budget.take(start.wrapping_add(249), 250));
        assert!(budget.take(start.wrapping_add(250), 250));
    }
}
