//! From what was written to what may be used.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::raw;
use super::rules::{self, Quotas};
use super::servers::{discovery, over_ipv6, pcp_servers};
use super::{
    Aftr, AttachMode, BehindPrivateAddress, Config, Discovery, EphemeralPorts, Filtering,
    FlowRules, HttpConfig, InterfaceName, Invalid, Ipv6, Limits, Line, MAX_LAN_INTERFACES,
    MAX_LEASE_FILES, MAX_PINHOLES, Mode, MssClamp, OpenPorts, POOL, Paths, PolicyConfig,
    ProtectionConfig, Refusals, SsdpConfig, StaticPinhole, ThirdParty, Timeouts,
};
use crate::iwf::AccessType;
use crate::proto::softwire::is_usable;

impl TryFrom<raw::File> for Config {
    type Error = Invalid;

    fn try_from(file: raw::File) -> Result<Self, Invalid> {
        let mode = choice(
            "mode",
            &file.mode,
            &[
                ("auto", Mode::Auto),
                ("cascaded", Mode::Cascaded),
                ("no-nat", Mode::NoNat),
                ("ds-lite", Mode::DsLite),
                ("local", Mode::Local),
            ],
        )?;
        let wan_interface = interface("wan.interface", &file.wan.interface)?;
        let lan_interfaces = lan_interfaces(&file.lan.interfaces, &wan_interface)?;
        let pcp_servers = pcp_servers(&file.upstream.pcp_servers, &wan_interface)?;
        over_ipv6(mode, &pcp_servers, &file.upstream.pcp_servers)?;
        let discovery = discovery(file.upstream.discovery.get_ref())?;
        if mode == Mode::Cascaded && pcp_servers.is_empty() && discovery == Discovery::NONE {
            return Err(invalid(
                &file.upstream.pcp_servers,
                "mode \"cascaded\" has no PCP server to ask".to_owned(),
                "list an address or \"default-router\" in upstream.pcp_servers, or something in upstream.discovery, or \
                 write mode = \"auto\"",
            ));
        }
        let open_ports = OpenPorts {
            tcp: ports("wan.open_tcp_ports", &file.wan.open_tcp_ports)?,
            udp: ports("wan.open_udp_ports", &file.wan.open_udp_ports)?,
        };
        let limits = limits(&file.limits)?;
        Ok(Self {
            mappings: super::mappings::check(&file.mapping, &open_ports, &limits)?,
            mode,
            lan_interfaces,
            wan_interface,
            open_ports,
            line: line(&file.wan)?,
            behind_private_address: choice(
                "wan.behind_private_address",
                &file.wan.behind_private_address,
                &[
                    ("refuse", BehindPrivateAddress::Refuse),
                    ("map-locally", BehindPrivateAddress::MapLocally),
                ],
            )?,
            pcp_servers,
            trusts_upstream: *file.upstream.third_party.get_ref(),
            send_descriptions: *file.upstream.send_descriptions.get_ref(),
            nat_pmp: *file.upstream.nat_pmp.get_ref(),
            igd: *file.upstream.igd.get_ref(),
            discovery,
            paths: paths(&file.paths)?,
            http: http(&file.http)?,
            device_protection: protection(&file.device_protection, &file.http)?,
            ssdp: SsdpConfig {
                max_age: seconds(
                    "ssdp.max_age_seconds",
                    &file.ssdp.max_age_seconds,
                    1800..=86_400,
                )?,
                ttl: number("ssdp.ttl", &file.ssdp.ttl, 1..=4)?,
            },
            ds_lite: file.ds_lite.as_ref().map(aftr).transpose()?,
            attach: choice(
                "xdp.attach",
                &file.xdp.attach,
                &[
                    ("auto", AttachMode::Auto),
                    ("native", AttachMode::Native),
                    ("generic", AttachMode::Generic),
                    ("tc", AttachMode::Tc),
                ],
            )?,
            ephemeral_ports: choice(
                "nat.ephemeral_ports",
                &file.nat.ephemeral_ports,
                &[
                    ("share", EphemeralPorts::Share),
                    ("exclude", EphemeralPorts::Exclude),
                ],
            )?,
            rules: FlowRules {
                filtering: choice("nat.filtering", &file.nat.filtering, &FILTERINGS)?,
                refusals: choice("nat.refusals", &file.nat.refusals, &REFUSALS)?,
            },
            mss_clamp: mss_clamp(&file.nat.mss_clamp)?,
            external_addresses: external_addresses(&file.nat.external_addresses)?,
            policy: policy(&file.policy, &file.ipv6)?,
            ipv6: Ipv6 {
                filter: *file.ipv6.filter.get_ref(),
                filtering: choice("ipv6.filtering", &file.ipv6.filtering, &FILTERINGS)?,
                open_tcp: *file.ipv6.open_tcp.get_ref(),
                pinholes: *file.ipv6.pinholes.get_ref(),
                pinhole_wildcards: *file.ipv6.pinhole_wildcards.get_ref(),
                max_pinholes_per_host: number(
                    "ipv6.max_pinholes_per_host",
                    &file.ipv6.max_pinholes_per_host,
                    1..=1024,
                )?,
            },
            pinholes: pinholes(&file.pinhole)?,
            hooks: super::hooks::check(&file.hook)?,
            limits,
            timeouts: timeouts(&file.timeouts)?,
            reconcile_interval: seconds(
                "reconcile.interval_seconds",
                &file.reconcile.interval_seconds,
                1..=3600,
            )?,
            metrics: metrics(&file.metrics.listen)?,
            log_filter: log_filter(&file.log.filter)?,
            log_drops: *file.log.drops.get_ref(),
        })
    }
}

