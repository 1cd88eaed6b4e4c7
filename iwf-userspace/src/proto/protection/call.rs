//! The actions of the service.

use rand::RngExt;

use super::acl::ListError;
use super::actions::{Admission, Restricted, admission};
use super::introduction::Heard;
use super::login::{self, Challenge};
use super::{Done, Protection, Told};
use crate::types::Instant;
use crate::types::access::{Channel, ControlPointId, Roles, Verifier, Who};
use crate::types::caller::Caller;
use crate::wire::description::Tree;
use crate::wire::protection as document;
use crate::wire::scpd::{self, Service};
use crate::wire::services::DEVICE_PROTECTION;
use crate::wire::soap::{Call, UpnpError, protection as errors};
use crate::wire::wps::MAX_MESSAGE;

/// How control points are introduced.
const WPS: &str = "WPS";
/// How users log in.
const PKCS5: &str = "PKCS5";
/// Longest message of an introduction in base64 that is read, line ends included.
const MAX_TEXT: usize = MAX_MESSAGE * 3 / 2;
/// What a control point is called that does not say how, or that says what nobody could read.
const NAMELESS: &str = "control point";
/// What the id of a service begins with.
const SERVICE_ID: &str = "urn:upnp-org:serviceId:";

/// Who calls, by a certificate.
#[derive(Clone, Copy)]
struct Known {
    connection: u64,
    id: ControlPointId,
}

impl Protection {
    /// Reads a call and does what it asks for, as far as that can be done at once.
    pub(super) fn call(
        &mut self,
        caller: &Caller,
        call: &Call,
        now: Instant,
    ) -> Result<Done, UpnpError> {
        if call.version != DEVICE_PROTECTION.version {
            return Err(UpnpError::INVALID_ACTION);
        }
        let action = DEVICE_PROTECTION.check(call)?;
        let roles = self.roles(caller.channel);
        let known = match caller.channel {
            Channel::Secure {
                connection,
                control_point: Some(id),
            } => Ok(Known { connection, id }),
            Channel::Secure { .. } | Channel::Plain => Err(UpnpError::ACTION_NOT_AUTHORIZED),
        };
        let Admission { full, restricted } = admission(&DEVICE_PROTECTION, action.name);
        let admitted = match (full, restricted) {
            (None, _) => true,
            (Some(_), Restricted::Public) => known.is_ok(),
            (Some(full), Restricted::Basic) => roles.meets(full) || roles.basic,
            (Some(full), Restricted::Nobody) => roles.meets(full),
        };
        if !admitted {
            return Err(UpnpError::ACTION_NOT_AUTHORIZED);
        }
        match action.name {
            "SendSetupMessage" => self.setup_message(caller, known?, call, now),
            "GetSupportedProtocols" => {
                let list = document::protocols(&[WPS], &[PKCS5]);
                Ok(Done::Reply(vec![("ProtocolList", list)]))
            }
            "GetAssignedRoles" => {
                let list = document::role_list(roles);
                Ok(Done::Reply(vec![("RoleList", list)]))
            }
            "GetRolesForAction" => self.roles_for_action(call),
            "GetUserLoginChallenge" => self.challenge(caller, known?, call, now),
            "UserLogin" => self.login(caller, known?, call, now),
            "UserLogout" => {
                if let Ok(known) = known
                    && let Some(connection) = self.connections.get_mut(&known.connection)
                {
                    connection.user = None;
                    connection.challenge = None;
                }
                Ok(Done::Reply(Vec::new()))
            }
            "GetACLData" => {
                // Whoever has no role sees what is said of itself.
                let own = Who::ControlPoint(known?.id);
                let all = roles != Roles::default();
                let shown = self.list.iter().filter(|one| all || one.who == own);
                let list = document::access_list(shown);
                Ok(Done::Reply(vec![("ACL", list)]))
            }
            // What follows changes the access list.
            _ if self.pending.is_some() => Err(errors::BUSY),
            "AddIdentityList" => self.add_identities(call),
            "RemoveIdentity" => {
                let change = self.list.remove(&identity(call)?).map_err(error)?;
                Ok(Done::Store(vec![change], Vec::new()))
            }
            "SetUserLoginPassword" => self.set_password(known?, roles, call),
            "AddRolesForIdentity" => self.change_roles(call, Roles::with),
            "RemoveRolesForIdentity" => self.change_roles(call, Roles::without),
            _ => Err(UpnpError::INVALID_ACTION),
        }
    }

