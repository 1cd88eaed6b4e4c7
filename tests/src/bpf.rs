//! What the kernel holds of BPF, seen from outside the daemon: by id, through the kernel's own listings.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, loaded_maps};
use aya::programs::{SchedClassifier, TcAttachType, loaded_links, loaded_programs};
use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::names;
use iwf_common::nat::{EndpointKey, Filter, MappingFlags, MappingKind, MappingValue};
use serde_json::Value;

use crate::netns::Namespace;
use crate::wait;

/// Where a daemon with that bpffs directory pins what it calls `name`; the set itself, if that is empty.
pub fn pinned(bpffs: &Path, name: &str) -> PathBuf {
    bpffs.join(format!("v{}/{name}", names::LAYOUT_VERSION))
}

/// Ids of everything that takes part in forwarding on one host. Ids are never used again while the kernel
/// runs, so equal sets mean that nothing was made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs attached to the host's interfaces.
    pub programs: BTreeSet<u32>,
    /// Maps these programs use.
    pub maps: BTreeSet<u32>,
    /// Links that attach these programs.
    pub links: BTreeSet<u32>,
    /// Interfaces with an XDP program, and its mode: `native` or `generic`.
    pub xdp: Vec<(String, &'static str)>,
}

impl Objects {
    /// What is attached to the interfaces of a host.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn of(host: &Namespace) -> Result<Self> {
        let mut found = Self::default();
        let links = host.must(&["ip", "-d", "-j", "link", "show"])?;
        let links: Vec<Value> = serde_json::from_str(&links).context("read the links")?;
        for link in &links {
            let name = link["ifname"].as_str().context("a link has a name")?;
            found.look_at(host, name, link)?;
        }
        for program in loaded_programs() {
            // One may go away while the list is read.
            let Ok(program) = program else { continue };
            if found.programs.contains(&program.id()) {
                found.maps.extend(program.map_ids()?.unwrap_or_default());
            }
        }
        for link in loaded_links().flatten() {
            if found.programs.contains(&link.program_id()) {
                found.links.insert(link.id());
            }
        }
        Ok(found)
    }

    fn look_at(&mut self, host: &Namespace, name: &str, link: &Value) -> Result<()> {
        if let Some(id) = link["xdp"]["prog"]["id"].as_u64() {
            self.programs.insert(u32::try_from(id)?);
            // linux/if_link.h: XDP_ATTACHED_DRV 1, XDP_ATTACHED_SKB 2.
            let mode = match link["xdp"]["mode"].as_u64() {
                Some(2) => "generic",
                _ => "native",
            };
            self.xdp.push((name.to_owned(), mode));
        }
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            // Older kernels know no tcx; theirs are found as filters of clsact.
            let attached = host.within(|| SchedClassifier::query_tcx(name, side))?;
            if let Ok((_, programs)) = attached {
                self.programs.extend(programs.iter().map(|info| info.id()));
            }
        }
        Ok(())
    }

    /// Whether anything is attached at all.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Waits until the kernel has freed all of it.
    ///
    /// # Errors
    /// If something is left after `within`, by id.
    pub fn are_gone(&self, within: Duration) -> Result<()> {
        // The kernel frees after a grace period, some time after the last reference went.
        wait::until_ok("the kernel to free everything", within, || {
            let programs: BTreeSet<u32> = loaded_programs().flatten().map(|p| p.id()).collect();
            let maps: BTreeSet<u32> = loaded_maps().flatten().map(|map| map.id()).collect();
            let links: BTreeSet<u32> = loaded_links().flatten().map(|link| link.id()).collect();
            for (kind, ours, all) in [
                ("program", &self.programs, programs),
                ("map", &self.maps, maps),
                ("link", &self.links, links),
            ] {
                let left: Vec<_> = ours.intersection(&all).collect();
                ensure!(left.is_empty(), "{kind} ids {left:?} are left");
            }
            Ok(())
        })
    }
}

/// An explicit mapping as the kernel's NAT table holds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NatMapping {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// External endpoint of the CPE.
    pub external: SocketAddrV4,
    /// The LAN host's endpoint.
    pub internal: SocketAddrV4,
}

/// The explicit mappings of the kernel's NAT table, sorted; read from the pinned map itself.
///
/// # Errors
/// If the map is not pinned below `bpffs_dir` or cannot be read.
pub fn nat_mappings(bpffs_dir: &Path) -> Result<Vec<NatMapping>> {
    let table = nat_table(bpffs_dir)?;
    let socket = |end: EndpointKey| {
        SocketAddrV4::new(Ipv4Addr::from(end.addr), u16::from_be_bytes(end.port))
    };
    let mut found = Vec::new();
    for entry in table.iter() {
        let (external, value) = entry.context("read the NAT table")?;
        if value.kind == MappingKind::Explicit as u8 {
            found.push(NatMapping {
                protocol: if external.proto == 6 { "tcp" } else { "udp" },
                external: socket(external),
                internal: socket(value.endpoint(external.proto)),
            });
        }
    }
    found.sort();
    Ok(found)
}

