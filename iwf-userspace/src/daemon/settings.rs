//! What the core and the documents are told, from the configuration.

use std::fs;
use std::time::Duration;

use super::config::{self, BehindPrivateAddress, Config, PcpServer};
use super::dataplane::Pinhole;
use super::sockets::PCP_CLIENT_PORT;
use crate::iwf::policy::Wanted;
use crate::iwf::{Asking, Discovery, ModeSetting, PrivateWan, ServerSource, Settings};
use crate::mapping::policy::{Limits, Policy, ThirdParty};
use crate::proto::firewall::Firewall;
use crate::proto::protection;
use crate::types::access::ControlPointId;
use crate::types::{Lifetime, Protocol};
use crate::wire::description::{Description, DeviceInfo, DeviceUuid, Tree};
use crate::wire::dhcp4;

/// Everything a protocol decision depends on.
pub fn core(
    config: &Config,
    description: &Description,
    certificate: Option<ControlPointId>,
) -> Settings {
    let wanted = policy(config);
    let mut policy = Policy {
        min_port: wanted.min_port,
        third_party: wanted.third_party,
        rules: wanted.rules,
        ..Policy::default()
    };
    policy.reserved.extend(host_ports(config));
    let asking = asking(config);
    Settings {
        mode: asking.mode,
        servers: asking.servers,
        discovery: asking.discovery,
        third_party: asking.third_party,
        private_wan: match config.behind_private_address {
            BehindPrivateAddress::Refuse => PrivateWan::Refuse,
            BehindPrivateAddress::MapLocally => PrivateWan::MapLocally,
        },
        send_descriptions: config.send_descriptions,
        nat_pmp: config.nat_pmp,
        igd: config.igd,
        departed_after: wanted.departed_after,
        policy,
        limits: Limits {
            mappings: count(config.limits.explicit_mappings),
            per_host: wanted.per_host,
            ..Limits::default()
        },
        // Half a second is for the shell and the network.
        deadline: config.http.answer_within - Duration::from_millis(500),
        firewall: Firewall {
            enabled: config.ipv6.filter,
            pinholes: config.ipv6.pinholes,
            wildcards: config.ipv6.pinhole_wildcards,
            per_host: count(config.ipv6.max_pinholes_per_host),
            connected: lifetime(config.timeouts.tcp_established),
            unconnected: lifetime(config.timeouts.udp_idle),
        },
        protection: certificate.map(|certificate| protection::Settings {
            uuid: description.uuid(),
            certificate,
        }),
        default_connection_service: description.default_connection_service(Tree::Igd1),
    }
}

/// What holds for LAN hosts.
pub fn policy(config: &Config) -> Wanted {
    Wanted {
        min_port: config.policy.min_port,
        third_party: match config.policy.third_party {
            config::ThirdParty::Refused => ThirdParty::Refused,
            config::ThirdParty::Allowed => ThirdParty::Allowed,
        },
        per_host: count(config.policy.max_mappings_per_host),
        rules: config.policy.rules.clone(),
        departed_after: config.policy.departed_after,
    }
}

/// Who is asked for mappings, and how far that is trusted.
pub fn asking(config: &Config) -> Asking {
    Asking {
        mode: match config.mode {
            config::Mode::Auto => ModeSetting::Auto,
            config::Mode::Cascaded => ModeSetting::Cascaded,
            config::Mode::NoNat => ModeSetting::NoNat,
            config::Mode::DsLite => ModeSetting::DsLite,
            config::Mode::Local => ModeSetting::Local,
        },
        servers: config
            .pcp_servers
            .iter()
            .map(|server| match server {
                PcpServer::DefaultRouter => ServerSource::DefaultRouter,
                PcpServer::Addresses(addresses) => ServerSource::Addresses(addresses.clone()),
            })
            .collect(),
        discovery: Discovery {
            dhcp: config.discovery.dhcp,
            router: config.discovery.router,
            anycast: config.discovery.anycast,
        },
        third_party: config.trusts_upstream,
    }
}

/// This machine's own services on the WAN: those configured, the announcements of PCP servers, and what DHCP servers
/// answer to questions that went to everybody, the daemon's or those of the system's client.
pub fn host_ports(config: &Config) -> Vec<(Protocol, u16)> {
    let tcp = config
        .open_ports
        .tcp
        .iter()
        .map(|port| (Protocol::Tcp, *port));
    let udp = config
        .open_ports
        .udp
        .iter()
        .map(|port| (Protocol::Udp, *port));
    let mut ports: Vec<_> = tcp.chain(udp).collect();
    if config.mode != config::Mode::Local {
        ports.push((Protocol::Udp, PCP_CLIENT_PORT));
    }
    ports.push((Protocol::Udp, dhcp4::CLIENT_PORT));
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The pinholes of the configuration, with ids that count down from the highest: those asked for count up.
pub fn pinholes(config: &Config) -> Vec<Pinhole> {
    let ids = (1..FIRST_STATIC_PINHOLE).rev();
    let pinholes = config.pinholes.iter().zip(ids);
    pinholes
        .map(|(pinhole, id)| Pinhole {
            id,
            internal: pinhole.internal,
            internal_port: pinhole.internal_port,
            remote: pinhole.remote,
            remote_port: pinhole.remote_port,
            protocol: pinhole.protocol,
            expires: None,
        })
        .collect()
}

/// One above the first id of a configured pinhole; the highest number is the kernel's word for open ports.
const FIRST_STATIC_PINHOLE: u16 = u16::MAX;

/// The configured mode in the word of the configuration.
pub fn mode_name(mode: config::Mode) -> &'static str {
    match mode {
        config::Mode::Auto => "auto",
        config::Mode::Cascaded => "cascaded",
        config::Mode::NoNat => "no-nat",
        config::Mode::DsLite => "ds-lite",
        config::Mode::Local => "local",
    }
}

/// The documents for a device of this identity, with DeviceProtection or without.
pub fn description(uuid: DeviceUuid, protected: bool) -> Description {
    let info = DeviceInfo {
        uuid,
        friendly_name: "iwf Internet gateway".to_owned(),
        manufacturer: "iwf".to_owned(),
        manufacturer_url: env!("CARGO_PKG_REPOSITORY").to_owned(),
        model_description: "Internet gateway that opens ports here and in the provider's NAT"
            .to_owned(),
        model_name: "iwf".to_owned(),
        model_number: env!("CARGO_PKG_VERSION").to_owned(),
        serial_number: uuid.to_string(),
        presentation_url: "/".to_owned(),
    };
    if protected {
        Description::protected(info)
    } else {
        Description::new(info)
    }
}

/// The SERVER header (UPnP Device Architecture 1.1 clause 2): system, architecture, product.
pub fn server_name() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let end = release.find(|c| !digits(c)).unwrap_or(release.len());
    let (release, _) = release.split_at(end);
    format!("Linux/{release} UPnP/1.1 iwf/{}", env!("CARGO_PKG_VERSION"))
}

fn lifetime(idle: Duration) -> Lifetime {
    Lifetime(u32::try_from(idle.as_secs()).unwrap_or(u32::MAX))
}

fn count(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
