//! Which addresses of a LAN link are one host's: those that the kernel's neighbour tables lead to one MAC address.
//!
//! Read before editing: rtnetlink(7), ip-neighbour(8).
//!
//! A control point calls by one address and speaks of another: by the one of its link and of its global one, or over
//! IPv4 of an IPv6 address. Asked for at the moment of such a call, because tables that were told before may be old. One
//! entry is asked for without a turn of the event loop in between: whoever accepts connections would have all others wait.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::netstate::NetState;
use super::raw_netlink as raw;
use super::shares::Shares;
use crate::types::caller::{Caller, Mac, Station};
use crate::types::device::{MAX_NEIGHBOURS, Neighbour};

/// Addresses of one host that are looked at; further ones are not its own then.
const MAX_ADDRESSES: usize = 64;
/// How long the kernel may take to find out the MAC address behind an address that nobody has spoken to yet: one
/// solicitation and its repetition.
const RESOLVE_TIME: Duration = Duration::from_millis(1500);
/// Addresses looked for at once, in all and for one host, and how long a call may wait for that and for its turn. A host
/// that names nobody's addresses has the kernel remember each of them for a while, in a table that is everybody's.
const LOOKED_FOR: usize = 8;
const LOOKED_FOR_EACH: usize = 2;
const LOOK_TIME: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const RESOLVE_LOOK: Duration = Duration::from_millis(50);

/// Answers to earlier questions that are read over at most.
const STALE: usize = 16;

/// A way to ask the kernel.
#[derive(Debug)]
pub struct Neighbours {
    source: Option<Source>,
    looks: Shares,
}

#[derive(Debug)]
struct Source {
    handle: Handle,
    network: watch::Receiver<NetState>,
    /// For one entry at a time. The kernel has answered when it has taken the question.
    single: Mutex<Socket>,
}

impl Neighbours {
    /// Connects to rtnetlink, on a task of its own. `network` says which addresses are of which link.
    ///
    /// # Errors
    /// There is no netlink socket to be had.
    pub fn connect(network: watch::Receiver<NetState>) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let single = raw::socket(NETLINK_ROUTE)?;
        single.set_non_blocking(true)?;
        Ok(Self {
            source: Some(Source {
                handle,
                network,
                single: Mutex::new(single),
            }),
            looks: Shares::new(LOOKED_FOR, LOOKED_FOR_EACH),
        })
    }

    /// Knows of nobody.
    #[cfg(test)]
    pub fn unknown() -> Self {
        Self {
            source: None,
            looks: Shares::new(LOOKED_FOR, LOOKED_FOR_EACH),
        }
    }

    /// Who calls from this address of a link, with no more than its MAC address.
    pub fn caller_alone(&self, ifindex: u32, addr: IpAddr) -> Caller {
        let mac = self.source.as_ref().and_then(|s| s.mac(ifindex, addr));
        Caller { mac, ..addr.into() }
    }

    /// Who calls from this address of a link, as far as it can be told. `named` is an address that the call speaks of:
    /// if it is of the link and not known yet, the kernel is made to find it.
    pub async fn caller(&self, ifindex: u32, addr: IpAddr, named: Option<IpAddr>) -> Caller {
        let Some(source) = &self.source else {
            return addr.into();
        };
        let (handle, network) = (&source.handle, &source.network);
        let on_link = named.filter(|named| {
            let links = network.borrow().served();
            links
                .iter()
                .any(|link| link.ifindex == ifindex && link.contains(*named))
        });
        let asked = async {
            let mut table = table(handle, ifindex).await?;
            if let Some(wanted) = on_link.filter(|wanted| !table.contains_key(wanted)) {
                let station = Station::from(&of(&table, addr));
                let look = self.look_for(source, ifindex, wanted, station);
                if timeout(LOOK_TIME, look).await.unwrap_or(Ok(false))? {
                    table = self::table(handle, ifindex).await?;
                }
            }
            Ok::<_, rtnetlink::Error>(table)
        };
        match asked.await {
            Ok(table) => of(&table, addr),
            Err(error) => {
                debug!(%addr, %error, "cannot ask for the neighbours");
                addr.into()
            }
        }
    }

    /// Makes the kernel find out who is at an address, for that host; says whether somebody is.
    async fn look_for(
        &self,
        source: &Source,
        ifindex: u32,
        wanted: IpAddr,
        station: Station,
    ) -> Result<bool, rtnetlink::Error> {
        let Some(_share) = self.looks.take(station).await else {
            return Ok(false);
        };
        use_it(&source.handle, ifindex, wanted).await?;
        let until = Instant::now() + RESOLVE_TIME;
        while Instant::now() < until {
            // Its own entry, not the table: many may be looking, and the table may be long.
            if source.mac(ifindex, wanted).is_some() {
                return Ok(true);
            }
            sleep(RESOLVE_LOOK).await;
        }
        Ok(false)
    }
}

