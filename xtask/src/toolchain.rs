//! Finds what compiles `iwf-ebpf` and says which it took.
//!
//! One file for two users: `xtask` (a module) and `iwf-userspace/build.rs` (by `#[path]`), so it needs std only.
//! In order:
//! 1. `IWF_BPF_RUSTC`, a compiler that comes with a core library for `bpfel-unknown-none`;
//! 2. a nightly rustup toolchain with the `rust-src` component: core is built from source;
//! 3. Debian's `/usr/bin/rustc` with `libstd-rust-web-dev-bpf`: core is prebuilt.
//!
//! The linker is `IWF_BPF_LINKER`, else the first `bpf-linker` of `target/tools/bin`, cargo's own directory and
//! `PATH`. It must be built for the LLVM of the compiler; a link with another version fails by itself.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target every program is compiled for.
pub const TARGET: &str = "bpfel-unknown-none";

/// File name of the linked object.
pub const OBJECT: &str = "iwf";

/// File name of the packet bench's object, which nothing embeds.
pub const BENCH_OBJECT: &str = "iwf-bench";

/// Overrides of what [`resolve`] finds; a build script is run again when one changes.
pub const OVERRIDES: [&str; 2] = ["IWF_BPF_RUSTC", "IWF_BPF_LINKER"];

/// A compiler, how it gets its core library, and a linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Where the compiler comes from.
    pub source: Source,
    /// The compiler.
    pub rustc: PathBuf,
    /// Release of the compiler, for example `1.96.0`.
    pub release: String,
    /// Major version of its LLVM, which the linker must share.
    pub llvm: u32,
    /// `bpf-linker`.
    pub linker: PathBuf,
}

/// Where a compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `IWF_BPF_RUSTC`.
    Override,
    /// A nightly of rustup with `rust-src`.
    Nightly,
    /// Debian's packages.
    Debian,
}

/// What is missing. The text names every way to get it.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// No compiler with a core library for the target. The text is what was looked at.
    Compiler(String),
    /// There is a compiler, but no linker for its LLVM.
    Linker {
        /// Major version of the compiler's LLVM.
        llvm: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler(tried) => write!(
                f,
                "no Rust compiler for {TARGET} ({tried}). `cargo xtask setup` installs one on Debian; by hand, either\n\
                 - apt-get install rustc-web libstd-rust-web-dev-bpf, or\n\
                 - rustup toolchain install nightly --component rust-src\n\
                 or name a compiler that has that target in IWF_BPF_RUSTC"
            ),
            Self::Linker { llvm } => write!(
                f,
                "no bpf-linker. `cargo xtask setup` installs it; by hand, either\n\
                 - apt-get install llvm-{llvm}-dev && PATH=/usr/lib/llvm-{llvm}/bin:$PATH cargo install bpf-linker \
                 --no-default-features --features llvm-{llvm}, or\n\
                 - any bpf-linker for LLVM {llvm}, named in IWF_BPF_LINKER"
            ),
        }
    }
}

impl std::error::Error for Missing {}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Override => "IWF_BPF_RUSTC",
            Source::Nightly => "nightly with rust-src",
            Source::Debian => "Debian's rustc with prebuilt core",
        };
        write!(
            f,
            "{source}: rustc {} (LLVM {}) at {}, linker {}",
            self.release,
            self.llvm,
            self.rustc.display(),
            self.linker.display()
        )
    }
}

/// Finds compiler and linker. `root` is the repository.
///
/// # Errors
/// If either is missing; the error says how to get it.
pub fn resolve(root: &Path) -> Result<Toolchain, Missing> {
    let compiler = compiler()?;
    let linker = linker(root).ok_or(Missing::Linker {
        llvm: compiler.llvm,
    })?;
    Ok(Toolchain {
        source: compiler.source,
        rustc: compiler.rustc,
        release: compiler.release,
        llvm: compiler.llvm,
        linker,
    })
}

/// The command that builds `object`, [`OBJECT`] or [`BENCH_OBJECT`], to where [`object_path`] says.
///
/// The environment of an outer cargo is kept out: its flags, wrappers and choice of toolchain are for the host.
pub fn build_command(
    toolchain: &Toolchain,
    root: &Path,
    target_dir: &Path,
    object: &str,
) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if leaks(&name) {
            command.env_remove(name);
        }
    }
    // `-C linker` travels in the separated form, so that a path may contain blanks.
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Zeros and copies as plain stores. The linker's default leaves every one to a function that goes octet by
        // octet, which costs packets time and each chain of calls a frame of its stack.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        // v3: 32-bit operations and jumps, and atomic exchange; Linux 5.12.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
    ];
    command
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // aya-ebpf uses `asm_experimental_arch`, and building core is a nightly's business anyway.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target_dir)
        .current_dir(root.join("iwf-ebpf"))
        .args(["build", "--release", "--locked", "--target", TARGET])
        .args(["--bin", object]);
    if toolchain.source == Source::Nightly {
        command.args(["-Z", "build-std=core"]);
    }
    command
}

