//! The lock files: each workspace of this repository has one of its own, and the compiler looks at the first one only.

use std::path::Path;
use std::process::Command;

use super::Defect;
use crate::step;

/// Where the manifests of workspaces are.
const WORKSPACES: [&str; 3] = ["", "iwf-ebpf/", "fuzz/"];

/// One defect for each lock file that does not say what its manifests ask for.
pub(super) fn check(root: &Path) -> Vec<Defect> {
    let places = WORKSPACES.iter();
    let stale = places.filter_map(|place| stale(root, place));
    stale.collect()
}

fn stale(root: &Path, place: &str) -> Option<Defect> {
    let manifest = format!("{place}Cargo.toml");
    let mut cargo = step::cargo(&["metadata", "--locked", "--format-version", "1", "--quiet"]);
    cargo.current_dir(root).args(["--manifest-path", &manifest]);
    let why = said(&mut cargo)?;
    Some(Defect::new(
        &format!("{place}Cargo.lock"),
        1,
        format!("{why} (`cargo update --workspace --manifest-path {manifest}` mends it)"),
    ))
}

/// The first line of what a command complains about, if it fails.
fn said(command: &mut Command) -> Option<String> {
    let why = format!("{:#}", step::quiet(command).err()?);
    let mut lines = why.lines().skip(1).map(str::trim);
    let line = lines.find(|line| !line.is_empty()).unwrap_or(&why);
    Some(line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A directory that goes with the test.
    struct Place(PathBuf);

    impl Drop for Place {
        fn drop(&mut self) {
            // Whatever is left is below the directory of temporary files.
            fs::remove_dir_all(&self.0).unwrap_or_default();
        }
    }

    /// A package without dependencies for each workspace, locked.
    fn workspaces() -> Place {
        let name = format!("iwf-tidy-locks-{}", std::process::id());
        let place = Place(std::env::temp_dir().join(name));
        for workspace in WORKSPACES {
            let dir = place.0.join(workspace);
            fs::create_dir_all(dir.join("src")).expect("a directory");
            fs::write(dir.join("src/lib.rs"), "").expect("a source");
            fs::write(dir.join("Cargo.toml"), manifest("")).expect("a manifest");
            let mut cargo = step::cargo(&["generate-lockfile", "--offline", "--quiet"]);
            step::quiet(cargo.current_dir(&dir)).expect("a lock file");
        }
        place
    }

    fn manifest(dependencies: &str) -> String {
        format!(
            "[workspace]\n[package]\nname = \"one\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
             [dependencies]\n{dependencies}"
        )
    }

    #[test]
    fn a_stale_lock_file_is_a_defect_of_its_workspace() {
        let place = workspaces();
        assert_eq!(check(&place.0), []);
        // A dependency that the lock file does not have, and that nobody has to fetch.
        let other = place.0.join("other");
        fs::create_dir_all(other.join("src")).expect("a directory");
        fs::write(other.join("src/lib.rs"), "").expect("a source");
        let package = manifest("").replace("one", "other");
        fs::write(other.join("Cargo.toml"), package).expect("a manifest");
        let depends = manifest("other = { path = \"../other\" }\n");
        fs::write(place.0.join("fuzz/Cargo.toml"), depends).expect("a manifest");
        let defects = check(&place.0);
        assert_eq!(defects.len(), 1, "{defects:?}");
        assert_eq!(defects[0].file, "fuzz/Cargo.lock");
        assert!(defects[0].what.contains("lock file"), "{}", defects[0]);
    }
}
