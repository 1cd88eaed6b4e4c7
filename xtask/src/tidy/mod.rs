//! `cargo xtask tidy`: checks what the compiler and clippy cannot see.
//!
//! The compliance tables name tests that exist, the modules of the core depend on each other in one
//! direction only, the rules on file heads, leftovers and waiting are kept, links of documents lead
//! somewhere, and no lock file is stale. Every finding has a file and a line; any finding makes the command
//! fail.

mod compliance;
mod lexer;
mod links;
mod locks;
mod rules;
mod tests_index;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::step;

/// Check compliance tables, module dependency order and house rules.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Workspace to check instead of the one this xtask was built from.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// Something that must be mended, at a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Defect {
    /// Path relative to the workspace.
    file: String,
    /// Line, counted from 1.
    line: usize,
    what: String,
}

impl Defect {
    fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A file of the workspace that the checks look at.
#[derive(Clone, Debug)]
struct Source {
    /// Path relative to the workspace, with `/`.
    path: String,
    text: String,
}

/// What one run found.
#[derive(Debug, Default)]
struct Findings {
    /// One line per compliance section.
    sections: Vec<String>,
    /// Worth knowing, but no reason to fail.
    notes: Vec<String>,
    defects: Vec<Defect>,
}

/// Runs every check, prints one line per compliance section, then the findings.
///
/// # Errors
/// If a file cannot be read, or there is a defect.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = args.root.clone().unwrap_or_else(step::root);
    let sources = collect(&root)?;
    let mut findings = check(&sources);
    let exists = |path: &str| root.join(path).exists();
    findings.defects.extend(links::check(&sources, exists));
    findings.defects.extend(locks::check(&root));
    for section in &findings.sections {
        println!("{section}");
    }
    for note in &findings.notes {
        println!("note: {note}");
    }
    for defect in &findings.defects {
        println!("{defect}");
    }
    match findings.defects.len() {
        0 => Ok(()),
        1 => bail!("tidy found 1 defect"),
        n => bail!("tidy found {n} defects"),
    }
}

/// All checks on one set of files; links look at the disk as well, and that of the lock files asks cargo.
fn check(sources: &[Source]) -> Findings {
    let mut findings = Findings::default();
    let index = tests_index::TestIndex::new(sources);
    compliance::check(sources, &index, &mut findings);
    rules::check(sources, &mut findings);
    findings.defects.sort();
    findings
}

/// Every Rust, TOML and Markdown file below `root`, in path order; build output and hidden directories
/// are left out.
fn collect(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("list {}", dir.display()))?
                .path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else if matches!(
                path.extension().and_then(|e| e.to_str()),
                Some("rs" | "toml" | "md")
            ) {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("read {}", path.display()))?;
                let path = path
                    .strip_prefix(root)
                    .unwrap_or(&path)
                    .to_string_lossy()
                    .replace('\\', "/");
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn defect_names_file_and_line() {
        let defect = Defect::new("docs/compliance/15-nat.md", 7, "unknown status");
        assert_eq!(
            defect.to_string(),
            "docs/compliance/15-nat.md:7: unknown status"
        );
    }

    #[test]
    fn defects_come_in_path_and_line_order() {
        let sources = [
            source("iwf-userspace/src/wire/a.rs", "use crate::mapping::X;\n"),
            source("iwf-common/src/lib.rs", "fn f() {}\n"),
        ];
        let findings = check(&sources);
        assert!(findings.defects.len() > 1);
        assert!(findings.defects.is_sorted());
    }
}
