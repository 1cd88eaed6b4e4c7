//! Where log lines go, and which.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Changes the filter while the daemon runs.
#[derive(Clone, Debug)]
pub struct LogFilter(Option<reload::Handle<EnvFilter, Registry>>);

impl LogFilter {
    /// One that changes nothing, for tests.
    pub const fn fixed() -> Self {
        Self(None)
    }

    /// Lets these lines through from now on.
    ///
    /// # Errors
    /// The text is no filter.
    pub fn set(&self, filter: &str) -> Result<()> {
        if let Some(handle) = &self.0 {
            let filter = EnvFilter::try_new(filter).context("read log.filter")?;
            handle.reload(filter).context("change the log filter")?;
        }
        Ok(())
    }
}

/// Starts logging to standard error: with time and colour for a terminal, without for a journal, which adds both.
///
/// # Errors
/// The text is no filter.
pub fn start(filter: &str) -> Result<LogFilter> {
    // RUST_LOG is for the one who looks for something now, and stays in force over a reload.
    let fixed = std::env::var("RUST_LOG").ok();
    let filter =
        EnvFilter::try_new(fixed.as_deref().unwrap_or(filter)).context("read the log filter")?;
    let (filter, handle) = reload::Layer::new(filter);
    let terminal = io::stderr().is_terminal();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(terminal)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    if journal {
        registry.with(lines.without_time()).init();
    } else {
        registry.with(lines).init();
    }
    Ok(LogFilter(fixed.is_none().then_some(handle)))
}
