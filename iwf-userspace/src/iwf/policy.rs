//! What the router's owner has said: who may have what opened, what becomes of what is open, and why something was
//! refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::job::Origin;
use super::pinholes::Ending;
use super::soap_calls::Call;
use super::{Iwf, Notice, RequestId};
use crate::mapping::pinholes::Opening;
use crate::mapping::policy::{Party, PolicyError, Quota, Rights, ThirdParty};
use crate::mapping::ports;
use crate::mapping::rules::{Asked, Decider, Device, Kind, PortRange, Rules, Verdict, in_ranges};
use crate::mapping::{Mapping, Owner, PortChoice};
use crate::proto::igd::{EntryKey, NewMapping, Operation, Refusal, upnp_error};
use crate::types::caller::{Caller, Mac};
use crate::types::device::LanDevices;
use crate::types::pinhole::Pinhole;
use crate::types::{
    ExternalPort, Generation, Instant, InternalEndpoint, InternalPort, Lifetime, Protocol,
    RemotePeer,
};
use crate::wire::soap::UpnpError;
use crate::wire::soap::firewall::PINHOLE_SPACE_EXHAUSTED;

/// What the owner may change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Lowest internal and external port.
    pub min_port: u16,
    /// Whether a host may act for another one.
    pub third_party: ThirdParty,
    /// Mappings of one internal address.
    pub per_host: usize,
    /// Which device may have which ports.
    pub rules: Rules,
    /// How long a device may be away before what it has opened is closed; `None`: for ever.
    pub departed_after: Option<Duration>,
}

/// Why a control point was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The rule, or the key of the configuration that decided, for programs.
    pub decided_by: Option<String>,
    /// For people.
    pub text: String,
}

/// What the owner wants to know of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What would be opened.
    pub kind: Kind,
    /// Who asks, and for itself.
    pub client: IpAddr,
    /// With which MAC address; `None`: what is known.
    pub mac: Option<Mac>,
    /// With which name; `None`: what is known.
    pub name: Option<String>,
    /// The protocol; `None`, of pinholes only: every one.
    pub protocol: Option<u8>,
    /// The external port; `None`: any will do. A pinhole without it is for every port.
    pub external: Option<ExternalPort>,
    /// The device's port.
    pub internal: InternalPort,
}

/// What the policy says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What is known of the device.
    pub device: Device,
    /// What the rules say.
    pub rules: Verdict,
    /// What of them decided, for programs.
    pub decided_by: String,
    /// The same for people.
    pub label: String,
    /// Why it would be refused, by the rules or for another reason, and with which UPnP error of version 2 and of 1.
    pub refused: Option<(Why, (u16, u16))>,
    /// How many it has of the kind.
    pub held: usize,
    /// How many it may have.
    pub most: usize,
}

/// Who asks, with what is known of it besides.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    addr: Ipv4Addr,
    rights: Rights,
    link: Option<u32>,
    mac: Option<Mac>,
    name: Option<String>,
}

impl From<&Call> for Asker {
    fn from(call: &Call) -> Self {
        Self {
            addr: call.caller,
            rights: call.rights,
            link: call.link,
            mac: call.mac,
            name: None,
        }
    }
}

impl Iwf {
    /// The owner has changed the policy. What the rules deny now is closed, because nobody who writes a rule expects a
    /// port to stay open for the days that its lease may last. The other keys are for what is asked for from now on.
    pub(super) fn set_policy(&mut self, wanted: Wanted, now: Instant) {
        let Wanted {
            min_port,
            third_party,
            per_host,
            rules,
            departed_after,
        } = wanted;
        self.settings.departed_after = departed_after;
        let policy = &mut self.settings.policy;
        (policy.min_port, policy.third_party, policy.rules) = (min_port, third_party, rules);
        self.table.set_per_host(per_host);
        self.review(now);
    }

    /// It is known who is on the LAN.
    pub(super) fn set_devices(&mut self, mut devices: LanDevices, now: Instant) {
        devices.remember(&self.devices);
        if self.devices != devices {
            self.devices = devices;
            self.review(now);
        }
        self.look_for_departed(now);
    }

