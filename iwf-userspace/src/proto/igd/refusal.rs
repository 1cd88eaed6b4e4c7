//! From refusals to UPnP errors (RFC 6970 section 4.3, igd-service section 5).

use crate::mapping::policy::{PolicyError, Quota};
use crate::wire::pcp::ResultCode;
use crate::wire::soap::UpnpError;

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The server refused.
    #[error("the PCP server answered {0}")]
    Upstream(ResultCode),
    /// No answer in time, or nothing to send it on.
    #[error("the PCP server did not answer")]
    Unreachable,
    /// Policy forbids it.
    #[error("{0}")]
    Policy(PolicyError),
    /// It is another host's, or the owner's.
    #[error("it is not the control point's to have")]
    NotAuthorized,
    /// Another mapping holds the port.
    #[error("another mapping holds the port")]
    PortTaken,
    /// This machine or a static forward uses the port.
    #[error("this machine or a static forward uses the port")]
    Reserved,
    /// Behind a private address without anybody to ask (AMB-13).
    #[error("the WAN address is private and no PCP server is known")]
    NoServer,
    /// A bound is reached that the owner has set.
    #[error("{0}")]
    Quota(Quota),
    /// There is no port or no room left.
    #[error("there is no room for it")]
    NoRoom,
    /// There is no such mapping.
    #[error("there is no such mapping")]
    Absent,
    /// A mapping cannot be disabled (AMB-10).
    #[error("a mapping cannot be disabled")]
    Disabled,
    /// Store or kernel failed.
    #[error("the store or the kernel failed")]
    Failed,
}

/// What was asked for: some results mean different things in different actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// AddPortMapping, AddAnyPortMapping.
    Add,
    /// GetSpecificPortMappingEntry, GetGenericPortMappingEntry.
    Read,
    /// DeletePortMapping.
    Delete,
}

/// The error that tells a control point of a refusal; `version_1` says which URN it called.
pub const fn upnp_error(refusal: Refusal, operation: Operation, version_1: bool) -> UpnpError {
    if version_1 {
        error_1(refusal, operation)
    } else {
        error_2(refusal, operation)
    }
}

const fn error_2(refusal: Refusal, operation: Operation) -> UpnpError {
    match refusal {
        Refusal::Upstream(result) => upstream_2(result, operation),
        Refusal::Unreachable | Refusal::Disabled | Refusal::Failed => UpnpError::ACTION_FAILED,
        Refusal::NotAuthorized | Refusal::Policy(_) => UpnpError::ACTION_NOT_AUTHORIZED,
        Refusal::PortTaken => UpnpError::CONFLICT_IN_MAPPING_ENTRY,
        Refusal::Reserved | Refusal::NoServer => UpnpError::CONFLICT_WITH_OTHER_MECHANISMS,
        Refusal::NoRoom | Refusal::Quota(_) => UpnpError::NO_PORT_MAPS_AVAILABLE,
        Refusal::Absent => UpnpError::NO_SUCH_ENTRY_IN_ARRAY,
    }
}

const fn error_1(refusal: Refusal, operation: Operation) -> UpnpError {
    match refusal {
        Refusal::Upstream(result) => upstream_1(result, operation),
        // 728 is not of version 1.
        Refusal::Unreachable
        | Refusal::Disabled
        | Refusal::Failed
        | Refusal::NoRoom
        | Refusal::Quota(_) => UpnpError::ACTION_FAILED,
        // Version 1 knows no access control; its control points understand a conflict (IGD1-005).
        Refusal::NotAuthorized | Refusal::Policy(_) => match operation {
            Operation::Add => UpnpError::CONFLICT_IN_MAPPING_ENTRY,
            Operation::Read | Operation::Delete => UpnpError::ACTION_NOT_AUTHORIZED,
        },
        Refusal::PortTaken => UpnpError::CONFLICT_IN_MAPPING_ENTRY,
        Refusal::Reserved | Refusal::NoServer => UpnpError::CONFLICT_WITH_OTHER_MECHANISMS,
        Refusal::Absent => UpnpError::NO_SUCH_ENTRY_IN_ARRAY,
    }
}

