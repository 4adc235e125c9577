//! `medflamingo-tools`: make, look at and check model folders.

mod books;
mod convert;
mod curves;
mod exam;
mod export;
mod inspect;
mod kernels;
mod phantom;
mod quality;
mod quantize;
mod report;
mod synth;
mod tiles;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Make, look at and check model folders.
///
/// Results go to standard output, progress and errors to standard error. Exit status: 0 done, 1 a
/// check does not hold, 2 bad input, 3 device, 130 cancelled.
#[derive(Parser)]
#[command(name = "medflamingo-tools", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Books(books::Books),
    Convert(convert::Convert),
    Curves(curves::Curves),
    Exam(exam::Exam),
    Export(export::Export),
    Inspect(inspect::Inspect),
    Kernels(kernels::Kernels),
    Phantom(phantom::Phantom),
    Quality(quality::Compare),
    Quantize(quantize::Quantize),
    Synth(synth::Synth),
    Tiles(tiles::Tiles),
    Verify(verify::Verify),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Books(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Curves(command) => command.run(),
        Command::Exam(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Kernels(command) => command.run(),
        Command::Phantom(command) => command.run(),
        Command::Quality(command) => command.run(),
        Command::Quantize(command) => command.run(),
        Command::Synth(command) => command.run(),
        Command::Tiles(command) => command.run(),
        Command::Verify(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(1))
        }
    }
}
