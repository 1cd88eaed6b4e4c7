//! WANIPv6FirewallControl:1: from calls to what is wanted, as far as it can be judged without the table.
//!
//! Read before editing: WANIPv6FirewallControl:1 section 2.5; igd-service section 8; requirements FW6.
//!
//! The order of checks: service and action (401), arguments and their types (402, 601), values (600, 601), whether
//! there is a firewall and holes in it (702, 703), what may be any (708, 705, 707, 706), who may (606), room (701).
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use iwf_common::flow6::{Scope, scope};

use crate::mapping::pinholes::MAX_LEASE;
use crate::types::Lifetime;
use crate::types::pinhole::Pinhole;
use crate::wire::soap::{Call, UpnpError, firewall};
use crate::wire::{scpd, services};

/// The type of the service.
pub const SERVICE: &str = "WANIPv6FirewallControl";

/// The service beside it in the tree of version 2.
const CONNECTION: &str = "WANIPConnection";

/// WANIPv6FirewallControl:1 section 2.3.6: every protocol.
const ANY_PROTOCOL: u16 = 65_535;

/// Protocols that have ports, by which pinholes tell flows apart: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
/// Those of them whose sessions have a state.
const CONNECTED: [u8; 3] = [6, 33, 132];

/// What the owner of the router allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// FirewallEnabled: whether the IPv6 filter is on.
    pub enabled: bool,
    /// InboundPinholeAllowed.
    pub pinholes: bool,
    /// Whether protocol and internal port may be any. This includes ports below the lowest one for hosts.
    pub wildcards: bool,
    /// Pinholes of one host.
    pub per_host: usize,
    /// How long a connection is let in without packets.
    pub connected: Lifetime,
    /// How long any other flow is.
    pub unconnected: Lifetime,
}

impl Default for Firewall {
    fn default() -> Self {
        Self {
            enabled: true,
            pinholes: true,
            wildcards: false,
            per_host: 32,
            connected: Lifetime(7440),
            unconnected: Lifetime(300),
        }
    }
}

/// What a control point asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// GetFirewallStatus.
    Status,
    /// GetOutboundPinholeTimeout.
    OutboundTimeout(Flows),
    /// AddPinhole.
    Add(Flows, Lifetime),
    /// UpdatePinhole.
    Update(u16, Lifetime),
    /// DeletePinhole.
    Delete(u16),
    /// GetPinholePackets.
    Packets(u16),
    /// CheckPinholeWorking.
    Check(u16),
}

/// The five values that AddPinhole names, as they were written. What is `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    /// RemoteHost.
    pub remote: Option<Ipv6Addr>,
    /// RemotePort.
    pub remote_port: Option<u16>,
    /// InternalClient.
    pub internal: Option<Ipv6Addr>,
    /// InternalPort.
    pub internal_port: Option<u16>,
    /// Protocol.
    pub protocol: Option<u16>,
}

/// Whether a call is one of this service's actions.
pub fn is_meant_by(call: &Call) -> bool {
    (call.service == SERVICE && !call.is_query()) || is_misdirected(call)
}

/// js-libp2p asks the connection service of version 2 for pinholes; it has no action of such a name.
fn is_misdirected(call: &Call) -> bool {
    let table = &services::WAN_IPV6_FIREWALL_CONTROL;
    (call.service.as_str(), call.version) == (CONNECTION, 2) && table.action(&call.action).is_some()
}

/// Reads a call.
pub fn parse(call: &Call) -> Result<Action, UpnpError> {
    let service = if is_misdirected(call) {
        &services::WAN_IPV6_FIREWALL_CONTROL
    } else {
        services::find(&call.service, call.version).ok_or(UpnpError::INVALID_ACTION)?
    };
    match service.check(call)?.name {
        "GetFirewallStatus" => Ok(Action::Status),
        "GetOutboundPinholeTimeout" => Ok(Action::OutboundTimeout(flows(call)?)),
        "AddPinhole" => Ok(Action::Add(flows(call)?, lease(call, "LeaseTime")?)),
        "UpdatePinhole" => Ok(Action::Update(id(call)?, lease(call, "NewLeaseTime")?)),
        "DeletePinhole" => Ok(Action::Delete(id(call)?)),
        "GetPinholePackets" => Ok(Action::Packets(id(call)?)),
        "CheckPinholeWorking" => Ok(Action::Check(id(call)?)),
        // The tables offer nothing else; an action they gain is refused until it is handled here.
        _ => Err(UpnpError::INVALID_ACTION),
    }
}

impl Firewall {
    /// Whether there are pinholes at all.
    pub const fn admits(&self) -> Result<(), UpnpError> {
        if !self.enabled {
            return Err(firewall::FIREWALL_DISABLED);
        }
        if !self.pinholes {
            return Err(firewall::INBOUND_PINHOLE_NOT_ALLOWED);
        }
        Ok(())
    }