    /// Closes what the rules surely deny. Walks through everything: at a change of the policy or of what is known of
    /// devices only. What is being changed right now is judged when that is done.
    fn review(&mut self, now: Instant) {
        if self.settings.policy.rules.is_trivial() {
            return;
        }
        let mappings: Vec<_> = self
            .table
            .iter()
            .map(|mapping| mapping.generation)
            .collect();
        for generation in mappings {
            self.review_mapping(generation, now);
        }
        let pinholes: Vec<_> = self.pinholes().map(|held| held.pinhole.id).collect();
        for id in pinholes {
            self.review_pinhole(id);
        }
    }

    /// Closes a mapping if the rules surely deny it.
    pub(super) fn review_mapping(&mut self, generation: Generation, now: Instant) {
        let idle = !self.jobs.contains_key(&generation);
        let mapping = self.table.get(generation).filter(|_| idle);
        if let Some(by) = mapping.and_then(|mapping| self.denied_now(mapping)) {
            let why = format!("{} denies it", self.settings.policy.rules.label(by));
            self.notify(Notice::Withdrawn { generation, why });
            self.remove(generation, Origin::Nobody, now);
        }
    }

    /// Closes a pinhole if the rules surely deny it.
    pub(super) fn review_pinhole(&mut self, id: u16) {
        let held = self.pinholes().find(|held| held.pinhole.id == id);
        let Some(held) = held.filter(|_| !self.has_pinhole_job(id)) else {
            return;
        };
        let asked = self.asked_pinhole(&held.pinhole, self.mac_of(held));
        if let Some(by) = self.settings.policy.rules.surely_denied(&asked) {
            self.close(id, None, Ending::Denied(by));
        }
    }

    /// The device of a pinhole: who has the address now, else who asked.
    fn mac_of(&self, held: &Opening) -> Option<Mac> {
        self.devices.mac(held.pinhole.internal.into()).or(held.host)
    }

    /// What denies a mapping that is there.
    fn denied_now(&self, mapping: &Mapping) -> Option<Decider> {
        let rules = &self.settings.policy.rules;
        if rules.is_trivial() || mapping.owner == Owner::Configuration {
            return None;
        }
        rules.surely_denied(&Asked {
            kind: Kind::Mapping,
            device: self.device(mapping.internal.addr.into(), None, None),
            protocol: Some(mapping.protocol.number()),
            external: Some(mapping.claim.port.unwrap_or(mapping.nat1.port).get()),
            internal: Some(mapping.internal.port.get()),
        })
    }

    /// What is known of the device at an address; what is given is known better.
    fn device(&self, addr: IpAddr, mac: Option<Mac>, name: Option<String>) -> Device {
        let rules = &self.settings.policy.rules;
        let mac = mac.or_else(|| self.devices.mac(addr));
        let by_lease = || {
            rules
                .name_devices()
                .then(|| self.devices.name(addr, mac))
                .flatten()
        };
        Device {
            addr,
            mac,
            name: name.or_else(by_lease),
        }
    }

    fn asked(&self, asker: &Asker, new: &NewMapping, external: Option<ExternalPort>) -> Asked {
        let addr = new.internal.addr;
        let own = addr == asker.addr;
        let name = asker.name.clone().filter(|_| own);
        Asked {
            kind: Kind::Mapping,
            device: self.device(addr.into(), asker.mac.filter(|_| own), name),
            protocol: Some(new.protocol.number()),
            external: external.map(ExternalPort::get),
            internal: Some(new.internal.port.get()),
        }
    }

    fn asked_pinhole(&self, pinhole: &Pinhole, mac: Option<Mac>) -> Asked {
        Asked {
            kind: Kind::Pinhole,
            device: self.device(pinhole.internal.into(), mac, None),
            protocol: pinhole.protocol,
            external: pinhole.internal_port,
            internal: pinhole.internal_port,
        }
    }

    /// The same for the device that asks, if it is another one: both must be allowed.
    fn asked_by(&self, asker: &Asker, asked: &Asked) -> Option<Asked> {
        let addr = IpAddr::from(asker.addr);
        (asked.device.addr != addr).then(|| Asked {
            device: self.device(addr, asker.mac, asker.name.clone()),
            ..asked.clone()
        })
    }

