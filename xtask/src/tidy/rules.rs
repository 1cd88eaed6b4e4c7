//! House rules on sources: dependency order, file heads, leftovers, waiting in tests, file length.

use super::lexer::code_only;
use super::{Defect, Findings, Source};

/// The library whose modules have an order.
const LIBRARY: &str = "iwf-userspace/src/";

/// Modules of the library, and what each may name. Nothing else may name a module that is not listed here.
const LAYERS: [(&str, &[&str]); 8] = [
    ("types", &[]),
    ("wire", &["types"]),
    ("mapping", &["types"]),
    ("proto", &["types", "wire", "mapping"]),
    ("reconcile", &["types", "wire", "mapping"]),
    ("iwf", &["types", "wire", "mapping", "proto", "reconcile"]),
    (
        "sim",
        &["types", "wire", "mapping", "proto", "reconcile", "iwf"],
    ),
    (
        "daemon",
        &["types", "wire", "mapping", "proto", "reconcile", "iwf"],
    ),
];

/// Modules that hold no unsafe code, no clock and no socket.
const CORE: [&str; 7] = [
    "types",
    "wire",
    "mapping",
    "proto",
    "reconcile",
    "iwf",
    "sim",
];

/// Core modules that meet bytes or state from outside and must not be able to panic on them.
const NO_PANIC: [&str; 4] = ["wire", "mapping", "proto", "reconcile"];
const NO_PANIC_LINTS: [&str; 3] = [
    "clippy::unwrap_used",
    "clippy::indexing_slicing",
    "clippy::panic",
];

/// The only parts of the library that may contain unsafe blocks.
const UNSAFE_PLACES: [&str; 1] = ["daemon/dataplane/"];

/// Words of unfinished work. In two pieces, so that this file does not contain them.
const LEFTOVERS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!"),
    concat!("unimpl", "emented!"),
];

/// Longer files are pointed out.
const LONG_FILE: usize = 700;

/// Checks every Rust file.
pub(super) fn check(sources: &[Source], findings: &mut Findings) {
    for source in sources {
        leftovers(source, &mut findings.defects);
        if !source.path.ends_with(".rs") {
            continue;
        }
        let code = code_only(&source.text);
        head(source, sources, &mut findings.defects);
        dependencies(source, &code, &mut findings.defects);
        unsafe_places(source, &code, &mut findings.defects);
        sleeps(source, &code, &mut findings.defects);
        let lines = source.text.lines().count();
        if lines > LONG_FILE {
            let note = format!("{} has {lines} lines; split it by idea", source.path);
            findings.notes.push(note);
        }
    }
}

/// The module of the library that a file belongs to: `wire` for `iwf-userspace/src/wire/soap.rs`.
fn layer(path: &str) -> Option<&str> {
    let inner = path.strip_prefix(LIBRARY)?;
    let name = inner.split(['/', '.']).next()?;
    LAYERS.iter().map(|(n, _)| *n).find(|n| *n == name)
}

fn head(source: &Source, sources: &[Source], defects: &mut Vec<Defect>) {
    // A file of unit tests has said it all by its name.
    let is_tests = source.path.ends_with("/tests.rs");
    if !is_tests && !source.text.starts_with("//!") {
        let what = "a file opens with `//!` and what it is for";
        defects.push(Defect::new(&source.path, 1, what));
    }
    let Some(layer) = layer(&source.path) else {
        return;
    };
    // An inner attribute of the module's root file covers the files below it.
    let roots = ["/mod.rs", ".rs"].map(|end| format!("{LIBRARY}{layer}{end}"));
    let root = sources.iter().find(|s| roots.contains(&s.path));
    let stated =
        |says: &dyn Fn(&str) -> bool| says(&source.text) || root.is_some_and(|r| says(&r.text));
    if CORE.contains(&layer) && !stated(&|text| text.contains("#![forbid(unsafe_code)]")) {
        let what = "a core module opens with `#![forbid(unsafe_code)]`";
        defects.push(Defect::new(&source.path, 1, what));
    }
    let denies =
        |text: &str| text.contains("deny(") && NO_PANIC_LINTS.iter().all(|l| text.contains(l));
    if NO_PANIC.contains(&layer) && !stated(&denies) {
        let lints = NO_PANIC_LINTS.join(", ");
        let what = format!("neither this file nor the root of `{layer}` denies {lints}");
        defects.push(Defect::new(&source.path, 1, what));
    }
}

