//! What the programs log with aya-log: each packet they drop, when the configuration asks for it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use aya_log::EbpfLogger;
use iwf_common::reason;
use log::{Log, Metadata, Record};
use tracing::debug;

use super::programs::Programs;

/// One ring per load of the object, shared by its programs.
pub(super) struct DropLog(EbpfLogger<ToTracing>);

impl DropLog {
    /// Follows the log of programs that were loaded with it enabled.
    pub(super) fn open(programs: &Programs) -> Result<Self> {
        let id = programs.xdp_lan.info().context("identify a program")?.id();
        let logger = EbpfLogger::init_from_id_with_logger(id, ToTracing).context("open its log")?;
        Ok(Self(logger))
    }

    /// Logs everything that waits. The ring is bounded; what does not fit is lost, the counters are not.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

/// The programs write a counter's index; here it gets its name.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let slot = text.parse::<u32>().ok();
        match reason::all().find(|(known, _)| Some(*known) == slot) {
            Some((_, reason)) => debug!(reason, "packet dropped"),
            None => debug!("packet program: {text}"),
        }
    }

    fn flush(&self) {}
}
