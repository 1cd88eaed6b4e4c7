//! Who may do more than everybody: control points and users with their roles (DeviceProtection:1 sections 1.4 and 2.3).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names a control point: a UUID that follows from its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ControlPointId([u8; 16]);

/// Names whom the access list knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// A control point, whoever uses it.
    ControlPoint(ControlPointId),
    /// A person with a password, whichever control point is used.
    User(String),
}

/// Roles besides Public, which everybody has. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// May map for others.
    pub basic: bool,
    /// May also say who may what. Includes what Basic may.
    pub admin: bool,
}

/// What a login is checked against. It is as good as the password here, so nothing prints it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifier {
    /// STORED of DeviceProtection:1.
    pub stored: [u8; 16],
    /// Salt.
    pub salt: [u8; 16],
}

/// One entry of the access list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Whom it is about.
    pub who: Who,
    /// Name of the product, of a control point.
    #[serde(default)]
    pub name: String,
    /// Name that a person has given it, of a control point.
    #[serde(default)]
    pub alias: Option<String>,
    /// Whether the control point has proven that its user knows the PIN.
    #[serde(default)]
    pub introduced: bool,
    /// What it may.
    pub roles: Roles,
    /// Of a user that may log in.
    #[serde(default)]
    pub verifier: Option<Verifier>,
}

/// How a call came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// Over plain HTTP.
    #[default]
    Plain,
    /// Over TLS.
    Secure {
        /// Names the connection while it is open; no two ever have the same.
        connection: u64,
        /// Who has shown a certificate and proven that it has the key.
        control_point: Option<ControlPointId>,
    },
}

/// Why a text is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// No UUID.
    #[error("not a UUID")]
    Uuid,
    /// No role.
    #[error("not one of the roles Public, Basic, Admin")]
    Role,
}

impl ControlPointId {
    /// From the SHA-256 of the certificate: its first 16 octets, marked as a name-based UUID (vector DP-02).
    pub fn from_hash(hash: &[u8; 32]) -> Self {
        let first = hash.first_chunk().expect("32 octets are more than 16");
        let bits = u128::from_be_bytes(*first);
        let bits = bits & !(0xf << 76) | (5 << 76);
        let bits = bits & !(0b11 << 62) | (0b10 << 62);
        Self(bits.to_be_bytes())
    }

    /// Its octets.
    pub const fn octets(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for ControlPointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, octet) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{octet:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for ControlPointId {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let text = text.trim();
        let text = text.strip_prefix("uuid:").unwrap_or(text);
        let mut groups = text.split('-');
        let mut digits = String::with_capacity(32);
        for len in [8, 4, 4, 4, 12] {
            let group = groups.next().filter(|group| group.len() == len);
            digits.push_str(group.ok_or(AccessError::Uuid)?);
        }
        if groups.next().is_some() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(AccessError::Uuid);
        }
        let number = u128::from_str_radix(&digits, 16).map_err(|_| AccessError::Uuid)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl From<ControlPointId> for String {
    fn from(id: ControlPointId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ControlPointId {
    type Error = AccessError;

    fn try_from(text: String) -> Result<Self, AccessError> {
        text.parse()
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPoint(id) => write!(f, "{id}"),
            Self::User(name) => f.write_str(name),
        }
    }
}

impl Roles {
    /// Every role.
    pub const ALL: Self = Self {
        basic: true,
        admin: true,
    };
    /// Basic alone.
    pub const BASIC: Self = Self {
        basic: true,
        admin: false,
    };
    /// Admin alone.
    pub const ADMIN: Self = Self {
        basic: false,
        admin: true,
    };

    /// Those of both.
    pub const fn with(self, other: Self) -> Self {
        Self {
            basic: self.basic || other.basic,
            admin: self.admin || other.admin,
        }
    }

    /// Those that the other does not have.
    pub const fn without(self, other: Self) -> Self {
        Self {
            basic: self.basic && !other.basic,
            admin: self.admin && !other.admin,
        }
    }

    /// Whether one of them is in both.
    pub const fn meets(self, other: Self) -> bool {
        (self.basic && other.basic) || (self.admin && other.admin)
    }
}

impl fmt::Display for Roles {
    /// Separated by blanks, without Public.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.basic, self.admin) {
            (false, false) => "",
            (true, false) => "Basic",
            (false, true) => "Admin",
            (true, true) => "Basic Admin",
        })
    }
}

impl FromStr for Roles {
    type Err = AccessError;

    /// Reads names separated by blanks. Public may be among them.
    fn from_str(text: &str) -> Result<Self, AccessError> {
        let mut roles = Self::default();
        for name in text.split_ascii_whitespace() {
            roles = roles.with(match name {
                "Public" => Self::default(),
                "Basic" => Self::BASIC,
                "Admin" => Self::ADMIN,
                _ => return Err(AccessError::Role),
            });
        }
        Ok(roles)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_name_based_uuids_and_read_back() {
        let id = ControlPointId::from_hash(&[0xff; 32]);
        assert_eq!(id.to_string(), "ffffffff-ffff-5fff-bfff-ffffffffffff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(
            format!("uuid:{id}")
                .to_uppercase()
                .parse::<ControlPointId>(),
            Err(AccessError::Uuid)
        );
        for wrong in [
            "",
            "ffffffff-ffff-5fff-bfff-fffffffffff",
            "+fffffff-ffff-5fff-bfff-ffffffffffff",
        ] {
            assert_eq!(
                wrong.parse::<ControlPointId>(),
                Err(AccessError::Uuid),
                "{wrong}"
            );
        }
    }

    #[test]
    fn roles_are_sets_of_names() {
        assert_eq!("Admin Public Basic".parse(), Ok(Roles::ALL));
        assert_eq!("".parse(), Ok(Roles::default()));
        assert_eq!("admin".parse::<Roles>(), Err(AccessError::Role));
        assert_eq!(Roles::ALL.without(Roles::BASIC), Roles::ADMIN);
        assert!(Roles::ALL.meets(Roles::ADMIN) && !Roles::BASIC.meets(Roles::ADMIN));
        assert_eq!(Roles::ALL.to_string(), "Basic Admin");
    }
}