const fn upstream_2(result: ResultCode, operation: Operation) -> UpnpError {
    match result {
        ResultCode::NotAuthorized => UpnpError::ACTION_NOT_AUTHORIZED,
        ResultCode::NoResources | ResultCode::UserExQuota => UpnpError::NO_PORT_MAPS_AVAILABLE,
        ResultCode::CannotProvideExternal => conflict(operation),
        ResultCode::Success
        | ResultCode::UnsuppVersion
        | ResultCode::MalformedRequest
        | ResultCode::UnsuppOpcode
        | ResultCode::UnsuppOption
        | ResultCode::MalformedOption
        | ResultCode::NetworkFailure
        | ResultCode::UnsuppProtocol
        | ResultCode::AddressMismatch
        | ResultCode::ExcessiveRemotePeers
        | ResultCode::Initiation
        | ResultCode::AuthenticationRequired
        | ResultCode::AuthenticationFailed
        | ResultCode::AuthenticationSucceeded
        | ResultCode::AuthorizationFailed
        | ResultCode::SessionTerminated
        | ResultCode::UnknownSessionId
        | ResultCode::DowngradeAttackDetected
        | ResultCode::AuthenticationRequest
        | ResultCode::AuthenticationReply
        | ResultCode::ThirdPartyIdUnknown
        | ResultCode::ThirdPartyMissingOption
        | ResultCode::UnsuppThirdPartyIdLength
        | ResultCode::Other(_) => UpnpError::ACTION_FAILED,
    }
}

const fn upstream_1(result: ResultCode, operation: Operation) -> UpnpError {
    match result {
        ResultCode::NotAuthorized => UpnpError::CONFLICT_IN_MAPPING_ENTRY,
        ResultCode::CannotProvideExternal => conflict(operation),
        ResultCode::Success
        | ResultCode::UnsuppVersion
        | ResultCode::MalformedRequest
        | ResultCode::UnsuppOpcode
        | ResultCode::UnsuppOption
        | ResultCode::MalformedOption
        | ResultCode::NetworkFailure
        | ResultCode::NoResources
        | ResultCode::UnsuppProtocol
        | ResultCode::UserExQuota
        | ResultCode::AddressMismatch
        | ResultCode::ExcessiveRemotePeers
        | ResultCode::Initiation
        | ResultCode::AuthenticationRequired
        | ResultCode::AuthenticationFailed
        | ResultCode::AuthenticationSucceeded
        | ResultCode::AuthorizationFailed
        | ResultCode::SessionTerminated
        | ResultCode::UnknownSessionId
        | ResultCode::DowngradeAttackDetected
        | ResultCode::AuthenticationRequest
        | ResultCode::AuthenticationReply
        | ResultCode::ThirdPartyIdUnknown
        | ResultCode::ThirdPartyMissingOption
        | ResultCode::UnsuppThirdPartyIdLength
        | ResultCode::Other(_) => UpnpError::ACTION_FAILED,
    }
}

/// RFC 6970 section 4.3: 718 for adding, 714 for the probe behind a reading action.
const fn conflict(operation: Operation) -> UpnpError {
    match operation {
        Operation::Add => UpnpError::CONFLICT_IN_MAPPING_ENTRY,
        Operation::Read | Operation::Delete => UpnpError::NO_SUCH_ENTRY_IN_ARRAY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_rfc_6970() {
        for (result, igd1, igd2) in [
            (1, 501, 501),
            (2, 718, 606),
            (3, 501, 501),
            (4, 501, 501),
            (5, 501, 501),
            (6, 501, 501),
            (7, 501, 501),
            (8, 501, 728),
            (9, 501, 501),
            (10, 501, 728),
            (11, 718, 718),
            (12, 501, 501),
            (13, 501, 501),
        ] {
            let refusal = Refusal::Upstream(ResultCode::from_number(result));
            assert_eq!(upnp_error(refusal, Operation::Add, true).code, igd1);
            assert_eq!(upnp_error(refusal, Operation::Add, false).code, igd2);
        }
        let taken = Refusal::Upstream(ResultCode::CannotProvideExternal);
        for version_1 in [true, false] {
            assert_eq!(upnp_error(taken, Operation::Read, version_1).code, 714);
        }
    }

    #[test]
    fn codes_724_to_727_are_never_used() {
        let refusals = [
            Refusal::Unreachable,
            Refusal::NotAuthorized,
            Refusal::Policy(PolicyError::OtherHost),
            Refusal::Quota(Quota::Host),
            Refusal::PortTaken,
            Refusal::Reserved,
            Refusal::NoServer,
            Refusal::NoRoom,
            Refusal::Absent,
            Refusal::Disabled,
            Refusal::Failed,
        ];
        let upstream = (0..=255).map(|n| Refusal::Upstream(ResultCode::from_number(n)));
        for refusal in refusals.into_iter().chain(upstream) {
            for operation in [Operation::Add, Operation::Read, Operation::Delete] {
                for version_1 in [true, false] {
                    let code = upnp_error(refusal, operation, version_1).code;
                    assert!(!(724..=727).contains(&code));
                    assert!(!(version_1 && code == 728), "not of version 1");
                }
            }
        }
    }
}
