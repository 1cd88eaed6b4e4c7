//! The command line: asks a running daemon, or cleans up after one that is gone.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use iwf_userspace::daemon::control::{Request, Response, client, table};
use iwf_userspace::types::Protocol;

/// Talk to iwfd. Exit codes: 0 good, 1 failed (for audit: differences found), 2 usage.
#[derive(Parser)]
#[command(name = "iwfctl", version)]
struct Arguments {
    /// Control socket of the daemon (paths.control_socket in its configuration).
    #[arg(
        long,
        global = true,
        default_value = "/run/iwf/control.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,
    /// Print one line of JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// How the daemon is doing.
    Status,
    /// Mapping table, kernel table and upstream leases side by side.
    Mappings,
    /// What the PCP server has granted.
    Leases,
    /// Compare the three tables now; exit 1 if they differ.
    Audit,
    /// Counters of the data plane.
    Stats,
    /// Remove a mapping.
    Delete {
        /// tcp or udp.
        protocol: Transport,
        /// External port as `iwfctl mappings` shows it: the carrier's if there is one, else ours.
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        external_port: u16,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

fn main() -> ExitCode {
    // clap prints usage errors and leaves with 2.
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("iwfctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let request = match arguments.command {
        Command::Status => Request::Status {},
        Command::Mappings => Request::Mappings {},
        Command::Leases => Request::Leases {},
        Command::Audit => Request::Audit {},
        Command::Stats => Request::Stats {},
        Command::Delete {
            protocol,
            external_port,
        } => Request::Delete {
            protocol: match protocol {
                Transport::Tcp => Protocol::Tcp,
                Transport::Udp => Protocol::Udp,
            },
            external_port,
        },
    };
    ask(&arguments.socket, &request, arguments.json)
}

fn ask(socket: &Path, request: &Request, json: bool) -> Result<ExitCode> {
    let response = client::call(socket, request)?;
    if json {
        println!(
            "{}",
            serde_json::to_string(&response).context("encode the answer")?
        );
    } else {
        print!("{}", table::render(&response));
    }
    Ok(match response {
        Response::Error(_) => ExitCode::FAILURE,
        Response::Audit(audit) if !audit.clean => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}
