//! One file per verb of the command line.

pub mod demo;
pub mod devices;
pub mod generate;
pub mod profile;
pub mod train;

use medflamingo::Result;
use serde::Serialize;
use std::io::Write;

/// Prints a line of JSON; a reader that went away is not an error.
fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| medflamingo::Error::invalid("output", "JSON", e))?;
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

/// Prints text at once; a reader that went away is not an error.
fn print_text(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