/// RFC 4787 section 5 in its own words.
pub(super) const FILTERINGS: [(&str, Filtering); 3] = [
    ("endpoint-independent", Filtering::EndpointIndependent),
    ("address-dependent", Filtering::AddressDependent),
    (
        "address-and-port-dependent",
        Filtering::AddressAndPortDependent,
    ),
];

const REFUSALS: [(&str, Refusals); 3] = [
    ("answer", Refusals::Answer),
    ("answer-lan", Refusals::AnswerLan),
    ("silent", Refusals::Silent),
];

fn lan_interfaces(
    names: &Spanned<Vec<Spanned<String>>>,
    wan: &InterfaceName,
) -> Result<Vec<InterfaceName>, Invalid> {
    let count = names.get_ref().len();
    if !(1..=MAX_LAN_INTERFACES).contains(&count) {
        return Err(invalid(
            names,
            format!("lan.interfaces names {count} interfaces"),
            &format!("name 1 to {MAX_LAN_INTERFACES}, for example [\"br-lan\"]"),
        ));
    }
    let mut seen = BTreeSet::new();
    names
        .get_ref()
        .iter()
        .map(|written| {
            let name = interface("lan.interfaces", written)?;
            if name == *wan {
                return Err(invalid(
                    written,
                    format!("\"{name}\" is both LAN and WAN"),
                    "name different interfaces in lan.interfaces and wan.interface",
                ));
            }
            if !seen.insert(name.clone()) {
                return Err(invalid(
                    written,
                    format!("\"{name}\" is listed twice"),
                    "name each LAN interface once",
                ));
            }
            Ok(name)
        })
        .collect()
}

/// Octets of a name (RFC 1035 section 2.3.4) and of one of its labels.
const MOST_OF_NAME: usize = 253;
const MOST_OF_LABEL: usize = 63;

