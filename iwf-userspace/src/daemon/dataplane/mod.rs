//! The data plane as the daemon sees it: explicit mappings and the network in, observations out.
//!
//! [`kernel::KernelPlane`] drives the eBPF programs, [`fake::FakePlane`] keeps everything in memory for
//! tests of what is above. Both compare what is there with what is wanted and change the difference, so
//! a call may be repeated at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use iwf_common::event::EventKind;

use crate::daemon::config::FlowRules;
use crate::reconcile::run::Seen;
use crate::types::{ExternalEndpoint, Generation, InternalEndpoint, NatEntry, Protocol};

mod attach;
mod batch;
mod clock;
mod clsact;
mod detach;
mod drop_log;
mod events;
pub mod fake;
mod features;
pub(crate) mod fragments;
pub mod inspect;
pub mod kernel;
mod maps;
pub mod object;
mod pair;
mod pins;
mod programs;
mod raw_socket;
pub(crate) mod refusals;
pub(crate) mod ring;
mod settle;
pub mod softwire;
pub mod sweep;
pub(crate) mod tun;

pub use crate::types::pinhole::Pinhole;
use inspect::{Inspector, TableRow};
use softwire::Softwire;

/// Why the data plane refused.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// A kernel map has no room left.
    #[error("kernel map {map} is full")]
    Full {
        /// Name of the map.
        map: &'static str,
    },
    /// The CPE's own socket or another explicit mapping holds that external or internal endpoint.
    #[error("external endpoint in use by another owner")]
    InUse,
    /// The kernel refused for another reason.
    #[error("kernel refused to {action}")]
    Kernel {
        /// What was tried, as a verb with its object.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// The side of the translation a device is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Hosts we translate for.
    Lan,
    /// The provider.
    Wan,
}

/// A device the packet programs are attached to. A bridge is never one: its ports are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Kernel index of the device.
    pub ifindex: u32,
    /// Name of the device.
    pub name: String,
    /// Its side.
    pub role: Role,
    /// Index of the bridge it is a port of.
    pub bridge: Option<u32>,
    /// MAC address its hosts reach us by: the bridge's for a port of one, else its own.
    pub mac: [u8; 6],
}

impl Port {
    /// Whether it carries packets without an Ethernet header, as PPP and tunnels do.
    pub fn is_bare(&self) -> bool {
        self.mac == [0; 6]
    }
}

/// Behind which port of a bridge a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Index of the bridge.
    pub bridge: u32,
    /// Address of the station.
    pub mac: [u8; 6],
    /// Index of the port.
    pub port: u32,
}

/// What the packet programs need to know besides mappings: always complete, never a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaneConfig {
    /// NAT1's external address. `None`: nothing is translated, LAN traffic does not leave the WAN.
    pub external_addr: Option<Ipv4Addr>,
    /// Whether the provider's device translates IPv4: a mapping's external endpoint is its internal one, and packets keep
    /// their addresses; who is let in is decided here all the same.
    pub routed: bool,
    /// External addresses besides `external_addr`, without which none counts.
    pub pool: Vec<Ipv4Addr>,
    /// LAN prefixes as (network, prefix length); sources outside them are not translated.
    pub lan_prefixes: Vec<(Ipv4Addr, u8)>,
    /// The interface that each of them lies behind: a source of one that comes in by another is spoofed. One that is not
    /// named here may come in by any.
    pub lan_interfaces: BTreeMap<(Ipv4Addr, u8), u32>,
    /// IPv6 prefixes of the LAN as (network, prefix length).
    pub lan6_prefixes: Vec<(Ipv6Addr, u8)>,
    /// What the WAN may reach in the LAN over IPv6 unasked. Each has an id of its own.
    pub pinholes: Vec<Pinhole>,
    /// Octets of the largest packet that the WAN takes, if it is known.
    pub wan_mtu: Option<u32>,
    /// Services of this machine that the WAN may reach unasked: configured ports and the PCP announcement
    /// listener (RFC 6887 section 14.1). Mappings cannot take these ports.
    pub host_ports: Vec<(Protocol, u16)>,
    /// Ports this machine uses otherwise: no LAN host gets them, and nobody is let in who was not before.
    pub own_ports: BTreeSet<(Protocol, u16)>,
    /// Devices to be attached to; programs on any other device are detached.
    pub ports: Vec<Port>,
    /// Stations behind the ports of LAN bridges.
    pub fdb: Vec<FdbEntry>,
    /// What holds for flows that somebody begins.
    pub rules: FlowRules,
    /// Grows whenever a next hop a session may have cached is no longer right.
    pub next_hops: u32,
    /// Where IPv4 goes through IPv6. Not while there is an external address.
    pub softwire: Softwire,
}

/// What comes after a slice of the sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepStep {
    /// When the next slice is due.
    pub again: Duration,
    /// What the pass found, if this slice was its last one.
    pub found: Option<Found>,
}

/// What a pass of the sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Sessions that go on.
    pub sessions: u64,
    /// How full the large tables are.
    pub tables: Vec<TableRow>,
}

