//! Messages of the registration protocol of Wi-Fi Simple Configuration, which DeviceProtection:1 introduces control points
//! by.
//!
//! Read before editing: Wi-Fi Simple Configuration 2.0 sections 7 and 12.
//!
//! ```text
//! attribute:  type (2)  length (2)  value
//! ```
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

/// Longest message that is read, in octets; one has some 400.
pub const MAX_MESSAGE: usize = 4096;

/// Version 1.0. Later ones of the same major number say so elsewhere and are understood as far as this one goes.
const VERSION: u8 = 0x10;

/// Names of attributes (section 12).
pub mod attribute {
    #![expect(missing_docs, reason = "the names are the standard's")]
    pub const ASSOCIATION_STATE: u16 = 0x1002;
    pub const AUTHENTICATION_TYPES: u16 = 0x1004;
    pub const AUTHENTICATOR: u16 = 0x1005;
    pub const CONFIG_METHODS: u16 = 0x1008;
    pub const CONFIGURATION_ERROR: u16 = 0x1009;
    pub const CONNECTION_TYPES: u16 = 0x100d;
    pub const ENCRYPTION_TYPES: u16 = 0x1010;
    pub const DEVICE_NAME: u16 = 0x1011;
    pub const DEVICE_PASSWORD_ID: u16 = 0x1012;
    pub const E_HASH_1: u16 = 0x1014;
    pub const E_HASH_2: u16 = 0x1015;
    pub const E_NONCE_1: u16 = 0x1016;
    pub const E_NONCE_2: u16 = 0x1017;
    pub const ENCRYPTED_SETTINGS: u16 = 0x1018;
    pub const ENROLLEE_NONCE: u16 = 0x101a;
    pub const KEY_WRAP_AUTHENTICATOR: u16 = 0x101e;
    pub const MAC_ADDRESS: u16 = 0x1020;
    pub const MANUFACTURER: u16 = 0x1021;
    pub const MESSAGE_TYPE: u16 = 0x1022;
    pub const MODEL_NAME: u16 = 0x1023;
    pub const MODEL_NUMBER: u16 = 0x1024;
    pub const OS_VERSION: u16 = 0x102d;
    pub const PUBLIC_KEY: u16 = 0x1032;
    pub const REGISTRAR_NONCE: u16 = 0x1039;
    pub const RF_BANDS: u16 = 0x103c;
    pub const R_HASH_1: u16 = 0x103d;
    pub const R_HASH_2: u16 = 0x103e;
    pub const R_NONCE_1: u16 = 0x103f;
    pub const R_NONCE_2: u16 = 0x1040;
    pub const SERIAL_NUMBER: u16 = 0x1042;
    pub const SETUP_STATE: u16 = 0x1044;
    pub const UUID_E: u16 = 0x1047;
    pub const UUID_R: u16 = 0x1048;
    pub const VERSION: u16 = 0x104a;
    pub const PRIMARY_DEVICE_TYPE: u16 = 0x1054;
}

/// Kinds of messages, by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the standard's")]
pub enum Kind {
    M1 = 0x04,
    M2 = 0x05,
    M2D = 0x06,
    M3 = 0x07,
    M4 = 0x08,
    M5 = 0x09,
    M6 = 0x0a,
    M7 = 0x0b,
    M8 = 0x0c,
    Ack = 0x0d,
    Nack = 0x0e,
    Done = 0x0f,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::M1,
        Self::M2,
        Self::M2D,
        Self::M3,
        Self::M4,
        Self::M5,
        Self::M6,
        Self::M7,
        Self::M8,
        Self::Ack,
        Self::Nack,
        Self::Done,
    ];
}

/// Why octets are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WpsError {
    /// Longer than [`MAX_MESSAGE`].
    #[error("message is too long")]
    TooLong,
    /// An attribute does not end where the octets do.
    #[error("message is truncated")]
    Truncated,
    /// The type of the message is missing or unknown.
    #[error("message has no known type")]
    Kind,
    /// Another major version.
    #[error("message is of version {0:#04x}")]
    Version(u8),
    /// An attribute is missing, or of another length than it has.
    #[error("attribute {0:#06x} is missing or of a wrong length")]
    Attribute(u16),
}