fn aftr(section: &raw::DsLite) -> Result<Aftr, Invalid> {
    let written = section.aftr.get_ref();
    if written == "dhcp" {
        return Ok(Aftr::Dhcp);
    }
    let is_label = |label: &str| {
        let known = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
        (1..=MOST_OF_LABEL).contains(&label.len()) && label.bytes().all(known)
    };
    let is_name = |name: &str| {
        let name = name.strip_suffix('.').unwrap_or(name);
        let numeric = name
            .bytes()
            .all(|octet| octet.is_ascii_digit() || octet == b'.');
        name.len() <= MOST_OF_NAME && !numeric && name.split('.').all(is_label)
    };
    match written.parse() {
        Ok(addr) if is_usable(&addr) => Ok(Aftr::Address(addr)),
        Err(_) if is_name(written) => Ok(Aftr::Name(written.clone())),
        _ => Err(invalid(
            &section.aftr,
            format!("ds_lite.aftr: {written:?} cannot be where a softwire ends"),
            "write \"dhcp\", a host name, or an IPv6 address that is not of the link, a group or this machine",
        )),
    }
}

fn interface(key: &str, written: &Spanned<String>) -> Result<InterfaceName, Invalid> {
    InterfaceName::new(written.get_ref()).ok_or_else(|| {
        invalid(
            written,
            format!("{key}: {:?} cannot be an interface name", written.get_ref()),
            "write a name of 1 to 15 characters as shown by `ip link`, for example \"eth0\"",
        )
    })
}

