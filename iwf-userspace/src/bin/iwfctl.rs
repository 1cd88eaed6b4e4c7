//! The command line: asks a running daemon, or cleans up after one that is gone.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use iwf_userspace::daemon::config::Config;
use iwf_userspace::daemon::control::{Request, Response, client, table};
use iwf_userspace::daemon::dataplane::kernel;
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
    /// Remove every program, link, map and qdisc from the kernel; forwarding ends. Only when iwfd does not run.
    Detach {
        /// Configuration of the daemon, which names its bpffs directory and its control socket.
        #[arg(long, default_value = "/etc/iwf/iwf.toml", value_name = "FILE")]
        config: PathBuf,
        /// The bpffs directory itself, without a configuration.
        #[arg(long, value_name = "DIR", conflicts_with = "config")]
        bpffs: Option<PathBuf>,
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
    let request = match &arguments.command {
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
            external_port: *external_port,
        },
        Command::Detach { config, bpffs } => return detach(arguments, config, bpffs.as_deref()),
    };
    ask(&arguments.socket, &request, arguments.json)
}

/// A running daemon would attach again what is taken away under it, so it has to be stopped first.
fn detach(arguments: &Arguments, config: &Path, bpffs: Option<&Path>) -> Result<ExitCode> {
    let (bpffs_dir, socket) = match bpffs {
        Some(dir) => (dir.to_owned(), arguments.socket.clone()),
        None => match Config::load(config) {
            Ok(config) => (config.paths.bpffs_dir, config.paths.control_socket),
            Err(error) => {
                eprintln!("iwfctl: {error}");
                return Ok(ExitCode::from(2));
            }
        },
    };
    if client::is_alive(&socket) {
        bail!(
            "iwfd is running ({} answers); stop it first",
            socket.display()
        );
    }
    let in_use = kernel::is_claimed(&bpffs_dir)
        .with_context(|| format!("look at {}", bpffs_dir.display()))?;
    if in_use {
        bail!("iwfd is running on {}; stop it first", bpffs_dir.display());
    }
    kernel::detach(&bpffs_dir).with_context(|| format!("detach {}", bpffs_dir.display()))?;
    show(&Response::Done, arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

fn ask(socket: &Path, request: &Request, json: bool) -> Result<ExitCode> {
    let response = client::call(socket, request)?;
    show(&response, json)?;
    let failed = match &response {
        Response::Error(_) => true,
        Response::Audit(audit) => !audit.clean,
        Response::Status(_)
        | Response::Mappings(_)
        | Response::Leases(_)
        | Response::Stats(_)
        | Response::Done => false,
    };
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn show(response: &Response, json: bool) -> Result<()> {
    if json {
        println!("{}", response.to_json().context("encode the answer")?);
    } else {
        print!("{}", table::render(response));
    }
    Ok(())
}
