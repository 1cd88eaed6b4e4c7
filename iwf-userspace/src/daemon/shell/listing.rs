//! Lists that may be long: made on a thread of their own, page by page, as fast as they are read.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tracing::debug;

use super::super::control::server::Replies;
use super::super::control::{ListEnd, MappingRow, Response, Stats};
use super::super::dataplane::DataPlaneError;
use super::super::dataplane::inspect::{
    DynamicFilter, HostRow, Inspector, SessionFilter, Take, Usage,
};
use crate::types::Generation;

/// Rows in one answer.
const PAGE: usize = 256;

/// What is looked up in the tables.
#[derive(Debug)]
pub(super) enum Question {
    Sessions(SessionFilter, Option<u64>),
    Dynamic(DynamicFilter, Option<u64>),
    Hosts(Option<u64>),
    /// What went through these mappings.
    Usage(Vec<MappingRow>),
    /// How full the tables are that the sweep does not count.
    Stats(Stats),
}

/// Answers a question on a thread that may block, for as long as somebody waits for it.
pub(super) fn answer_later(inspector: Box<dyn Inspector>, question: Question, replies: Replies) {
    // A thread of the runtime's pool; it ends with the list or with its reader.
    tokio::task::spawn_blocking(move || answer(inspector, question, &replies));
}

fn answer(mut inspector: Box<dyn Inspector>, question: Question, replies: &Replies) {
    let last = match question {
        Question::Sessions(filter, limit) => list(replies, limit, Response::Sessions, |take| {
            inspector.sessions(&filter, take)
        }),
        Question::Dynamic(filter, limit) => list(replies, limit, Response::Dynamic, |take| {
            inspector.dynamic(&filter, take)
        }),
        Question::Hosts(limit) => list(replies, limit, Response::Hosts, |take| {
            let mut rows = inspector.hosts()?;
            rows.sort_by_key(busiest_first);
            for row in rows {
                if take(row).is_break() {
                    break;
                }
            }
            Ok(())
        }),
        Question::Usage(rows) => inspector
            .usage()
            .map(|usage| Response::Mappings(with_usage(rows, &usage))),
        Question::Stats(mut stats) => inspector.small_tables().map(|tables| {
            stats.tables.extend(tables);
            Response::Stats(stats)
        }),
    };
    let last = last.unwrap_or_else(failed);
    if let Err(gone) = replies.blocking_send(last) {
        debug!("{gone}");
    }
}

/// The answer to a question that failed.
pub(super) fn failed(error: DataPlaneError) -> Response {
    Response::Error(format!("{:#}", anyhow::Error::new(error)))
}

/// By sessions, then mappings, then address, so that the order is always the same.
fn busiest_first(row: &HostRow) -> impl Ord + use<> {
    use std::cmp::Reverse;
    (Reverse(row.sessions), Reverse(row.mappings), row.host)
}

/// Sends what `walk` shows, in pages, and returns the end of the list. Beyond `limit` it only counts. Ends early when
/// nobody reads any more.
fn list<T>(
    replies: &Replies,
    limit: Option<u64>,
    page_of: fn(Vec<T>) -> Response,
    walk: impl FnOnce(Take<'_, T>) -> Result<(), DataPlaneError>,
) -> Result<Response, DataPlaneError> {
    let mut page = Vec::new();
    let (mut matched, mut shown) = (0, 0);
    walk(&mut |row| {
        matched += 1;
        if limit.is_some_and(|limit| shown >= limit) {
            return ControlFlow::Continue(());
        }
        shown += 1;
        page.push(row);
        if page.len() < PAGE {
            return ControlFlow::Continue(());
        }
        match replies.blocking_send(page_of(std::mem::take(&mut page))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    // If nobody reads any more, the end fails as well.
    if !page.is_empty()
        && let Err(gone) = replies.blocking_send(page_of(page))
    {
        debug!("{gone}");
    }
    Ok(Response::End(ListEnd {
        matched,
        more: matched - shown,
    }))
}

/// A mapping that the kernel does not hold has carried nothing.
fn with_usage(mut rows: Vec<MappingRow>, usage: &BTreeMap<Generation, Usage>) -> Vec<MappingRow> {
    for row in &mut rows {
        let usage = usage.get(&Generation(row.generation));
        row.usage = Some(usage.copied().unwrap_or_default());
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::daemon::dataplane::fake::Tables;
    use crate::daemon::dataplane::inspect::{DynamicRow, Kind, Transport};

    const SOON: Duration = Duration::from_secs(5);

    fn tables(mappings: u16) -> Tables {
        let row = |port: u16| DynamicRow {
            protocol: Transport(17),
            kind: Kind::Dynamic,
            internal: ([192, 168, 1, 10], port).into(),
            external: ([100, 64, 0, 2], port).into(),
            idle_seconds: 0,
            left_seconds: Some(300),
        };
        Tables {
            dynamic: (1..=mappings).map(row).collect(),
            ..Tables::default()
        }
    }

    fn ask(tables: Tables, limit: Option<u64>) -> mpsc::Receiver<Response> {
        let (replies, answers) = Replies::channel();
        let question = Question::Dynamic(DynamicFilter::default(), limit);
        answer_later(Box::new(tables), question, replies);
        answers
    }

    async fn all(mut answers: mpsc::Receiver<Response>) -> (Vec<usize>, ListEnd) {
        let mut pages = Vec::new();
        loop {
            let answer = timeout(SOON, answers.recv()).await.expect("soon");
            if let Some(Response::Dynamic(rows)) = answer {
                pages.push(rows.len());
                continue;
            }
            let Some(Response::End(end)) = answer else {
                panic!("neither a page nor the end: {answer:?}");
            };
            return (pages, end);
        }
    }

    #[tokio::test]
    async fn a_long_list_comes_in_pages_and_has_an_end() {
        let (pages, end) = all(ask(tables(600), None)).await;
        assert_eq!(pages, [PAGE, PAGE, 600 - 2 * PAGE]);
        let whole = ListEnd {
            matched: 600,
            more: 0,
        };
        assert_eq!(end, whole);
        let (pages, end) = all(ask(tables(0), None)).await;
        assert_eq!((pages, end), (Vec::new(), ListEnd::default()));
    }

    #[tokio::test]
    async fn beyond_the_limit_there_is_a_number() {
        for (limit, shown) in [
            (0, vec![]),
            (1, vec![1]),
            (256, vec![256]),
            (600, vec![256, 256, 88]),
        ] {
            let (pages, end) = all(ask(tables(600), Some(limit))).await;
            assert_eq!(pages, shown);
            assert_eq!((end.matched, end.more), (600, 600 - limit));
        }
    }

    #[tokio::test]
    async fn a_list_that_nobody_reads_ends() {
        let (replies, answers) = Replies::channel();
        drop(answers);
        let question = Question::Dynamic(DynamicFilter::default(), None);
        let making = tokio::task::spawn_blocking(move || {
            answer(Box::new(tables(60_000)), question, &replies);
        });
        timeout(SOON, making).await.expect("soon").unwrap();
    }
}
