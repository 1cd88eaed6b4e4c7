//! DeviceProtection:1 among the other machines.
#![forbid(unsafe_code)]

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Effect, EffectError, Iwf, Notice, RequestId, StoreChange, Ticket};
use crate::mapping::policy::Rights;
use crate::proto::protection::{self as access, Protection};
use crate::types::Instant;
use crate::types::access::Identity;
use crate::types::caller::Caller;
use crate::wire::soap::{Call, UpnpError};

impl Iwf {
    /// Takes over what the store kept, if the service is on.
    pub(super) fn restore_access(&mut self, identities: Vec<Identity>) {
        let rng = StdRng::from_seed(self.rng.random());
        let settings = self.settings.protection;
        self.protection = settings.map(|settings| Protection::new(settings, identities, rng));
    }

    /// The machine, if the service is on.
    pub const fn protection(&self) -> Option<&Protection> {
        self.protection.as_ref()
    }

    /// What a caller may besides what everybody may.
    pub(super) fn rights(&self, caller: &Caller) -> Rights {
        let protection = self.protection.as_ref();
        protection.map_or(Rights::Public, |protection| protection.rights(caller))
    }

    pub(super) fn protection_call(
        &mut self,
        request: RequestId,
        caller: Caller,
        call: Call,
        now: Instant,
    ) {
        if self.protection.is_none() {
            return self.reply(request, Err(UpnpError::INVALID_ACTION));
        }
        let input = access::Input::Call {
            request: request.0,
            caller,
            call,
        };
        self.protection_input(input, now);
        self.follow_events(now);
    }

    pub(super) fn protection_command(
        &mut self,
        request: RequestId,
        command: access::OwnerCommand,
        now: Instant,
    ) {
        if self.protection.is_none() {
            self.effects.push_back(Effect::AdminReply {
                request,
                result: Err(OFF.to_owned()),
            });
            return;
        }
        let request = request.0;
        self.protection_input(access::Input::Owner { request, command }, now);
    }

    /// Does what is due.
    pub(super) fn protection_timeout(&mut self, now: Instant) {
        if let Some(protection) = &mut self.protection {
            protection.handle_timeout(now);
            self.follow_protection();
        }
    }

    pub(super) fn protection_input(&mut self, input: access::Input, now: Instant) {
        let Some(protection) = &mut self.protection else {
            return;
        };
        protection.handle_input(input, now);
        self.follow_protection();
    }

    fn follow_protection(&mut self) {
        while let Some(effect) = self.protection.as_mut().and_then(Protection::poll_effect) {
            let effect = match effect {
                access::Effect::Reply { request, result } => Effect::Reply {
                    request: RequestId(request),
                    result,
                },
                access::Effect::OwnerReply { request, result } => Effect::AdminReply {
                    request: RequestId(request),
                    result,
                },
                access::Effect::ShowPin {
                    request,
                    pin,
                    good_for,
                } => Effect::ShowPin {
                    request: RequestId(request),
                    pin,
                    good_for,
                },
                access::Effect::Tell(told) => Effect::Notify(Notice::Introduction(told)),
                access::Effect::HangUp { connection } => Effect::HangUp { connection },
                access::Effect::Store(changes) => {
                    let ticket = self.new_ticket();
                    self.access_ticket = Some(ticket);
                    let change = StoreChange::Access(changes);
                    Effect::Persist { ticket, change }
                }
            };
            self.effects.push_back(effect);
        }
    }

    /// Whether an outcome is that of a change of the access list.
    pub(super) fn access_done(
        &mut self,
        ticket: Ticket,
        result: Result<(), EffectError>,
        now: Instant,
    ) -> bool {
        if self.access_ticket != Some(ticket) {
            return false;
        }
        self.access_ticket = None;
        self.protection_input(access::Input::Stored(result.is_ok()), now);
        true
    }
}

/// What the owner hears while the service is off.
const OFF: &str = "DeviceProtection is off; set device_protection.enabled and restart iwfd";
