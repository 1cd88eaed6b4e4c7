//! The policy, as `iwfctl policy` tells it.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Response;
use super::table::{new, or_dash};
use super::terminal::printable;
use crate::daemon::dataplane::inspect::Transport;
use crate::iwf::Iwf;
use crate::iwf::policy::Question;
use crate::mapping::rules::{Kind, Rule, Rules, Verdict};
use crate::types::caller::{parse_mac, show_mac};
use crate::types::{ExternalPort, InternalPort};

/// A wish to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTest {
    /// The LAN host. With an IPv6 address it wants a pinhole.
    pub client: IpAddr,
    /// Its MAC address; absent: what is known.
    #[serde(default)]
    pub mac: Option<String>,
    /// Its name; absent: what is known.
    #[serde(default)]
    pub name: Option<String>,
    /// The protocol; absent: every one, of a pinhole.
    #[serde(default)]
    pub protocol: Option<Transport>,
    /// The external port; absent: any will do, or the pinhole is for every port.
    #[serde(default)]
    pub external_port: Option<u16>,
    /// The host's port; absent: the same.
    #[serde(default)]
    pub internal_port: Option<u16>,
}

/// What the policy says to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// Whether it would be granted, as far as this router decides.
    pub granted: bool,
    /// What the rules say: `allow` or `deny`.
    pub rules: String,
    /// What of them decides: `rule 2`, or `policy.default`.
    pub decided_by: String,
    /// The same with its name.
    pub label: String,
    /// What stands in the way: a rule, or a key of the configuration, where one is to blame.
    pub refused_by: Option<String>,
    /// The same for people.
    pub why: Option<String>,
    /// The UPnP error that control points would get that call version 2 of the service.
    pub error: Option<u16>,
    /// And version 1.
    pub error_version_1: Option<u16>,
    /// MAC address of the device.
    pub mac: Option<String>,
    /// Its name by DHCP.
    pub name: Option<String>,
    /// Mappings, or pinholes, that it has.
    pub held: u64,
    /// And may have.
    pub most: u64,
}

impl PolicyTest {
    /// Asks.
    pub fn ask(&self, core: &Iwf) -> Response {
        let wrong = |why: &str| Response::Error(why.to_owned());
        let mac = match &self.mac {
            None => None,
            Some(text) => match parse_mac(text) {
                Some(mac) => Some(mac),
                None => return wrong("the MAC address is none: write one like 02:00:5e:10:00:ff"),
            },
        };
        let kind = match self.client {
            IpAddr::V4(_) => Kind::Mapping,
            IpAddr::V6(_) => Kind::Pinhole,
        };
        let protocol = self.protocol.map(|protocol| protocol.0);
        if kind == Kind::Mapping && !matches!(protocol, Some(6 | 17)) {
            return wrong("a mapping is of tcp or udp");
        }
        let external = match self.external_port.map(ExternalPort::new) {
            Some(None) => return wrong("0 is no port"),
            Some(port) => port,
            None => None,
        };
        let internal = self.internal_port.or(self.external_port);
        let internal = match (internal.map(InternalPort::new), kind) {
            (Some(Some(port)), _) => port,
            (Some(None), _) => return wrong("0 is no port"),
            (None, Kind::Mapping) => return wrong("name the host's port, or the external one"),
            // Nobody looks at it: the pinhole is for every port.
            (None, Kind::Pinhole) => match InternalPort::new(u16::MAX) {
                Some(port) => port,
                None => return wrong("0 is no port"),
            },
        };
        // A pinhole has the host's port only.
        let external = match kind {
            Kind::Mapping => external,
            Kind::Pinhole => ExternalPort::new(internal.get())
                .filter(|_| self.internal_port.is_some() || self.external_port.is_some()),
        };
        let answer = core.ask_policy(&Question {
            kind,
            client: self.client,
            mac,
            name: self.name.as_ref().map(|name| name.to_lowercase()),
            protocol,
            external,
            internal,
        });
        let (why, codes) = answer.refused.unzip();
        Response::PolicyTest(Box::new(Tested {
            granted: why.is_none(),
            rules: verdict(answer.rules).to_owned(),
            decided_by: answer.decided_by,
            label: answer.label,
            refused_by: why.as_ref().and_then(|why| why.decided_by.clone()),
            why: why.map(|why| why.text),
            error: codes.map(|(code, _)| code),
            error_version_1: codes.map(|(_, code)| code),
            mac: answer.device.mac.map(show_mac),
            name: answer.device.name,
            held: answer.held as u64,
            most: answer.most as u64,
        }))
    }
}

