//! Which lease a server's datagram is about, and what else of it has to be known before it is judged.
//!
//! Read before editing: RFC 6887 sections 11.4 and 13.1, RFC 7225 section 4.1.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::lease::Tuple;
use super::{LATE_GRANT, MAX_PREFIXES, PcpClient, asks_prefixes};
use crate::types::{ExternalPort, Generation, Instant, Protocol};
use crate::wire::pcp::{self, MapBody, PcpOption, Response, ResultCode};

impl PcpClient {
    /// What a response is about (PCPC-035). An error may come back without the option that the request named somebody
    /// with; then the nonce, which is no other lease's, tells. A success has to say for whom it is.
    pub(super) fn tuple_of(
        &self,
        from: SocketAddr,
        response: &Response,
        map: &MapBody,
    ) -> Option<Tuple> {
        let tuple = tuple_of(from, map, third_party(response)?)?;
        if tuple.3.is_some() || response.result == ResultCode::Success {
            return Some(tuple);
        }
        let (_, protocol, port, _) = tuple;
        let range = tuple..=(from, protocol, port, Some(Ipv4Addr::BROADCAST));
        let leases = self.by_tuple.range(range.clone());
        let mut leases = leases.filter(|(_, id)| {
            let lease = self.leases.get(id);
            lease.is_some_and(|lease| lease.nonce == map.nonce)
        });
        if let Some((named, _)) = leases.next() {
            return Some(*named);
        }
        let mut ended = self.ended.range(range);
        let named = ended.find(|(_, ended)| ended.nonce == map.nonce);
        Some(named.map_or(tuple, |(named, _)| *named))
    }

    /// Whether the lease that this one takes the place of may still be in its way. A refusal from before the deletion may
    /// come after the answer to that.
    pub(super) fn is_leaving(&self, id: Generation, now: Instant) -> Option<Leaving> {
        let predecessor = self.leases.get(&id)?.predecessor?;
        let ended = self.ended.get(&predecessor)?;
        let soon = match ended.delete {
            Some(_) => self.may_send(predecessor),
            None => ended.until <= now + LATE_GRANT,
        };
        Some(match soon {
            true => Leaving::Soon,
            false => Leaving::Later,
        })
    }

    /// What a server says of its NAT64 takes the place of what it said before. Without a word an announcement changes
    /// nothing, and an answer says that there is none.
    pub(super) fn note_prefixes(&mut self, from: SocketAddr, response: &Response, asked: bool) {
        let prefixes = response.options.iter().filter_map(|option| match option {
            PcpOption::Prefix64(prefix) => Some(prefix.clone()),
            PcpOption::ThirdParty(_)
            | PcpOption::PreferFailure
            | PcpOption::Filter(_)
            | PcpOption::Description(_)
            | PcpOption::ThirdPartyId(_)
            | PcpOption::PortSet(_)
            | PcpOption::Unknown { .. } => None,
        });
        let prefixes: Vec<_> = prefixes.take(MAX_PREFIXES).collect();
        let wanted = asks_prefixes(self.local, from) && (asked || !prefixes.is_empty());
        if let Some(server) = self.servers.get_mut(&from).filter(|_| wanted) {
            server.prefixes = prefixes;
        }
    }
}

/// When a server has nothing left of a lease that is deleted.
#[derive(Clone, Copy)]
pub(super) enum Leaving {
    /// It is told until it answers, or was a moment ago.
    Soon,
    /// There is no way to it, or it keeps the port for whoever had it.
    Later,
}

fn tuple_of(from: SocketAddr, map: &MapBody, behalf: Option<Ipv4Addr>) -> Option<Tuple> {
    let protocol = Protocol::from_number(map.protocol)?;
    let port = ExternalPort::new(map.internal_port?.get())?;
    Some((from, protocol, port, behalf))
}

/// Whom a response names. `None`: somebody we never ask for.
fn third_party(response: &Response) -> Option<Option<Ipv4Addr>> {
    match pcp::third_party(&response.options) {
        None => Some(None),
        Some(IpAddr::V4(addr)) => Some(Some(addr)),
        Some(IpAddr::V6(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_needs_a_transport_protocol_and_a_port() {
        let from = ([100, 64, 0, 1], 5351).into();
        let map = |protocol, port| MapBody {
            nonce: crate::types::MappingNonce([0; 12]),
            protocol,
            internal_port: crate::types::InternalPort::new(port),
            external_port: None,
            external_addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        assert!(tuple_of(from, &map(6, 8080), None).is_some());
        assert_eq!(tuple_of(from, &map(0, 0), None), None);
        assert_eq!(tuple_of(from, &map(6, 0), None), None);
        assert_eq!(tuple_of(from, &map(1, 8080), None), None);
    }
}
