//! Set up, build, show, test and measure iwf: `cargo xtask help`.
#![expect(clippy::print_stdout, reason = "a command-line program")]

mod bench;
mod build;
mod demo;
mod fuzz;
mod lab;
mod setup;
mod sim;
mod step;
mod test;
mod tidy;
#[expect(
    unreachable_pub,
    reason = "shared with a build script, which sees it from outside"
)]
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, build, show, test and measure iwf.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Demo(demo::Args),
    Lab(lab::Args),
    Test(test::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Sim(sim::Args),
    Tidy(tidy::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Lab(args) => lab::run(args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Vm(args) => vm::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
