//! DeviceProtection:1: who calls, what that one may, and who says so.
//!
//! Read before editing: DeviceProtection:1 sections 1.4, 2.3 and 2.4; requirements DP.
//!
//! A control point is who has shown its certificate on the TLS connection that a call came by; a user is who has logged in
//! on that connection. The roles of both count together. A change of the access list counts when it is stored, and only
//! one is under way at a time.
#![forbid(unsafe_code)]

mod acl;
mod actions;
mod call;
mod enrollee;
mod introduction;
mod login;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::mapping::policy::Rights;
use crate::types::Instant;
use crate::types::access::{Channel, ControlPointId, Identity, Roles, Verifier, Who};
use crate::types::caller::{Caller, Station};
use crate::types::pin::Pin;
use crate::wire::description::DeviceUuid;
use crate::wire::soap::{ActionResult, Call, UpnpError, protection as errors};

use acl::{AccessList, ListError};
use introduction::Introductions;
use login::{Attempts, Challenge};

pub use acl::{Change, MAX_IDENTITIES};
pub use introduction::{Standing, Told};
pub use login::verifier;

#[cfg(test)]
pub(crate) use enrollee::tests::Registrar;

/// Type of the service.
pub const SERVICE: &str = "DeviceProtection";

/// Connections that something is remembered of. There are fewer places for them.
const MAX_CONNECTIONS: usize = 256;

/// Who the device is to control points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Base of its UDNs.
    pub uuid: DeviceUuid,
    /// What follows from its certificate, as the name of a control point does.
    pub certificate: ControlPointId,
}

/// What the world tells.
#[derive(Clone, Debug)]
pub enum Input {
    /// A call of the service. Answered by [`Effect::Reply`].
    Call {
        /// Names it in the answer.
        request: u64,
        /// Who calls.
        caller: Caller,
        /// The call.
        call: Call,
    },
    /// The owner of the router wants something. Answered by [`Effect::OwnerReply`].
    Owner {
        /// Names it in the answer.
        request: u64,
        /// What.
        command: OwnerCommand,
    },
    /// A connection is closed.
    Closed {
        /// Which.
        connection: u64,
    },
    /// Whether [`Effect::Store`] is done.
    Stored(bool),
}

/// What the owner of the router may want.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnerCommand {
    /// Add a user, or give a known one another password and other roles.
    PutUser {
        /// Name.
        name: String,
        /// All of the roles from now on.
        roles: Roles,
        /// What is kept of the password.
        verifier: Verifier,
    },
    /// Change what an identity may.
    SetRoles {
        /// Whose.
        who: Who,
        /// All of the roles from now on.
        roles: Roles,
    },
    /// Remove an identity.
    Remove(Who),
    /// Show a PIN by which one control point can be introduced. Answered by [`Effect::ShowPin`].
    ShowPin,
    /// That PIN is not good any more.
    WithdrawPin,
}

/// What is wanted of the world.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Answer a call.
    Reply {
        /// Which.
        request: u64,
        /// The answer.
        result: ActionResult,
    },
    /// Answer the owner; an error is a sentence for people.
    OwnerReply {
        /// Which request.
        request: u64,
        /// The answer.
        result: Result<(), String>,
    },
    /// Answer the owner with a PIN.
    ShowPin {
        /// Which request.
        request: u64,
        /// The PIN.
        pin: Pin,
        /// How long it is good.
        good_for: Duration,
    },
    /// Tell the owner what happened.
    Tell(Told),
    /// Store these changes, all or none, and say whether they are.
    Store(Vec<Change>),
    /// Close a connection when what it waits for is answered.
    HangUp {
        /// Which.
        connection: u64,
    },
}

/// What is remembered of a connection.
#[derive(Default)]
struct Connection {
    user: Option<String>,
    challenge: Option<Challenge>,
    failures: u8,
}

