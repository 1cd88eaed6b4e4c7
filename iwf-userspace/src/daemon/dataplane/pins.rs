//! Where pinned objects live: the bpf file system, the directories in it and what their names mean.
//!
//! ```text
//! <bpffs directory>/v<LAYOUT_VERSION>/meta      build id of the object; written last: the set is complete
//!                                    /maps/...  by map name
//!                                    /progs/... by program name
//!                                    /links/... by hook and interface index (see `attach`)
//!                  /v<LAYOUT_VERSION>-new/...   a set being made, renamed when complete
//! ```
#![forbid(unsafe_code)]

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_common::names;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::info;

/// Where distributions mount it, and the only place below /sys where one can be mounted.
const USUAL_MOUNT: &str = "/sys/fs/bpf";

/// An empty directory that says that we mounted the file system it is in.
const MOUNT_MARK: &str = "mounted-by-iwf";

/// One set of pinned objects.
#[derive(Clone, Debug)]
pub(super) struct PinSet {
    dir: PathBuf,
}

impl PinSet {
    /// The set in use, under the bpffs directory `root`.
    pub(super) fn current(root: &Path) -> Self {
        Self {
            dir: root.join(format!("v{}", names::LAYOUT_VERSION)),
        }
    }

    /// The set being made.
    pub(super) fn fresh(root: &Path) -> Self {
        Self {
            dir: root.join(format!("v{}-new", names::LAYOUT_VERSION)),
        }
    }

    /// Every set there is, of any version, in no particular order.
    pub(super) fn all(root: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut sets = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_set_name) {
                sets.push(Self { dir: entry.path() });
            }
        }
        Ok(sets)
    }

    /// The directory of this set.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.dir.join("maps").join(name)
    }

    /// Pin of a program.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join("progs").join(name)
    }

    /// Directory of the pinned links.
    pub(super) fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// Pin of the map with the build id; there if the set is complete.
    pub(super) fn meta(&self) -> PathBuf {
        self.dir.join("meta")
    }

    /// Makes the empty directories.
    pub(super) fn create(&self) -> io::Result<()> {
        for dir in ["maps", "progs", "links"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        Ok(())
    }

    /// Removes the set. Links go first: a program must never run on maps that nobody can reach any more.
    pub(super) fn remove(&self) -> io::Result<()> {
        for dir in [self.links(), self.dir.clone()] {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// `v<number>` or `v<number>-new`.
fn is_set_name(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|rest| {
        let number = rest.strip_suffix("-new").unwrap_or(rest);
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    })
}

/// Makes `root` a directory on a bpf file system, mounting one if there is none.
pub(super) fn ensure_bpffs(root: &Path) -> Result<()> {
    if !is_bpffs(root)? {
        let point = mount_point(root);
        if !point.exists() {
            fs::create_dir_all(point).with_context(|| format!("create {}", point.display()))?;
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(Some("bpf"), point, Some("bpf"), flags, Some("mode=0700")).with_context(
            || {
                format!(
                    "mount a bpf file system at {} (needs root; or mount one there and try again)",
                    point.display()
                )
            },
        )?;
        let mark = point.join(MOUNT_MARK);
        fs::create_dir(&mark).with_context(|| format!("create {}", mark.display()))?;
        info!(at = %point.display(), "mounted a bpf file system");
    }
    fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))
}

/// Takes the bpffs directory `root` for this process until the file is dropped: two daemons with one set of maps
/// would remove each other's entries. A bpf file system holds no plain files, so the directory itself is locked.
///
/// Waits a moment for a process that is just going.
///
/// # Errors
/// Another process has it, or the directory cannot be opened.
pub(super) fn lock(root: &Path) -> Result<File> {
    const TRIES: u32 = 10;
    const APART: Duration = Duration::from_millis(100);
    let dir = File::open(root).with_context(|| format!("open {}", root.display()))?;
    for left in (0..TRIES).rev() {
        match dir.try_lock() {
            Ok(()) => return Ok(dir),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", root.display()));
            }
            Err(TryLockError::WouldBlock) if left > 0 => std::thread::sleep(APART),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    anyhow::bail!(
        "another iwfd works on {}; stop it, or give this one its own paths.bpffs_dir",
        root.display()
    )
}

/// Whether another process holds [`lock`] of `root`.
pub(super) fn is_locked(root: &Path) -> io::Result<bool> {
    let dir = match File::open(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        dir => dir?,
    };
    match dir.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes the now empty directory, and the file system it is in if we mounted it and nobody else uses it.
pub(super) fn release_bpffs(root: &Path) -> Result<()> {
    let point = mount_point(root);
    let mark = point.join(MOUNT_MARK);
    // A plain directory is ours to remove; the root of somebody else's mount is not.
    let removable = root.exists() && is_empty(root)?;
    if removable && !is_mount_root(root)? {
        fs::remove_dir(root).with_context(|| format!("remove {}", root.display()))?;
    }
    if !mark.exists() {
        return Ok(());
    }
    if others(point, MOUNT_MARK)? {
        return Ok(());
    }
    fs::remove_dir(&mark).with_context(|| format!("remove {}", mark.display()))?;
    // It is empty now; somebody who merely stands in it keeps nothing of ours.
    match nix::mount::umount(point) {
        Err(Errno::EBUSY) => umount2(point, MntFlags::MNT_DETACH),
        outcome => outcome,
    }
    .with_context(|| format!("unmount {}", point.display()))
}

/// Whether `path`, or the nearest directory above it that exists, is on a bpf file system.
fn is_bpffs(path: &Path) -> Result<bool> {
    let existing = path
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    let magic = statfs(existing)
        .with_context(|| format!("look at {}", existing.display()))?
        .filesystem_type();
    Ok(magic == BPF_FS_MAGIC)
}

fn mount_point(root: &Path) -> &Path {
    let usual = Path::new(USUAL_MOUNT);
    if root.starts_with(usual) { usual } else { root }
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(!others(dir, "")?)
}

/// Whether a directory holds anything but `known` and the kernel's own files: every bpf file system is born with
/// a few, and only their names have a dot.
fn others(dir: &Path, known: &str) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name != known && !name.contains('.') {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file system is mounted right here.
fn is_mount_root(dir: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let Some(parent) = dir.parent() else {
        return Ok(true);
    };
    let device = |path: &Path| -> Result<u64> {
        Ok(fs::metadata(path)
            .with_context(|| format!("look at {}", path.display()))?
            .dev())
    };
    Ok(device(dir)? != device(parent)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_sets_are_ours() {
        for ours in ["v1", "v12", "v1-new"] {
            assert!(is_set_name(ours), "{ours}");
        }
        for other in [
            "v",
            "v-new",
            "vpn",
            "v1-old",
            "1",
            "mounted-by-iwf",
            "v1.new",
        ] {
            assert!(!is_set_name(other), "{other}");
        }
    }

    #[test]
    fn below_sys_only_the_usual_place_can_be_mounted() {
        assert_eq!(
            mount_point(Path::new("/sys/fs/bpf/iwf")),
            Path::new("/sys/fs/bpf")
        );
        assert_eq!(
            mount_point(Path::new("/run/iwf/bpf")),
            Path::new("/run/iwf/bpf")
        );
    }
}
