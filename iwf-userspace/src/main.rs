//! The daemon: flags, configuration, logging, run.
#![expect(
    clippy::print_stdout,
    reason = "--check-config answers on standard output"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use iwf_userspace::daemon::config::Config;
use iwf_userspace::daemon::{logging, start};

/// UPnP port mapping through both NATs, in XDP. Runs in the foreground until SIGTERM; SIGHUP reads the
/// configuration again. Exit codes: 0 good, 1 failed, 2 usage or configuration error.
#[derive(Parser)]
#[command(name = "iwfd", version)]
struct Arguments {
    /// The configuration; packaging/iwf.toml is a commented example with every key.
    #[arg(long, default_value = "/etc/iwf/iwf.toml", value_name = "FILE")]
    config: PathBuf,
    /// Only say whether the configuration is good.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    // clap prints usage errors and leaves with 2.
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("iwfd: {error}");
            return ExitCode::from(2);
        }
    };
    if arguments.check_config {
        for warning in config.warnings() {
            eprintln!("iwfd: {}: {warning}", arguments.config.display());
        }
        println!("{}: good", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    let run = || {
        let log_filter = logging::start(&config.log_filter)?;
        start::run(config, arguments.config, log_filter)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iwfd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