    /// Whether a control point may have what it asks for. Where any port will do, one that it may not have is not
    /// suggested any more.
    pub(super) fn admit(&self, asker: &Asker, new: &mut NewMapping) -> Result<(), Refusal> {
        let external = new.external.map(ExternalPort::get);
        let policy = &self.settings.policy;
        let party = Party {
            addr: asker.addr,
            rights: asker.rights,
            link: asker.link,
        };
        policy
            .check(&self.lan, party, new.internal, external)
            .map_err(Refusal::Policy)?;
        if new.choice == PortChoice::Exact {
            let asked = self.asked(asker, new, new.external);
            let of_asker = self.asked_by(asker, &asked);
            for asked in [Some(asked), of_asker].into_iter().flatten() {
                let ruling = policy.rules.judge(&asked);
                if ruling.verdict == Verdict::Deny {
                    return Err(denied(ruling.by));
                }
            }
        } else if let Some(open) = self.open_ports(asker, new)? {
            let may = |port: &ExternalPort| in_ranges(&open, port.get());
            new.external = new.external.filter(may);
        }
        if new.enabled {
            Ok(())
        } else {
            Err(Refusal::Disabled)
        }
    }

    /// The external ports that may be had where any will do; `None`: every one.
    pub(super) fn open_ports(
        &self,
        asker: &Asker,
        new: &NewMapping,
    ) -> Result<Option<Vec<PortRange>>, Refusal> {
        let policy = &self.settings.policy;
        if new.choice == PortChoice::Exact || policy.rules.is_trivial() {
            return Ok(None);
        }
        let ports = |asked: &Asked| {
            let ports = policy
                .rules
                .external_ports(asked, policy.lowest_port(asker.rights));
            ports.map_err(denied)
        };
        let asked = self.asked(asker, new, None);
        let open = ports(&asked)?;
        // Who asks for another device needs a port that it may have itself as well; which one matters for the other.
        if let Some(of_asker) = self.asked_by(asker, &asked) {
            ports(&of_asker)?;
        }
        Ok(Some(open))
    }

    /// A port to suggest to a server in place of the one that is wanted and not to be had, or where not every one may be had:
    /// the internal one if it can be. Without a suggestion a repetition of the request could lead to another port than the
    /// request itself. `None` if every one will do (PCPC-061).
    pub(super) fn suggestion(&mut self, asker: &Asker, new: &NewMapping) -> Option<ExternalPort> {
        let open = self.open_ports(asker, new).ok()?;
        if open.is_none() && new.external.is_none() {
            return None;
        }
        let (table, policy, statics) = (&self.table, &self.settings.policy, &self.statics);
        let protocol = new.protocol;
        let free = |port: ExternalPort| {
            open.as_ref().is_none_or(|open| in_ranges(open, port.get()))
                && table.by_external(protocol, port).is_none()
                && !policy.is_reserved(protocol, port.get())
                && !statics.states(protocol, port)
        };
        let same = ExternalPort::new(new.internal.port.get()).filter(|port| free(*port));
        same.or_else(|| ports::random_port(free, &mut self.rng))
    }

    /// Whether the device may have one more, and there is room for it.
    pub(super) fn has_room(&self, asker: &Asker, new: &NewMapping) -> Result<(), Refusal> {
        let limits = self.table.limits();
        if self.table.len() >= limits.mappings {
            return Err(Refusal::Quota(Quota::Table));
        }
        let asked = self.asked(asker, new, self.first_open(asker, new)?);
        let held = self.held(new.internal.addr, asked.device.mac);
        let ruling = self.settings.policy.rules.judge(&asked);
        if ruling.most.is_some_and(|most| held >= most) {
            return Err(Refusal::Quota(Quota::Rule(ruling.by)));
        }
        if held >= limits.per_host {
            return Err(Refusal::Quota(Quota::Host));
        }
        Ok(())
    }

    /// Whether a host may cause one more request to a server now; counts it if so.
    pub(super) fn may_ask(&mut self, call: &Call, now: Instant) -> bool {
        let mappings = self.table.limits().per_host;
        self.pace.admit(call.station(), mappings, now)
    }

    /// The external port that the rules are asked about: the one that is wanted, else the first that may be had.
    fn first_open(&self, asker: &Asker, new: &NewMapping) -> Result<Option<ExternalPort>, Refusal> {
        if new.external.is_some() {
            return Ok(new.external);
        }
        let open = self.open_ports(asker, new)?;
        let first = open.and_then(|open| open.first().map(PortRange::first));
        Ok(first.and_then(ExternalPort::new))
    }

