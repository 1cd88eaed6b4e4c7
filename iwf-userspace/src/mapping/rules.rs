//! Rules of the router's owner: which device may have which ports opened, and how many.
//!
//! The first rule that matches decides; without one, the default does. What is asked may be more than one port (a pinhole
//! for every port): a rule that allows must cover all of it, a rule that denies need only touch it. A device whose MAC
//! address or name is not known matches no rule that names one.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;

use crate::types::caller::Mac;

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

/// Ports from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` if it would be empty or begin with 0, which is no port.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last {
            return None;
        }
        Some(Self { first, last })
    }

    /// The first of them.
    pub const fn first(&self) -> u16 {
        self.first
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Option<Vec<PortRange>>);

impl Ports {
    /// Every port.
    pub const EVERY: Self = Self(None);

    /// Those of the ranges; without any, every port.
    pub fn of(mut ranges: Vec<PortRange>) -> Self {
        if ranges.is_empty() {
            return Self::EVERY;
        }
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        let all = merged
            .first()
            .is_some_and(|only| (only.first, only.last) == (1, u16::MAX));
        Self((!all).then_some(merged))
    }

    /// The ranges, without gaps or overlaps; none: every port.
    pub fn ranges(&self) -> &[PortRange] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether all of `asked` is in it; `None` is every port.
    fn cover(&self, asked: Option<u16>) -> bool {
        match (&self.0, asked) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ranges), Some(port)) => holds(ranges, port),
        }
    }

    /// Whether any of it is.
    fn touch(&self, asked: Option<u16>) -> bool {
        asked.is_none() || self.cover(asked)
    }

    fn covers_all_of(&self, other: &Self) -> bool {
        let (Some(mine), Some(theirs)) = (&self.0, &other.0) else {
            return self.0.is_none();
        };
        theirs.iter().all(|range| {
            let mut mine = mine.iter();
            mine.any(|own| own.first <= range.first && range.last <= own.last)
        })
    }

    fn edges(&self) -> impl Iterator<Item = u16> {
        let ranges = self.0.iter().flatten();
        ranges.flat_map(|range| {
            [Some(range.first), range.last.checked_add(1)]
                .into_iter()
                .flatten()
        })
    }
}

fn holds(ranges: &[PortRange], port: u16) -> bool {
    let mut ranges = ranges.iter();
    ranges.any(|range| range.first <= port && port <= range.last)
}

/// Addresses with a common beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// `None` if it is longer than an address, or has bits behind its length.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let prefix = Self { addr, len };
        (len <= bits(addr).1 && prefix.masked(addr) == bits(addr).0).then_some(prefix)
    }

    /// Whether the address is of it.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4() && self.masked(addr) == self.masked(self.addr)
    }

    fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }

    fn masked(&self, addr: IpAddr) -> u128 {
        let (value, width) = bits(addr);
        let host_bits = u32::from(width.saturating_sub(self.len));
        value & u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len == bits(self.addr).1 {
            return self.addr.fmt(f);
        }
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// An address as a number, and how many bits it has.
fn bits(addr: IpAddr) -> (u128, u8) {
    match addr {
        IpAddr::V4(addr) => (u32::from(addr).into(), 32),
        IpAddr::V6(addr) => (addr.into(), 128),
    }
}

/// Which devices a rule is about. Every list that is not empty must have the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// MAC addresses.
    pub macs: Vec<Mac>,
    /// Addresses that mappings and pinholes lead to.
    pub addresses: Vec<Prefix>,
    /// Names by DHCP, in lower case.
    pub names: Vec<String>,
}

/// What is known of the device that something is opened for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The address that it leads to.
    pub addr: IpAddr,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its name by DHCP, in lower case.
    pub name: Option<String>,
}

impl Devices {
    /// Whether the device is among them; `None`: too little is known of it.
    fn have(&self, device: &Device) -> Option<bool> {
        let mut addresses = self.addresses.iter();
        if !self.addresses.is_empty() && !addresses.any(|prefix| prefix.contains(device.addr)) {
            return Some(false);
        }
        let mut unknown = false;
        for known in [
            is_one_of(&self.macs, device.mac.as_ref()),
            is_one_of(&self.names, device.name.as_ref()),
        ] {
            match known {
                Some(false) => return Some(false),
                Some(true) => {}
                None => unknown = true,
            }
        }
        (!unknown).then_some(true)
    }

