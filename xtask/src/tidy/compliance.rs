//! The tables of `docs/compliance/`: form, statuses, and the tests they name.
//!
//! Each file is a heading `# NAME: title`, a line `Rows: N`, and one table whose rows are
//! `| id | requirement | source | status | proof |`. README.md of that directory tells how to fill them.

use std::collections::BTreeMap;

use super::tests_index::{Lookup, TestIndex, split_reference};
use super::{Defect, Findings, Source};

/// Where the tables are.
const DIRECTORY: &str = "docs/compliance/";
const COLUMNS: [&str; 5] = ["id", "requirement", "source", "status", "proof"];

/// How the product stands to one requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Met; the proof names the tests that show it.
    Compliant,
    /// Not met, on purpose; the proof gives the reason.
    Deviating,
    /// Does not concern this product; the proof gives the reason.
    NotApplicable,
    /// Not done yet.
    Planned,
}

impl Status {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "compliant" => Some(Self::Compliant),
            "deviating" => Some(Self::Deviating),
            "not applicable" => Some(Self::NotApplicable),
            "planned" => Some(Self::Planned),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    compliant: usize,
    deviating: usize,
    not_applicable: usize,
    planned: usize,
}

impl Counts {
    fn add(&mut self, status: Status) {
        let count = match status {
            Status::Compliant => &mut self.compliant,
            Status::Deviating => &mut self.deviating,
            Status::NotApplicable => &mut self.not_applicable,
            Status::Planned => &mut self.planned,
        };
        *count += 1;
    }

    fn summary(&self, name: &str) -> String {
        format!(
            "{name}: {} compliant, {} deviating, {} not applicable, {} planned",
            self.compliant, self.deviating, self.not_applicable, self.planned
        )
    }
}

/// Checks every table and adds one summary line per file.
pub(super) fn check(sources: &[Source], tests: &TestIndex, findings: &mut Findings) {
    let mut checker = Checker {
        tests,
        ids: BTreeMap::new(),
        names: BTreeMap::new(),
        findings,
    };
    let mut files = 0;
    for source in sources {
        let Some(name) = source.path.strip_prefix(DIRECTORY) else {
            continue;
        };
        if name.ends_with(".md") && name != "README.md" {
            files += 1;
            checker.file(source);
        }
    }
    if files == 0 {
        let defect = Defect::new(DIRECTORY, 1, "no compliance table found");
        checker.findings.defects.push(defect);
    }
}

struct Checker<'a> {
    tests: &'a TestIndex,
    /// Where each id was seen first.
    ids: BTreeMap<String, String>,
    /// Where each section name was seen first.
    names: BTreeMap<String, String>,
    findings: &'a mut Findings,
}

