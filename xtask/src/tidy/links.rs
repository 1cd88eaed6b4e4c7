//! The links of the documents: each leads to a file that is there, and to a heading in it.

use std::collections::{BTreeMap, BTreeSet};

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use super::{Defect, Source};

/// One defect for each relative link of a Markdown file that leads nowhere. Those with a scheme are not followed.
pub(super) fn check(sources: &[Source], exists: impl Fn(&str) -> bool) -> Vec<Defect> {
    let documents: BTreeMap<_, _> = sources
        .iter()
        .filter(|source| source.path.ends_with(".md"))
        .map(|source| (source.path.as_str(), (source, anchors(&source.text))))
        .collect();
    let mut defects = Vec::new();
    for (path, (source, _)) in &documents {
        for (line, link) in links(&source.text) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                (*path).to_owned()
            } else {
                beside(path, file)
            };
            let found = match documents.get(target.as_str()) {
                Some((_, anchors)) => anchor.is_empty() || anchors.contains(anchor),
                None => anchor.is_empty() && exists(&target),
            };
            if !found {
                defects.push(Defect::new(path, line, format!("{link} leads nowhere")));
            }
        }
    }
    defects
}

/// The path of `link`, as the document at `path` means it, from the root of the workspace.
fn beside(path: &str, link: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Every relative link with its line.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (event, range) in Parser::new(text).into_offset_iter() {
        if let Event::Start(Tag::Link { dest_url, .. }) = event
            && !dest_url.contains(':')
        {
            let line = text[..range.start].matches('\n').count() + 1;
            found.push((line, dest_url.into_string()));
        }
    }
    found
}

/// What links may name in a document: its headings, as the sites that show Markdown call them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut heading: Option<String> = None;
    for event in Parser::new(text) {
        if let Event::Start(Tag::Heading { .. }) = event {
            heading = Some(String::new());
        } else if let Event::End(TagEnd::Heading(_)) = event {
            anchors.extend(heading.take().map(|heading| anchor(&heading)));
        } else if let (Event::Text(part) | Event::Code(part), Some(heading)) = (event, &mut heading)
        {
            heading.push_str(&part);
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::source;
    use super::*;

    fn found(link: &str) -> bool {
        let text = format!("# One\n\nsee [there]({link})\n");
        let sources = [
            source("docs/a.md", &text),
            source(
                "docs/b.md",
                "# The router's `own` ports\n\n```\n# no heading\n```\n",
            ),
        ];
        let defects = check(&sources, |path| path == "packaging/iwf.toml");
        assert!(defects.iter().all(|defect| defect.line == 3));
        defects.is_empty()
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        for link in [
            "#one",
            "b.md",
            "./b.md#the-routers-own-ports",
            "../docs/b.md",
            "../packaging/iwf.toml",
            "https://example.org/nowhere.md",
        ] {
            assert!(found(link), "{link}");
        }
    }

    #[test]
    fn those_that_lead_nowhere_are_told() {
        for link in [
            "#two",
            "c.md",
            "b.md#one",
            "b.md#no-heading",
            "../packaging/iwf.toml#key",
        ] {
            assert!(!found(link), "{link}");
        }
    }
}