/// Something the packet programs tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneEvent {
    /// What happened; `None`: something this version does not know.
    pub kind: Option<EventKind>,
    /// How long ago.
    pub age: Duration,
    /// IANA protocol number.
    pub protocol: u8,
    /// The internal endpoint concerned, if there is one.
    pub internal: Option<SocketAddr>,
    /// Of IPv6, the station that the flow counts for: its MAC address, or what stands for one.
    pub station: Option<[u8; 6]>,
    /// The external endpoint concerned, or for a next hop the remote one.
    pub external: Option<SocketAddrV4>,
}

/// A change that ends sessions, numbered in the order of the changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(pub u64);

/// How far a change of a mapping is when the call that made it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// All the way.
    Settled,
    /// Nothing begins against it any more, but sessions that it ends may still go on. They have ended when
    /// [`DataPlane::settle_slice`] returns this turn or a later one.
    Settling(Turn),
}

/// The generation [`DataPlane::observe`] gives an entry of which only one direction is there. No mapping
/// ever has it, so a reconciler sees a difference and writes or removes the whole.
pub const HALF_WRITTEN: Generation = Generation(0);

/// Explicit mappings in the kernel.
pub trait DataPlane {
    /// Makes the programs follow the network: addresses, devices, stations, next hops. From a change of the external
    /// addresses on, no packet uses one that is gone. Unless there is no external address left at all, every mapping of it
    /// has gone when this returns, and its sessions end in slices ([`DataPlane::settle_slice`]).
    ///
    /// # Errors
    /// The first failure; the rest is still applied.
    fn configure(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError>;

    /// Writes both entries of a mapping, return direction first. A dynamic mapping in its way is displaced
    /// with its sessions (explicit mappings win, NAT-50); an entry of the same external and internal
    /// endpoint is updated in place and its sessions live on.
    ///
    /// # Errors
    /// `InUse` and `Full` leave the maps as they were.
    fn write(&mut self, entry: &NatEntry) -> Result<Change, DataPlaneError>;

    /// Removes both entries, triggering direction first, and lets the sessions that used them end.
    /// Absent is success; an entry that belongs to another pair of endpoints stays.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn remove(&mut self, entry: &NatEntry) -> Result<Change, DataPlaneError>;

    /// Whether a change, of mappings or of the external addresses, waits for sessions to end.
    fn is_settling(&self) -> bool;

    /// One slice of looking for sessions that changes have ended, as short as one of [`Self::sweep_slice`]; returns
    /// the change up to which all are settled.
    ///
    /// # Errors
    /// Only what the kernel refuses. Nothing waits any more then; the sweep will find those sessions.
    fn settle_slice(&mut self) -> Result<Turn, DataPlaneError>;

    /// Every explicit mapping the kernel holds, half-written ones with generation [`HALF_WRITTEN`].
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn observe(&self) -> Result<Vec<NatEntry>, DataPlaneError>;

    /// Lets [`Self::observe_slice`] begin anew.
    fn observe_anew(&mut self);

    /// Some of what [`Self::observe`] lists, each as it is now: a bounded number of entries, however large the tables are.
    /// Whatever is there from the beginning to the last slice is in one of them.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn observe_slice(&mut self) -> Result<Seen, DataPlaneError>;

    /// What [`Self::observe`] would list of the mapping between these endpoints.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn find(&self, like: &NatEntry) -> Result<Option<NatEntry>, DataPlaneError>;

    /// Makes the pinholes these, and looks at each of those there are for that. The sessions of pinholes that have gone have
    /// ended when this returns.
    ///
    /// # Errors
    /// `Full`, and what the kernel refuses.
    fn set_pinholes(&mut self, pinholes: &[Pinhole]) -> Result<(), DataPlaneError>;

    /// Every pinhole that the kernel holds, in no particular order.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn observe_pinholes(&self) -> Result<Vec<Pinhole>, DataPlaneError>;

    /// Packets that came in by each pinhole, with its id, in no particular order.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn pinhole_packets(&self) -> Result<Vec<(u16, u64)>, DataPlaneError>;

    /// Sum over CPUs of every named counter, in a fixed order.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn counters(&self) -> Result<Vec<(&'static str, u64)>, DataPlaneError>;

    /// One slice of freeing idle sessions and expired mappings: a bounded number of entries, however large the tables are.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn sweep_slice(&mut self) -> Result<SweepStep, DataPlaneError>;

    /// How many LAN hosts have their mappings at each external address. Those without mappings are nobody's.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn hosts(&self) -> Result<BTreeMap<Ipv4Addr, u64>, DataPlaneError>;

    /// What the programs have told since the last call, oldest first.
    fn events(&mut self) -> Vec<PlaneEvent>;

    /// Something to look at the tables with, from another thread.
    ///
    /// # Errors
    /// If the tables cannot be opened once more.
    fn inspector(&mut self) -> Result<Box<dyn Inspector>, DataPlaneError>;
}

/// Whether two entries bind the same pair of endpoints.
fn same_endpoints(a: &NatEntry, b: &NatEntry) -> bool {
    let endpoints = |e: &NatEntry| -> (Protocol, ExternalEndpoint, InternalEndpoint) {
        (e.protocol, e.external, e.internal)
    };
    endpoints(a) == endpoints(b)
}