fn external_addresses(written: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<Ipv4Addr>, Invalid> {
    let count = written.get_ref().len();
    if count > POOL {
        return Err(invalid(
            written,
            format!("nat.external_addresses names {count} addresses"),
            &format!("name at most {POOL} besides the WAN interface's own"),
        ));
    }
    let mut seen = BTreeSet::new();
    let mut address = |written: &Spanned<String>| {
        let text = written.get_ref().as_str();
        let addr = text.parse::<Ipv4Addr>().ok().filter(|addr| {
            let [first, ..] = addr.octets();
            first != 0 && !addr.is_loopback() && first < 224
        });
        let Some(addr) = addr else {
            return Err(invalid(
                written,
                format!("nat.external_addresses: {text:?} is no address of a host"),
                "write an IPv4 address such as \"192.0.2.7\"",
            ));
        };
        if !seen.insert(addr) {
            return Err(invalid(
                written,
                format!("nat.external_addresses: {addr} is listed twice"),
                "name each address once",
            ));
        }
        Ok(addr)
    };
    written.get_ref().iter().map(&mut address).collect()
}

fn ports(key: &str, written: &[Spanned<i64>]) -> Result<Vec<u16>, Invalid> {
    let ports: BTreeSet<u16> = written
        .iter()
        .map(|port| number(key, port, 1..=65_535))
        .collect::<Result<_, _>>()?;
    Ok(ports.into_iter().collect())
}

fn paths(written: &raw::Paths) -> Result<Paths, Invalid> {
    let control_socket = path("paths.control_socket", &written.control_socket)?;
    // sun_path holds 108 octets with the final zero (unix(7)).
    if control_socket.as_os_str().len() > 107 {
        return Err(invalid(
            &written.control_socket,
            "paths.control_socket is longer than a socket name may be".to_owned(),
            "write a path of at most 107 octets",
        ));
    }
    Ok(Paths {
        state_dir: path("paths.state_dir", &written.state_dir)?,
        bpffs_dir: path("paths.bpffs_dir", &written.bpffs_dir)?,
        control_socket,
    })
}

fn path(key: &str, written: &Spanned<String>) -> Result<PathBuf, Invalid> {
    let path = PathBuf::from(written.get_ref());
    if path.is_absolute() && path.parent().is_some() {
        return Ok(path);
    }
    Err(invalid(
        written,
        format!("{key}: {:?} is not an absolute path", written.get_ref()),
        "write one that starts with /",
    ))
}

/// One address of this machine: whoever reaches it may read.
fn metrics(written: &Spanned<String>) -> Result<Option<SocketAddr>, Invalid> {
    const ADVICE: &str = "write one address of this machine with its port, for example \"127.0.0.1:9786\" or \
         \"[::1]:9786\", or \"\" for no metrics";
    let text = written.get_ref();
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |why: &str| {
        let problem = format!("metrics.listen {why} ({text:?})");
        invalid(written, problem, ADVICE)
    };
    let address: SocketAddr = text.parse().map_err(|_| wrong("is no address and port"))?;
    let ip = address.ip().to_canonical();
    let problem = if ip.is_unspecified() {
        "would be every address, the WAN's as well"
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        "is no address of a machine"
    } else if address.port() == 0 {
        "needs a port that others know"
    } else {
        return Ok(Some(address));
    };
    Err(wrong(problem))
}

fn http(written: &raw::Http) -> Result<HttpConfig, Invalid> {
    let max_connections = number("http.max_connections", &written.max_connections, 1..=4096)?;
    Ok(HttpConfig {
        port: number("http.port", &written.port, 0..=65_535)?,
        max_connections,
        max_connections_per_host: number(
            "http.max_connections_per_host",
            &written.max_connections_per_host,
            1..=i64::try_from(max_connections).unwrap_or(i64::MAX),
        )?,
        answer_within: Duration::from_secs(number(
            "http.answer_within_seconds",
            &written.answer_within_seconds,
            5..=90,
        )?),
    })
}

fn protection(
    written: &raw::DeviceProtection,
    http: &raw::Http,
) -> Result<Option<ProtectionConfig>, Invalid> {
    let key = "device_protection.max_connections";
    let max_connections = number(key, &written.max_connections, 1..=256)?;
    let config = ProtectionConfig {
        port: number("device_protection.port", &written.port, 0..=65_535)?,
        max_connections,
        max_connections_per_host: number(
            "device_protection.max_connections_per_host",
            &written.max_connections_per_host,
            1..=i64::try_from(max_connections).unwrap_or(i64::MAX),
        )?,
    };
    if !*written.enabled.get_ref() {
        return Ok(None);
    }
    if cfg!(not(feature = "device-protection")) {
        return Err(invalid(
            &written.enabled,
            "device_protection.enabled: this iwfd was built without DeviceProtection".to_owned(),
            "write false, or build it with the feature \"device-protection\"",
        ));
    }
    if config.port != 0 && i64::from(config.port) == *http.port.get_ref() {
        return Err(invalid(
            &written.port,
            format!("device_protection.port: {} is http.port", config.port),
            "write another port, or 0 for any free one",
        ));
    }
    Ok(Some(config))
}

fn policy(written: &raw::Policy, ipv6: &raw::Ipv6) -> Result<PolicyConfig, Invalid> {
    let max_mappings_per_host = number(
        "policy.max_mappings_per_host",
        &written.max_mappings_per_host,
        1..=65_535,
    )?;
    let most = Quotas {
        mappings: *written.max_mappings_per_host.get_ref(),
        pinholes: *ipv6.max_pinholes_per_host.get_ref(),
    };
    let departed_after = seconds(
        "policy.departed_after_seconds",
        &written.departed_after_seconds,
        0..=604_800,
    )?;
    Ok(PolicyConfig {
        departed_after: Some(departed_after).filter(|time| !time.is_zero()),
        lease_files: lease_files(&written.lease_files)?,
        min_port: number("policy.min_port", &written.min_port, 1..=65_535)?,
        max_mappings_per_host,
        third_party: if *written.third_party.get_ref() {
            ThirdParty::Allowed
        } else {
            ThirdParty::Refused
        },
        rules: rules::check(&written.default, &written.rule, &most)?,
    })
}

fn lease_files(written: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<PathBuf>, Invalid> {
    let files = written.get_ref();
    if let Some(one_more) = files.get(MAX_LEASE_FILES) {
        return Err(invalid(
            one_more,
            format!("policy.lease_files: more than {MAX_LEASE_FILES}"),
            "name those of the LAN's DHCP servers only",
        ));
    }
    let files = files.iter();
    files.map(|file| path("policy.lease_files", file)).collect()
}

fn pinholes(written: &[raw::Pinhole]) -> Result<Vec<StaticPinhole>, Invalid> {
    let mut seen = BTreeSet::new();
    written
        .iter()
        .map(|one| {
            let pinhole = pinhole(one)?;
            if seen.len() >= MAX_PINHOLES {
                return Err(invalid(
                    &one.internal,
                    format!("more than {MAX_PINHOLES} pinholes"),
                    "leave a port or the remote host out to cover several with one",
                ));
            }
            if !seen.insert(pinhole) {
                return Err(invalid(
                    &one.internal,
                    "this pinhole is listed twice".to_owned(),
                    "write each pinhole once",
                ));
            }
            Ok(pinhole)
        })
        .collect()
}

fn pinhole(written: &raw::Pinhole) -> Result<StaticPinhole, Invalid> {
    let port = |key: &str, port: &Option<Spanned<i64>>| {
        let port = port.as_ref();
        port.map(|port| number(key, port, 1..=65_535)).transpose()
    };
    let remote = written.remote.as_ref();
    let pinhole = StaticPinhole {
        internal: ipv6_address("pinhole.internal", &written.internal)?,
        internal_port: port("pinhole.internal_port", &written.internal_port)?,
        remote: remote
            .map(|addr| ipv6_address("pinhole.remote", addr))
            .transpose()?,
        remote_port: port("pinhole.remote_port", &written.remote_port)?,
        protocol: protocol(&written.protocol)?,
    };
    // UDP, TCP, UDP-Lite, SCTP, DCCP: the others have no ports to name.
    let has_ports = pinhole
        .protocol
        .is_some_and(|number| matches!(number, 6 | 17 | 33 | 132 | 136));
    if !has_ports && (pinhole.internal_port.is_some() || pinhole.remote_port.is_some()) {
        return Err(invalid(
            &written.protocol,
            format!(
                "pinhole.protocol: {:?} has no ports",
                written.protocol.get_ref()
            ),
            "write \"tcp\" or \"udp\", or leave the ports out",
        ));
    }
    Ok(pinhole)
}

fn ipv6_address(key: &str, written: &Spanned<String>) -> Result<Ipv6Addr, Invalid> {
    let text = written.get_ref().as_str();
    let addr = text.parse::<Ipv6Addr>().ok();
    addr.filter(|addr| {
        !(addr.is_unspecified() || addr.is_multicast() || addr.is_unicast_link_local())
    })
    .ok_or_else(|| {
        invalid(
            written,
            format!("{key}: {text:?} is not an IPv6 address of a host"),
            "write one that is reached through routers, such as \"2a00:1:2:3::10\"",
        )
    })
}

/// By name, by IANA number, or `None` for any.
fn protocol(written: &Spanned<String>) -> Result<Option<u8>, Invalid> {
    let text = written.get_ref().as_str();
    Ok(match text {
        "any" => None,
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmpv6" => Some(58),
        number => Some(number.parse().map_err(|_| {
            invalid(
                written,
                format!("pinhole.protocol: {text:?} is unknown"),
                "write \"any\", \"tcp\", \"udp\", \"icmpv6\" or a number from \"0\" to \"255\"",
            )
        })?),
    })
}

fn limits(written: &raw::Limits) -> Result<Limits, Invalid> {
    let mappings: u32 = number("limits.mappings", &written.mappings, 256..=1 << 20)?;
    Ok(Limits {
        sessions: number("limits.sessions", &written.sessions, 256..=1 << 22)?,
        sessions6: number("limits.sessions6", &written.sessions6, 256..=1 << 22)?,
        mappings,
        explicit_mappings: number(
            "limits.explicit_mappings",
            &written.explicit_mappings,
            1..=i64::from(mappings).min(65_535),
        )?,
    })
}

fn timeouts(written: &raw::Timeouts) -> Result<Timeouts, Invalid> {
    Ok(Timeouts {
        udp_idle: seconds(
            "timeouts.udp_idle_seconds",
            &written.udp_idle_seconds,
            120..=86_400,
        )?,
        tcp_established: seconds(
            "timeouts.tcp_established_seconds",
            &written.tcp_established_seconds,
            7440..=604_800,
        )?,
        tcp_transitory: seconds(
            "timeouts.tcp_transitory_seconds",
            &written.tcp_transitory_seconds,
            240..=3600,
        )?,
        icmp_query: seconds(
            "timeouts.icmp_query_seconds",
            &written.icmp_query_seconds,
            60..=3600,
        )?,
    })
}

fn log_filter(written: &Spanned<String>) -> Result<String, Invalid> {
    let text = written.get_ref();
    let refused = |why: String| {
        invalid(
            written,
            format!("log.filter: {why}"),
            "write a level (error, warn, info, debug, trace), or target=level pairs with commas",
        )
    };
    // A lone word that is no level would be taken for a target, and all other lines would be lost.
    let is_level = |word: &str| {
        word.parse::<tracing_subscriber::filter::LevelFilter>()
            .is_ok()
    };
    let misspelled = text
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains(['=', '[']) && !is_level(part));
    if let Some(part) = misspelled {
        return Err(refused(format!("{part:?} is no level")));
    }
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.clone()),
        Err(e) => Err(refused(e.to_string())),
    }
}

