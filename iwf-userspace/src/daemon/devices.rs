//! Who is on the LAN: the kernel's neighbours there, and what the LAN's DHCP server has given out.
//!
//! Read before editing: rtnetlink(7), ip-neighbour(8), dnsmasq(8) on `--dhcp-leasefile`.
//!
//! Looked at from time to time, whole, because rules, quotas and departures are about devices that may not be calling just
//! now. Who calls is asked for at that moment, in `neighbours.rs`. A lease file is read again only when it has changed;
//! its server may be writing it just then, so the core believes that a lease is over only after it has asked the address.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rtnetlink::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::neighbours;
use super::netstate::NetState;
use crate::types::device::{LanDevices, Leases};
use crate::wire::lease_file::{LeaseFile, MAX_FILE};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// The same while addresses are being asked, and for how long.
const LOOK_AFTER_ASKING: Duration = Duration::from_secs(1);
const ASKING: Duration = Duration::from_secs(6);
/// Addresses that wait to be asked.
const MAX_ASKED: usize = 64;
/// What was seen and not taken yet: the newest counts, and the loop is quicker than this.
const MAX_SEEN: usize = 2;

/// Looks, and tells what is seen.
#[derive(Debug)]
pub struct Devices {
    seen: mpsc::Receiver<LanDevices>,
    solicit: mpsc::Sender<IpAddr>,
    files: watch::Sender<Vec<PathBuf>>,
}

impl Devices {
    /// Begins to look, on a task of its own that ends with this value. `network` says which addresses are of which link.
    ///
    /// # Errors
    /// There is no netlink socket to be had.
    pub fn watch(network: watch::Receiver<NetState>, files: Vec<PathBuf>) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let (sender, seen) = mpsc::channel(MAX_SEEN);
        let (solicit, asked) = mpsc::channel(MAX_ASKED);
        let (files, wanted) = watch::channel(files);
        let watcher = Watcher {
            handle,
            network,
            wanted,
            files: BTreeMap::new(),
            fails: false,
        };
        tokio::spawn(watcher.run(asked, sender));
        Ok(Self {
            seen,
            solicit,
            files,
        })
    }

    /// Sees nothing.
    #[cfg(test)]
    pub fn nobody() -> Self {
        Self {
            seen: mpsc::channel(1).1,
            solicit: mpsc::channel(1).0,
            files: watch::Sender::new(Vec::new()),
        }
    }

    /// What is seen next.
    pub async fn look(&mut self) -> LanDevices {
        match self.seen.recv().await {
            Some(seen) => seen,
            // Nothing will be any more: nothing is concluded from that.
            None => std::future::pending().await,
        }
    }

    /// Where addresses go that the kernel is to ask.
    pub fn solicit(&self) -> mpsc::Sender<IpAddr> {
        self.solicit.clone()
    }

    /// Reads these lease files from now on.
    pub fn read(&self, files: Vec<PathBuf>) {
        self.files.send_if_modified(|wanted| {
            let changed = *wanted != files;
            *wanted = files;
            changed
        });
    }
}

/// The task's own.
struct Watcher {
    handle: Handle,
    network: watch::Receiver<NetState>,
    wanted: watch::Receiver<Vec<PathBuf>>,
    /// What was read of each file.
    files: BTreeMap<PathBuf, File>,
    /// The neighbours could not be asked for.
    fails: bool,
}

impl Watcher {
    async fn run(mut self, mut asked: mpsc::Receiver<IpAddr>, sender: mpsc::Sender<LanDevices>) {
        let mut next = Instant::now();
        let mut asking_until = next;
        loop {
            tokio::select! {
                () = sender.closed() => return,
                Some(addr) = asked.recv() => {
                    self.ask(addr).await;
                    asking_until = Instant::now() + ASKING;
                    next = next.min(Instant::now() + LOOK_AFTER_ASKING);
                }
                () = sleep_until(next) => {
                    let seen = self.look().await;
                    if sender.send(seen).await.is_err() {
                        return;
                    }
                    let now = Instant::now();
                    next = now + if now < asking_until { LOOK_AFTER_ASKING } else { LOOK };
                }
            }
        }
    }

    async fn look(&mut self) -> LanDevices {
        let links: BTreeSet<u32> = {
            let network = self.network.borrow();
            network.served().iter().map(|link| link.ifindex).collect()
        };
        let neighbours = neighbours::of_links(&self.handle, &links).await;
        if let Err(error) = &neighbours {
            if self.fails {
                debug!(%error, "cannot ask for the neighbours");
            } else {
                warn!(%error, "cannot ask for the neighbours");
            }
        }
        self.fails = neighbours.is_err();
        LanDevices {
            neighbours: neighbours.ok(),
            leases: self.leases(),
        }
    }

