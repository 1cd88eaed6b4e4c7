//! What a scripted server does to an answer before it sends it.

use std::time::Duration;

use crate::pcp::MAX_LEN;

/// One way to misbehave. Octets are counted as in [`crate::pcp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Says nothing.
    Drop,
    /// Says it twice.
    Twice,
    /// Says it later.
    Late(Duration),
    /// Another nonce.
    Nonce,
    /// Another protocol.
    Protocol,
    /// Another internal port.
    InternalPort,
    /// Another opcode.
    Opcode(u8),
    /// Only the first octets.
    Cut(usize),
    /// More octets than a message may have.
    TooLong,
    /// A length that is no multiple of four.
    Odd,
    /// The R bit is clear.
    AsRequest,
    /// Another version, as success.
    Version(u8),
    /// This result, for so many seconds.
    Result(u8, u32),
    /// The version that the server speaks, in answer to another one, for so many seconds.
    OnlyVersion(u8, u32),
    /// NAT-PMP's answer to another version, with this opcode.
    NatPmp(u8),
    /// This external port instead of the granted one.
    ExternalPort(u16),
    /// This lifetime.
    Lifetime(u32),
    /// This epoch.
    Epoch(u32),
    /// All reserved bits set, and options that nobody knows behind it.
    Decorated,
    /// From another port of the server.
    OtherPort,
    /// From another address of the server.
    OtherAddress,
}

impl Fault {
    /// Whether nothing is granted with it.
    pub fn refuses(self) -> bool {
        matches!(
            self,
            Self::Result(..) | Self::OnlyVersion(..) | Self::NatPmp(_)
        )
    }

    /// The answer as it is sent; `None`: not at all.
    pub fn spoil(self, answer: &[u8]) -> Option<Vec<u8>> {
        let mut octets = answer.to_vec();
        let mut put = |at: usize, new: &[u8]| {
            if let Some(slot) = octets.get_mut(at..at + new.len()) {
                slot.copy_from_slice(new);
            }
        };
        match self {
            Self::Drop => return None,
            Self::Twice | Self::Late(_) | Self::OtherPort | Self::OtherAddress => {}
            Self::Nonce => put(24, &[0xee; 12]),
            Self::Protocol => put(36, &[if answer.get(36) == Some(&6) { 17 } else { 6 }]),
            Self::InternalPort => put(40, &[0, 7]),
            Self::Opcode(code) => put(1, &[0x80 | code]),
            Self::Cut(len) => octets.truncate(len),
            Self::TooLong => octets.resize(MAX_LEN + 4, 0),
            Self::Odd => octets.push(0),
            Self::AsRequest => put(1, &[1]),
            Self::Version(version) => put(0, &[version]),
            Self::Result(code, lifetime) => {
                put(3, &[code]);
                put(4, &lifetime.to_be_bytes());
            }
            Self::OnlyVersion(version, lifetime) => {
                put(0, &[version]);
                put(3, &[1]);
                put(4, &lifetime.to_be_bytes());
            }
            Self::NatPmp(opcode) => return Some(vec![0, opcode, 0, 1, 0, 0, 0, 9]),
            Self::ExternalPort(port) => put(42, &port.to_be_bytes()),
            Self::Lifetime(lifetime) => put(4, &lifetime.to_be_bytes()),
            Self::Epoch(epoch) => put(8, &epoch.to_be_bytes()),
            Self::Decorated => {
                put(2, &[0xff]);
                put(12, &[0xff; 12]);
                put(37, &[0xff; 3]);
                octets.extend([77, 0xff, 0, 3, 1, 2, 3, 0xff]);
                octets.extend([200, 0, 0, 0]);
            }
        }
        Some(octets)
    }
}