/// A list of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads a list.
    pub fn decode(octets: &'a [u8]) -> Result<Self, WpsError> {
        if octets.len() > MAX_MESSAGE {
            return Err(WpsError::TooLong);
        }
        let mut rest = octets;
        while !rest.is_empty() {
            (_, _, rest) = split(rest).ok_or(WpsError::Truncated)?;
        }
        Ok(Self(octets))
    }

    /// The kind of the message that the list is.
    pub fn kind(&self) -> Result<Kind, WpsError> {
        let [version] = self.fixed(attribute::VERSION)?;
        if version >> 4 != VERSION >> 4 {
            return Err(WpsError::Version(*version));
        }
        let [number] = self.fixed(attribute::MESSAGE_TYPE)?;
        let found = Kind::ALL.into_iter().find(|kind| *kind as u8 == *number);
        found.ok_or(WpsError::Kind)
    }

    /// The first attribute of a name.
    pub fn get(&self, name: u16) -> Result<&'a [u8], WpsError> {
        let mut rest = self.0;
        while let Some((found, value, after)) = split(rest) {
            if found == name {
                return Ok(value);
            }
            rest = after;
        }
        Err(WpsError::Attribute(name))
    }

    /// The first attribute of a name that has a fixed length.
    pub fn fixed<const N: usize>(&self, name: u16) -> Result<&'a [u8; N], WpsError> {
        let value = self.get(name)?;
        value.try_into().map_err(|_| WpsError::Attribute(name))
    }

    /// The value of an attribute of 8 octets that is the last one, and what is before it.
    pub fn sealed(&self, name: u16) -> Result<(&'a [u8], &'a [u8; 8]), WpsError> {
        let missing = WpsError::Attribute(name);
        let at = self.0.len().checked_sub(12).ok_or(missing)?;
        let (before, last) = self.0.split_at_checked(at).ok_or(missing)?;
        // What ends here must begin here as well, not inside of another attribute.
        Self::decode(before).map_err(|_| missing)?;
        match split(last) {
            Some((found, value, [])) if found == name => {
                Ok((before, value.try_into().map_err(|_| missing)?))
            }
            Some(_) | None => Err(missing),
        }
    }
}

fn split(octets: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = octets.split_first_chunk::<4>()?;
    let [a, b, c, d] = *head;
    let length = u16::from_be_bytes([c, d]);
    let (value, rest) = rest.split_at_checked(length.into())?;
    Some((u16::from_be_bytes([a, b]), value, rest))
}

