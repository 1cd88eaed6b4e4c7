//! The lab with the daemon as it is built for release, with many addresses of LAN hosts.
#![expect(
    clippy::disallowed_types,
    reason = "sends packets of both sides through real sockets"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{endpoint, rows};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::Namespace;
use iwf_tests::script::{Manner, ScriptedServer};
use iwf_tests::topology::{CARRIER, EXTERNAL, Lab, WAN};
use iwf_tests::{packages, wait};

use super::client::{Target, Wish};

/// Everything but quotas and connections is the default: as many hosts as these are two devices by their MAC addresses, and
/// so many mappings are more than a house needs.
const MORE: &str = "[policy]\nmax_mappings_per_host = 60000\n\
                    [limits]\nexplicit_mappings = 60000\n\
                    [http]\nmax_connections = 1024\nmax_connections_per_host = 512\n";

/// Addresses of each of the two LAN hosts.
const ADDRESSES: u8 = 110;

/// The port of the first mapping that stays.
const FIRST: u16 = 10_000;

/// Mappings whose packets are looked at each time.
const SAMPLES: usize = 3;

/// How long a packet may take.
const ARRIVES_WITHIN: Duration = Duration::from_secs(2);

/// How long the tables may take to agree.
const AGREES_WITHIN: Duration = Duration::from_secs(20);

/// Who is asked for mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upstream {
    /// A PCP server that answers at once.
    Pcp,
    /// Nobody.
    Local,
}

/// Where the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// Memory: a sync costs nothing.
    Memory,
    /// The disk of the build directory.
    Disk,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) upstream: Upstream,
    pub(super) medium: Medium,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upstream = match self.upstream {
            Upstream::Pcp => "pcp",
            Upstream::Local => "local",
        };
        let medium = match self.medium {
            Medium::Memory => "memory",
            Medium::Disk => "disk",
        };
        write!(f, "iwf-{upstream}-{medium}")
    }
}

/// A directory that goes with the value.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    /// Below the build directory, which is on a disk if anything is.
    fn on_disk() -> Result<Self> {
        let all = packages::workspace().join("target/bench-store");
        std::fs::create_dir_all(&all).with_context(|| format!("make {}", all.display()))?;
        // What runs have left that were killed.
        for entry in std::fs::read_dir(&all)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.split('-').next().unwrap_or_default();
            if !PathBuf::from("/proc").join(pid).exists() {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
        for n in 0.. {
            let path = all.join(format!("{}-{n}", std::process::id()));
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| Self(path)).context("make a directory"),
            }
        }
        anyhow::bail!("no name is free in {}", all.display())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// One router with LAN hosts and, if it needs one, a PCP server.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) kind: Kind,
    pub(super) target: Target,
    iwfd: Iwfd,
    server: Option<ScriptedServer>,
    lab: Lab,
    _store: Option<Directory>,
}

impl Router {
    /// Builds and starts everything.
    ///
    /// # Errors
    /// If a part does not start.
    pub(super) fn new(kind: Kind) -> Result<Self> {
        let lab = Lab::new()?;
        let (store, state_dir) = match kind.medium {
            Medium::Memory => {
                let dir = lab.dir().join("state");
                std::fs::create_dir(&dir)?;
                let (none, size) = (None::<&str>, Some("size=512m"));
                let flags = nix::mount::MsFlags::empty();
                nix::mount::mount(Some("bench"), &dir, Some("tmpfs"), flags, size.or(none))
                    .context("mount memory for the store")?;
                (None, dir)
            }
            Medium::Disk => {
                let dir = Directory::on_disk()?;
                let path = dir.0.join("state");
                (Some(dir), path)
            }
        };
        let (server, mode, external) = match kind.upstream {
            Upstream::Pcp => {
                let server = ScriptedServer::start(&lab, Manner::Grant)?;
                (Some(server), "cascaded", EXTERNAL)
            }
            Upstream::Local => (None, "local", WAN),
        };
        let options = Options {
            mode,
            more: MORE,
            state_dir: Some(state_dir),
            ..Options::default()
        };
        for at in [0, 1] {
            let lines: String = addresses(at)
                .map(|addr| format!("address add {addr}/24 dev eth0\n"))
                .collect();
            host(&lab, at).ip_batch(&lines)?;
        }
        let iwfd = Iwfd::start(&lab, &options)?;
        let gateway = Gateway::discover(&lab.lan1)?;
        Ok(Self {
            kind,
            target: Target {
                address: gateway.address(),
                path: gateway.control_path().to_owned(),
                external,
            },
            iwfd,
            server,
            lab,
            _store: store,
        })
    }

    /// One of the two LAN hosts.
    pub(super) fn host(&self, at: usize) -> &Namespace {
        host(&self.lab, at)
    }