impl Checker<'_> {
    fn defect(&mut self, source: &Source, line: usize, what: impl Into<String>) {
        let defect = Defect::new(&source.path, line, what);
        self.findings.defects.push(defect);
    }

    fn file(&mut self, source: &Source) {
        let mut counts = Counts::default();
        let mut rows = 0;
        let mut stated = None;
        let mut head_seen = false;
        for (number, text) in (1..).zip(source.text.lines()) {
            if let Some(count) = text.strip_prefix("Rows: ") {
                stated = Some((number, count.trim().to_owned()));
            }
            if !text.starts_with('|') {
                continue;
            }
            let cells = cells(text);
            if cells == COLUMNS {
                head_seen = true;
            } else if cells.iter().all(|c| c.chars().all(|c| "-: ".contains(c))) {
                // The line under the head.
            } else {
                rows += 1;
                if let Some(status) = self.row(source, number, &cells) {
                    counts.add(status);
                }
            }
        }
        if !head_seen {
            let wanted = COLUMNS.join(", ");
            self.defect(source, 1, format!("no table with the columns {wanted}"));
        }
        match stated {
            None => self.defect(source, 1, "no line `Rows: N`"),
            Some((line, count)) if count != rows.to_string() => {
                self.defect(
                    source,
                    line,
                    format!("says {count} rows, the table has {rows}"),
                );
            }
            Some(_) => {}
        }
        match source.text.lines().next().and_then(section_name) {
            None => self.defect(source, 1, "the first line is not `# NAME: title`"),
            Some(name) => {
                if let Some(first) = self.names.insert(name.to_owned(), source.path.clone()) {
                    self.defect(source, 1, format!("section {name} is also {first}"));
                }
                self.findings.sections.push(counts.summary(name));
            }
        }
    }

    fn row(&mut self, source: &Source, line: usize, cells: &[String]) -> Option<Status> {
        let [id, requirement, origin, status, proof] = cells else {
            let found = cells.len();
            self.defect(source, line, format!("a row has 5 cells, this has {found}"));
            return None;
        };
        if !is_id(id) {
            self.defect(source, line, format!("`{id}` is not a requirement id"));
        }
        if let Some(first) = self.ids.get(id) {
            self.defect(source, line, format!("{id} is already in {first}"));
        } else {
            let place = format!("{}:{line}", source.path);
            self.ids.insert(id.clone(), place);
        }
        if requirement.is_empty() || origin.is_empty() {
            self.defect(source, line, format!("{id} lacks its title or its source"));
        }
        let Some(status) = Status::parse(status) else {
            self.defect(
                source,
                line,
                format!("{id} has the unknown status `{status}`"),
            );
            return None;
        };
        let references = references(proof);
        match status {
            Status::Compliant if references.is_empty() => {
                self.defect(source, line, format!("{id} is compliant but names no test"));
            }
            Status::Deviating | Status::NotApplicable if proof.is_empty() => {
                self.defect(source, line, format!("{id} gives no reason"));
            }
            Status::Compliant | Status::Deviating | Status::NotApplicable | Status::Planned => {}
        }
        for reference in references {
            let wrong = match self.tests.lookup(reference) {
                Lookup::Found => continue,
                Lookup::NoFile => "names a file that is not there",
                Lookup::NoTest => "names a test that is not there",
                Lookup::Ignored => "names a test that is ignored",
            };
            self.defect(source, line, format!("{id} {wrong}: {reference}"));
        }
        Some(status)
    }
}

/// The trimmed cells of a table line; `\|` does not separate.
fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for c in line.trim().trim_start_matches('|').chars() {
        match (c, cells.last_mut()) {
            ('|', _) if !escaped => cells.push(String::new()),
            (_, Some(cell)) => cell.push(c),
            (_, None) => {}
        }
        escaped = c == '\\';
    }
    // What follows the closing bar is no cell.
    if cells.last().is_some_and(|c| c.trim().is_empty()) {
        cells.pop();
    }
    cells.iter().map(|c| c.trim().to_owned()).collect()
}

