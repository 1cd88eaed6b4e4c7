//! Which roles may call which actions of the device (DeviceProtection:1 section 2.4, WANIPConnection:2 section 2.5).

use crate::types::access::Roles;
use crate::wire::scpd::Service;

/// Who may call an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// Roles that may call it in full. `None`: everybody.
    pub(super) full: Option<Roles>,
    /// Who may call it in part.
    pub(super) restricted: Restricted,
}

/// Who may call an action in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restricted {
    /// Nobody.
    Nobody,
    /// Everybody; here it takes a certificate.
    Public,
    /// Basic.
    Basic,
}

const EVERYBODY: Admission = Admission {
    full: None,
    restricted: Restricted::Nobody,
};
const OWN_FOR_EVERYBODY: Admission = Admission {
    full: Some(Roles::ALL),
    restricted: Restricted::Public,
};
const ADMIN: Admission = Admission {
    full: Some(Roles::ADMIN),
    restricted: Restricted::Nobody,
};
/// Nobody needs it: the connection follows from how this machine is connected.
const NOBODY: Admission = Admission {
    full: Some(Roles {
        basic: false,
        admin: false,
    }),
    restricted: Restricted::Nobody,
};

/// Who may call an action.
pub(super) fn admission(service: &Service, action: &str) -> Admission {
    match (service.kind, action) {
        (
            super::SERVICE,
            "GetRolesForAction" | "GetUserLoginChallenge" | "UserLogin" | "GetACLData",
        )
        | (
            "WANIPConnection",
            "AddPortMapping"
            | "AddAnyPortMapping"
            | "DeletePortMapping"
            | "DeletePortMappingRange"
            | "GetListOfPortMappings"
            | "GetGenericPortMappingEntry"
            | "GetSpecificPortMappingEntry",
        )
        | (
            "WANIPv6FirewallControl",
            "AddPinhole"
            | "UpdatePinhole"
            | "DeletePinhole"
            | "GetPinholePackets"
            | "CheckPinholeWorking",
        ) => OWN_FOR_EVERYBODY,
        (super::SERVICE, "AddIdentityList") => Admission {
            full: Some(Roles::ALL),
            restricted: Restricted::Nobody,
        },
        (super::SERVICE, "RemoveIdentity" | "AddRolesForIdentity" | "RemoveRolesForIdentity") => {
            ADMIN
        }
        (super::SERVICE, "SetUserLoginPassword") => Admission {
            restricted: Restricted::Basic,
            ..ADMIN
        },
        ("WANIPConnection", "ForceTermination" | "SetConnectionType") => NOBODY,
        _ => EVERYBODY,
    }
}

impl Admission {
    /// RoleList of GetRolesForAction.
    pub(super) fn role_list(self) -> String {
        match self.full {
            None => "Public Basic Admin".to_owned(),
            Some(roles) => roles.to_string(),
        }
    }

    /// RestrictedRoleList of GetRolesForAction.
    pub(super) fn restricted_role_list(self) -> &'static str {
        match self.restricted {
            Restricted::Nobody => "",
            Restricted::Public => "Public",
            Restricted::Basic => "Basic",
        }
    }
}