impl Tested {
    /// For people.
    pub fn render(&self) -> String {
        let mut text = match &self.why {
            None => "granted\n".to_owned(),
            Some(why) => {
                let code = self.error.unwrap_or_default();
                let old = self.error_version_1.filter(|old| *old != code);
                let old = old.map_or_else(String::new, |old| format!(", {old} for version 1"));
                format!("refused with {code}{old}: {}\n", printable(why))
            }
        };
        let device = [
            (
                "rules",
                format!("{} by {}", self.rules, printable(&self.label)),
            ),
            (
                "device",
                format!(
                    "MAC {}, name {}",
                    or_dash(self.mac.as_ref()),
                    or_dash(self.name.as_deref().map(printable))
                ),
            ),
            ("has", format!("{} of {}", self.held, self.most)),
        ];
        for (what, value) in device {
            // Writing to a string does not fail.
            writeln!(text, "{what:<8}{value}").ok();
        }
        text
    }
}

/// The rules in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What holds for what no rule is about: `allow` or `deny`.
    pub default: String,
    /// In their order.
    pub rules: Vec<RuleRow>,
}

/// One rule. What is empty or absent is any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRow {
    /// Its number, from 1.
    pub number: u64,
    /// Its name.
    pub name: Option<String>,
    /// `allow` or `deny`.
    pub action: String,
    /// `mappings` or `pinholes`.
    pub kind: Option<String>,
    /// The devices, by MAC address, address and name.
    pub devices: Vec<String>,
    /// The protocol.
    pub protocol: Option<Transport>,
    /// External ports: numbers and ranges.
    pub external_ports: Vec<String>,
    /// The devices' ports.
    pub internal_ports: Vec<String>,
    /// Mappings that a device may have by it.
    pub max_mappings: Option<u64>,
    /// Pinholes that a device may have by it.
    pub max_pinholes: Option<u64>,
    /// An earlier rule comes first for everything that it is about.
    pub shadowed_by: Option<u64>,
    /// It can be about nothing.
    #[serde(default)]
    pub about_nothing: bool,
}

impl Policy {
    /// Those of a list.
    pub fn of(rules: &Rules) -> Self {
        let (shadowed, about_nothing) = (rules.shadowed(), rules.about_nothing());
        let rows = (1..).zip(&rules.list).map(|(number, rule)| {
            let shadow = shadowed.iter().find(|(of, _)| u64::from(*of) == number);
            RuleRow {
                shadowed_by: shadow.map(|(_, before)| u64::from(*before)),
                about_nothing: about_nothing.iter().any(|of| u64::from(*of) == number),
                ..RuleRow::of(number, rule)
            }
        });
        Self {
            default: verdict(rules.default).to_owned(),
            rules: rows.collect(),
        }
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut table = new(&[
            "rule", "name", "action", "for", "devices", "protocol", "external", "internal", "most",
        ]);
        for row in &self.rules {
            let any = |list: &[String]| match list {
                [] => "any".to_owned(),
                list => list.join(" "),
            };
            let most = [
                ("mappings", row.max_mappings),
                ("pinholes", row.max_pinholes),
            ];
            let most = most
                .iter()
                .filter_map(|(what, most)| Some(format!("{} {what}", (*most)?)));
            let most: Vec<_> = most.collect();
            table.add_row([
                match row.shadowed_by {
                    None if row.about_nothing => format!("{} (never, about nothing)", row.number),
                    None => row.number.to_string(),
                    Some(before) => format!("{} (never, {before} comes first)", row.number),
                },
                or_dash(row.name.as_deref().map(printable)),
                row.action.clone(),
                row.kind.clone().unwrap_or_else(|| "both".to_owned()),
                any(&row.devices),
                row.protocol
                    .map_or_else(|| "any".to_owned(), |p| p.to_string()),
                any(&row.external_ports),
                any(&row.internal_ports),
                or_dash(Some(most.join(", ")).filter(|most| !most.is_empty())),
            ]);
        }
        let default = format!("{} what no rule is about\n", self.default);
        match self.rules.is_empty() {
            true => default,
            false => format!("{table}\n{default}"),
        }
    }
}

impl RuleRow {
    fn of(number: u64, rule: &Rule) -> Self {
        let devices = &rule.devices;
        let macs = devices.macs.iter().map(|mac| show_mac(*mac));
        let addresses = devices.addresses.iter().map(ToString::to_string);
        let names = devices.names.iter().cloned();
        let kind = rule.kind.map(|kind| match kind {
            Kind::Mapping => "mappings".to_owned(),
            Kind::Pinhole => "pinholes".to_owned(),
        });
        Self {
            number,
            name: rule.name.clone(),
            action: verdict(rule.verdict).to_owned(),
            kind,
            devices: macs.chain(addresses).chain(names).collect(),
            protocol: rule.protocol.map(Transport),
            external_ports: rule
                .external
                .ranges()
                .iter()
                .map(ToString::to_string)
                .collect(),
            internal_ports: rule
                .internal
                .ranges()
                .iter()
                .map(ToString::to_string)
                .collect(),
            max_mappings: rule.max_mappings.map(|most| most as u64),
            max_pinholes: rule.max_pinholes.map(|most| most as u64),
            shadowed_by: None,
            about_nothing: false,
        }
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}
