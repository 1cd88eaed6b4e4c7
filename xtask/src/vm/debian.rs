//! Kernels and a static shell from Debian's suites, by apt, without touching the system's own sources.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::step;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The meta package that names a suite's newest kernel for virtual machines.
const META: &str = "linux-image-cloud-amd64";

/// Where this system gets Debian from.
pub(super) struct Mirror {
    uri: String,
}

/// What was unpacked.
pub(super) struct Packages {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// What the emulator boots.
    pub(super) image: PathBuf,
    /// Directory with the modules of that release.
    pub(super) modules: PathBuf,
    /// A static shell with the usual tools.
    pub(super) busybox: PathBuf,
}

impl Mirror {
    /// The one of the system's own distribution, from apt's configuration.
    ///
    /// # Errors
    /// If this is not Debian or apt knows no source of it.
    pub(super) fn of_this_system() -> Result<Self> {
        let os = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let field = |name: &str| {
            let mut lines = os.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        ensure!(
            field("ID") == Some("debian"),
            "other kernels come from Debian's archive by its own apt, and this is not a Debian system"
        );
        let codename = field("VERSION_CODENAME").context("this Debian has no code name")?;
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        let texts = files
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok());
        texts
            .filter_map(|text| source_of(&text, codename))
            .next()
            .map(|uri| Self { uri })
            .with_context(|| format!("apt has no source with the suite {codename}"))
    }

    /// Fetches and unpacks the kernel of a suite into `dir`; what is there already is used as it is.
    ///
    /// # Errors
    /// If apt cannot fetch it, or a package is not what it should be.
    pub(super) fn suite(&self, suite: &str, dir: &Path) -> Result<Packages> {
        let files = dir.join("files");
        if let Ok(found) = Packages::find(&files) {
            return Ok(found);
        }
        step::say(&format!("fetching the kernel of Debian {suite}"));
        let apt = Apt::new(&self.uri, suite, dir)?;
        apt.update()?;
        let mut wanted = apt.kernel()?;
        wanted.insert("busybox-static".to_owned());
        let downloads = dir.join("downloads");
        fs::create_dir_all(&downloads)?;
        apt.download(&wanted, &downloads)?;
        for entry in fs::read_dir(&downloads).context("list the downloads")? {
            let file = entry?.path();
            let mut dpkg = Command::new("dpkg");
            dpkg.arg("-x").arg(&file).arg(&files);
            step::quiet(&mut dpkg)?;
        }
        fs::remove_dir_all(&downloads).context("remove the downloads")?;
        Packages::find(&files)
    }
}

impl Packages {
    fn find(files: &Path) -> Result<Self> {
        // Older packages have /lib, newer ones /usr/lib.
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .filter_map(|dir| fs::read_dir(files.join(dir)).ok())
            .flat_map(|entries| entries.flatten())
            .map(|entry| entry.path())
            .find(|dir| dir.join("modules.builtin").is_file())
            .context("the packages have no modules")?;
        let release = modules.file_name().and_then(|name| name.to_str());
        let release = release.context("modules have a release")?.to_owned();
        let first = |candidates: [PathBuf; 2], what: &str| {
            let found = candidates.into_iter().find(|path| path.is_file());
            found.with_context(|| format!("the packages have no {what}"))
        };
        let images = [
            files.join("boot").join(format!("vmlinuz-{release}")),
            modules.join("vmlinuz"),
        ];
        let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| files.join(path));
        Ok(Self {
            image: first(images, "kernel image")?,
            busybox: first(busybox, "busybox")?,
            release,
            modules,
        })
    }
}

/// The URI of a source that has the suite `codename`, in either of apt's formats.
fn source_of(text: &str, codename: &str) -> Option<String> {
    let one_line = text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        let uri = words.next()?;
        (words.next()? == codename).then(|| uri.to_owned())
    });
    let paragraph = || {
        text.split("\n\n").find_map(|paragraph| {
            let field = |name: &str| {
                let mut lines = paragraph.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            };
            let mut suites = field("Suites")?.split_whitespace();
            suites.find(|suite| *suite == codename)?;
            field("URIs")?.split_whitespace().next().map(str::to_owned)
        })
    };
    one_line.or_else(paragraph)
}