    /// Nobody asks what the server was asked.
    pub(super) fn forget(&self) {
        if let Some(server) = &self.server {
            server.forget_arrivals();
        }
    }

    /// The daemon's process.
    pub(super) fn pid(&self) -> u32 {
        self.iwfd.pid()
    }

    /// One of the daemon's counters.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) fn counter(&self, name: &str) -> Result<u64> {
        self.iwfd.ctl().counter(name)
    }

    /// Why the daemon has refused what it has refused: without that an error code says little.
    pub(super) fn refusals(&self) -> String {
        let argv = ["events", "--kind", "mapping-refused"];
        let told = self.iwfd.ctl().must(&argv);
        told.unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Fails unless exactly these mappings are in the daemon's table, in the kernel and at the server, and packets
    /// go through some of them both ways.
    ///
    /// # Errors
    /// What is not so.
    pub(super) fn verify(&self, wishes: &[Wish]) -> Result<()> {
        wait::until_ok("the tables to agree", AGREES_WITHIN, || {
            let audit = self.iwfd.ctl().json(&["audit"])?;
            ensure!(
                audit["clean"] == true && audit["mappings"] == wishes.len(),
                "{} mappings are wanted: {audit}",
                wishes.len()
            );
            Ok(())
        })?;
        let mut nat1 = BTreeMap::new();
        for row in rows(&self.iwfd)? {
            ensure!(row["kernel"] == true, "the kernel does not hold {row}");
            let internal = endpoint(&row, "internal")?;
            nat1.insert((*internal.ip(), internal.port()), endpoint(&row, "nat1")?);
        }
        let at = |wish: &Wish| {
            let at = nat1.get(&(wish.host, wish.port)).copied();
            at.with_context(|| format!("{wish:?} is not listed"))
        };
        for wish in wishes {
            at(wish)?;
        }
        if let Some(server) = &self.server {
            let held = server.leases();
            let held: BTreeSet<u16> = held.iter().map(|lease| lease.external_port).collect();
            let missing = wishes.iter().find(|wish| !held.contains(&wish.port));
            ensure!(missing.is_none(), "{missing:?} is not at the server");
        }
        let step = wishes.len().div_ceil(SAMPLES).max(1);
        for wish in wishes.iter().step_by(step) {
            let at = at(wish)?;
            self.goes_through(*wish, at)
                .with_context(|| format!("a packet to {at} for {wish:?}"))?;
        }
        Ok(())
    }

    /// A datagram to the external endpoint arrives, and its answer comes from there.
    fn goes_through(&self, wish: Wish, nat1: SocketAddrV4) -> Result<()> {
        let host = self.host(host_of(wish.host));
        let inside = host.within(|| UdpSocket::bind((wish.host, wish.port)))??;
        let outside = self.lab.cgn.within(|| UdpSocket::bind((CARRIER, 0)))??;
        for socket in [&inside, &outside] {
            socket.set_read_timeout(Some(ARRIVES_WITHIN))?;
        }
        let mut buf = [0; 16];
        outside.send_to(b"in", nat1)?;
        let (len, from) = inside.recv_from(&mut buf).context("the way in")?;
        ensure!(buf.get(..len) == Some(b"in"), "another packet");
        inside.send_to(b"out", from)?;
        let (len, from) = outside.recv_from(&mut buf).context("the way out")?;
        ensure!(buf.get(..len) == Some(b"out"), "another packet");
        ensure!(from == nat1.into(), "the answer came from {from}");
        Ok(())
    }
}

fn host(lab: &Lab, at: usize) -> &Namespace {
    if at == 0 { &lab.lan1 } else { &lab.lan2 }
}

/// Which of the two LAN hosts has an address.
fn host_of(addr: Ipv4Addr) -> usize {
    usize::from(addr.octets()[3] > 20 + ADDRESSES)
}

/// The addresses of one of the two LAN hosts.
pub(super) fn addresses(at: usize) -> impl Iterator<Item = Ipv4Addr> + Clone {
    let first = if at == 0 { 21 } else { 21 + ADDRESSES };
    (first..first + ADDRESSES).map(|last| Ipv4Addr::new(192, 168, 1, last))
}

/// The mappings that stay: of all addresses in turn.
pub(super) fn staying(count: u16) -> Vec<Wish> {
    let hosts: Vec<Ipv4Addr> = addresses(0).chain(addresses(1)).collect();
    let hosts = hosts.into_iter().cycle();
    let ports = FIRST..FIRST + count;
    ports
        .zip(hosts)
        .map(|(port, host)| Wish { host, port })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        for at in [0, 1] {
            assert_eq!(addresses(at).count(), usize::from(ADDRESSES));
            assert!(addresses(at).all(|addr| host_of(addr) == at));
        }
        assert!(addresses(0).all(|addr| addresses(1).all(|other| other != addr)));
    }
}
