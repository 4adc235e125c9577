//! The command line of the engine. Converting and inspecting models is `medflamingo-tools`.

mod commands;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Answers questions about images from a few examples in the prompt: OpenFlamingo and Med-Flamingo.
///
/// Research software. Not a medical device: its answers may be wrong and must not guide care.
#[derive(Parser)]
#[command(version, about, long_about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt with images
    Generate(Box<commands::generate::Generate>),
    /// Convert and run a tiny model that comes with the sources, and compare it with the original
    Demo(commands::demo::Demo),
    /// Train a model folder
    Train(commands::train::Train),
    /// Show where the time of a request or of a kernel goes
    Profile(Box<commands::profile::Profile>),
    /// Show what this machine offers to run on
    Devices(commands::devices::Devices),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(command) => command.run(),
        Command::Profile(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Train(command) => command.run(),
        Command::Devices(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code() as u8)
        }
    }
}