fn seconds(
    key: &str,
    written: &Spanned<i64>,
    range: RangeInclusive<i64>,
) -> Result<Duration, Invalid> {
    number::<u32>(key, written, range).map(|n| Duration::from_secs(u64::from(n)))
}

pub(super) fn number<T: TryFrom<i64>>(
    key: &str,
    written: &Spanned<i64>,
    range: RangeInclusive<i64>,
) -> Result<T, Invalid> {
    let value = *written.get_ref();
    range
        .contains(&value)
        .then(|| T::try_from(value).ok())
        .flatten()
        .ok_or_else(|| {
            invalid(
                written,
                format!("{key}: {value} is out of range"),
                &format!("write a number from {} to {}", range.start(), range.end()),
            )
        })
}

fn line(wan: &raw::Wan) -> Result<Line, Invalid> {
    // What a control point can be told is less; a number is cut there.
    let rate = |key, written: &Option<Spanned<i64>>| {
        let written = written.as_ref();
        written
            .map(|rate| number(key, rate, 1..=i64::MAX))
            .transpose()
    };
    Ok(Line {
        access: choice(
            "wan.access_type",
            &wan.access_type,
            &[
                ("ethernet", AccessType::Ethernet),
                ("dsl", AccessType::Dsl),
                ("cable", AccessType::Cable),
                ("pots", AccessType::Pots),
            ],
        )?,
        up: rate("wan.upstream_bit_rate", &wan.upstream_bit_rate)?,
        down: rate("wan.downstream_bit_rate", &wan.downstream_bit_rate)?,
    })
}

