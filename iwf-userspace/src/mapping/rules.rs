//! Rules of the router's owner: which device may have which ports opened, and how many.
//!
//! The first rule that matches decides; without one, the default does. What is asked may be more than one port (a pinhole
//! for every port): a rule that allows must cover all of it, a rule that denies need only touch it. A device whose MAC
//! address or name is not known matches no rule that names one.
#![forbid(unsafe_code)]

mod devices;
mod ports;

use std::fmt;

pub use devices::{Device, Devices};
pub use ports::{PortRange, Ports, in_ranges};

use crate::types::prefix::Prefix;

/// Most rules. With [`MAX_RANGES`] it bounds what one decision costs.
pub const MAX_RULES: usize = 64;
/// Most port ranges, addresses, MAC addresses or names in one list of a rule.
pub const MAX_RANGES: usize = 16;

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be.
    Allow,
    /// It may not.
    Deny,
}

/// What is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A port mapping of IPv4.
    Mapping,
    /// A pinhole of IPv6.
    Pinhole,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What its owner calls it.
    pub name: Option<String>,
    /// What it says.
    pub verdict: Verdict,
    /// Only of this kind.
    pub kind: Option<Kind>,
    /// About whom.
    pub devices: Devices,
    /// Only this IANA protocol.
    pub protocol: Option<u8>,
    /// About these external ports; of a pinhole, the same as the internal ones.
    pub external: Ports,
    /// About these ports of the device.
    pub internal: Ports,
    /// How many mappings a device that it allows something may have.
    pub max_mappings: Option<usize>,
    /// How many pinholes.
    pub max_pinholes: Option<usize>,
}

/// What is asked for. What is `None` of it is every one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is opened.
    pub kind: Kind,
    /// For whom.
    pub device: Device,
    /// The IANA protocol.
    pub protocol: Option<u8>,
    /// The external port.
    pub external: Option<u16>,
    /// The device's port.
    pub internal: Option<u16>,
}

impl Rule {
    fn concerns(&self, asked: &Asked) -> bool {
        if self.kind.is_some_and(|kind| kind != asked.kind) {
            return false;
        }
        match self.verdict {
            Verdict::Allow => {
                (self.protocol.is_none() || self.protocol == asked.protocol)
                    && self.external.cover(asked.external)
                    && self.internal.cover(asked.internal)
            }
            Verdict::Deny => {
                let protocol = self.protocol.zip(asked.protocol);
                protocol.is_none_or(|(own, asked)| own == asked)
                    && self.external.touch(asked.external)
                    && self.internal.touch(asked.internal)
            }
        }
    }

    /// Whether it is about everything that the other one is about.
    fn covers(&self, other: &Self) -> bool {
        (self.kind.is_none() || self.kind == other.kind)
            && (self.protocol.is_none() || self.protocol == other.protocol)
            && self.external.covers_all_of(&other.external)
            && self.internal.covers_all_of(&other.internal)
            && self.devices.cover(&other.devices)
            && (!other.denies_parts() || self.verdict == Verdict::Deny || self.is_about_all())
    }

    /// Whether it denies a pinhole for every port or protocol because it is about some: a rule that allows only these has
    /// not allowed that.
    fn denies_parts(&self) -> bool {
        self.verdict == Verdict::Deny && self.may_concern(Kind::Pinhole)
    }

    fn is_about_all(&self) -> bool {
        self.protocol.is_none() && self.external == Ports::EVERY && self.internal == Ports::EVERY
    }

    /// Whether anything of the kind can be what it is about: a pinhole has one port and leads to an IPv6 address.
    fn may_concern(&self, kind: Kind) -> bool {
        let mut addresses = self.devices.addresses.iter();
        let none = addresses.len() == 0;
        self.kind.is_none_or(|own| own == kind)
            && match kind {
                Kind::Mapping => none || addresses.any(Prefix::is_ipv4),
                Kind::Pinhole => {
                    let leads_there = none || addresses.any(|addr| !addr.is_ipv4());
                    leads_there && self.external.meet(&self.internal)
                }
            }
    }

    fn most(&self, kind: Kind) -> Option<usize> {
        match kind {
            Kind::Mapping => self.max_mappings,
            Kind::Pinhole => self.max_pinholes,
        }
    }
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// The rule of this number, from 1.
    Rule(u16),
    /// No rule: the default.
    Default,
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(number) => write!(f, "policy rule {number}"),
            Self::Default => f.write_str("policy.default"),
        }
    }
}

impl Decider {
    /// Its name for programs.
    pub fn key(&self) -> String {
        match self {
            Self::Rule(number) => format!("rule {number}"),
            Self::Default => "policy.default".to_owned(),
        }
    }
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Whether it may be.
    pub verdict: Verdict,
    /// What says so.
    pub by: Decider,
    /// How many of the kind the device may have by this.
    pub most: Option<usize>,
}