    fn setup_message(
        &mut self,
        caller: &Caller,
        known: Known,
        call: &Call,
        now: Instant,
    ) -> Result<Done, UpnpError> {
        if arg(call, "ProtocolType")?.trim() != WPS {
            return Err(UpnpError::ARGUMENT_VALUE_INVALID);
        }
        let text = arg(call, "InMessage")?;
        if text.len() > MAX_TEXT {
            return Err(errors::PROCESSING_ERROR);
        }
        let message = scpd::octets(text)?;
        let out = |octets: &[u8]| vec![("OutMessage", scpd::base64(octets))];
        // Who cannot be put on the list does not begin.
        self.list.introduce(known.id, NAMELESS).map_err(error)?;
        if message.is_empty() {
            let (own, rng) = (self.settings.certificate, &mut self.rng);
            let introductions = &mut self.introductions;
            let m1 = introductions.begin(own, known.id, caller, rng, now)?;
            return Ok(Done::Reply(out(&m1)));
        }
        if self.pending.is_some() {
            return Err(errors::BUSY);
        }
        match self.introductions.hear(known.id, &message)? {
            Heard::Answer(answer) => Ok(Done::Reply(out(&answer))),
            Heard::Introduced(answer, name) => {
                let name = document::good_name(Some(&name)).unwrap_or(NAMELESS);
                let change = self.list.introduce(known.id, name).map_err(error)?;
                let told = Told::Introduced {
                    control_point: known.id,
                    host: caller.addr,
                };
                Ok(Done::Introduce(change, out(&answer), told))
            }
        }
    }

    fn roles_for_action(&self, call: &Call) -> Result<Done, UpnpError> {
        let invalid = UpnpError::ARGUMENT_VALUE_INVALID;
        let udn = arg(call, "DeviceUDN")?.trim();
        let id = arg(call, "ServiceId")?.trim();
        let id = id.strip_prefix(SERVICE_ID).ok_or(invalid)?;
        let bare = udn.strip_prefix("uuid:").unwrap_or(udn);
        let services = Tree::Protected.root().walk().filter(|device| {
            let own = self.settings.uuid.of(device).to_string();
            own.eq_ignore_ascii_case(bare)
        });
        let mut services = services.flat_map(|device| device.services);
        let service: &Service = services.find(|service| service.id == id).ok_or(invalid)?;
        let action = service.action(arg(call, "ActionName")?.trim());
        let admission = admission(service, action.ok_or(invalid)?.name);
        Ok(Done::Reply(vec![
            ("RoleList", admission.role_list()),
            (
                "RestrictedRoleList",
                admission.restricted_role_list().to_owned(),
            ),
        ]))
    }

