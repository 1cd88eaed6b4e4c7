//! Compiles the eBPF object that the daemon embeds. The protocol core needs none of it.

#[path = "../xtask/src/toolchain.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with xtask, which uses the rest"
)]
mod toolchain;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_DAEMON").is_none() {
        return Ok(());
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("run by cargo")?);
    let root = manifest
        .parent()
        .context("the crate lies in the repository")?;
    for path in [
        "xtask/src/toolchain.rs",
        "iwf-common/src",
        "iwf-common/Cargo.toml",
        "iwf-ebpf/src",
        "iwf-ebpf/Cargo.toml",
        "iwf-ebpf/Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    for name in toolchain::OVERRIDES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").context("run by cargo")?);
    let object = compile(root, &out.join("ebpf"))?;
    println!("cargo::rustc-env=IWF_BPF_OBJECT={}", object.display());
    Ok(())
}

/// Its own target directory: cargo would wait for the lock of the outer one for ever.
fn compile(root: &Path, target_dir: &Path) -> Result<PathBuf> {
    let toolchain = toolchain::resolve(root)?;
    let output = toolchain::build_command(&toolchain, root, target_dir, toolchain::OBJECT)
        .output()
        .with_context(|| format!("run cargo for the eBPF programs ({toolchain})"))?;
    ensure!(
        output.status.success(),
        "the eBPF programs do not build with {toolchain}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let object = toolchain::object_path(target_dir, toolchain::OBJECT);
    ensure!(
        object.is_file(),
        "cargo left no object at {}",
        object.display()
    );
    Ok(object)
}
