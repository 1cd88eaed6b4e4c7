//! `[[mapping]]`: mappings that are always there.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use toml::Spanned;

use super::validate::{FILTERINGS, choice, invalid, number};
use super::{Filtering, Invalid, Limits, MAX_STATIC_MAPPINGS, OpenPorts, raw};
use crate::mapping::policy::Policy;
use crate::mapping::{MAX_DESCRIPTION, StaticMapping};
use crate::types::{
    ExternalPort, InternalEndpoint, InternalPort, Protocol, RemoteList, RemotePeer, RemotePrefix,
};

pub(super) fn check(
    written: &[raw::Mapping],
    open: &OpenPorts,
    limits: &Limits,
) -> Result<Vec<StaticMapping>, Invalid> {
    let explicit = usize::try_from(limits.explicit_mappings).unwrap_or(usize::MAX);
    let most = MAX_STATIC_MAPPINGS.min(explicit);
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for table in written {
        for mapping in mappings(table)? {
            let port = mapping.external.get();
            at_free_port(table, mapping.protocol, port, open)?;
            if !seen.insert((mapping.protocol, port)) {
                return Err(invalid(
                    &table.external_port,
                    format!("mapping: {} port {port} is mapped twice", mapping.protocol),
                    "map each external port of a protocol once",
                ));
            }
            if all.len() == most {
                return Err(invalid(
                    &table.external_port,
                    format!("mapping: more than {most}"),
                    &format!(
                        "state at most {MAX_STATIC_MAPPINGS} (protocol \"both\" counts twice), and no more than \
                         limits.explicit_mappings"
                    ),
                ));
            }
            all.push(mapping);
        }
    }
    Ok(all)
}

/// One table: one mapping, or two for both protocols.
fn mappings(table: &raw::Mapping) -> Result<Vec<StaticMapping>, Invalid> {
    let protocols = choice(
        "mapping.protocol",
        &table.protocol,
        &[
            ("tcp", [Some(Protocol::Tcp), None]),
            ("udp", [None, Some(Protocol::Udp)]),
            ("both", [Some(Protocol::Tcp), Some(Protocol::Udp)]),
        ],
    )?;
    let port: u16 = number("mapping.external_port", &table.external_port, 1..=65_535)?;
    let Some(external) = ExternalPort::new(port) else {
        return Ok(Vec::new());
    };
    let internal = internal(&table.internal)?;
    let remote = match &table.filtering {
        Some(written) => filtering(written, &table.remote)?,
        None => remote(&table.remote)?,
    };
    let description = description(&table.description)?;
    let of = |protocol| StaticMapping {
        protocol,
        external,
        internal,
        remote,
        description: description.clone(),
    };
    Ok(protocols.into_iter().flatten().map(of).collect())
}

fn at_free_port(
    table: &raw::Mapping,
    protocol: Protocol,
    port: u16,
    open: &OpenPorts,
) -> Result<(), Invalid> {
    let (key, ports) = match protocol {
        Protocol::Tcp => ("wan.open_tcp_ports", &open.tcp),
        Protocol::Udp => ("wan.open_udp_ports", &open.udp),
    };
    if ports.contains(&port) {
        return Err(invalid(
            &table.external_port,
            format!("mapping.external_port: {port} is also in {key}"),
            "a port leads to this router or to a host: remove one of the two",
        ));
    }
    if Policy::default().is_reserved(protocol, port) {
        return Err(invalid(
            &table.external_port,
            format!("mapping.external_port: {protocol} port {port} belongs to PCP"),
            "write another port",
        ));
    }
    Ok(())
}

fn internal(written: &Spanned<String>) -> Result<InternalEndpoint, Invalid> {
    let text = written.get_ref();
    let endpoint = text.parse::<SocketAddrV4>().ok().and_then(|endpoint| {
        let port = InternalPort::new(endpoint.port())?;
        let addr = *endpoint.ip();
        addr.is_private().then_some(InternalEndpoint { addr, port })
    });
    endpoint.ok_or_else(|| {
        invalid(
            written,
            format!("mapping.internal: {text:?} is no endpoint of a LAN host"),
            "write the private address and port of a host, for example \"192.168.1.10:8080\"",
        )
    })
}

/// Whom a mapping lets in besides the remote hosts that it may name instead.
fn filtering(written: &Spanned<String>, named: &[Spanned<String>]) -> Result<RemotePeer, Invalid> {
    let filtering = choice("mapping.filtering", written, &FILTERINGS)?;
    let sent_to = match filtering {
        Filtering::EndpointIndependent => return remote(named),
        Filtering::AddressDependent => RemotePeer::SentToHost,
        Filtering::AddressAndPortDependent => RemotePeer::SentToEndpoint,
    };
    match named.first() {
        None => Ok(sent_to),
        Some(first) => Err(invalid(
            first,
            "mapping.remote: the mapping lets in whom its host has sent to, as mapping.filtering says"
                .to_owned(),
            "leave one of the two keys out",
        )),
    }
}

fn remote(written: &[Spanned<String>]) -> Result<RemotePeer, Invalid> {
    let prefixes: Vec<_> = written.iter().map(prefix).collect::<Result<_, _>>()?;
    RemotePeer::of(&prefixes).or_else(|_| {
        let Some(last) = written.last() else {
            return Ok(RemotePeer::Any);
        };
        let most = RemoteList::MAX;
        Err(invalid(
            last,
            format!("mapping.remote: more than {most} prefixes"),
            &format!("write at most {most}"),
        ))
    })
}

fn prefix(written: &Spanned<String>) -> Result<RemotePrefix, Invalid> {
    let text = written.get_ref().as_str();
    let (addr, len) = text.split_once('/').unwrap_or((text, "32"));
    let parsed = addr.parse::<Ipv4Addr>().ok().zip(len.parse::<u8>().ok());
    let prefix = parsed.and_then(|(addr, len)| {
        let usable = !(addr.is_multicast() || addr.is_broadcast() || addr.is_loopback());
        // The address of a host is no "everybody", whoever writes it.
        let meant = !addr.is_unspecified() || len == 0;
        RemotePrefix::new(addr, len, 0)
            .filter(|prefix| usable && meant && (len == 0 || !prefix.addr().is_unspecified()))
    });
    prefix.ok_or_else(|| {
        invalid(
            written,
            format!("mapping.remote: {text:?} is no prefix"),
            "write an IPv4 address or prefix, for example \"203.0.113.0/24\"",
        )
    })
}

fn description(written: &Spanned<String>) -> Result<String, Invalid> {
    let text = written.get_ref();
    if text.len() > MAX_DESCRIPTION || text.chars().any(char::is_control) {
        return Err(invalid(
            written,
            "mapping.description is too long or has control characters".to_owned(),
            &format!("write at most {MAX_DESCRIPTION} octets on one line"),
        ));
    }
    Ok(text.clone())
}
