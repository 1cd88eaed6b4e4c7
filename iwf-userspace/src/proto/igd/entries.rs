//! Mappings as control points see them.

use crate::mapping::policy::{LanPrefix, Party, Policy};
use crate::mapping::table::Table;
use crate::mapping::{Mapping, Owner};
use crate::types::{Instant, RemotePeer};

/// Out arguments.
type Arguments = Vec<(&'static str, String)>;

/// Who looks at the table, and what says how much of it they see.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The rules.
    pub policy: &'a Policy,
    /// The LANs.
    pub lan: &'a [LanPrefix],
    /// Who looks.
    pub caller: Party,
}

/// The out arguments of GetGenericPortMappingEntry. Each caller counts only the mappings it may see, so that
/// simple walkers are not stopped by those of others (AMB-21). `None`: beyond the end.
pub fn generic_entry(table: &Table, seen: Seen<'_>, index: u16, now: Instant) -> Option<Arguments> {
    let visible = |mapping: &&Mapping| is_shown(mapping, seen, now);
    let index = usize::from(index);
    let mapping = if seen.policy.sees_others(seen.caller.rights) {
        table.iter().filter(visible).nth(index)?
    } else {
        // Own mappings are all it may see, and they are few.
        table.at_host(seen.caller.addr).filter(visible).nth(index)?
    };
    let mut out = vec![
        ("NewRemoteHost", remote_host(mapping.remote)),
        (
            "NewExternalPort",
            mapping.claim.port.map_or(0, |port| port.get()).to_string(),
        ),
        ("NewProtocol", mapping.protocol.to_string()),
    ];
    out.extend(specific_entry(mapping, now));
    Some(out)
}

/// Whether a caller gets to see a mapping at all.
pub(super) fn is_shown(mapping: &Mapping, seen: Seen<'_>, now: Instant) -> bool {
    let port = mapping.claim.port.map_or(0, |port| port.get());
    mapping.is_visible()
        && (mapping.owner == Owner::Configuration || mapping.lease_left(now) > 0)
        && seen
            .policy
            .may_manage(seen.lan, seen.caller, mapping.internal, port)
}

/// The out arguments of GetSpecificPortMappingEntry.
pub fn specific_entry(mapping: &Mapping, now: Instant) -> Arguments {
    vec![
        ("NewInternalPort", mapping.internal.port.to_string()),
        ("NewInternalClient", mapping.internal.addr.to_string()),
        ("NewEnabled", "1".to_owned()),
        ("NewPortMappingDescription", mapping.description.clone()),
        ("NewLeaseDuration", mapping.lease_left(now).to_string()),
    ]
}

fn remote_host(remote: RemotePeer) -> String {
    match remote {
        RemotePeer::Any => String::new(),
        RemotePeer::Host(addr) => addr.to_string(),
        // RemoteHost holds one address or none; no control point can have asked for anything else.
        RemotePeer::List(_) | RemotePeer::SentToHost | RemotePeer::SentToEndpoint => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::mapping::State;
    use crate::mapping::policy::Limits;
    use crate::mapping::tests::mapping;

    #[test]
    fn each_caller_counts_its_own_active_mappings() {
        let mut table = Table::new(Limits::default());
        for (generation, host) in [(1, 20), (2, 21), (3, 20), (4, 20)] {
            let port = 8080 + generation as u16;
            table
                .put(mapping(generation, host, port, port))
                .expect("room");
        }
        table.set_state(crate::types::Generation(3), State::Pending);
        let policy = Policy::default();
        let caller = Ipv4Addr::new(192, 168, 1, 20);
        let port = |index| {
            let now = Instant::from_millis(0);
            let seen = Seen {
                policy: &policy,
                lan: &[],
                caller: caller.into(),
            };
            let entry = generic_entry(&table, seen, index, now)?;
            entry
                .into_iter()
                .find(|(n, _)| *n == "NewExternalPort")
                .map(|(_, v)| v)
        };
        assert_eq!(port(0).as_deref(), Some("8081"));
        assert_eq!(port(1).as_deref(), Some("8084"));
        assert_eq!(port(2), None);
    }
}
