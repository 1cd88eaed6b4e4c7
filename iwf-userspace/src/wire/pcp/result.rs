//! Result codes (RFC 6887 section 7.4, RFC 7652, RFC 7843).

use std::fmt;

use crate::types::Lifetime;

macro_rules! result_codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal $name:literal $class:ident,)*) => {
        /// The outcome that a server reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ResultCode {
            $($(#[$doc])* $variant,)*
            /// A code that no document read here defines: 27 and above.
            Other(u8),
        }

        impl ResultCode {
            /// The code with this number.
            pub const fn from_number(number: u8) -> Self {
                match number {
                    $($code => Self::$variant,)*
                    other => Self::Other(other),
                }
            }

            /// The number on the wire.
            pub const fn number(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(number) => number,
                }
            }

            /// The name in the registry.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Other(_) => "unknown result",
                }
            }

            /// How long its cause is expected to last.
            pub const fn class(self) -> ResultClass {
                match self {
                    $(Self::$variant => ResultClass::$class,)*
                    Self::Other(_) => ResultClass::Unspecified,
                }
            }
        }
    };
}

result_codes! {
    /// The request was carried out.
    Success = 0 "SUCCESS" Success,
    /// The server does not speak this version.
    UnsuppVersion = 1 "UNSUPP_VERSION" Long,
    /// Policy forbids it, or the nonce is not the mapping's.
    NotAuthorized = 2 "NOT_AUTHORIZED" Long,
    /// The request could not be parsed.
    MalformedRequest = 3 "MALFORMED_REQUEST" Long,
    /// The server does not know or offer the opcode.
    UnsuppOpcode = 4 "UNSUPP_OPCODE" Long,
    /// A mandatory option is unknown or disabled.
    UnsuppOption = 5 "UNSUPP_OPTION" Long,
    /// An option is malformed, repeated or out of place.
    MalformedOption = 6 "MALFORMED_OPTION" Long,
    /// The server or what it controls lost its network.
    NetworkFailure = 7 "NETWORK_FAILURE" Short,
    /// The server is short of room or ports.
    NoResources = 8 "NO_RESOURCES" Short,
    /// The transport protocol cannot be mapped.
    UnsuppProtocol = 9 "UNSUPP_PROTOCOL" Long,
    /// This subscriber has used up its share.
    UserExQuota = 10 "USER_EX_QUOTA" Short,
    /// The external endpoint that was insisted on is not available.
    CannotProvideExternal = 11 "CANNOT_PROVIDE_EXTERNAL" ByLifetime,
    /// The packet's source is not the client address in the message: a NAT is in between.
    AddressMismatch = 12 "ADDRESS_MISMATCH" Long,
    /// More FILTER options than the server can hold.
    ExcessiveRemotePeers = 13 "EXCESSIVE_REMOTE_PEERS" Long,
    /// RFC 7652.
    Initiation = 14 "INITIATION" Unspecified,
    /// RFC 7652.
    AuthenticationRequired = 15 "AUTHENTICATION_REQUIRED" Unspecified,
    /// RFC 7652.
    AuthenticationFailed = 16 "AUTHENTICATION_FAILED" Unspecified,
    /// RFC 7652.
    AuthenticationSucceeded = 17 "AUTHENTICATION_SUCCEEDED" Unspecified,
    /// RFC 7652.
    AuthorizationFailed = 18 "AUTHORIZATION_FAILED" Unspecified,
    /// RFC 7652.
    SessionTerminated = 19 "SESSION_TERMINATED" Unspecified,
    /// RFC 7652.
    UnknownSessionId = 20 "UNKNOWN_SESSION_ID" Unspecified,
    /// RFC 7652.
    DowngradeAttackDetected = 21 "DOWNGRADE_ATTACK_DETECTED" Unspecified,
    /// RFC 7652.
    AuthenticationRequest = 22 "AUTHENTICATION_REQUEST" Unspecified,
    /// RFC 7652.
    AuthenticationReply = 23 "AUTHENTICATION_REPLY" Unspecified,
    /// RFC 7843.
    ThirdPartyIdUnknown = 24 "THIRD_PARTY_ID_UNKNOWN" Long,
    /// RFC 7843.
    ThirdPartyMissingOption = 25 "THIRD_PARTY_MISSING_OPTION" Long,
    /// RFC 7843.
    UnsuppThirdPartyIdLength = 26 "UNSUPP_THIRD_PARTY_ID_LENGTH" Long,
}

/// How long the cause of a result is expected to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultClass {
    /// No error.
    Success,
    /// Repeating the request soon is pointless.
    Long,
    /// May pass by itself.
    Short,
    /// Neither: the lifetime of the response tells (AMB-08).
    ByLifetime,
    /// A step of an authentication exchange, or unknown.
    Unspecified,
}

impl ResultCode {
    /// Lifetime a server puts into an error of this class when it knows nothing better (RFC 6887 section 7.4).
    pub const fn error_lifetime(self) -> Lifetime {
        match self.class() {
            ResultClass::Success => Lifetime(0),
            ResultClass::Short | ResultClass::ByLifetime => Lifetime(30),
            ResultClass::Long | ResultClass::Unspecified => Lifetime(1800),
        }
    }
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_round_trips() {
        for number in 0..=u8::MAX {
            let code = ResultCode::from_number(number);
            assert_eq!(code.number(), number);
            assert_eq!(matches!(code, ResultCode::Other(_)), number > 26);
        }
    }

    #[test]
    fn classes_follow_the_registry() {
        let short = (0..=26)
            .filter(|n| ResultCode::from_number(*n).class() == ResultClass::Short)
            .collect::<Vec<_>>();
        assert_eq!(short, [7, 8, 10]);
        assert_eq!(
            ResultCode::CannotProvideExternal.class(),
            ResultClass::ByLifetime
        );
        assert_eq!(ResultCode::NoResources.error_lifetime(), Lifetime(30));
        assert_eq!(ResultCode::NotAuthorized.error_lifetime(), Lifetime(1800));
    }
}
