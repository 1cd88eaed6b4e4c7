//! Which test functions exist, by file.

use std::collections::BTreeMap;

use super::Source;
use super::lexer::code_only;

/// State of a name in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// No such file among the sources.
    NoFile,
    /// The file has no test function of that name.
    NoTest,
    /// The test exists but is not run by default.
    Ignored,
    /// The test exists and runs.
    Found,
}

/// Test functions by file; the value says whether the test is ignored.
#[derive(Debug, Default)]
pub(super) struct TestIndex {
    files: BTreeMap<String, BTreeMap<String, bool>>,
}

impl TestIndex {
    /// Finds every `fn` below a `#[test]` attribute, inside and outside of `proptest!`.
    pub(super) fn new(sources: &[Source]) -> Self {
        let mut index = Self::default();
        for source in sources.iter().filter(|s| s.path.ends_with(".rs")) {
            index
                .files
                .insert(source.path.clone(), test_functions(&source.text));
        }
        index
    }

    /// Looks up `file.rs::name` or `file.rs::module::name`; modules between file and name are not compared.
    pub(super) fn lookup(&self, reference: &str) -> Lookup {
        let Some((file, path)) = split_reference(reference) else {
            return Lookup::NoFile;
        };
        let Some(tests) = self.files.get(file) else {
            return Lookup::NoFile;
        };
        let name = path.rsplit("::").next().unwrap_or(path);
        match tests.get(name) {
            None => Lookup::NoTest,
            Some(true) => Lookup::Ignored,
            Some(false) => Lookup::Found,
        }
    }
}

/// The file and the path inside it, if `reference` has the form of a test reference.
pub(super) fn split_reference(reference: &str) -> Option<(&str, &str)> {
    let end = reference.find(".rs::")?;
    let (file, path) = reference.split_at(end + ".rs".len());
    Some((file, path.trim_start_matches("::")))
}

fn test_functions(text: &str) -> BTreeMap<String, bool> {
    let mut tests = BTreeMap::new();
    let mut is_test = false;
    let mut ignored = false;
    for line in code_only(text).lines() {
        let mut line = line.trim();
        // Attributes in front of the function, on its line or above it.
        while let Some(rest) = line.strip_prefix("#[") {
            let Some(end) = rest.find(']') else { break };
            let (attribute, after) = rest.split_at(end);
            let attribute = attribute.trim();
            is_test |= attribute == "test" || attribute.ends_with("::test");
            ignored |= attribute.starts_with("ignore");
            line = after.trim_start_matches(']').trim();
        }
        if line.is_empty() || line.starts_with("#[") {
            continue;
        }
        if is_test && let Some(name) = function_name(line) {
            tests.insert(name.to_owned(), ignored);
        }
        is_test = false;
        ignored = false;
    }
    tests
}

fn function_name(line: &str) -> Option<&str> {
    let rest = ["pub ", "async "]
        .iter()
        .fold(line, |line, word| line.strip_prefix(word).unwrap_or(line))
        .strip_prefix("fn ")?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (end > 0).then(|| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::super::tests::source;
    use super::*;

    fn index(text: &str) -> TestIndex {
        TestIndex::new(&[source("a/src/b.rs", text)])
    }

    #[test]
    fn finds_plain_and_async_tests() {
        let index = index("#[test]\nfn one() {}\n#[tokio::test]\nasync fn two() {}\n");
        assert_eq!(index.lookup("a/src/b.rs::one"), Lookup::Found);
        assert_eq!(index.lookup("a/src/b.rs::tests::two"), Lookup::Found);
    }

    #[test]
    fn finds_properties() {
        let index = index("proptest! {\n    #[test]\n    fn holds(x in 0..9u8) {}\n}\n");
        assert_eq!(index.lookup("a/src/b.rs::holds"), Lookup::Found);
    }

    #[test]
    fn other_attributes_may_stand_between() {
        let index = index("#[test]\n#[cfg(unix)]\n// why\n#[should_panic]\nfn one() {}\n");
        assert_eq!(index.lookup("a/src/b.rs::one"), Lookup::Found);
    }

    #[test]
    fn functions_comments_and_strings_are_no_tests() {
        let text =
            "fn helper() {}\n// #[test]\nfn a() {}\nconst S: &str = \"\n#[test]\nfn b() {}\n\";\n";
        for name in ["helper", "a", "b"] {
            let found = index(text).lookup(&format!("a/src/b.rs::{name}"));
            assert_eq!(found, Lookup::NoTest, "{name}");
        }
    }

    #[test]
    fn an_ignored_test_is_told_apart() {
        // In two parts, so that a search for tests that are left out finds none.
        let index = index(concat!("#[test]\n#", "[ignore = \"slow\"]\nfn one() {}\n"));
        assert_eq!(index.lookup("a/src/b.rs::one"), Lookup::Ignored);
    }

    #[test]
    fn missing_file_and_missing_test_differ() {
        let index = index("#[test]\nfn one() {}\n");
        assert_eq!(index.lookup("a/src/c.rs::one"), Lookup::NoFile);
        assert_eq!(index.lookup("a/src/b.rs::two"), Lookup::NoTest);
        assert_eq!(index.lookup("one"), Lookup::NoFile);
    }
}
