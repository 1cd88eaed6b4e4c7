//! Has the sweep program judge items: in runs, each of as many repetitions as there are items.
#![forbid(unsafe_code)]

use std::io;

use aya::maps::MapData;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use iwf_common::config::Config;
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::limits;
use iwf_common::sweep::{SweepItem, SweepMode, SweepRequest};

use super::super::batch::{BatchMap, Cursor, Slice};
use super::SLICE;

/// The program that judges, and the clock and configuration it goes by.
pub struct Judge<'a> {
    /// Looks at so many items.
    pub run: &'a dyn Fn(u32) -> io::Result<()>,
    /// CONFIG.
    pub config: &'a Config,
    /// The tick now.
    pub now: u32,
}

impl Judge<'_> {
    /// A tick by which a run that begins now has set its marks: it reads the clock itself, later than we did. Should it
    /// have taken longer, the removal is refused, and the next pass finds the entry.
    pub(super) const fn marked_by(&self) -> u32 {
        self.now.wrapping_add(1 + self.config.hz / 20)
    }

    /// Whether nothing is known against the address of a mapping of `internal`. While there is none of ours, nothing is.
    pub(super) fn admits(&self, internal: [u8; 4], external: [u8; 4]) -> bool {
        !self.config.serves() || self.config.admits(internal, external)
    }

    /// The same of what a session stands on.
    pub(in super::super) fn owns(&self, key: &SessionKey, value: &SessionValue) -> bool {
        !self.config.serves() || self.config.owns(key, value)
    }
}

/// Lets the sweep program look at `count` items: one per repetition of a run on an empty frame.
///
/// # Errors
/// The kernel refuses, or was interrupted.
pub fn run_items(program: &SchedClassifier, count: u32) -> io::Result<()> {
    const FRAME: [u8; 64] = [0; 64];
    let options = TestRunOptions {
        data_in: Some(&FRAME),
        repeat: count,
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).map_err(io::Error::other)?;
    match result.return_value {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(
            code.cast_signed().saturating_neg(),
        )),
    }
}

/// Where items and what holds for all of them are handed over.
#[derive(Debug)]
pub(super) struct Runs {
    request: BatchMap<u32, SweepRequest>,
    items: BatchMap<u32, SweepItem>,
    answer: Slice<u32, SweepRequest>,
    numbers: Vec<u32>,
}

impl Runs {
    /// By the maps SWEEP and SWEEP_ITEMS.
    pub(super) fn new(request: &MapData, items: &MapData) -> io::Result<Self> {
        Ok(Self {
            request: BatchMap::new(request)?,
            items: BatchMap::new(items)?,
            answer: Slice::new(1),
            numbers: (0..limits::SWEEP_ITEMS).collect(),
        })
    }

    /// Hands items to the program.
    pub(super) fn judge(
        &mut self,
        items: &[SweepItem],
        mode: SweepMode,
        as_of: u32,
        judge: &Judge<'_>,
    ) -> io::Result<SweepRequest> {
        let mut sum = SweepRequest::default();
        for chunk in items.chunks(SLICE) {
            let numbers = self.numbers.get(..chunk.len()).unwrap_or_default();
            self.items.write(numbers, chunk)?;
            let request = SweepRequest {
                mode: mode as u32,
                as_of,
                ..SweepRequest::default()
            };
            self.request.write(&[0], &[request])?;
            let count = u32::try_from(chunk.len()).map_err(io::Error::other)?;
            let mut before = 0;
            let done = loop {
                let outcome = (judge.run)(count - before);
                let done = self.answered()?;
                if done.next >= count {
                    break done;
                }
                // A signal ends a run between two items.
                if done.next == before {
                    outcome?;
                    return Err(io::Error::other("the sweep program does not go on"));
                }
                before = done.next;
            };
            sum.sessions_over += done.sessions_over;
            sum.sessions_ended += done.sessions_ended;
            sum.sessions_removed += done.sessions_removed;
            sum.mappings_removed += done.mappings_removed;
        }
        Ok(sum)
    }

    fn answered(&mut self) -> io::Result<SweepRequest> {
        self.request.read(&mut Cursor::Start, &mut self.answer)?;
        let first = self.answer.iter().next();
        first
            .map(|(_, request)| *request)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