    fn challenge(
        &mut self,
        caller: &Caller,
        known: Known,
        call: &Call,
        now: Instant,
    ) -> Result<Done, UpnpError> {
        pkcs5(call)?;
        let name = arg(call, "Name")?;
        let name =
            document::good_name(Some(name)).map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)?;
        if self.attempts.must_wait(caller.into(), now) {
            return Err(errors::BUSY);
        }
        let octets = self.rng.random();
        let salt = match self.list.verifier(name) {
            Some(verifier) => verifier.salt,
            None => login::decoy_salt(&self.secret, name),
        };
        self.connection(known.connection)?.challenge = Some(Challenge {
            name: name.to_owned(),
            octets,
        });
        Ok(Done::Reply(vec![
            ("Salt", scpd::base64(&salt)),
            ("Challenge", scpd::base64(&octets)),
        ]))
    }

    fn login(
        &mut self,
        caller: &Caller,
        known: Known,
        call: &Call,
        now: Instant,
    ) -> Result<Done, UpnpError> {
        pkcs5(call)?;
        let named = scpd::octets(arg(call, "Challenge")?)?;
        let answer = scpd::octets(arg(call, "Authenticator")?)?;
        if self.attempts.must_wait(caller.into(), now) {
            return Err(errors::BUSY);
        }
        // One answer to each challenge.
        let challenge = self.connection(known.connection)?.challenge.take();
        let met = challenge.filter(|challenge| {
            let verifier = self.list.verifier(&challenge.name);
            // Control points know a device by its UDN, or by its certificate as the device knows them.
            let names = [
                self.settings.uuid.octets(),
                self.settings.certificate.octets(),
            ];
            challenge.octets.as_slice() == named
                && verifier.is_some_and(|verifier| {
                    let is_met =
                        |device: &[u8; 16]| challenge.is_met(verifier, *device, known.id, &answer);
                    names.iter().any(is_met)
                })
        });
        let Some(challenge) = met else {
            self.login_failed(known.connection, caller.into(), now);
            return Err(errors::AUTHENTICATION_FAILURE);
        };
        self.attempts.succeeded(caller.into());
        let connection = self.connection(known.connection)?;
        connection.user = Some(challenge.name);
        connection.failures = 0;
        Ok(Done::Reply(Vec::new()))
    }

    fn add_identities(&self, call: &Call) -> Result<Done, UpnpError> {
        let named = document::read_identity_list(arg(call, "IdentityList")?);
        let named = named.map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)?;
        let changes = self.list.add(&named).map_err(error)?;
        let out = document::identity_list(&named);
        Ok(Done::Store(changes, vec![("IdentityListResult", out)]))
    }

    fn set_password(&self, known: Known, roles: Roles, call: &Call) -> Result<Done, UpnpError> {
        pkcs5(call)?;
        let name = arg(call, "Name")?.trim();
        let connection = self.connections.get(&known.connection);
        let own = connection.is_some_and(|connection| connection.user.as_deref() == Some(name));
        if !roles.admin && !own {
            return Err(UpnpError::ACTION_NOT_AUTHORIZED);
        }
        let octets = |argument: &str| -> Result<[u8; login::LEN], UpnpError> {
            let octets = scpd::octets(arg(call, argument)?)?;
            let octets = octets.try_into();
            octets.map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)
        };
        let verifier = Verifier {
            stored: octets("Stored")?,
            salt: octets("Salt")?,
        };
        let change = self.list.with_verifier(name, verifier).map_err(error)?;
        Ok(Done::Store(vec![change], Vec::new()))
    }

    fn change_roles(
        &self,
        call: &Call,
        change: impl FnOnce(Roles, Roles) -> Roles,
    ) -> Result<Done, UpnpError> {
        let who = identity(call)?;
        let roles: Roles = arg(call, "RoleList")?
            .parse()
            .map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)?;
        let change = self.list.with_roles(&who, |before| change(before, roles));
        Ok(Done::Store(vec![change.map_err(error)?], Vec::new()))
    }
}

fn arg<'a>(call: &'a Call, name: &str) -> Result<&'a str, UpnpError> {
    call.arg(name).ok_or(UpnpError::INVALID_ARGS)
}

fn identity(call: &Call) -> Result<Who, UpnpError> {
    let who = document::read_identity(arg(call, "Identity")?);
    who.map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)
}

fn pkcs5(call: &Call) -> Result<(), UpnpError> {
    if arg(call, "ProtocolType")?.trim() == PKCS5 {
        Ok(())
    } else {
        Err(UpnpError::ARGUMENT_VALUE_INVALID)
    }
}

const fn error(error: ListError) -> UpnpError {
    match error {
        ListError::Unknown => UpnpError::ARGUMENT_VALUE_INVALID,
        ListError::Full => UpnpError::OUT_OF_MEMORY,
    }
}