    fn cover(&self, other: &Self) -> bool {
        fn lists<T>(mine: &[T], theirs: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            let covered = |their: &T| mine.iter().any(|own| covers(own, their));
            mine.is_empty() || (!theirs.is_empty() && theirs.iter().all(covered))
        }
        lists(&self.macs, &other.macs, |own, their| own == their)
            && lists(&self.addresses, &other.addresses, Prefix::covers)
            && lists(&self.names, &other.names, |own, their| own == their)
    }
}

/// `None`: that is not known.
fn is_one_of<T: PartialEq>(list: &[T], known: Option<&T>) -> Option<bool> {
    if list.is_empty() {
        return Some(true);
    }
    known.map(|known| list.contains(known))
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
        match (Ports::of(open.clone()), first_denial) {
            (_, Some(denial)) if open.is_empty() => Err(denial),
            (Ports(Some(ranges)), _) => Ok(ranges),
            (Ports(None), _) => Ok(open),
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

    fn numbered(&self) -> impl Iterator<Item = (u16, &Rule)> + Clone {
        (1..).zip(&self.list)
    }
}

/// Whether a port is in one of the ranges.
pub fn in_ranges(ranges: &[PortRange], port: u16) -> bool {
    holds(ranges, port)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const PC: Mac = [2, 0, 0, 0, 0, 1];

    pub(crate) fn rule(verdict: Verdict) -> Rule {
        Rule {
            name: None,
            verdict,
            kind: None,
            devices: Devices::default(),
            protocol: None,
            external: Ports::EVERY,
            internal: Ports::EVERY,
            max_mappings: None,
            max_pinholes: None,
        }
    }

    pub(crate) fn range(first: u16, last: u16) -> Ports {
        Ports::of(vec![PortRange::new(first, last).expect("a range")])
    }

    pub(crate) fn prefix(text: &str) -> Prefix {
        let (addr, len) = text.split_once('/').expect("a length");
        Prefix::new(
            addr.parse().expect("an address"),
            len.parse().expect("a number"),
        )
        .expect("a prefix")
    }

    fn asked(addr: &str, external: u16) -> Asked {
        Asked {
            kind: Kind::Mapping,
            device: Device {
                addr: addr.parse().expect("an address"),
                mac: None,
                name: None,
            },
            protocol: Some(6),
            external: Some(external),
            internal: Some(external),
        }
    }

    fn rules(list: Vec<Rule>, default: Verdict) -> Rules {
        Rules { list, default }
    }

    fn decided(rules: &Rules, asked: &Asked) -> (Verdict, Decider) {
        let ruling = rules.judge(asked);
        (ruling.verdict, ruling.by)
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = rules(
            vec![
                Rule {
                    external: range(8080, 8090),
                    ..rule(Verdict::Deny)
                },
                Rule {
                    devices: Devices {
                        addresses: vec![prefix("192.168.1.0/25")],
                        ..Devices::default()
                    },
                    max_mappings: Some(3),
                    ..rule(Verdict::Allow)
                },
            ],
            Verdict::Deny,
        );
        let by = |addr, port| decided(&rules, &asked(addr, port));
        assert_eq!(by("192.168.1.20", 8085), (Verdict::Deny, Decider::Rule(1)));
        assert_eq!(by("192.168.1.20", 8091), (Verdict::Allow, Decider::Rule(2)));
        assert_eq!(by("192.168.1.200", 8091), (Verdict::Deny, Decider::Default));
        assert_eq!(rules.judge(&asked("192.168.1.20", 9000)).most, Some(3));
        let udp = Asked {
            protocol: Some(17),
            ..asked("192.168.1.20", 8085)
        };
        assert_eq!(decided(&rules, &udp), (Verdict::Deny, Decider::Rule(1)));
    }

    #[test]
    fn every_criterion_of_a_rule_must_hold() {
        let narrow = Rule {
            kind: Some(Kind::Mapping),
            devices: Devices {
                macs: vec![PC],
                addresses: vec![prefix("192.168.1.20/32")],
                names: vec!["pc".to_owned()],
            },
            protocol: Some(17),
            external: range(1000, 2000),
            internal: range(3000, 4000),
            ..rule(Verdict::Allow)
        };
        let rules = rules(vec![narrow], Verdict::Deny);
        let good = Asked {
            kind: Kind::Mapping,
            device: Device {
                addr: "192.168.1.20".parse().expect("an address"),
                mac: Some(PC),
                name: Some("pc".to_owned()),
            },
            protocol: Some(17),
            external: Some(2000),
            internal: Some(3000),
        };
        assert_eq!(decided(&rules, &good), (Verdict::Allow, Decider::Rule(1)));
        let device = |mac, name: Option<&str>, addr: &str| Asked {
            device: Device {
                addr: addr.parse().expect("an address"),
                mac,
                name: name.map(str::to_owned),
            },
            ..good.clone()
        };
        let pc = Some("pc");
        for other in [
            Asked {
                kind: Kind::Pinhole,
                ..good.clone()
            },
            Asked {
                protocol: Some(6),
                ..good.clone()
            },
            Asked {
                protocol: None,
                ..good.clone()
            },
            Asked {
                external: Some(2001),
                ..good.clone()
            },
            Asked {
                external: None,
                ..good.clone()
            },
            Asked {
                internal: Some(2999),
                ..good.clone()
            },
            device(Some([2, 0, 0, 0, 0, 2]), pc, "192.168.1.20"),
            device(None, pc, "192.168.1.20"),
            device(Some(PC), Some("tv"), "192.168.1.20"),
            device(Some(PC), None, "192.168.1.20"),
            device(Some(PC), pc, "192.168.1.21"),
            device(Some(PC), pc, "2a00::1"),
        ] {
            assert_eq!(
                decided(&rules, &other),
                (Verdict::Deny, Decider::Default),
                "{other:?}"
            );
        }
    }

    #[test]
    fn what_is_for_every_port_is_denied_by_a_part_and_allowed_only_as_a_whole() {
        let ssh = |verdict| Rule {
            protocol: Some(6),
            internal: range(22, 22),
            ..rule(verdict)
        };
        let every = Asked {
            kind: Kind::Pinhole,
            protocol: None,
            external: None,
            internal: None,
            ..asked("2a00::1", 1)
        };
        let deny = rules(vec![ssh(Verdict::Deny)], Verdict::Allow);
        assert_eq!(decided(&deny, &every), (Verdict::Deny, Decider::Rule(1)));
        let udp = Asked {
            protocol: Some(17),
            ..every.clone()
        };
        assert_eq!(decided(&deny, &udp), (Verdict::Allow, Decider::Default));
        let allow = rules(vec![ssh(Verdict::Allow)], Verdict::Deny);
        assert_eq!(decided(&allow, &every), (Verdict::Deny, Decider::Default));
    }

    #[test]
    fn nothing_is_taken_away_for_lack_of_knowledge() {
        let pc_only = Rule {
            devices: Devices {
                macs: vec![PC],
                ..Devices::default()
            },
            ..rule(Verdict::Allow)
        };
        let allow_list = rules(vec![pc_only.clone()], Verdict::Deny);
        let unknown = asked("192.168.1.20", 8080);
        let other = Asked {
            device: Device {
                mac: Some([2, 0, 0, 0, 0, 9]),
                ..unknown.device.clone()
            },
            ..unknown.clone()
        };
        assert_eq!(allow_list.surely_denied(&unknown), None);
        assert_eq!(allow_list.surely_denied(&other), Some(Decider::Default));
        let deny = Rule {
            verdict: Verdict::Deny,
            ..pc_only
        };
        let deny_list = rules(vec![deny.clone()], Verdict::Allow);
        assert_eq!(deny_list.surely_denied(&unknown), None);
        let then_all = rules(vec![deny, rule(Verdict::Deny)], Verdict::Allow);
        assert_eq!(then_all.surely_denied(&unknown), Some(Decider::Rule(2)));
    }

    #[test]
    fn the_ports_that_may_be_had() {
        let some = rules(
            vec![
                Rule {
                    external: range(5000, 5009),
                    ..rule(Verdict::Deny)
                },
                Rule {
                    external: range(4990, 5019),
                    ..rule(Verdict::Allow)
                },
            ],
            Verdict::Deny,
        );
        let asked = asked("192.168.1.20", 5000);
        let ranges = |rules: &Rules, lowest| {
            let ports = rules.external_ports(&asked, lowest)?;
            Ok(ports.iter().map(|r| (r.first, r.last)).collect::<Vec<_>>())
        };
        assert_eq!(ranges(&some, 1024), Ok(vec![(4990, 4999), (5010, 5019)]));
        assert_eq!(ranges(&some, 5015), Ok(vec![(5015, 5019)]));
        assert_eq!(ranges(&some, 5020), Err(Decider::Default));
        assert_eq!(ranges(&Rules::default(), 1024), Ok(vec![(1024, 65_535)]));
        assert_eq!(ranges(&Rules::default(), 1), Ok(vec![(1, 65_535)]));
        let none = rules(vec![rule(Verdict::Deny)], Verdict::Allow);
        assert_eq!(ranges(&none, 1024), Err(Decider::Rule(1)));
    }

    #[test]
    fn a_port_is_denied_for_good_only_if_no_internal_one_helps() {
        let only_to = Rule {
            internal: range(8080, 8080),
            ..rule(Verdict::Allow)
        };
        let asked = Asked {
            internal: None,
            ..asked("192.168.1.20", 9000)
        };
        let some = rules(vec![only_to.clone()], Verdict::Deny);
        assert_eq!(some.denies_every_internal(&asked), None);
        let none = rules(vec![rule(Verdict::Deny), only_to], Verdict::Allow);
        assert_eq!(none.denies_every_internal(&asked), Some(Decider::Rule(1)));
        assert_eq!(Rules::default().denies_every_internal(&asked), None);
    }

    #[test]
    fn a_rule_behind_a_wider_one_is_found() {
        let of = |verdict, addresses: &[&str], external| Rule {
            devices: Devices {
                addresses: addresses.iter().map(|text| prefix(text)).collect(),
                ..Devices::default()
            },
            external,
            ..rule(verdict)
        };
        let list = vec![
            of(Verdict::Allow, &["192.168.1.0/24"], range(1000, 2000)),
            of(Verdict::Deny, &["192.168.1.7/32"], range(1500, 1600)),
            of(Verdict::Deny, &["192.168.1.7/32"], range(1500, 2001)),
            of(Verdict::Deny, &[], range(1500, 1600)),
            of(
                Verdict::Deny,
                &["192.168.1.7/32", "10.0.0.0/8"],
                range(1500, 1600),
            ),
            of(Verdict::Deny, &["192.168.0.0/16"], Ports::EVERY),
            of(Verdict::Allow, &["192.168.9.0/24"], range(1, 2)),
        ];
        assert_eq!(
            rules(list, Verdict::Allow).shadowed(),
            [(2, 1), (5, 4), (7, 6)]
        );
        let udp = Rule {
            protocol: Some(17),
            ..rule(Verdict::Allow)
        };
        let all = rules(vec![udp.clone(), rule(Verdict::Deny), udp], Verdict::Allow);
        assert_eq!(all.shadowed(), [(3, 1)]);
    }

    #[test]
    fn prefixes_have_no_bits_behind_their_length() {
        let new = |addr: &str, len| Prefix::new(addr.parse().expect("an address"), len);
        assert!(new("192.168.1.0", 24).is_some() && new("2a00::", 16).is_some());
        assert!(new("0.0.0.0", 0).is_some() && new("::", 0).is_some());
        assert_eq!(new("192.168.1.1", 24), None);
        assert_eq!(new("192.168.1.1", 33), None);
        assert_eq!(new("2a00::1", 129), None);
        let all = new("0.0.0.0", 0).expect("a prefix");
        assert!(all.contains("9.9.9.9".parse().expect("an address")));
        assert!(!all.contains("::1".parse().expect("an address")));
    }
}