    /// GetOutboundPinholeTimeout: how long the filter remembers such a flow of a LAN host after its last packet.
    pub fn outbound_timeout(&self, flows: &Flows) -> Result<Lifetime, UpnpError> {
        let protocol = self.protocol(flows)?;
        if flows.internal_port.is_none() && !self.wildcards {
            return Err(firewall::INTERNAL_PORT_WILDCARDING_NOT_ALLOWED);
        }
        Ok(match protocol {
            Some(protocol) if CONNECTED.contains(&protocol) => self.connected,
            Some(_) => self.unconnected,
            None => Lifetime(self.connected.0.min(self.unconnected.0)),
        })
    }

    /// The pinhole that is wanted, without a name and an end yet.
    pub fn pinhole(&self, flows: &Flows) -> Result<Pinhole, UpnpError> {
        let internal = flows
            .internal
            .ok_or(firewall::WILDCARD_NOT_PERMITTED_IN_SRC_IP)?;
        let protocol = self.protocol(flows)?;
        if flows.internal_port.is_none() && !self.wildcards {
            return Err(firewall::INTERNAL_PORT_WILDCARDING_NOT_ALLOWED);
        }
        Ok(Pinhole {
            id: 0,
            internal,
            internal_port: flows.internal_port,
            remote: flows.remote,
            remote_port: flows.remote_port,
            protocol,
            expires: None,
        })
    }

    fn protocol(&self, flows: &Flows) -> Result<Option<u8>, UpnpError> {
        match flows.protocol {
            None if self.wildcards => Ok(None),
            None => Err(firewall::PROTOCOL_WILDCARDING_NOT_ALLOWED),
            Some(number) => {
                let number = u8::try_from(number).ok();
                let known = number.filter(|number| WITH_PORTS.contains(number));
                known.map(Some).ok_or(firewall::PROTOCOL_NOT_SUPPORTED)
            }
        }
    }
}

fn flows(call: &Call) -> Result<Flows, UpnpError> {
    let port = |name| Ok::<_, UpnpError>(Some(ui2(call, name)?).filter(|port| *port != 0));
    let remote = address(call, "RemoteHost")?;
    // Nobody outside has such an address.
    if remote.is_some_and(|addr| scope(&addr.octets()) != Scope::Global) {
        return Err(UpnpError::ARGUMENT_VALUE_INVALID);
    }
    // Empty is any, as 0 is: js-libp2p writes it so.
    let any_port = text(call, "RemotePort")?.trim().is_empty();
    Ok(Flows {
        remote,
        remote_port: if any_port { None } else { port("RemotePort")? },
        internal: address(call, "InternalClient")?,
        internal_port: port("InternalPort")?,
        protocol: Some(ui2(call, "Protocol")?).filter(|number| *number != ANY_PROTOCOL),
    })
}

/// Any host is written as nothing, `*` or the unspecified address.
fn address(call: &Call, name: &str) -> Result<Option<Ipv6Addr>, UpnpError> {
    let written = text(call, name)?.trim();
    if written.is_empty() || written == "*" {
        return Ok(None);
    }
    let addr: Ipv6Addr = written
        .parse()
        .map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)?;
    Ok(Some(addr).filter(|addr| !addr.is_unspecified()))
}

fn lease(call: &Call, name: &str) -> Result<Lifetime, UpnpError> {
    let seconds = scpd::number(text(call, name)?, u32::MAX)?;
    let lease = Some(Lifetime(seconds)).filter(|lease| (1..=MAX_LEASE.0).contains(&lease.0));
    lease.ok_or(UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE)
}

fn id(call: &Call) -> Result<u16, UpnpError> {
    ui2(call, "UniqueID")
}

fn ui2(call: &Call, name: &str) -> Result<u16, UpnpError> {
    let number = scpd::number(text(call, name)?, u16::MAX.into())?;
    u16::try_from(number).map_err(|_| UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE)
}