/// Where [`build_command`] leaves `object`.
pub fn object_path(target_dir: &Path, object: &str) -> PathBuf {
    target_dir.join(TARGET).join("release").join(object)
}

/// Whether a variable set by or for an outer cargo would change the eBPF build.
fn leaks(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    const KEPT: [&str; 4] = [
        "CARGO",
        "CARGO_HOME",
        "CARGO_NET_OFFLINE",
        "CARGO_TERM_COLOR",
    ];
    const EXACT: [&str; 9] = [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "LD_LIBRARY_PATH",
        "__CARGO_DEFAULT_LIB_METADATA",
    ];
    let of_build_script = ["TARGET", "HOST", "OUT_DIR", "PROFILE", "OPT_LEVEL", "DEBUG"];
    EXACT.contains(&name)
        || of_build_script.contains(&name)
        || (name.starts_with("CARGO_") && !KEPT.contains(&name) && !name.starts_with("CARGO_HTTP_"))
}

struct Compiler {
    source: Source,
    rustc: PathBuf,
    release: String,
    llvm: u32,
}

fn compiler() -> Result<Compiler, Missing> {
    if let Some(rustc) = env::var_os(OVERRIDES[0]) {
        let rustc = PathBuf::from(rustc);
        return describe(Source::Override, rustc.clone()).ok_or_else(|| {
            Missing::Compiler(format!(
                "IWF_BPF_RUSTC is {}, which is no rustc",
                rustc.display()
            ))
        });
    }
    let mut tried = Vec::new();
    for toolchain in nightlies() {
        let rustc = toolchain.join("bin/rustc");
        if !toolchain
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
        {
            tried.push(format!("{} has no rust-src", toolchain.display()));
        } else if let Some(found) = describe(Source::Nightly, rustc) {
            return Ok(found);
        }
    }
    let debian = PathBuf::from("/usr/bin/rustc");
    if has_prebuilt_core(&debian) {
        if let Some(found) = describe(Source::Debian, debian) {
            return Ok(found);
        }
    } else if debian.is_file() {
        tried.push("/usr/bin/rustc has no core for it".to_owned());
    } else {
        tried.push("there is no /usr/bin/rustc".to_owned());
    }
    Err(Missing::Compiler(tried.join(", ")))
}

/// Nightly toolchains of rustup, the plain channel before dated ones.
fn nightlies() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    let Some(entries) = home.and_then(|home| home.join("toolchains").read_dir().ok()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            name.starts_with("nightly-")
        })
        .collect();
    // "nightly-x86_64-…" sorts after "nightly-2026-…".
    found.sort();
    found.reverse();
    found
}

fn has_prebuilt_core(rustc: &Path) -> bool {
    let Ok(output) = clean(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
    else {
        return false;
    };
    let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Ok(entries) = dir.read_dir() else {
        return false;
    };
    entries
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn describe(source: Source, rustc: PathBuf) -> Option<Compiler> {
    let output = clean(&rustc).arg("-vV").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (release, llvm) = parse_version(&text)?;
    Some(Compiler {
        source,
        rustc,
        release,
        llvm,
    })
}

/// Release and LLVM major out of what `rustc -vV` prints.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let release = field("release: ")?.trim().to_owned();
    let llvm = field("LLVM version: ")?
        .trim()
        .split('.')
        .next()?
        .parse()
        .ok()?;
    Some((release, llvm))
}

fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    // Cargo points this at its own libraries; another compiler would load the wrong ones.
    command.env_remove("LD_LIBRARY_PATH");
    command
}

fn linker(root: &Path) -> Option<PathBuf> {
    if let Some(named) = env::var_os(OVERRIDES[1]) {
        return Some(PathBuf::from(named));
    }
    let cargo_bin = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .map(|home| home.join("bin"));
    let path: OsString = env::var_os("PATH").unwrap_or_default();
    [root.join("target/tools/bin")]
        .into_iter()
        .chain(cargo_bin)
        .chain(env::split_paths(&path))
        .map(|dir| dir.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_release_and_llvm() {
        let text = "rustc 1.96.0 (x)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(parse_version("release: 1.96.0\n"), None);
    }

    #[test]
    fn outer_cargo_does_not_leak() {
        for name in [
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "OUT_DIR",
        ] {
            assert!(leaks(name.as_ref()), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "CARGO",
            "CARGO_HOME",
            "CARGO_HTTP_CAINFO",
            "RUSTUP_HOME",
        ] {
            assert!(!leaks(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn errors_name_every_way() {
        let compiler = Missing::Compiler("nothing".to_owned()).to_string();
        for way in ["xtask setup", "apt-get", "rust-src", "IWF_BPF_RUSTC"] {
            assert!(compiler.contains(way), "{way}");
        }
        let linker = Missing::Linker { llvm: 22 }.to_string();
        for way in ["xtask setup", "llvm-22", "IWF_BPF_LINKER"] {
            assert!(linker.contains(way), "{way}");
        }
    }
}