fn dependencies(source: &Source, code: &str, defects: &mut Vec<Defect>) {
    let Some(own) = layer(&source.path) else {
        return;
    };
    let allowed = LAYERS
        .iter()
        .find_map(|(name, allowed)| (*name == own).then_some(*allowed))
        .unwrap_or_default();
    for (line, named) in named_modules(code) {
        let known = LAYERS.iter().any(|(name, _)| *name == named);
        if known && named != own && !allowed.contains(&named.as_str()) {
            let what = format!("`{own}` must not name `{named}`");
            defects.push(Defect::new(&source.path, line, what));
        }
    }
}

/// Every first segment after `crate::` or `super::`, grouped imports included, with its line.
fn named_modules(code: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let line = 1 + code[..at].matches('\n').count();
            let rest = code[at + start.len()..].trim_start();
            match rest.strip_prefix('{') {
                Some(group) => {
                    named.extend(group_heads(group).into_iter().map(|name| (line, name)));
                }
                None => named.push((line, identifier(rest))),
            }
        }
    }
    named
}

/// First segments of the items of `a::b, c::{d, e}, f}`.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut item = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.push(identifier(group[item..at].trim_start()));
                item = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|h| !h.is_empty());
    heads
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn unsafe_places(source: &Source, code: &str, defects: &mut Vec<Defect>) {
    let Some(inner) = source.path.strip_prefix(LIBRARY) else {
        return;
    };
    if UNSAFE_PLACES.iter().any(|place| inner.starts_with(place)) {
        return;
    }
    for (number, line) in (1..).zip(code.lines()) {
        if words(line).any(|word| word == "unsafe") {
            let what = "unsafe code belongs to the data plane adapter";
            defects.push(Defect::new(&source.path, number, what));
        }
    }
}

fn leftovers(source: &Source, defects: &mut Vec<Defect>) {
    for (number, line) in (1..).zip(source.text.lines()) {
        for leftover in LEFTOVERS {
            let found = match leftover.strip_suffix('!') {
                Some(name) => line.contains(leftover) && words(line).any(|word| word == name),
                None => words(line).any(|word| word == leftover),
            };
            if found {
                let what = format!("unfinished: `{leftover}`");
                defects.push(Defect::new(&source.path, number, what));
            }
        }
    }
}

