//! What the commands print, and where.

use indicatif::{ProgressBar, ProgressStyle};
use medflamingo::convert::{Ledger, Progress};
use medflamingo::{Error, Result};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// Writes to standard output; a closed pipe ends the output without complaint.
pub fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_ref()).and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output", e))
        }
        _ => Ok(()),
    }
}

/// A picture of so many pixels on white, as SVG.
pub fn svg(width: f64, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// Prints a value as pretty JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::invalid("report", "a value that fits JSON", e))?;
    text.push('\n');
    print(text)
}

/// A bar of bytes on standard error if that is a terminal, else nothing.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Bar(ProgressBar::hidden());
        }
        let style = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = ProgressBar::new(0);
        match ProgressStyle::with_template(style) {
            Ok(style) => Bar(bar.with_style(style)),
            Err(_) => Bar(bar),
        }
    }

    /// `done` of `total` bytes.
    pub fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    pub fn finish(self) {
        self.0.finish_and_clear();
    }
}

/// Does what makes a model folder: prints the ledger that `plan` gives, if nothing is to be
/// written, or that of `make`, which reports its progress.
pub fn folder(
    output: &Path,
    is_dry: bool,
    json: bool,
    plan: impl FnOnce() -> Result<Ledger>,
    make: impl FnOnce(&Progress<'_>) -> Result<Ledger>,
) -> Result<()> {
    let ledger = if is_dry {
        plan()?
    } else {
        let bar = Bar::new();
        let ledger = make(&|done, total| bar.set(done, total))?;
        bar.finish();
        ledger
    };
    if json {
        return print_json(&ledger);
    }
    print(ledger.to_string())?;
    if !is_dry {
        eprintln!("made {}", output.display());
    }
    Ok(())
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
