//! Refused packets whose senders are told: what the programs copy for the daemon.
//!
//! Read before editing: RFC 5382 REQ-4, RFC 5508 REQ-8, RFC 6092 REC-34, RFC 1812 section 4.3.2.
#![forbid(unsafe_code)]

use crate::config::ConfigFlags;
use crate::limits::REFUSED_OCTETS;
use crate::reason::DropReason;

/// Where a refused packet was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Side {
    /// From a LAN host, as it sent it.
    Lan = 0,
    /// From the WAN.
    Wan = 1,
    /// From a LAN host, by way of the stack, which has taken one from its TTL.
    Forwarded = 2,
}

impl Side {
    /// The side with this number.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Lan,
            1 => Self::Wan,
            2 => Self::Forwarded,
            _ => return None,
        })
    }

    /// The bit of [`ConfigFlags`] that allows answers to this side.
    #[inline(always)]
    pub const fn flag(self) -> u32 {
        match self {
            Self::Lan | Self::Forwarded => ConfigFlags::ANSWER_LAN,
            Self::Wan => ConfigFlags::ANSWER_WAN,
        }
    }

    /// Whether the senders of what is dropped on this side, by the reason's slot, may be told at all. From the WAN: what
    /// is unsolicited. From the LAN: what there was no room for.
    #[inline(always)]
    pub const fn tells(self, slot: u32) -> bool {
        if matches!(self, Self::Wan) {
            return slot == DropReason::Unsolicited.slot()
                || slot == DropReason::Filtered.slot()
                || slot == DropReason::MappingExpired.slot()
                || slot == DropReason::Unsolicited6.slot();
        }
        slot == DropReason::PortsExhausted.slot()
            || slot == DropReason::MappingsFull.slot()
            || slot == DropReason::SessionsFull.slot()
            || slot == DropReason::HostSessions.slot()
            || slot == DropReason::HostMappings.slot()
            || slot == DropReason::HostsFull.slot()
            || slot == DropReason::Sessions6Full.slot()
    }
}

/// One record of the REFUSED ring.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct RefusedPacket {
    /// Slot of the reason.
    pub slot: u32,
    /// [`Side`].
    pub side: u32,
    /// Octets of the packet that are here.
    pub len: u32,
    /// Zero.
    pub pad: u32,
    /// The head of the IPv4 or IPv6 packet, and whatever the ring had behind it.
    pub packet: [u8; REFUSED_OCTETS],
}

const _: () =
    assert!(size_of::<RefusedPacket>() == 16 + REFUSED_OCTETS && REFUSED_OCTETS.is_multiple_of(8));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_is_told_of_its_own() {
        let unsolicited = DropReason::Unsolicited.slot();
        let exhausted = DropReason::PortsExhausted.slot();
        assert!(Side::Wan.tells(unsolicited) && !Side::Wan.tells(exhausted));
        for side in [Side::Lan, Side::Forwarded] {
            assert!(side.tells(exhausted) && !side.tells(unsolicited));
            // What is wrong with a packet is nobody's business.
            assert!(!side.tells(DropReason::SpoofedLan.slot()));
        }
        for side in [Side::Lan, Side::Wan, Side::Forwarded] {
            assert_eq!(Side::from_number(side as u32), Some(side));
        }
        assert_eq!(Side::from_number(3), None);
    }
}
