//! Who is asked for mappings at the provider.

use std::net::{IpAddr, SocketAddr};

use toml::Spanned;

use super::validate::invalid;
use super::{Discovery, InterfaceName, Invalid, MAX_PCP_SERVERS, Mode, PCP_PORT, PcpServer};

/// In order of preference.
pub(super) fn pcp_servers(
    written: &Spanned<Vec<Spanned<toml::Value>>>,
    wan: &InterfaceName,
) -> Result<Vec<PcpServer>, Invalid> {
    let servers = written.get_ref().iter();
    let servers = servers.map(|server| pcp_server(server, wan));
    let servers: Vec<_> = servers.collect::<Result<_, _>>()?;
    let addresses = servers.iter().map(|server| match server {
        PcpServer::DefaultRouter => 1,
        PcpServer::Addresses(addresses) => addresses.len(),
    });
    let count: usize = addresses.sum();
    if count > MAX_PCP_SERVERS {
        return Err(invalid(
            written,
            format!("upstream.pcp_servers names {count} addresses"),
            &format!("name at most {MAX_PCP_SERVERS}"),
        ));
    }
    Ok(servers)
}

/// An address, `"default-router"`, or a list of addresses that lead to the same server.
fn pcp_server(written: &Spanned<toml::Value>, wan: &InterfaceName) -> Result<PcpServer, Invalid> {
    let refuse = |value: &toml::Value| {
        invalid(
            written,
            format!("upstream.pcp_servers: {value} is not a server"),
            "write an address such as \"100.64.0.1\" or \"2001:db8::1\" (port 5351 unless given as \"100.64.0.1:5351\" or \
             \"[2001:db8::1]:5351\"; one of the link is meant on wan.interface), a list of such addresses of one \
             server, or \"default-router\"",
        )
    };
    let value = written.get_ref();
    if value.as_str() == Some("default-router") {
        return Ok(PcpServer::DefaultRouter);
    }
    let addresses = match value.as_array() {
        Some(list) => list.iter().collect(),
        None => vec![value],
    };
    let addresses = addresses.into_iter();
    let addresses: Vec<_> = addresses
        .map(|value| {
            value
                .as_str()
                .and_then(|text| pcp_address(text, wan))
                .ok_or_else(|| refuse(value))
        })
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(refuse(value));
    }
    Ok(PcpServer::Addresses(addresses))
}

fn pcp_address(text: &str, wan: &InterfaceName) -> Option<SocketAddr> {
    // An address of the link may name the link, which has to be the WAN.
    let (before, rest) = text.split_once('%').unwrap_or((text, ""));
    let zone = rest.split_once(']').map_or(rest, |(zone, _)| zone);
    let after = rest.strip_prefix(zone)?;
    let bare = format!("{before}{after}");
    let port = |addr| SocketAddr::new(addr, PCP_PORT);
    let address: SocketAddr = bare.parse().or_else(|_| bare.parse().map(port)).ok()?;
    let (known, of_link) = match address.ip() {
        IpAddr::V4(ip) => (
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()),
            false,
        ),
        IpAddr::V6(ip) => (
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback())
                && ip.to_ipv4_mapped().is_none(),
            ip.is_unicast_link_local(),
        ),
    };
    let zoned = match text.contains('%') {
        true => of_link && zone == wan.as_str(),
        false => true,
    };
    (address.port() != 0 && known && zoned).then_some(address)
}

/// Servers map the address that they are asked from, so while this NAT translates they are asked over IPv4.
pub(super) fn over_ipv6(
    mode: Mode,
    servers: &[PcpServer],
    written: &Spanned<Vec<Spanned<toml::Value>>>,
) -> Result<(), Invalid> {
    let fits = |address: &SocketAddr| match mode {
        Mode::Auto | Mode::NoNat => true,
        Mode::Cascaded | Mode::Local => address.is_ipv4(),
        Mode::DsLite => address.is_ipv6(),
    };
    let misfit = servers.iter().find_map(|server| match server {
        PcpServer::DefaultRouter => None,
        PcpServer::Addresses(addresses) => addresses.iter().find(|address| !fits(address)),
    });
    let Some(address) = misfit else {
        return Ok(());
    };
    let (family, advice) = match mode {
        Mode::DsLite => (
            "IPv6 (RFC 8585)",
            "name the IPv6 address of the AFTR or of its PCP server",
        ),
        Mode::Auto | Mode::NoNat | Mode::Cascaded | Mode::Local => (
            "IPv4: over IPv6 servers map something else",
            "name the server's IPv4 address, or write mode = \"no-nat\" or \"ds-lite\" if nothing is translated here",
        ),
    };
    Err(invalid(
        written,
        format!(
            "upstream.pcp_servers: {} cannot be asked, as in this mode servers are asked over {family}",
            address.ip()
        ),
        advice,
    ))
}

/// Where servers are looked for.
pub(super) fn discovery(written: &[Spanned<String>]) -> Result<Discovery, Invalid> {
    let mut found = Discovery::NONE;
    for name in written {
        match name.get_ref().as_str() {
            "dhcp" => found.dhcp = true,
            "router" => found.router = true,
            "anycast" => found.anycast = true,
            other => {
                return Err(invalid(
                    name,
                    format!("upstream.discovery: {other:?} is unknown"),
                    "write some of \"dhcp\", \"router\", \"anycast\", or none",
                ));
            }
        }
    }
    Ok(found)
}