    /// Has the kernel ask whether somebody is there; the answer shows in the neighbour's state.
    async fn ask(&self, addr: IpAddr) {
        let link = {
            let network = self.network.borrow();
            let links = network.served();
            let link = links.iter().find(|link| link.contains(addr));
            link.map(|link| link.ifindex)
        };
        let Some(ifindex) = link else {
            return debug!(%addr, "not asked: it is on no link");
        };
        if let Err(error) = neighbours::solicit(&self.handle, ifindex, addr).await {
            debug!(%addr, %error, "cannot be asked");
        }
    }

    /// What the files say together. One that cannot be relied on spoils all: a device may be in it.
    fn leases(&mut self) -> Leases {
        let wanted = self.wanted.borrow_and_update().clone();
        self.files.retain(|path, _| wanted.contains(path));
        let mut all = BTreeMap::new();
        let (mut some, mut unreadable) = (false, false);
        for path in wanted {
            let file = self.files.entry(path.clone()).or_default();
            match file.read(&path) {
                Read::Absent => {}
                Read::Unreadable => unreadable = true,
                Read::Leases(leases) => {
                    some = true;
                    all.extend(
                        leases
                            .leases
                            .iter()
                            .map(|lease| (lease.addr, lease.clone())),
                    );
                }
            }
        }
        match (unreadable, some) {
            (true, _) => Leases::Unreadable(BTreeMap::new()),
            (false, true) => Leases::Known(all),
            (false, false) => Leases::Nowhere,
        }
    }
}

/// A lease file as it was read last.
#[derive(Debug, Default)]
struct File {
    /// When it was changed, and what of it can be told without reading.
    version: Option<(u64, i64, i64, u64)>,
    leases: LeaseFile,
    /// What is wrong was said.
    told: bool,
}

enum Read<'a> {
    /// It has never been there.
    Absent,
    /// It is gone, no file, too large, or has lines that nobody understands.
    Unreadable,
    Leases(&'a LeaseFile),
}

impl File {
    fn read(&mut self, path: &Path) -> Read<'_> {
        let found = std::fs::metadata(path);
        let metadata = match found {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.version.is_none() => {
                return Read::Absent;
            }
            Err(error) => return self.bad(path, &error.to_string()),
        };
        // Opening anything else might wait for ever.
        if !metadata.is_file() {
            return self.bad(path, "it is no file");
        }
        if metadata.len() > MAX_FILE as u64 {
            return self.bad(path, "it is too large");
        }
        let version = Some((
            metadata.ino(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.len(),
        ));
        if self.version != version {
            match std::fs::read(path) {
                Ok(octets) => self.leases = LeaseFile::parse(&octets),
                Err(error) => return self.bad(path, &error.to_string()),
            }
            self.version = version;
        }
        if self.leases.damaged > 0 {
            let damaged = self.leases.damaged;
            return self.bad(path, &format!("lines that are no leases: {damaged}"));
        }
        self.told = false;
        Read::Leases(&self.leases)
    }

    fn bad(&mut self, path: &Path, why: &str) -> Read<'_> {
        // While its server writes it, it may be so for a moment.
        if self.told {
            debug!(file = %path.display(), why, "lease file not used");
        } else {
            warn!(file = %path.display(), why, "lease file not used");
        }
        self.told = true;
        Read::Unreadable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "0 02:00:5e:10:00:0a 192.168.1.10 console *\n";

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("iwf-leases-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("a directory");
            Self(dir)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    fn found(file: &mut File, path: &Path) -> Option<usize> {
        match file.read(path) {
            Read::Absent => Some(usize::MAX),
            Read::Unreadable => None,
            Read::Leases(leases) => Some(leases.leases.len()),
        }
    }

    #[test]
    fn a_file_is_read_again_when_it_changes_and_not_believed_when_it_is_bad() {
        let place = Place::new("read");
        let path = place.0.join("dnsmasq.leases");
        let mut file = File::default();
        assert_eq!(
            found(&mut file, &path),
            Some(usize::MAX),
            "there is none yet"
        );
        std::fs::write(&path, LINE).expect("written");
        assert_eq!(found(&mut file, &path), Some(1));
        std::fs::write(&path, LINE.repeat(2)).expect("written");
        assert_eq!(found(&mut file, &path), Some(2));
        std::fs::write(&path, "").expect("written");
        assert_eq!(found(&mut file, &path), Some(0));
        std::fs::write(&path, format!("{LINE}rubbish\n")).expect("written");
        assert_eq!(found(&mut file, &path), None);
        std::fs::write(&path, LINE).expect("written");
        assert_eq!(found(&mut file, &path), Some(1));
        std::fs::write(&path, "\n".repeat(MAX_FILE + 1)).expect("written");
        assert_eq!(found(&mut file, &path), None);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(found(&mut file, &path), None, "it was there");
        std::fs::create_dir(&path).expect("made");
        assert_eq!(found(&mut file, &path), None);
    }
}