/// The rules in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The first that matches decides.
    pub list: Vec<Rule>,
    /// What holds if none does.
    pub default: Verdict,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            default: Verdict::Allow,
        }
    }
}

impl Rules {
    /// Whether they deny nothing and bound nothing.
    pub fn is_trivial(&self) -> bool {
        self.list.is_empty() && self.default == Verdict::Allow
    }

    /// Whether one of them is about devices of a name.
    pub fn name_devices(&self) -> bool {
        self.list.iter().any(|rule| !rule.devices.names.is_empty())
    }

    /// Decides.
    pub fn judge(&self, asked: &Asked) -> Ruling {
        let decides =
            |rule: &Rule| rule.concerns(asked) && rule.devices.have(&asked.device) == Some(true);
        match self.numbered().find(|(_, rule)| decides(rule)) {
            Some((number, rule)) => Ruling {
                verdict: rule.verdict,
                by: Decider::Rule(number),
                most: rule.most(asked.kind),
            },
            None => Ruling {
                verdict: self.default,
                by: Decider::Default,
                most: None,
            },
        }
    }

    /// What denies it, whatever there may be to know of the device besides. For what is there already: nothing is taken
    /// away for lack of knowledge.
    pub fn surely_denied(&self, asked: &Asked) -> Option<Decider> {
        let mut by = Decider::Default;
        let mut verdict = self.default;
        for (number, rule) in self.numbered().filter(|(_, rule)| rule.concerns(asked)) {
            match (rule.devices.have(&asked.device), rule.verdict) {
                (Some(false), _) | (None, Verdict::Deny) => {}
                (None, Verdict::Allow) => return None,
                (Some(true), decided) => {
                    (by, verdict) = (Decider::Rule(number), decided);
                    break;
                }
            }
        }
        (verdict == Verdict::Deny).then_some(by)
    }

    /// The external ports that may be had, from `lowest` on, in order; and what denies the first if there is none.
    pub fn external_ports(&self, asked: &Asked, lowest: u16) -> Result<Vec<PortRange>, Decider> {
        let lowest = lowest.max(1);
        let mut edges: Vec<u16> = self
            .list
            .iter()
            .flat_map(|rule| rule.external.edges())
            .collect();
        edges.push(lowest);
        edges.retain(|edge| *edge >= lowest);
        edges.sort_unstable();
        edges.dedup();
        let mut open = Vec::new();
        let mut first_denial = None;
        let ends = edges.iter().skip(1).map(|next| next.saturating_sub(1));
        for (first, last) in edges.iter().zip(ends.chain([u16::MAX])) {
            let external = Some(*first);
            let ruling = self.judge(&Asked {
                external,
                ..asked.clone()
            });
            match ruling.verdict {
                Verdict::Allow => open.extend(PortRange::new(*first, last)),
                Verdict::Deny => first_denial = first_denial.or(Some(ruling.by)),
            }
        }
        match first_denial {
            Some(denial) if open.is_empty() => Err(denial),
            Some(_) | None => Ok(Ports::of(open).into_ranges()),
        }
    }

    /// What surely denies it whatever port of the device it leads to.
    pub fn denies_every_internal(&self, asked: &Asked) -> Option<Decider> {
        let edges = self.list.iter().flat_map(|rule| rule.internal.edges());
        let mut by = None;
        for internal in edges.chain([1]) {
            let internal = Some(internal);
            let denial = self.surely_denied(&Asked {
                internal,
                ..asked.clone()
            });
            by = Some(denial?);
        }
        by
    }

    /// What decided, with the name that its owner has given it.
    pub fn label(&self, by: Decider) -> String {
        let name = match by {
            Decider::Rule(number) => {
                let mut rules = self.numbered();
                rules
                    .find(|(of, _)| *of == number)
                    .and_then(|(_, rule)| rule.name.as_deref())
            }
            Decider::Default => None,
        };
        match name {
            Some(name) => format!("{by} ({name})"),
            None => by.to_string(),
        }
    }

    /// Rules about nothing that an earlier one is not about, by number, each with the earlier one.
    pub fn shadowed(&self) -> Vec<(u16, u16)> {
        let mut found = Vec::new();
        for (number, rule) in self.numbered() {
            let earlier = self.numbered().take_while(|(before, _)| *before < number);
            let covers = |(_, before): &(u16, &Rule)| before.covers(rule);
            if let Some((before, _)) = earlier.clone().find(covers) {
                found.push((number, before));
            }
        }
        found
    }

    /// Rules about nothing at all, by number.
    pub fn about_nothing(&self) -> Vec<u16> {
        let kinds = [Kind::Mapping, Kind::Pinhole];
        self.numbered()
            .filter(|(_, rule)| !kinds.iter().any(|kind| rule.may_concern(*kind)))
            .map(|(number, _)| number)
            .collect()
    }

    fn numbered(&self) -> impl Iterator<Item = (u16, &Rule)> + Clone {
        (1..).zip(&self.list)
    }
}

#[cfg(test)]
pub(crate) mod tests;