    /// The mappings of a device, at whatever address.
    fn held(&self, addr: Ipv4Addr, mac: Option<Mac>) -> usize {
        let others = mac.into_iter().flat_map(|mac| self.devices.addresses(mac));
        let others = others.filter(|other| *other != addr);
        self.table.of_host(addr) + others.map(|addr| self.table.of_host(addr)).sum::<usize>()
    }

    /// Whether a server is asked whether a port is free: not if its caller may not have it whatever port of its own it
    /// would lead to.
    pub(super) fn may_ask_for(&self, call: &Call, key: &EntryKey) -> Result<(), Refusal> {
        let asked = Asked {
            kind: Kind::Mapping,
            device: self.device(call.caller.into(), call.mac, None),
            protocol: Some(key.protocol.number()),
            external: Some(key.port),
            internal: None,
        };
        let by = self.settings.policy.rules.denies_every_internal(&asked);
        by.map_or(Ok(()), |by| Err(denied(by)))
    }

    /// Whether a port that a server has granted is one that the device may have.
    pub(super) fn judge_grant(&self, id: Generation, port: ExternalPort) -> Result<(), Refusal> {
        let Some(mut mapping) = self.table.get(id).cloned() else {
            return Ok(());
        };
        mapping.claim.port = Some(port);
        self.denied_now(&mapping)
            .map_or(Ok(()), |by| Err(denied(by)))
    }

    /// The rules for a pinhole: how many the device may have, and what says so.
    pub(super) fn judge_pinhole(
        &self,
        caller: &Caller,
        pinhole: &Pinhole,
    ) -> Result<Option<(usize, Decider)>, PolicyError> {
        let own = caller.is(pinhole.internal.into());
        let asked = self.asked_pinhole(pinhole, caller.mac.filter(|_| own));
        let of_caller = (!own).then(|| Asked {
            device: self.device(caller.addr, caller.mac, None),
            ..asked.clone()
        });
        let rules = &self.settings.policy.rules;
        let ruling = rules.judge(&asked);
        let of_caller = of_caller.map(|asked| rules.judge(&asked));
        for ruling in [Some(ruling), of_caller].into_iter().flatten() {
            if ruling.verdict == Verdict::Deny {
                return Err(PolicyError::Rules(ruling.by));
            }
        }
        Ok(ruling.most.map(|most| (most, ruling.by)))
    }

    /// The owner's rules.
    pub const fn rules(&self) -> &Rules {
        &self.settings.policy.rules
    }

    /// Answers the owner's question. Nothing is asked of anybody, and nothing changes.
    pub fn ask_policy(&self, question: &Question) -> Answer {
        match question.kind {
            Kind::Mapping => self.ask_about_mapping(question),
            Kind::Pinhole => self.ask_about_pinhole(question),
        }
    }