/// `PREFIX-NN`, possibly with letters around the number: `IWF-E01`, `AMB-19b`.
fn is_id(text: &str) -> bool {
    text.rsplit_once('-').is_some_and(|(prefix, number)| {
        prefix.starts_with(|c: char| c.is_ascii_uppercase())
            && prefix
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
            && number.chars().any(|c| c.is_ascii_digit())
            && number.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

/// `NAT` from `# NAT: behaviour of the NAT`.
fn section_name(line: &str) -> Option<&str> {
    let (name, title) = line.strip_prefix("# ")?.split_once(": ")?;
    (!name.is_empty() && !title.is_empty() && !name.contains(' ')).then_some(name)
}

/// The test references of a proof: what stands in backquotes and looks like `file.rs::test`.
fn references(proof: &str) -> Vec<&str> {
    proof
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| split_reference(quoted).is_some())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::source;
    use super::*;

    // In two parts, so that a search for tests that are left out finds none.
    const TESTS: &str = concat!(
        "#[test]\nfn shown() {}\n#[test]\n#",
        "[ignore]\nfn skipped() {}\n"
    );
    const HEAD: &str = "# NAT: behaviour of the NAT\n\nRows: 1\n\n\
                        | id | requirement | source | status | proof |\n|---|---|---|---|---|\n";

    /// Findings of one table file, with the tests of `a/src/b.rs` known.
    fn findings(table: &str) -> Findings {
        let sources = [
            source("a/src/b.rs", TESTS),
            source("docs/compliance/15-nat.md", table),
        ];
        let mut findings = Findings::default();
        check(&sources, &TestIndex::new(&sources), &mut findings);
        findings
    }

    #[track_caller]
    fn assert_defect(table: &str, line: usize, part: &str) {
        let found = findings(table).defects;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].line, line, "{found:?}");
        assert!(found[0].what.contains(part), "{found:?}");
    }

    #[test]
    fn sound_table_gives_its_counts() {
        let table = format!(
            "{}| NAT-01 | Mapping | 4787 REQ-1 | compliant | `a/src/b.rs::shown` |\n\
             | NAT-02 | Filter | 4787 REQ-8 | deviating | slower on purpose |\n\
             | NAT-03 | Pool | 4787 REQ-2 | not applicable | one address |\n\
             | NAT-04 | Ports | 4787 REQ-3 | planned | |\n\
             | NAT-05 | Range | 4787 REQ-3a | planned | |\n",
            HEAD.replace("Rows: 1", "Rows: 5")
        );
        let findings = findings(&table);
        assert_eq!(findings.defects, []);
        assert_eq!(
            findings.sections,
            ["NAT: 1 compliant, 1 deviating, 1 not applicable, 2 planned"]
        );
    }

    #[test]
    fn compliant_row_must_name_a_test() {
        let table = format!("{HEAD}| NAT-01 | Mapping | 4787 | compliant | looks fine |\n");
        assert_defect(&table, 7, "names no test");
    }

    #[test]
    fn named_test_must_exist_and_run() {
        for (reference, part) in [
            ("a/src/b.rs::absent", "test that is not there"),
            ("a/src/c.rs::shown", "file that is not there"),
            ("a/src/b.rs::skipped", "ignored"),
        ] {
            let table = format!("{HEAD}| NAT-01 | Mapping | 4787 | compliant | `{reference}` |\n");
            assert_defect(&table, 7, part);
        }
    }

    #[test]
    fn every_named_test_is_looked_up() {
        let table = format!(
            "{HEAD}| NAT-01 | Mapping | 4787 | compliant | `a/src/b.rs::shown`, `a/src/b.rs::x` |\n"
        );
        assert_defect(&table, 7, "a/src/b.rs::x");
    }

    #[test]
    fn deviation_and_non_application_need_a_reason() {
        for status in ["deviating", "not applicable"] {
            let table = format!("{HEAD}| NAT-01 | Mapping | 4787 | {status} | |\n");
            assert_defect(&table, 7, "no reason");
        }
    }

    #[test]
    fn unknown_status_is_told() {
        let table = format!("{HEAD}| NAT-01 | Mapping | 4787 | done | |\n");
        assert_defect(&table, 7, "unknown status `done`");
    }

    #[test]
    fn id_occurs_once_over_all_files() {
        let row = "| NAT-01 | Mapping | 4787 | planned | |\n";
        let twice = format!("{}{row}{row}", HEAD.replace("Rows: 1", "Rows: 2"));
        assert_defect(&twice, 8, "already in docs/compliance/15-nat.md:7");
    }

    #[test]
    fn malformed_rows_are_told() {
        assert_defect(&format!("{HEAD}| NAT-01 | planned |\n"), 7, "5 cells");
        assert_defect(
            &format!("{HEAD}| nat1 | Mapping | 4787 | planned | |\n"),
            7,
            "not a requirement id",
        );
        assert_defect(
            &format!("{HEAD}| NAT-01 | | 4787 | planned | |\n"),
            7,
            "lacks its title",
        );
    }

    #[test]
    fn lost_row_is_told() {
        assert_defect(HEAD, 3, "says 1 rows, the table has 0");
    }

    #[test]
    fn head_and_heading_are_required() {
        let row = "| NAT-01 | Mapping | 4787 | planned | |\n";
        assert_defect(
            &format!("{HEAD}{row}").replace("# NAT: ", "# "),
            1,
            "first line",
        );
        let other = format!("{HEAD}{row}").replace("| proof |", "| test |");
        assert!(!findings(&other).defects.is_empty());
    }

    #[test]
    fn absent_directory_is_a_defect() {
        let mut findings = Findings::default();
        check(&[], &TestIndex::default(), &mut findings);
        assert_eq!(findings.defects.len(), 1);
    }

    #[test]
    fn escaped_bar_stays_in_its_cell() {
        assert_eq!(cells(r"| a \| b | c |"), [r"a \| b", "c"]);
    }
}
