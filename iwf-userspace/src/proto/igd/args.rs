//! Values of arguments (igd-service section 3.1).

use std::net::Ipv4Addr;

use super::{Action, EntryKey, NewMapping, PortRange};
use crate::mapping::{MAX_DESCRIPTION, MAX_LEASE, PortChoice};
use crate::types::{ExternalPort, InternalEndpoint, InternalPort, Lifetime, Protocol, RemotePeer};
use crate::wire::scpd::{self, Service};
use crate::wire::soap::{Call, UpnpError};

/// A text argument.
pub(super) fn text<'a>(call: &'a Call, name: &str) -> Result<&'a str, UpnpError> {
    call.arg(name).ok_or(UpnpError::INVALID_ARGS)
}

/// A 16-bit argument.
pub(super) fn ui2(call: &Call, name: &str) -> Result<u16, UpnpError> {
    let number = scpd::number(text(call, name)?, u16::MAX.into())?;
    u16::try_from(number).map_err(|_| UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE)
}

/// The three arguments that name a mapping.
pub(super) fn entry_key(call: &Call) -> Result<EntryKey, UpnpError> {
    Ok(EntryKey {
        protocol: protocol(call)?,
        remote: remote(call)?,
        port: ui2(call, "NewExternalPort")?,
    })
}

/// The four arguments that name a range of mappings.
pub(super) fn port_range(call: &Call) -> Result<PortRange, UpnpError> {
    let range = PortRange {
        protocol: protocol(call)?,
        first: ui2(call, "NewStartPort")?,
        last: ui2(call, "NewEndPort")?,
        of_others: scpd::boolean(text(call, "NewManage")?)?,
    };
    if range.first > range.last {
        return Err(UpnpError::INCONSISTENT_PARAMETERS);
    }
    Ok(range)
}

/// SetConnectionType: 601 for a word that is no type, then whatever the word is 731, because the type of the
/// connection follows from how this machine is connected (IGD-026).
pub(super) fn connection_type(call: &Call, service: &Service) -> Result<(), UpnpError> {
    let written = text(call, "NewConnectionType")?;
    let types = service.variable("ConnectionType").map(|v| v.allowed);
    if types.is_some_and(|types| types.contains(&written)) {
        Ok(())
    } else {
        Err(UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE)
    }
}

/// The eight arguments of a mapping to make.
pub(super) fn new_mapping(
    call: &Call,
    caller: Ipv4Addr,
    choice: PortChoice,
) -> Result<NewMapping, UpnpError> {
    let protocol = protocol(call)?;
    let lease = lease(call)?;
    let enabled = scpd::boolean(text(call, "NewEnabled")?)?;
    let internal_port = ui2(call, "NewInternalPort")?;
    let external = ExternalPort::new(ui2(call, "NewExternalPort")?);
    let port =
        InternalPort::new(internal_port).ok_or(UpnpError::WILDCARD_NOT_PERMITTED_IN_INT_PORT)?;
    if external.is_none() && choice == PortChoice::Exact {
        return Err(UpnpError::WILDCARD_NOT_PERMITTED_IN_EXT_PORT);
    }
    let addr = internal_client(call, caller)?;
    Ok(NewMapping {
        remote: remote(call)?,
        external,
        protocol,
        internal: InternalEndpoint { addr, port },
        enabled,
        description: cut(text(call, "NewPortMappingDescription")?).to_owned(),
        lease,
        choice,
    })
}

/// The arguments of DeletePortMapping. Empty for the protocol, which is no value of it, is whichever of the two the caller has
/// something of at that port: js-libp2p closes its ports so.
pub(super) fn entry_to_delete(call: &Call) -> Result<Action, UpnpError> {
    if !text(call, "NewProtocol")?.trim().is_empty() {
        return entry_key(call).map(Action::Delete);
    }
    Ok(Action::DeleteEither {
        remote: remote(call)?,
        port: ui2(call, "NewExternalPort")?,
    })
}

fn protocol(call: &Call) -> Result<Protocol, UpnpError> {
    match text(call, "NewProtocol")? {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        _ => Err(UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE),
    }
}

/// 0 is the longest lease for both versions (AMB-11). Version 1 has no upper limit, so a longer one is cut
/// there; in version 2 it is out of range (IGD-006).
fn lease(call: &Call) -> Result<Lifetime, UpnpError> {
    let written = call.arg("NewLeaseDuration").unwrap_or_default().trim();
    let seconds = if written.is_empty() {
        0
    } else {
        scpd::number(written, u32::MAX)?
    };
    match seconds {
        0 => Ok(MAX_LEASE),
        _ if seconds <= MAX_LEASE.0 => Ok(Lifetime(seconds)),
        _ if super::is_version_1(call) => Ok(MAX_LEASE),
        _ => Err(UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE),
    }
}

/// Whether a remote host is written in a way that means any (AMB-36), without being an address. The last is the word that
/// JavaScript has for nothing, which some libraries of Node.js send when they are told no host.
pub fn is_any_host(written: &str) -> bool {
    matches!(written.trim(), "" | "*" | "undefined")
}

