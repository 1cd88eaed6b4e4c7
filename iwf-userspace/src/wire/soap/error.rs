//! UPnP error codes.

use std::fmt;

/// A UPnP error: code and its description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpnpError {
    /// Numeric code, 401 to 899.
    pub code: u16,
    /// Standard text of that code.
    pub description: &'static str,
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal $text:literal,)*) => {
        impl UpnpError {
            $($(#[$doc])* pub const $name: Self = Self { code: $code, description: $text };)*

            /// Every error above, by rising code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

// Codes 701 to 709 mean other things in WANIPv6FirewallControl and DeviceProtection.
errors! {
    /// No such action in this service and version.
    INVALID_ACTION = 401 "Invalid Action",
    /// An argument is missing, unknown, repeated or of the wrong type.
    INVALID_ARGS = 402 "Invalid Args",
    /// A query names no variable that has a value.
    INVALID_VAR = 404 "Invalid Var",
    /// General failure; also an interworking function without an answering server.
    ACTION_FAILED = 501 "Action Failed",
    /// A value is invalid.
    ARGUMENT_VALUE_INVALID = 600 "Argument Value Invalid",
    /// A value is outside of the allowed list or range.
    ARGUMENT_VALUE_OUT_OF_RANGE = 601 "Argument Value Out of Range",
    /// The standard allows to leave this action out.
    OPTIONAL_ACTION_NOT_IMPLEMENTED = 602 "Optional Action Not Implemented",
    /// Not enough memory for now.
    OUT_OF_MEMORY = 603 "Out of Memory",
    /// A person has to do something first.
    HUMAN_INTERVENTION_REQUIRED = 604 "Human Intervention Required",
    /// A string is longer than what is stored.
    STRING_ARGUMENT_TOO_LONG = 605 "String Argument Too Long",
    /// Policy forbids it for this caller.
    ACTION_NOT_AUTHORIZED = 606 "Action not authorized",
    /// SetConnectionType needs a connection that is down.
    INACTIVE_CONNECTION_STATE_REQUIRED = 703 "InactiveConnectionStateRequired",
    /// RequestConnection failed.
    CONNECTION_SETUP_FAILED = 704 "ConnectionSetupFailed",
    /// RequestConnection is under way.
    CONNECTION_SETUP_IN_PROGRESS = 705 "ConnectionSetupInProgress",
    /// The connection has no configuration.
    CONNECTION_NOT_CONFIGURED = 706 "ConnectionNotConfigured",
    /// The connection is being taken down.
    DISCONNECT_IN_PROGRESS = 707 "DisconnectInProgress",
    /// The link's address is invalid.
    INVALID_LAYER2_ADDRESS = 708 "InvalidLayer2Address",
    /// Internet access is switched off.
    INTERNET_ACCESS_DISABLED = 709 "InternetAccessDisabled",
    /// The connection's type does not allow it.
    INVALID_CONNECTION_TYPE = 710 "InvalidConnectionType",
    /// The connection is down already.
    CONNECTION_ALREADY_TERMINATED = 711 "ConnectionAlreadyTerminated",
    /// An index is beyond the end.
    SPECIFIED_ARRAY_INDEX_INVALID = 713 "SpecifiedArrayIndexInvalid",
    /// No such mapping.
    NO_SUCH_ENTRY_IN_ARRAY = 714 "NoSuchEntryInArray",
    /// InternalClient is empty.
    WILDCARD_NOT_PERMITTED_IN_SRC_IP = 715 "WildCardNotPermittedInSrcIP",
    /// External port 0 is not offered.
    WILDCARD_NOT_PERMITTED_IN_EXT_PORT = 716 "WildCardNotPermittedInExtPort",
    /// Another client holds the external port.
    CONFLICT_IN_MAPPING_ENTRY = 718 "ConflictInMappingEntry",
    /// Version 1 only: internal and external port have to be the same.
    SAME_PORT_VALUES_REQUIRED = 724 "SamePortValuesRequired",
    /// Version 1 only: leases cannot end.
    ONLY_PERMANENT_LEASES_SUPPORTED = 725 "OnlyPermanentLeasesSupported",
    /// Version 1 only: RemoteHost has to be empty.
    REMOTE_HOST_ONLY_SUPPORTS_WILDCARD = 726 "RemoteHostOnlySupportsWildcard",
    /// Version 1 only: the external port has to be 0.
    EXTERNAL_PORT_ONLY_SUPPORTS_WILDCARD = 727 "ExternalPortOnlySupportsWildcard",
    /// No room for another mapping.
    NO_PORT_MAPS_AVAILABLE = 728 "NoPortMapsAvailable",
    /// Something else than a UPnP mapping holds the port.
    CONFLICT_WITH_OTHER_MECHANISMS = 729 "ConflictWithOtherMechanisms",
    /// No mapping in the range.
    PORT_MAPPING_NOT_FOUND = 730 "PortMappingNotFound",
    /// The variable cannot be set.
    READ_ONLY = 731 "ReadOnly",
    /// Internal port 0.
    WILDCARD_NOT_PERMITTED_IN_INT_PORT = 732 "WildCardNotPermittedInIntPort",
    /// Two values contradict each other.
    INCONSISTENT_PARAMETERS = 733 "InconsistentParameters",
}

/// The errors that WANIPv6FirewallControl:1 has besides those of every service.
pub mod firewall {
    use super::UpnpError;

    const fn error(code: u16, description: &'static str) -> UpnpError {
        UpnpError { code, description }
    }

    /// No room for another pinhole.
    pub const PINHOLE_SPACE_EXHAUSTED: UpnpError = error(701, "PinholeSpaceExhausted");
    /// Everything passes: there is nothing to make holes in.
    pub const FIREWALL_DISABLED: UpnpError = error(702, "FirewallDisabled");
    /// The owner of the router wants no pinholes.
    pub const INBOUND_PINHOLE_NOT_ALLOWED: UpnpError = error(703, "InboundPinholeNotAllowed");
    /// No pinhole has this id.
    pub const NO_SUCH_ENTRY: UpnpError = error(704, "NoSuchEntry");
    /// Pinholes of this protocol are not offered.
    pub const PROTOCOL_NOT_SUPPORTED: UpnpError = error(705, "ProtocolNotSupported");
    /// The internal port has to be named.
    pub const INTERNAL_PORT_WILDCARDING_NOT_ALLOWED: UpnpError =
        error(706, "InternalPortWildcardingNotAllowed");
    /// The protocol has to be named.
    pub const PROTOCOL_WILDCARDING_NOT_ALLOWED: UpnpError =
        error(707, "ProtocolWildcardingNotAllowed");
    /// The internal client has to be named.
    pub const WILDCARD_NOT_PERMITTED_IN_SRC_IP: UpnpError =
        error(708, "WildCardNotPermittedInSrcIP");
    /// Nothing has come in by the pinhole.
    pub const NO_TRAFFIC_RECEIVED: UpnpError = error(709, "NoTrafficReceived");
}

/// The errors that DeviceProtection:1 has besides those of every service.
pub mod protection {
    use super::UpnpError;

    const fn error(code: u16, description: &'static str) -> UpnpError {
        UpnpError { code, description }
    }

    /// The password or the PIN is not the right one.
    pub const AUTHENTICATION_FAILURE: UpnpError = error(701, "Authentication Failure");
    /// A message of the introduction is not what it should be.
    pub const PROCESSING_ERROR: UpnpError = error(704, "Processing Error");
    /// Somebody else is being introduced, or it has been tried too often.
    pub const BUSY: UpnpError = error(708, "Busy");
}

impl fmt::Display for UpnpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_rise_and_stay_in_range() {
        assert!(UpnpError::ALL.windows(2).all(|w| w[0].code < w[1].code));
        assert!(UpnpError::ALL.iter().all(|e| (401..900).contains(&e.code)));
    }
}