/// A list of attributes being written. What is left of one is wiped: some of them are secret.
pub struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// One with room, so that it does not move when it grows and leave something behind.
    pub fn list() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(1024)))
    }

    /// A message of a kind.
    pub fn message(kind: Kind) -> Self {
        let version = Self::list().put(attribute::VERSION, &[VERSION]);
        version.put(attribute::MESSAGE_TYPE, &[kind as u8])
    }

    /// Appends an attribute. Values here have some hundred octets.
    #[must_use]
    pub fn put(mut self, name: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.0.extend(name.to_be_bytes());
        self.0.extend(length.to_be_bytes());
        self.0.extend(value.iter().take(length.into()));
        self
    }

    /// What was written so far.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    /// The list.
    pub fn finish(mut self) -> Vec<u8> {
        std::mem::take(&mut *self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_every_prefix_is_not_the_same() {
        let message = Writer::message(Kind::M3)
            .put(attribute::E_HASH_1, &[7; 32])
            .put(attribute::AUTHENTICATOR, &[9; 8])
            .finish();
        let read = Attributes::decode(&message).unwrap();
        assert_eq!(read.kind(), Ok(Kind::M3));
        assert_eq!(read.fixed(attribute::E_HASH_1), Ok(&[7; 32]));
        assert_eq!(
            read.fixed::<16>(attribute::E_HASH_1),
            Err(WpsError::Attribute(attribute::E_HASH_1))
        );
        let (before, seal) = read.sealed(attribute::AUTHENTICATOR).unwrap();
        assert_eq!((before.len(), seal), (message.len() - 12, &[9; 8]));
        for end in 0..message.len() {
            let prefix = Attributes::decode(&message[..end]);
            let sealed = prefix.and_then(|read| read.sealed(attribute::AUTHENTICATOR).map(drop));
            assert!(sealed.is_err(), "{end}");
        }
    }

    #[test]
    fn another_major_version_and_unknown_kinds_are_refused() {
        let message = |version: u8, kind: u8| {
            let message = Writer::list().put(attribute::VERSION, &[version]);
            message.put(attribute::MESSAGE_TYPE, &[kind]).finish()
        };
        let kind = |octets: &[u8]| Attributes::decode(octets).unwrap().kind();
        assert_eq!(kind(&message(0x10, 4)), Ok(Kind::M1));
        assert_eq!(kind(&message(0x11, 15)), Ok(Kind::Done));
        assert_eq!(kind(&message(0x20, 4)), Err(WpsError::Version(0x20)));
        assert_eq!(kind(&message(0x10, 3)), Err(WpsError::Kind));
        assert_eq!(kind(&message(0x10, 16)), Err(WpsError::Kind));
        let missing = Err(WpsError::Attribute(attribute::VERSION));
        assert_eq!(kind(&[]), missing);
        assert!(
            Kind::ALL
                .windows(2)
                .all(|two| (two[0] as u8) < two[1] as u8)
        );
    }

    proptest! {
        #[test]
        fn lists_are_read_as_written(
            list in vec((any::<u16>(), vec(any::<u8>(), 0..64)), 0..20),
        ) {
            let mut written = Writer::list();
            for (name, value) in &list {
                written = written.put(*name, value);
            }
            let octets = written.finish();
            let read = Attributes::decode(&octets).unwrap();
            for (name, _) in &list {
                let first = list.iter().find(|(other, _)| other == name);
                prop_assert_eq!(read.get(*name), Ok(first.unwrap().1.as_slice()));
            }
        }

        /// Whatever comes, it is read whole or not at all, and a seal is only at its end.
        #[test]
        fn any_octets_are_taken(octets in vec(any::<u8>(), 0..200), name in any::<u16>()) {
            if let Ok(read) = Attributes::decode(&octets) {
                let _ = (read.kind().is_ok(), read.get(name).is_ok());
                if let Ok((before, seal)) = read.sealed(name) {
                    prop_assert_eq!(before.len() + 12, octets.len());
                    prop_assert_eq!(seal.as_slice(), &octets[octets.len() - 8..]);
                }
            }
        }

        /// One octet less, and it is another message or none.
        #[test]
        fn a_message_cut_short_has_no_seal(end in 0_usize..60) {
            let message = Writer::message(Kind::M4)
                .put(attribute::R_HASH_1, &[1; 32])
                .put(attribute::AUTHENTICATOR, &[2; 8])
                .finish();
            let cut = Attributes::decode(&message[..end.min(message.len() - 1)]);
            let sealed = cut.and_then(|read| read.sealed(attribute::AUTHENTICATOR).map(drop));
            prop_assert!(sealed.is_err());
        }
    }

    #[test]
    fn a_seal_inside_of_another_attribute_is_none() {
        let mut inside = vec![0; 4];
        inside.extend([0x10, 0x05, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let message = Writer::message(Kind::M3)
            .put(attribute::DEVICE_NAME, &inside)
            .finish();
        let read = Attributes::decode(&message).unwrap();
        let missing = Err(WpsError::Attribute(attribute::AUTHENTICATOR));
        assert_eq!(read.sealed(attribute::AUTHENTICATOR), missing);
        let long = vec![0; MAX_MESSAGE + 4];
        assert_eq!(Attributes::decode(&long), Err(WpsError::TooLong));
    }
}
