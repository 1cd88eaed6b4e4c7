//! The memory file system of a guest: a shell, the modules, the tools, and one suite at its usual path.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use iwf_tests::packages;

use super::debian::Packages;
use super::{guest, modules};
use crate::step;

/// Programs the suites call.
const TOOLS: [&str; 12] = [
    "ip", "tc", "nft", "ethtool", "tcpdump", "upnpc", "ping", "nsenter", "timeout", "env", "cat",
    "sh",
];

/// The newest test program of that suite, built if need be.
///
/// # Errors
/// If there is no such suite or it does not build.
pub(super) fn suite(name: &str) -> Result<PathBuf> {
    let mut cargo = step::cargo(&["test", "--workspace", "--no-run", "--test", name]);
    cargo.arg("--message-format=json");
    let messages = step::quiet(&mut cargo)?;
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name).then_some(())?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.with_context(|| format!("cargo built no test program named {name}"))
}

/// Writes the file system of a guest that runs `program` with `arguments`.
///
/// # Errors
/// If a tool is missing or a file cannot be read or written.
pub(super) fn write(
    target: &Path,
    packages: &Packages,
    program: &Path,
    arguments: &[String],
) -> Result<()> {
    let mut tree = Tree::default();
    tree.file("/bin/busybox", fs::read(&packages.busybox)?);
    let mut load = String::new();
    for module in modules::in_order(&packages.modules)? {
        let path = format!("/modules/{}.ko", module.name);
        writeln!(load, "insmod {path} || bad=\"$bad {}\"", module.name)?;
        tree.file(&path, module.octets);
    }
    for tool in TOOLS {
        tree.program(&which(tool)?, None)?;
    }
    for own in ["iwfd", "iwfctl"] {
        tree.program(&packages::built(own)?, None)?;
    }
    tree.program(program, None)?;
    tree.program(&packages::miniupnpd()?, Some(&packages::library_path()?))?;
    tree.file("/etc/hosts", b"127.0.0.1 localhost\n".to_vec());
    tree.file("/etc/passwd", b"root:x:0:0:root:/:/bin/sh\n".to_vec());
    tree.file("/etc/group", b"root:x:0:\n".to_vec());
    let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    let init = init(&load, &quoted(&program.display().to_string()), &words);
    tree.file("/init", init.into_bytes());
    fs::write(target, tree.archive()).with_context(|| format!("write {}", target.display()))
}

/// The first program of the guest. It says how the suite ended in one line that nothing else prints.
fn init(load: &str, program: &str, arguments: &[String]) -> String {
    format!(
        "#!/bin/busybox sh\n\
         busybox=/bin/busybox\n\
         $busybox mkdir -p /proc /sys /dev /tmp /run /var/run /var/lib /usr/bin /usr/sbin /sbin\n\
         $busybox --install -s /bin\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t tmpfs run /run\n\
         ulimit -l unlimited\n\
         ip link set lo up\n\
         bad=\n\
         {load}\
         if [ -n \"$bad\" ]; then\n\
         echo \"modules that do not load:$bad\"\n\
         echo '{failed}'\n\
         poweroff -f\n\
         fi\n\
         export IWF_REQUIRE_PRIVILEGED=1 IWF_PATIENCE=8 RUST_BACKTRACE=0 TMPDIR=/tmp HOME=/\n\
         cd /\n\
         if {program} --test-threads=1 --nocapture {arguments} </dev/null; then\n\
         echo '{passed}'\n\
         else\n\
         dmesg | tail -n 30\n\
         echo '{failed}'\n\
         fi\n\
         poweroff -f\n",
        arguments = arguments.join(" "),
        passed = guest::PASSED,
        failed = guest::FAILED,
    )
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn which(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed"))
}

/// Files to be, by absolute path.
#[derive(Default)]
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    fn file(&mut self, path: &str, octets: Vec<u8>) {
        self.files.insert(path.to_owned(), octets);
    }

    /// A program with the libraries it is linked to, all at the paths they have here. Unpacked programs have theirs in
    /// directories that `library_path` names, as in `LD_LIBRARY_PATH`.
    fn program(&mut self, path: &Path, library_path: Option<&str>) -> Result<()> {
        self.copy(path)?;
        let output = Command::new("ldd")
            .arg(path)
            .env("LD_LIBRARY_PATH", library_path.unwrap_or_default())
            .output()
            .context("start ldd")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // "name => /path (address)" or "/path (address)"; nothing for a static program.
        for word in text.split_whitespace().filter(|word| word.starts_with('/')) {
            self.copy(Path::new(word))?;
        }
        if text.contains("not found") {
            bail!("a library of {} is missing:\n{text}", path.display());
        }
        Ok(())
    }

    fn copy(&mut self, path: &Path) -> Result<()> {
        let name = path.display().to_string();
        if self.files.contains_key(&name) {
            return Ok(());
        }
        let octets = fs::read(path).with_context(|| format!("read {name}"))?;
        self.files.insert(name, octets);
        Ok(())
    }

    /// The archive in the format the kernel unpacks: "newc", Documentation/driver-api/early-userspace/buffer-format.
    fn archive(&self) -> Vec<u8> {
        const DIRECTORY: u32 = 0o040_755;
        const PROGRAM: u32 = 0o100_755;
        const DEVICE: u32 = 0o020_600;
        let mut archive = Archive::default();
        let mut made = BTreeSet::new();
        let console = "/dev/console".to_owned();
        for path in self.files.keys().chain([&console]) {
            let parents: Vec<_> = Path::new(path).ancestors().skip(1).collect();
            for parent in parents.into_iter().rev() {
                let name = parent.display().to_string();
                if name != "/" && made.insert(name.clone()) {
                    archive.entry(&name, DIRECTORY, (0, 0), &[]);
                }
            }
        }
        archive.entry(&console, DEVICE, (5, 1), &[]);
        for (path, octets) in &self.files {
            archive.entry(path, PROGRAM, (0, 0), octets);
        }
        archive.entry("TRAILER!!!", 0, (0, 0), &[]);
        archive.octets
    }
}

#[derive(Default)]
struct Archive {
    octets: Vec<u8>,
    count: u32,
}

impl Archive {
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let name = path.trim_start_matches('/');
        self.count += 1;
        let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        // Inode, mode, owner, group, links, time, size, device of the file, device it is, length of the name, sum.
        let fields = [
            self.count,
            mode,
            0,
            0,
            1,
            0,
            size(content.len()),
            0,
            0,
            device.0,
            device.1,
            size(name.len() + 1),
            0,
        ];
        self.octets.extend(b"070701");
        for field in fields {
            self.octets.extend(format!("{field:08x}").bytes());
        }
        self.octets.extend(name.bytes());
        self.octets.push(0);
        self.pad();
        self.octets.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let len = self.octets.len().next_multiple_of(4);
        self.octets.resize(len, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_its_parents_first_and_is_aligned() {
        let mut tree = Tree::default();
        tree.file("/a/b/c", b"12345".to_vec());
        let archive = tree.archive();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive).into_owned();
        let at = |name: &str| text.find(&format!("{name}\0")).expect("in the archive");
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c"));
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"));
        assert_eq!(&archive[..6], b"070701");
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