/// Any host: [`is_any_host`], missing or `0.0.0.0` (AMB-36). Names are not resolved here.
fn remote(call: &Call) -> Result<RemotePeer, UpnpError> {
    let written = call.arg("NewRemoteHost").unwrap_or_default().trim();
    if is_any_host(written) {
        return Ok(RemotePeer::Any);
    }
    let addr: Ipv4Addr = written
        .parse()
        .map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)?;
    if addr.is_unspecified() {
        return Ok(RemotePeer::Any);
    }
    if addr.is_multicast() || addr.is_broadcast() || addr.is_loopback() {
        return Err(UpnpError::ARGUMENT_VALUE_INVALID);
    }
    Ok(RemotePeer::Host(addr))
}

/// Empty means the sender in version 1 and is an error in version 2 (AMB-35).
fn internal_client(call: &Call, caller: Ipv4Addr) -> Result<Ipv4Addr, UpnpError> {
    let written = text(call, "NewInternalClient")?.trim();
    if written.is_empty() {
        return if super::is_version_1(call) {
            Ok(caller)
        } else {
            Err(UpnpError::WILDCARD_NOT_PERMITTED_IN_SRC_IP)
        };
    }
    written
        .parse()
        .map_err(|_| UpnpError::ARGUMENT_VALUE_INVALID)
}

/// What is kept of a description: whole characters within the limit.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_DESCRIPTION))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);

    fn add(version: u8, changes: &[(&str, &str)]) -> Call {
        let mut args: Vec<(String, String)> = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", "8080"),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", "8080"),
            ("NewInternalClient", "192.168.1.20"),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "cam & nvr"),
            ("NewLeaseDuration", "3600"),
        ]
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .into();
        for (name, value) in changes {
            args.retain(|(n, _)| n != name);
            args.push(((*name).to_owned(), (*value).to_owned()));
        }
        Call {
            service: "WANIPConnection".to_owned(),
            version,
            action: "AddPortMapping".to_owned(),
            args,
        }
    }

    fn parse(version: u8, changes: &[(&str, &str)]) -> Result<NewMapping, u16> {
        new_mapping(&add(version, changes), CALLER, PortChoice::Exact).map_err(|e| e.code)
    }

    #[test]
    fn values_out_of_bounds_have_their_own_codes() {
        for (version, change, code) in [
            (2, ("NewProtocol", "tcp"), 601),
            (2, ("NewProtocol", "ICMP"), 601),
            (2, ("NewLeaseDuration", "604801"), 601),
            (2, ("NewInternalPort", "0"), 732),
            (2, ("NewExternalPort", "0"), 716),
            (2, ("NewInternalClient", ""), 715),
            (2, ("NewInternalClient", "host.lan"), 600),
            (2, ("NewRemoteHost", "224.0.0.1"), 600),
            (2, ("NewRemoteHost", "host.example"), 600),
            (2, ("NewRemoteHost", "undefined.example"), 600),
            (2, ("NewProtocol", ""), 601),
            (2, ("NewEnabled", "maybe"), 402),
            (1, ("NewExternalPort", "0"), 716),
        ] {
            assert_eq!(parse(version, &[change]), Err(code), "{change:?}");
        }
    }

    #[test]
    fn the_most_specific_error_comes_first() {
        let both = [("NewInternalPort", "0"), ("NewProtocol", "ICMP")];
        assert_eq!(parse(2, &both), Err(601));
        let ports = [("NewInternalPort", "0"), ("NewExternalPort", "0")];
        assert_eq!(parse(2, &ports), Err(732));
        for (port, code) in [("NewInternalPort", 732), ("NewExternalPort", 716)] {
            let nobody = [(port, "0"), ("NewInternalClient", "")];
            assert_eq!(parse(2, &nobody), Err(code));
            let long = [(port, "0"), ("NewLeaseDuration", "604801")];
            assert_eq!(parse(2, &long), Err(601));
        }
    }

    #[test]
    fn leases_follow_the_version() {
        for (version, written, lease) in [
            (1, "0", 604_800),
            (2, "0", 604_800),
            (2, "", 604_800),
            (1, "4294967295", 604_800),
            (2, "604800", 604_800),
            (2, "1", 1),
        ] {
            let mapping = parse(version, &[("NewLeaseDuration", written)]).expect("good");
            assert_eq!(mapping.lease, Lifetime(lease), "{version} {written}");
        }
    }

    #[test]
    fn spellings_of_any_host_and_of_oneself() {
        for written in ["", "*", "0.0.0.0", " ", "undefined"] {
            let mapping = parse(2, &[("NewRemoteHost", written)]).expect("good");
            assert_eq!(mapping.remote, RemotePeer::Any);
        }
        let own = parse(1, &[("NewInternalClient", "")]).expect("good");
        assert_eq!(own.internal.addr, CALLER);
    }

    #[test]
    fn long_descriptions_are_cut_between_characters() {
        let long = format!("x{}", "ü".repeat(200));
        let mapping = parse(2, &[("NewPortMappingDescription", &long)]).expect("good");
        assert_eq!(mapping.description.len(), 255);
        assert!(mapping.description.ends_with('ü'));
    }
}
