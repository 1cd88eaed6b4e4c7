//! The access list: identities and what they may.

use std::collections::BTreeMap;

use crate::types::access::{ControlPointId, Identity, Roles, Verifier, Who};
use crate::wire::protection::Named;

/// Identities that are kept; one more is refused.
pub const MAX_IDENTITIES: usize = 64;

/// One change of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Insert or replace.
    Put(Identity),
    /// Remove; absent is fine.
    Remove(Who),
}

/// The list as it is stored.
#[derive(Debug, Default)]
pub(super) struct AccessList {
    identities: BTreeMap<Who, Identity>,
}

/// Why the list is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ListError {
    /// It has no such identity.
    #[error("the access list has no such identity")]
    Unknown,
    /// It is full.
    #[error("the access list is full")]
    Full,
}

impl AccessList {
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(identity) => {
                self.identities.insert(identity.who.clone(), identity);
            }
            Change::Remove(who) => {
                self.identities.remove(&who);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.identities.values()
    }

    pub(super) fn get(&self, who: &Who) -> Option<&Identity> {
        self.identities.get(who)
    }

    pub(super) fn roles(&self, who: &Who) -> Roles {
        self.get(who).map(|found| found.roles).unwrap_or_default()
    }

    pub(super) fn verifier(&self, name: &str) -> Option<&Verifier> {
        let user = self.get(&Who::User(name.to_owned()))?;
        user.verifier.as_ref()
    }

    fn known(&self, who: &Who) -> Result<Identity, ListError> {
        self.get(who).cloned().ok_or(ListError::Unknown)
    }

    fn has_room(&self, more: usize) -> Result<(), ListError> {
        if self.identities.len() + more > MAX_IDENTITIES {
            return Err(ListError::Full);
        }
        Ok(())
    }

    /// Those that are not there yet, all or none. They have no role but that of everybody: an Admin gives them.
    pub(super) fn add(&self, named: &[Named]) -> Result<Vec<Change>, ListError> {
        let mut new: BTreeMap<&Who, Change> = BTreeMap::new();
        for one in named.iter().filter(|one| self.get(&one.who).is_none()) {
            let identity = Identity {
                who: one.who.clone(),
                name: one.name.clone(),
                alias: one.alias.clone(),
                introduced: false,
                roles: Roles::default(),
                verifier: None,
            };
            new.entry(&one.who).or_insert(Change::Put(identity));
        }
        self.has_room(new.len())?;
        Ok(new.into_values().collect())
    }

    /// A control point has proven that its user knows the PIN: it has the role Basic besides those that it had.
    pub(super) fn introduce(&self, id: ControlPointId, name: &str) -> Result<Change, ListError> {
        let who = Who::ControlPoint(id);
        let mut identity = match self.get(&who) {
            Some(known) => known.clone(),
            None => {
                self.has_room(1)?;
                Identity {
                    who,
                    name: name.to_owned(),
                    alias: None,
                    introduced: false,
                    roles: Roles::default(),
                    verifier: None,
                }
            }
        };
        identity.introduced = true;
        identity.roles = identity.roles.with(Roles::BASIC);
        Ok(Change::Put(identity))
    }

    pub(super) fn remove(&self, who: &Who) -> Result<Change, ListError> {
        self.known(who).map(|found| Change::Remove(found.who))
    }

    pub(super) fn with_roles(
        &self,
        who: &Who,
        change: impl FnOnce(Roles) -> Roles,
    ) -> Result<Change, ListError> {
        let mut found = self.known(who)?;
        found.roles = change(found.roles);
        Ok(Change::Put(found))
    }

    pub(super) fn with_verifier(
        &self,
        name: &str,
        verifier: Verifier,
    ) -> Result<Change, ListError> {
        let mut found = self.known(&Who::User(name.to_owned()))?;
        found.verifier = Some(verifier);
        Ok(Change::Put(found))
    }

    /// A user with that password and those roles, there already or not.
    pub(super) fn user(
        &self,
        name: &str,
        roles: Roles,
        verifier: Verifier,
    ) -> Result<Change, ListError> {
        let who = Who::User(name.to_owned());
        self.has_room(usize::from(self.get(&who).is_none()))?;
        Ok(Change::Put(Identity {
            who,
            name: String::new(),
            alias: None,
            introduced: false,
            roles,
            verifier: Some(verifier),
        }))
    }

    /// A control point whose user knows the PIN. It has the role Basic from then on.
    #[expect(dead_code, reason = "introduction comes next")]
    pub(super) fn introduced(&self, id: ControlPointId, name: String) -> Result<Change, ListError> {
        let who = Who::ControlPoint(id);
        let known = self.get(&who);
        self.has_room(usize::from(known.is_none()))?;
        Ok(Change::Put(Identity {
            name: known.map_or(name, |known| known.name.clone()),
            alias: known.and_then(|known| known.alias.clone()),
            introduced: true,
            roles: self.roles(&who).with(Roles::BASIC),
            verifier: None,
            who,
        }))
    }
}
