//! Which modules a guest needs, and the order in which they load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What the topology, the carrier's NAT and the daemon need. Each must be a module or built in.
const NEEDED: [&str; 13] = [
    "veth",
    "bridge",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "nf_conntrack",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "tcp_diag",
    "udp_diag",
];
/// What only some kernels have by that name.
const OPTIONAL: [&str; 2] = ["nft_counter", "nft_redir"];

/// One module, ready to be loaded.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) octets: Vec<u8>,
}

/// The needed modules below `dir` with everything they depend on, dependencies first.
///
/// # Errors
/// If one is neither there nor built in, or cannot be read.
pub(super) fn in_order(dir: &Path) -> Result<Vec<Module>> {
    let built_in = built_in(dir)?;
    let mut files = BTreeMap::new();
    collect(&dir.join("kernel"), &mut files)?;
    let mut order = Order {
        files,
        built_in,
        seen: BTreeSet::new(),
        loaded: Vec::new(),
    };
    for name in NEEDED {
        order.add(name)?;
    }
    for name in OPTIONAL {
        if order.files.contains_key(name) {
            order.add(name)?;
        }
    }
    Ok(order.loaded)
}

struct Order {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    seen: BTreeSet<String>,
    loaded: Vec<Module>,
}

impl Order {
    fn add(&mut self, name: &str) -> Result<()> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(file) = self.files.get(name).cloned() else {
            ensure!(
                self.built_in.contains(name),
                "this kernel has no module {name}, and it is not built in"
            );
            return Ok(());
        };
        let octets = read(&file)?;
        for dependency in depends(&octets) {
            self.add(&dependency)?;
        }
        self.loaded.push(Module {
            name: name.to_owned(),
            octets,
        });
        Ok(())
    }
}

/// Module names use `_` and `-` as if they were one.
fn canonical(file: &str) -> Option<String> {
    let stem = file.split_once(".ko")?.0;
    Some(stem.replace('-', "_"))
}

fn built_in(dir: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(dir.join("modules.builtin")).context("read modules.builtin")?;
    let names = text.lines().filter_map(|line| line.rsplit('/').next());
    Ok(names.filter_map(canonical).collect())
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(canonical) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// A module's octets, unpacked.
fn read(file: &Path) -> Result<Vec<u8>> {
    let unpack = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(|| format!("read {}", file.display())),
    };
    let output = Command::new(unpack)
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .with_context(|| format!("start {unpack}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{unpack} cannot unpack {}: {said}", file.display());
    }
    Ok(output.stdout)
}

/// What a module says it depends on: `depends=a,b` in its section .modinfo.
fn depends(octets: &[u8]) -> Vec<String> {
    let tag = b"depends=";
    // The strings of the section end in NUL, and the one before ours, or the section's start, is in front of it.
    let Some(at) = octets
        .windows(tag.len() + 1)
        .position(|window| window[0] == 0 && window[1..] == *tag)
    else {
        return Vec::new();
    };
    let rest = &octets[at + 1 + tag.len()..];
    let end = rest.iter().position(|octet| *octet == 0).unwrap_or(0);
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"\x7fELF\0license=GPL\0depends=nf_tables,nf-nat\0retpoline=Y\0";
        assert_eq!(depends(module), ["nf_tables", "nf_nat"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"").is_empty());
    }

    #[test]
    fn names_are_canonical() {
        assert_eq!(
            canonical("nf-conntrack.ko.xz").as_deref(),
            Some("nf_conntrack")
        );
        assert_eq!(canonical("modules.order"), None);
    }
}