impl Source {
    /// The MAC address behind an address of a link, if the kernel knows it.
    fn mac(&self, ifindex: u32, addr: IpAddr) -> Option<Mac> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ifindex;
        let (family, destination) = match addr {
            IpAddr::V4(addr) => (AddressFamily::Inet, NeighbourAddress::Inet(addr)),
            IpAddr::V6(addr) => (AddressFamily::Inet6, NeighbourAddress::Inet6(addr)),
        };
        message.header.family = family;
        message
            .attributes
            .push(NeighbourAttribute::Destination(destination));
        // One entry by its key, not the table: this is asked with every connection and every wish for a mapping.
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
        request.header.flags = NLM_F_REQUEST;
        request.finalize();
        let mut octets = vec![0; request.buffer_len()];
        request.serialize(&mut octets);
        let single = self.single.lock().unwrap_or_else(PoisonError::into_inner);
        single.send(&octets, 0).ok()?;
        for _ in 0..STALE {
            let (answer, _) = single.recv_from_full().ok()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).ok()?;
            if let NetlinkPayload::Error(_) = answer.payload {
                return None;
            }
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) =
                answer.payload
            else {
                continue;
            };
            if entry.header.ifindex == ifindex && parse(&entry).0 == Some(addr) {
                return resolved(&entry).map(|(_, mac)| mac);
            }
        }
        None
    }
}

/// Makes the kernel find out who is at an address, as it does before it sends something there.
async fn use_it(handle: &Handle, ifindex: u32, addr: IpAddr) -> Result<(), rtnetlink::Error> {
    let use_it = handle
        .neighbours()
        .add(ifindex, addr)
        .flags(NeighbourFlags::Use)
        .state(NeighbourState::None)
        .replace();
    use_it.execute().await
}

/// Makes the kernel ask now whether somebody is still at an address: an entry that it would believe for a while is to be
/// confirmed, one that there is not is to be found.
pub(super) async fn solicit(
    handle: &Handle,
    ifindex: u32,
    addr: IpAddr,
) -> Result<(), rtnetlink::Error> {
    let probe = handle
        .neighbours()
        .add(ifindex, addr)
        .state(NeighbourState::Probe)
        .replace();
    match probe.execute().await {
        Ok(()) => Ok(()),
        Err(_) => use_it(handle, ifindex, addr).await,
    }
}

/// What the kernel knows of the neighbours on these links, as far as [`MAX_NEIGHBOURS`] goes.
pub(super) async fn of_links(
    handle: &Handle,
    links: &BTreeSet<u32>,
) -> Result<BTreeMap<IpAddr, Neighbour>, rtnetlink::Error> {
    let mut all = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = handle.neighbours().get();
        request.message_mut().header.family = family;
        let mut entries = request.execute();
        while let Some(entry) = entries.try_next().await? {
            let (addr, mac) = parse(&entry);
            if let Some(addr) = addr.filter(|_| links.contains(&entry.header.ifindex))
                && all.len() < MAX_NEIGHBOURS
            {
                let answers = matches!(
                    entry.header.state,
                    NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp
                );
                let known = Neighbour {
                    mac: mac.filter(|_| has_mac(&entry)),
                    answers,
                };
                all.insert(addr, known);
            }
        }
    }
    Ok(all)
}

/// The caller, from the addresses of its link.
fn of(table: &BTreeMap<IpAddr, Mac>, addr: IpAddr) -> Caller {
    let mac = table.get(&addr).copied();
    let mut others: Vec<IpAddr> = table
        .iter()
        .filter(|(other, of)| **other != addr && mac == Some(**of))
        .map(|(other, _)| *other)
        .collect();
    if others.len() > MAX_ADDRESSES {
        debug!(%addr, addresses = others.len(), "a host has more addresses than are looked at");
        others.truncate(MAX_ADDRESSES);
    }
    Caller {
        mac,
        others,
        ..addr.into()
    }
}

/// Every address of an interface whose MAC address is known.
async fn table(handle: &Handle, ifindex: u32) -> Result<BTreeMap<IpAddr, Mac>, rtnetlink::Error> {
    let mut table = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = handle.neighbours().get();
        request.message_mut().header.family = family;
        let mut entries = request.execute();
        while let Some(entry) = entries.try_next().await? {
            if entry.header.ifindex == ifindex {
                table.extend(resolved(&entry));
            }
        }
    }
    Ok(table)
}

/// Address and MAC address of an entry that has both.
fn resolved(entry: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let (addr, mac) = parse(entry);
    addr.zip(mac).filter(|_| has_mac(entry))
}

/// Whether the MAC address of an entry counts.
fn has_mac(entry: &NeighbourMessage) -> bool {
    !matches!(
        entry.header.state,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
    )
}

/// Address and MAC address of an entry, as far as it has them.
fn parse(entry: &NeighbourMessage) -> (Option<IpAddr>, Option<Mac>) {
    let (mut addr, mut mac) = (None, None);
    for attribute in &entry.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the enum is open; the other attributes say nothing of addresses"
        )]
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                addr = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                addr = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    // A group's address is nobody's.
    (addr, mac.filter(|mac: &Mac| mac[0] & 1 == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_one_mac_are_one_hosts() {
        let table: BTreeMap<IpAddr, Mac> = [
            ("192.168.1.10", 1),
            ("fe80::10", 1),
            ("2a0b::10", 1),
            ("192.168.1.11", 2),
            ("2a0b::11", 2),
        ]
        .map(|(addr, mac)| (addr.parse().expect("an address"), [2, 0, 0, 0, 0, mac]))
        .into();
        let addr = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let caller = of(&table, addr("fe80::10"));
        assert!(caller.is(addr("2a0b::10")) && caller.is(addr("192.168.1.10")));
        assert!(caller.is(addr("fe80::10")) && !caller.is(addr("2a0b::11")));
        let stranger = of(&table, addr("fe80::99"));
        assert_eq!(stranger, addr("fe80::99").into());
        assert!(!stranger.is(addr("2a0b::10")));
    }
}