/// Protocol number and port of the external endpoints that the daemon keeps for sockets of the router itself, without
/// letting anybody in.
///
/// # Errors
/// If the map is not pinned below `bpffs_dir` or cannot be read.
pub fn own_sockets(bpffs_dir: &Path) -> Result<BTreeSet<(u8, u16)>> {
    let mut found = BTreeSet::new();
    for entry in nat_table(bpffs_dir)?.iter() {
        let (external, value) = entry.context("read the NAT table")?;
        if value.kind == MappingKind::Host as u8
            && value.flags & MappingFlags::STATIC != 0
            && value.filter != Filter::EndpointIndependent as u8
        {
            found.insert((external.proto, u16::from_be_bytes(external.port)));
        }
    }
    Ok(found)
}

fn nat_table(bpffs_dir: &Path) -> Result<HashMap<MapData, EndpointKey, MappingValue>> {
    Ok(Map::HashMap(open_map(bpffs_dir, names::MAPPINGS_EXT)?).try_into()?)
}

fn session_table(bpffs_dir: &Path) -> Result<HashMap<MapData, SessionKey, SessionValue>> {
    Ok(Map::HashMap(open_map(bpffs_dir, names::SESSIONS)?).try_into()?)
}

fn open_map(bpffs_dir: &Path, name: &str) -> Result<MapData> {
    let pin = pinned(bpffs_dir, "maps").join(name);
    MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))
}

/// Lets every IPv4 session have been silent for so much longer. Nothing may be sent meanwhile.
///
/// # Errors
/// If the tables cannot be read and written.
pub fn age_sessions(bpffs_dir: &Path, by: Duration) -> Result<()> {
    let config: Array<MapData, Config> =
        Map::Array(open_map(bpffs_dir, names::CONFIG)?).try_into()?;
    let ticks = u32::try_from(by.as_secs())? * config.get(&0, 0)?.hz;
    let mut table = session_table(bpffs_dir)?;
    let sessions: Vec<_> = table.iter().collect::<Result<_, _>>()?;
    for (key, mut value) in sessions {
        value.last_seen = value.last_seen.wrapping_sub(ticks);
        table.insert(key, value, 0)?;
    }
    Ok(())
}

/// Multiplies the only session of an external port: as many more like it, with remote hosts of 10.0.0.0/8.
///
/// # Errors
/// If there is not exactly one, or no room.
pub fn multiply_session(bpffs_dir: &Path, external_port: u16, by: u32) -> Result<()> {
    let port = external_port.to_be_bytes();
    let mut table = session_table(bpffs_dir)?;
    let found: Vec<_> = table
        .iter()
        .filter(|entry| {
            let is_in = |key: &SessionKey| key.dst_port == port;
            let is_out = |value: &SessionValue| value.src_port == port;
            entry
                .as_ref()
                .is_ok_and(|(key, value)| is_in(key) || is_out(value))
        })
        .collect::<Result<_, _>>()?;
    ensure!(found.len() == 2, "{} entries, not one session", found.len());
    for number in 1..=by {
        let remote = Ipv4Addr::from_bits(0x0a00_0000 + number).octets();
        for (mut key, mut value) in found.iter().copied() {
            if value.flags & SessionFlags::INBOUND != 0 {
                (key.src, value.src) = (remote, remote);
            } else {
                (key.dst, value.dst) = (remote, remote);
            }
            table.insert(key, value, 0).context("insert a session")?;
        }
    }
    Ok(())
}

/// Entries of the IPv4 session table, ended ones included: two for each session.
///
/// # Errors
/// If the table cannot be read.
pub fn session_entries(bpffs_dir: &Path) -> Result<usize> {
    Ok(session_table(bpffs_dir)?.keys().count())
}

/// Queueing disciplines made for classifier programs (clsact) on a host, one line each.
///
/// # Errors
/// If `tc` fails.
pub fn classifier_qdiscs(host: &Namespace) -> Result<Vec<String>> {
    let text = host.must(&["tc", "qdisc", "show"])?;
    Ok(text
        .lines()
        .filter(|line| line.contains("clsact") || line.contains("ingress"))
        .map(str::to_owned)
        .collect())
}