/// Tests wait for a condition with a deadline, not for time to pass.
fn sleeps(source: &Source, code: &str, defects: &mut Vec<Defect>) {
    let mut in_tests = source.path.starts_with("tests/");
    for (number, line) in (1..).zip(code.lines()) {
        in_tests |= line.contains("#[cfg(test)]");
        if in_tests && (line.contains("thread::sleep") || line.contains("time::sleep(")) {
            let what = "a test waits for a condition, it does not sleep";
            defects.push(Defect::new(&source.path, number, what));
        }
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::super::tests::source;
    use super::*;

    const HEAD: &str = "//! What it is.\n#![forbid(unsafe_code)]\n\
                        #![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]\n";

    fn defects(path: &str, text: &str) -> Vec<Defect> {
        let mut findings = Findings::default();
        check(&[source(path, text)], &mut findings);
        findings.defects
    }

    #[track_caller]
    fn assert_defect(path: &str, text: &str, line: usize, part: &str) {
        let found = defects(path, text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].line, line, "{found:?}");
        assert!(found[0].what.contains(part), "{found:?}");
    }

    #[test]
    fn downward_use_is_fine() {
        let text = format!("{HEAD}use crate::types::Epoch;\nuse crate::wire::pcp;\n");
        assert_eq!(defects("iwf-userspace/src/proto/pcp_client.rs", &text), []);
    }

    #[test]
    fn upward_use_is_told_in_every_spelling() {
        for import in [
            "use crate::daemon::dataplane::DataPlane;",
            "use crate::{types::Epoch, daemon::store::Store};",
            "use crate::{\n    types::{Epoch, Lifetime},\n    daemon,\n};",
            "fn f() { crate::daemon::f() }",
            "use super::super::daemon::store;",
        ] {
            let text = format!("{HEAD}{import}\n");
            assert_defect(
                "iwf-userspace/src/proto/igd.rs",
                &text,
                4,
                "`proto` must not name `daemon`",
            );
        }
    }

    #[test]
    fn wire_and_mapping_do_not_see_each_other() {
        let wire = format!("{HEAD}use crate::mapping::record::MappingRecord;\n");
        assert_defect("iwf-userspace/src/wire/soap.rs", &wire, 4, "`mapping`");
        let mapping = format!("{HEAD}use crate::wire::soap::Call;\n");
        assert_defect("iwf-userspace/src/mapping/table.rs", &mapping, 4, "`wire`");
    }

    #[test]
    fn words_in_comments_and_strings_name_nothing() {
        let text =
            format!("{HEAD}// see crate::daemon::store\nconst S: &str = \"crate::daemon::x\";\n");
        assert_eq!(defects("iwf-userspace/src/types.rs", &text), []);
    }

    #[test]
    fn core_head_is_required() {
        let bare = "//! What it is.\n";
        assert_defect("iwf-userspace/src/types.rs", bare, 1, "forbid(unsafe_code)");
        let found = defects("iwf-userspace/src/wire/ssdp.rs", bare);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(defects("iwf-userspace/src/daemon/clock.rs", bare), []);
    }

    #[test]
    fn module_root_may_state_it_for_its_files() {
        for root in ["wire/mod.rs", "wire.rs"] {
            let root = format!("iwf-userspace/src/{root}");
            let sources = [
                source(&root, HEAD),
                source("iwf-userspace/src/wire/ssdp.rs", "//! It.\n"),
            ];
            let mut findings = Findings::default();
            check(&sources, &mut findings);
            assert_eq!(findings.defects, []);
        }
    }

    #[test]
    fn file_without_purpose_is_told() {
        assert_defect("tests/src/lib.rs", "fn f() {}\n", 1, "what it is for");
        assert_eq!(defects("xtask/src/a/tests.rs", "fn f() {}\n"), []);
    }

    #[test]
    fn unsafe_stays_in_the_adapter() {
        let text = "//! It.\nfn f() { unsafe { g() } }\n";
        assert_defect("iwf-userspace/src/daemon/clock.rs", text, 2, "unsafe");
        assert_eq!(
            defects("iwf-userspace/src/daemon/dataplane/aya.rs", text),
            []
        );
    }

    #[test]
    fn leftovers_are_told_in_code_comments_and_documents() {
        for leftover in LEFTOVERS {
            let text = format!("//! It.\n// {leftover}(me): later\n");
            assert_defect("xtask/src/a.rs", &text, 2, "unfinished");
        }
        let text = format!("# It\n\n{} write this\n", LEFTOVERS[0]);
        assert_defect("README.md", &text, 3, "unfinished");
        assert_eq!(defects("xtask/src/a.rs", "//! Mastodons.\n"), []);
    }

    #[test]
    fn tests_do_not_sleep() {
        let text = "//! It.\nfn f() { std::thread::sleep(d) }\n";
        assert_defect("tests/tests/restart.rs", text, 2, "sleep");
        assert_eq!(defects("xtask/src/bench.rs", text), []);
        let unit =
            "//! It.\nfn f() {}\n#[cfg(test)]\nmod tests {\n    fn f() { thread::sleep(d) }\n}\n";
        assert_defect("xtask/src/bench.rs", unit, 5, "sleep");
    }

    #[test]
    fn long_file_is_a_note() {
        let mut findings = Findings::default();
        let text = format!("//! It.\n{}", "\n".repeat(LONG_FILE));
        check(&[source("xtask/src/a.rs", &text)], &mut findings);
        assert_eq!(findings.notes.len(), 1);
        assert_eq!(findings.defects, []);
    }
}