/// apt with a source list, package lists and a cache of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(uri: &str, suite: &str, dir: &Path) -> Result<Self> {
        let (lists, cache) = (dir.join("apt/lists"), dir.join("apt/cache"));
        fs::create_dir_all(&lists)?;
        fs::create_dir_all(&cache)?;
        let sources = dir.join("apt/sources.list");
        let signed = match Path::new(KEYRING).exists() {
            true => format!("[signed-by={KEYRING}] "),
            false => String::new(),
        };
        fs::write(&sources, format!("deb {signed}{uri} {suite} main\n"))
            .context("write a source list")?;
        let set = |key: &str, value: &Path| format!("{key}={}", value.display());
        Ok(Self {
            options: vec![
                set("Dir::Etc::sourcelist", &sources),
                "Dir::Etc::sourceparts=/dev/null".to_owned(),
                set("Dir::State::lists", &lists),
                set("Dir::Cache", &cache),
                "APT::Architecture=amd64".to_owned(),
                "Acquire::Languages=none".to_owned(),
                // The sandbox user may not write below a home directory.
                "APT::Sandbox::User=root".to_owned(),
            ],
        })
    }

    fn command(&self, program: &str, verb: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(["--quiet", verb]);
        command
    }

    fn update(&self) -> Result<()> {
        step::quiet(&mut self.command("apt-get", "update")).map(drop)
    }

    /// The packages with the kernel's image and modules. Newer suites have them in packages of their own.
    fn kernel(&self) -> Result<BTreeSet<String>> {
        let mut todo = VecDeque::from([META.to_owned()]);
        let mut found = BTreeSet::new();
        while let Some(name) = todo.pop_front() {
            let mut show = self.command("apt-cache", "show");
            show.args(["--no-all-versions", &name]);
            let text = step::quiet(&mut show)?;
            for dependency in dependencies(&text) {
                let ours = [
                    "linux-image-",
                    "linux-binary-",
                    "linux-modules-",
                    "linux-base-",
                ]
                .iter()
                .any(|prefix| dependency.starts_with(prefix));
                if ours && found.insert(dependency.clone()) {
                    todo.push_back(dependency);
                }
            }
        }
        if found.is_empty() {
            bail!("{META} names no kernel");
        }
        Ok(found)
    }

    fn download(&self, names: &BTreeSet<String>, dir: &Path) -> Result<()> {
        let mut command = self.command("apt-get", "download");
        command.args(names).current_dir(dir);
        step::quiet(&mut command).map(drop)
    }
}

/// Names in the `Depends` field.
fn dependencies(record: &str) -> impl Iterator<Item = String> {
    let fields = record
        .lines()
        .filter_map(|line| line.strip_prefix("Depends:"));
    fields
        .flat_map(|field| field.split([',', '|']))
        .filter_map(|word| word.split_whitespace().next().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_found_in_both_formats() {
        let list = "deb [arch=amd64 signed-by=/k] http://mirror/other foo main\n\
                    deb [signed-by=/k] http://mirror/debian bookworm main\n";
        assert_eq!(
            source_of(list, "bookworm").as_deref(),
            Some("http://mirror/debian")
        );
        let paragraphs = "Types: deb\nURIs: http://mirror/sec\nSuites: bookworm-security\n\n\
                          Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n";
        assert_eq!(
            source_of(paragraphs, "bookworm").as_deref(),
            Some("http://mirror/debian")
        );
        assert_eq!(source_of(paragraphs, "trixie"), None);
    }

    #[test]
    fn dependencies_are_names_only() {
        let record = "Package: x\nDepends: kmod, a (= 1) | b, c (>= 2)\nSize: 3\n";
        let names: Vec<_> = dependencies(record).collect();
        assert_eq!(names, ["kmod", "a", "b", "c"]);
    }
}