fn text<'a>(call: &'a Call, name: &str) -> Result<&'a str, UpnpError> {
    call.arg(name).ok_or(UpnpError::INVALID_ARGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(changes: &[(&str, &str)]) -> Call {
        let mut args: Vec<(String, String)> = [
            ("RemoteHost", ""),
            ("RemotePort", "0"),
            ("InternalClient", "2a0b::10"),
            ("InternalPort", "8080"),
            ("Protocol", "6"),
            ("LeaseTime", "3600"),
        ]
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .into();
        for (name, value) in changes {
            args.retain(|(n, _)| n != name);
            if *value != "-" {
                args.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
        Call {
            service: SERVICE.to_owned(),
            version: 1,
            action: "AddPinhole".to_owned(),
            args,
        }
    }

    fn code(firewall: Firewall, changes: &[(&str, &str)]) -> u16 {
        let judged = parse(&add(changes)).and_then(|action| {
            let Action::Add(flows, _) = action else {
                panic!("{action:?}");
            };
            firewall.admits().and_then(|()| firewall.pinhole(&flows))
        });
        judged.map_or_else(|error| error.code, |_| 200)
    }

    #[test]
    fn every_refusal_has_its_code_and_the_first_one_counts() {
        let narrow = Firewall::default();
        for (expected, changes) in [
            (200, &[][..]),
            (402, &[("RemotePort", "-"), ("LeaseTime", "0")]),
            (402, &[("NewLeaseTime", "1")]),
            (402, &[("LeaseTime", "soon")]),
            (601, &[("LeaseTime", "0")]),
            (601, &[("LeaseTime", "86401")]),
            (601, &[("InternalPort", "65536")]),
            (200, &[("LeaseTime", "86400")]),
            (600, &[("InternalClient", "192.168.1.10")]),
            (600, &[("RemoteHost", "example.net")]),
            (600, &[("RemoteHost", "fe80::1")]),
            (600, &[("RemoteHost", "ff0e::1"), ("InternalClient", "")]),
            (200, &[("RemoteHost", "2a0d::9"), ("RemotePort", "9")]),
            (200, &[("RemotePort", "")]),
            (402, &[("InternalPort", "")]),
            (708, &[("InternalClient", ""), ("Protocol", "1")]),
            (708, &[("InternalClient", "::")]),
            (705, &[("Protocol", "1"), ("InternalPort", "0")]),
            (705, &[("Protocol", "300")]),
            (707, &[("Protocol", "65535"), ("InternalPort", "0")]),
            (706, &[("InternalPort", "0")]),
        ] {
            assert_eq!(code(narrow, changes), expected, "{changes:?}");
        }
        let wide = Firewall {
            wildcards: true,
            ..narrow
        };
        assert_eq!(
            code(wide, &[("Protocol", "65535"), ("InternalPort", "0")]),
            200
        );
        let closed = Firewall {
            pinholes: false,
            ..narrow
        };
        assert_eq!(code(closed, &[("Protocol", "65535")]), 703);
        assert_eq!(code(closed, &[("LeaseTime", "0")]), 601);
        let off = Firewall {
            enabled: false,
            ..closed
        };
        assert_eq!(code(off, &[]), 702);
    }

    #[test]
    fn the_connection_service_of_version_2_passes_its_calls_on() {
        let of = |service: &str, version, action: &str| Call {
            service: service.to_owned(),
            version,
            action: action.to_owned(),
            ..add(&[])
        };
        for (call, is_meant) in [
            (of(SERVICE, 1, "AddPinhole"), true),
            (of(SERVICE, 1, "Nonsense"), true),
            (of(CONNECTION, 2, "AddPinhole"), true),
            (of(CONNECTION, 1, "AddPinhole"), false),
            (of(CONNECTION, 2, "AddPortMapping"), false),
            (of(CONNECTION, 2, "Nonsense"), false),
            (of(SERVICE, 1, "QueryStateVariable"), false),
        ] {
            assert_eq!(is_meant_by(&call), is_meant, "{call:?}");
        }
        let parsed = parse(&of(CONNECTION, 2, "AddPinhole"));
        assert!(matches!(parsed, Ok(Action::Add(..))), "{parsed:?}");
        assert_eq!(
            parse(&of(SERVICE, 2, "AddPinhole")),
            Err(UpnpError::INVALID_ACTION)
        );
    }

    #[test]
    fn every_action_of_the_table_is_handled() {
        for action in services::WAN_IPV6_FIREWALL_CONTROL.actions {
            let args = action.inputs().map(|argument| {
                let value = match argument.name {
                    "RemoteHost" | "InternalClient" => "2a0b::10",
                    _ => "6",
                };
                (argument.name.to_owned(), value.to_owned())
            });
            let call = Call {
                service: SERVICE.to_owned(),
                version: 1,
                action: action.name.to_owned(),
                args: args.collect(),
            };
            assert!(parse(&call).is_ok(), "{}", action.name);
        }
    }

    #[test]
    fn outbound_timeouts_are_those_of_the_filter() {
        let mut flows = Flows {
            remote: None,
            remote_port: None,
            internal: None,
            internal_port: Some(5000),
            protocol: Some(6),
        };
        let firewall = Firewall::default();
        assert_eq!(firewall.outbound_timeout(&flows), Ok(Lifetime(7440)));
        flows.protocol = Some(17);
        assert_eq!(firewall.outbound_timeout(&flows), Ok(Lifetime(300)));
        flows.protocol = Some(58);
        assert_eq!(
            firewall.outbound_timeout(&flows).map_err(|e| e.code),
            Err(705)
        );
        flows.protocol = None;
        assert_eq!(
            firewall.outbound_timeout(&flows).map_err(|e| e.code),
            Err(707)
        );
        flows = Flows {
            protocol: Some(17),
            internal_port: None,
            ..flows
        };
        assert_eq!(
            firewall.outbound_timeout(&flows).map_err(|e| e.code),
            Err(706)
        );
    }
}