/// Who waits for a change of the access list.
#[derive(Debug)]
enum Asker {
    ControlPoint(u64, Vec<(&'static str, String)>),
    /// It is being introduced.
    Introduced(u64, Vec<(&'static str, String)>, Told),
    Owner(u64),
}

/// The machine.
pub struct Protection {
    settings: Settings,
    list: AccessList,
    connections: BTreeMap<u64, Connection>,
    attempts: Attempts,
    introductions: Introductions,
    pending: Option<(Asker, Vec<Change>)>,
    /// Makes salts of names that nobody has.
    secret: [u8; 32],
    rng: StdRng,
    effects: VecDeque<Effect>,
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protection")
            .field("settings", &self.settings)
            .field("list", &self.list)
            .finish_non_exhaustive()
    }
}

impl Protection {
    /// A machine with an access list that was kept. What is over [`MAX_IDENTITIES`] is kept as well.
    pub fn new(settings: Settings, kept: Vec<Identity>, mut rng: StdRng) -> Self {
        let mut list = AccessList::default();
        for identity in kept {
            list.apply(Change::Put(identity));
        }
        Self {
            settings,
            list,
            connections: BTreeMap::new(),
            attempts: Attempts::default(),
            introductions: Introductions::default(),
            pending: None,
            secret: rng.random(),
            rng,
            effects: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        self.handle_timeout(now);
        match input {
            Input::Call {
                request,
                caller,
                call,
            } => match self.call(&caller, &call, now) {
                Ok(Done::Reply(out)) => self.reply(request, Ok(out)),
                Ok(Done::Store(changes, out)) => {
                    self.store(Asker::ControlPoint(request, out), changes);
                }
                Ok(Done::Introduce(change, out, told)) => {
                    self.store(Asker::Introduced(request, out, told), vec![change]);
                }
                Err(error) => self.reply(request, Err(error)),
            },
            Input::Owner {
                request,
                command: OwnerCommand::ShowPin,
            } => {
                let pin = self.introductions.open(&mut self.rng, now);
                self.effects.push_back(Effect::ShowPin {
                    request,
                    pin,
                    good_for: introduction::GOOD_FOR,
                });
            }
            Input::Owner {
                request,
                command: OwnerCommand::WithdrawPin,
            } => {
                self.introductions.close();
                self.answer(Asker::Owner(request), true);
            }
            Input::Owner { request, command } => match self.command(command) {
                Ok(change) => self.store(Asker::Owner(request), vec![change]),
                Err(problem) => self.effects.push_back(Effect::OwnerReply {
                    request,
                    result: Err(problem),
                }),
            },
            Input::Closed { connection } => {
                self.connections.remove(&connection);
            }
            Input::Stored(done) => self.stored(done),
        }
        self.tell();
    }

    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.introductions.handle_timeout(now);
        self.tell();
    }

    /// When [`Protection::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.introductions.poll_timeout()
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Who the device is.
    pub const fn settings(&self) -> Settings {
        self.settings
    }

    /// The access list.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.list.iter()
    }

    /// Users that are logged in on a connection.
    pub fn logins(&self) -> impl Iterator<Item = &str> {
        let connections = self.connections.values();
        connections.filter_map(|connection| connection.user.as_deref())
    }

    /// SetupReady: whether a control point can be introduced now.
    pub const fn setup_ready(&self) -> bool {
        self.introductions.is_ready()
    }

    /// How it stands with the introduction of control points; `None`: no PIN is shown.
    pub fn introduction(&self) -> Option<Standing> {
        self.introductions.standing()
    }

    /// What a caller may in other services.
    pub fn rights(&self, caller: &Caller) -> Rights {
        if self.roles(caller.channel) == Roles::default() {
            Rights::Public
        } else {
            Rights::Authorized
        }
    }

    /// Roles of who is at the other end.
    fn roles(&self, channel: Channel) -> Roles {
        match channel {
            Channel::Plain
            | Channel::Secure {
                control_point: None,
                ..
            } => Roles::default(),
            Channel::Secure {
                connection,
                control_point: Some(id),
            } => {
                let user = self.connections.get(&connection);
                let user = user.and_then(|connection| connection.user.clone());
                let user = user.map(|name| self.list.roles(&Who::User(name)));
                let of_control_point = self.list.roles(&Who::ControlPoint(id));
                of_control_point.with(user.unwrap_or_default())
            }
        }
    }

    fn tell(&mut self) {
        while let Some(told) = self.introductions.poll_told() {
            self.effects.push_back(Effect::Tell(told));
        }
    }

    fn reply(&mut self, request: u64, result: ActionResult) {
        self.effects.push_back(Effect::Reply { request, result });
    }

    fn store(&mut self, asker: Asker, changes: Vec<Change>) {
        if changes.is_empty() {
            return self.answer(asker, true);
        }
        self.effects.push_back(Effect::Store(changes.clone()));
        self.pending = Some((asker, changes));
    }

    fn stored(&mut self, done: bool) {
        let Some((asker, changes)) = self.pending.take() else {
            return;
        };
        if done {
            for change in changes {
                self.end_logins(&change);
                self.list.apply(change);
            }
        }
        self.answer(asker, done);
    }

    /// Nobody stays logged in with a password that is another one now.
    fn end_logins(&mut self, change: &Change) {
        let who = match change {
            Change::Put(identity) => {
                let before = self.list.get(&identity.who);
                if before.is_none_or(|before| before.verifier == identity.verifier) {
                    return;
                }
                &identity.who
            }
            Change::Remove(who) => who,
        };
        if let Who::User(name) = who {
            for connection in self.connections.values_mut() {
                if connection.user.as_ref() == Some(name) {
                    connection.user = None;
                }
            }
        }
    }

    fn answer(&mut self, asker: Asker, done: bool) {
        if let (Asker::Introduced(_, _, told), true) = (&asker, done) {
            self.effects.push_back(Effect::Tell(*told));
        }
        match asker {
            Asker::ControlPoint(request, out) | Asker::Introduced(request, out, _) => {
                let result = if done {
                    Ok(out)
                } else {
                    Err(UpnpError::ACTION_FAILED)
                };
                self.reply(request, result);
            }
            Asker::Owner(request) => {
                let failed = || "the store failed; nothing was changed".to_owned();
                let result = if done { Ok(()) } else { Err(failed()) };
                self.effects
                    .push_back(Effect::OwnerReply { request, result });
            }
        }
    }

    fn command(&self, command: OwnerCommand) -> Result<Change, String> {
        if self.pending.is_some() {
            return Err("the access list is being changed right now; try again".to_owned());
        }
        let full = || {
            format!(
                "the access list is full ({MAX_IDENTITIES} identities); remove one that is not needed"
            )
        };
        let problem = |who: &Who| {
            let unknown = format!("the access list has no {who}");
            move |error| match error {
                ListError::Unknown => unknown,
                ListError::Full => full(),
            }
        };
        match command {
            OwnerCommand::PutUser {
                name,
                roles,
                verifier,
            } => {
                let change = self.list.user(&name, roles, verifier);
                change.map_err(problem(&Who::User(name)))
            }
            OwnerCommand::SetRoles { who, roles } => {
                let change = self.list.with_roles(&who, |_| roles);
                change.map_err(problem(&who))
            }
            OwnerCommand::Remove(who) => self.list.remove(&who).map_err(problem(&who)),
            // No change of the list; the caller has seen to them.
            OwnerCommand::ShowPin | OwnerCommand::WithdrawPin => Err(String::new()),
        }
    }

    /// The state of a connection, made if there is none.
    fn connection(&mut self, id: u64) -> Result<&mut Connection, UpnpError> {
        if self.connections.len() >= MAX_CONNECTIONS && !self.connections.contains_key(&id) {
            return Err(errors::BUSY);
        }
        Ok(self.connections.entry(id).or_default())
    }

    /// A login has failed; the fifth on a connection is its last.
    fn login_failed(&mut self, connection: u64, host: Station, now: Instant) {
        self.attempts.failed(host, now);
        if let Some(state) = self.connections.get_mut(&connection) {
            state.failures = state.failures.saturating_add(1);
            if state.failures >= login::MAX_FAILURES {
                self.effects.push_back(Effect::HangUp { connection });
            }
        }
    }
}

/// What came of a call.
enum Done {
    /// The answer.
    Reply(Vec<(&'static str, String)>),
    /// The answer when these changes are stored.
    Store(Vec<Change>, Vec<(&'static str, String)>),
    /// The same for one change; then there is something to tell as well.
    Introduce(Change, Vec<(&'static str, String)>, Told),
}

#[cfg(test)]
mod tests;