/// RFC 9293 section 3.7.1: a host that is told nothing sends 536 octets, so that a clamp below it is a mistake.
fn mss_clamp(written: &Spanned<toml::Value>) -> Result<MssClamp, Invalid> {
    let size = |octets| u16::try_from(octets).ok().filter(|&size| size >= 536);
    let value = written.get_ref();
    let clamp = match value.as_str() {
        Some("auto") => Some(MssClamp::Auto),
        Some("off") => Some(MssClamp::Off),
        _ => value.as_integer().and_then(size).map(MssClamp::To),
    };
    clamp.ok_or_else(|| {
        invalid(
            written,
            format!("nat.mss_clamp: {value} is unknown or out of range"),
            "write \"auto\", \"off\", or a number of octets from 536 to 65535",
        )
    })
}

pub(super) fn choice<T: Copy>(
    key: &str,
    written: &Spanned<String>,
    of: &[(&str, T)],
) -> Result<T, Invalid> {
    let text = written.get_ref().as_str();
    of.iter()
        .find_map(|&(name, value)| (name == text).then_some(value))
        .ok_or_else(|| {
            let names: Vec<_> = of.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            invalid(
                written,
                format!("{key}: {text:?} is unknown"),
                &format!("write one of {}", names.join(", ")),
            )
        })
}

pub(super) fn invalid<T>(at: &Spanned<T>, problem: String, advice: &str) -> Invalid {
    let span = at.span();
    Invalid {
        at: (!span.is_empty()).then_some(span.start),
        problem,
        advice: advice.to_owned(),
    }
}