    fn ask_about_mapping(&self, question: &Question) -> Answer {
        // What cannot be a mapping's is nothing that the rules are asked about.
        let addr = match question.client {
            IpAddr::V4(addr) => addr,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let asker = Asker {
            rights: Rights::Public,
            link: None,
            addr,
            mac: question.mac,
            name: question.name.clone(),
        };
        let mut new = NewMapping {
            remote: RemotePeer::Any,
            external: question.external,
            protocol: match question.protocol {
                Some(17) => Protocol::Udp,
                Some(_) | None => Protocol::Tcp,
            },
            internal: InternalEndpoint {
                addr,
                port: question.internal,
            },
            enabled: true,
            description: String::new(),
            lease: Lifetime(1),
            choice: match question.external {
                Some(_) => PortChoice::Exact,
                None => PortChoice::Any,
            },
        };
        let outcome = self
            .admit(&asker, &mut new)
            .and_then(|()| self.has_room(&asker, &new));
        let port = self.first_open(&asker, &new).unwrap_or(new.external);
        let asked = self.asked(&asker, &new, port);
        let per_host = self.table.limits().per_host;
        let codes = |refusal| {
            let code = |version_1| upnp_error(refusal, Operation::Add, version_1).code;
            (code(false), code(true))
        };
        let refused = outcome
            .err()
            .map(|refusal| (self.why(refusal), codes(refusal)));
        let held = self.held(addr, asked.device.mac);
        self.answer_to(asked, held, per_host, refused)
    }

    fn ask_about_pinhole(&self, question: &Question) -> Answer {
        // As above.
        let internal = match question.client {
            IpAddr::V6(addr) => addr,
            IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
        };
        let pinhole = Pinhole {
            id: 0,
            internal,
            internal_port: question.external.map(|_| question.internal.get()),
            remote: None,
            remote_port: None,
            protocol: question.protocol,
            expires: None,
        };
        let caller = Caller {
            mac: question.mac,
            ..question.client.into()
        };
        let mut asked = self.asked_pinhole(&pinhole, question.mac);
        asked.device.name = question.name.clone().or(asked.device.name);
        let ruling = self.settings.policy.rules.judge(&asked);
        let per_host = self.settings.firewall.per_host;
        let most = ruling.most.map_or(per_host, |most| most.min(per_host));
        let held = self.pinholes_of(internal, asked.device.mac);
        let refusal = match self.may_open(&caller, &pinhole) {
            Err(error) => Some(Refusal::Policy(error)),
            Ok(()) if ruling.verdict == Verdict::Deny => Some(denied(ruling.by)),
            Ok(()) if held < most => None,
            Ok(()) if most < per_host => Some(Refusal::Quota(Quota::Rule(ruling.by))),
            Ok(()) => Some(Refusal::Quota(Quota::Pinholes)),
        };
        let refused = refusal.map(|refusal| {
            let full = matches!(refusal, Refusal::Quota(_));
            let code = if full {
                PINHOLE_SPACE_EXHAUSTED.code
            } else {
                UpnpError::ACTION_NOT_AUTHORIZED.code
            };
            (self.why(refusal), (code, code))
        });
        self.answer_to(asked, held, per_host, refused)
    }

    fn answer_to(
        &self,
        asked: Asked,
        held: usize,
        per_host: usize,
        refused: Option<(Why, (u16, u16))>,
    ) -> Answer {
        let rules = &self.settings.policy.rules;
        let ruling = rules.judge(&asked);
        Answer {
            rules: ruling.verdict,
            decided_by: ruling.by.key(),
            label: rules.label(ruling.by),
            held,
            most: ruling.most.map_or(per_host, |most| most.min(per_host)),
            device: asked.device,
            refused,
        }
    }

    /// Says why a call is refused, before it is.
    pub(super) fn explain(&mut self, request: RequestId, refusal: Refusal) {
        let why = self.why(refusal);
        self.notify(Notice::Refused { request, why });
    }

    pub(super) fn why(&self, refusal: Refusal) -> Why {
        let rules = &self.settings.policy.rules;
        let key = |key: &str| Some(key.to_owned());
        let (decided_by, text) = match refusal {
            Refusal::Policy(PolicyError::Rules(by)) => (Some(by.key()), rules.label(by)),
            Refusal::Quota(Quota::Rule(by)) => {
                (Some(by.key()), format!("the quota of {}", rules.label(by)))
            }
            Refusal::Policy(PolicyError::OtherHost | PolicyError::OtherLink) => {
                (key("policy.third_party"), refusal.to_string())
            }
            Refusal::Policy(PolicyError::PortTooLow) => {
                (key("policy.min_port"), refusal.to_string())
            }
            Refusal::Quota(Quota::Host) => {
                (key("policy.max_mappings_per_host"), refusal.to_string())
            }
            Refusal::Quota(Quota::Pinholes) => {
                (key("ipv6.max_pinholes_per_host"), refusal.to_string())
            }
            Refusal::Quota(Quota::Table) => (key("limits.explicit_mappings"), refusal.to_string()),
            Refusal::Policy(PolicyError::NotLan)
            | Refusal::Quota(Quota::Pace)
            | Refusal::Upstream(_)
            | Refusal::Unreachable
            | Refusal::NotAuthorized
            | Refusal::PortTaken
            | Refusal::Reserved
            | Refusal::NoServer
            | Refusal::NoRoom
            | Refusal::Absent
            | Refusal::Disabled
            | Refusal::Failed => (None, refusal.to_string()),
        };
        Why { decided_by, text }
    }
}

fn denied(by: Decider) -> Refusal {
    Refusal::Policy(PolicyError::Rules(by))
}
