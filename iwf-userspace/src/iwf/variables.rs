//! The state variables of the services as they are now: for QueryStateVariable and for whoever is told of changes.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::{Iwf, Mode};
use crate::proto::protection::{self, Protection};
use crate::proto::{firewall, igd};
use crate::types::Instant;
use crate::wire::scpd::Service;

impl Iwf {
    /// The value of a variable; `None` for one that has none by itself, because it only gives arguments their type.
    pub fn variable(&self, service: &Service, name: &str, now: Instant) -> Option<String> {
        let value = match (service.kind, name) {
            ("Layer3Forwarding", "DefaultConnectionService") => {
                self.settings.default_connection_service.clone()
            }
            ("WANCommonInterfaceConfig", name) => return self.link_variable(name),
            ("WANIPConnection", "ConnectionType" | "PossibleConnectionTypes") => {
                "IP_Routed".to_owned()
            }
            ("WANIPConnection", "ConnectionStatus") => self.connection_status().to_owned(),
            ("WANIPConnection", "Uptime") => self.uptime(now),
            ("WANIPConnection", "LastConnectionError") => "ERROR_NONE".to_owned(),
            ("WANIPConnection", "RSIPAvailable") => "0".to_owned(),
            ("WANIPConnection", "NATEnabled") => "1".to_owned(),
            ("WANIPConnection", "ExternalIPAddress") => self
                .told_address()
                .map_or_else(String::new, |addr| addr.to_string()),
            ("WANIPConnection", "PortMappingNumberOfEntries") => {
                self.port_mapping_entries().to_string()
            }
            ("WANIPConnection", "SystemUpdateID") => self.system_update_id().to_string(),
            (firewall::SERVICE, name) => {
                let mut flags = self.firewall_status().into_iter();
                flags.find(|(flag, _)| *flag == name)?.1
            }
            (protection::SERVICE, "SetupReady") => {
                let ready = self.protection().is_some_and(Protection::setup_ready);
                if ready { "1" } else { "0" }.to_owned()
            }
            _ => return None,
        };
        service.variable(name).map(|_| value)
    }

    /// The device-wide external address as control points may be told it: none while every call for it is answered with
    /// none (WIC2 section 2.3.13), although the last one is kept for when the WAN is back.
    fn told_address(&self) -> Option<Ipv4Addr> {
        match self.mode {
            Mode::Down | Mode::NoServer => None,
            Mode::Local | Mode::Cascaded(_) | Mode::NoNat(_) => self.external_address(),
        }
    }

    fn link_variable(&self, name: &str) -> Option<String> {
        let link = &self.link;
        let (_, value) = igd::common_link_properties(link)
            .into_iter()
            .chain(igd::TOTALS.map(|which| igd::total(link, which)))
            .find(|(argument, _)| argument.strip_prefix("New") == Some(name))
            .or_else(|| {
                let connections = match name {
                    "MaximumActiveConnections" => MAX_CONNECTIONS,
                    "NumberOfActiveConnections" => self.active_connections(),
                    _ => return None,
                };
                Some(("", connections.to_string()))
            })?;
        Some(value)
    }

    /// Connections that are up.
    pub(super) fn active_connections(&self) -> u16 {
        u16::from(self.mode != Mode::Down)
    }
}

/// There is one WAN, and one connection on it.
pub(super) const MAX_CONNECTIONS: u16 = 1;
