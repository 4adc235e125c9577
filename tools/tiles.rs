//! `medflamingo-tools tiles`.

use crate::report;
use clap::{Args, ValueEnum};
use medflamingo::device::{Chip, Device};
use medflamingo::profile::{measured_tiles, predicted_tiles};
use medflamingo::run::Disk;
use medflamingo::{Error, Result};
use std::path::{Path, PathBuf};

/// Find the fastest tiles of a card's matrix products: the table that MEDFLAMINGO_TILES=FILE reads.
///
/// Runs every tile on the products of the 9B model, about a minute. A time is the median of 21
/// launches in us, with weights that come from memory. What then runs with MEDFLAMINGO_TILES=FILE
/// on such a card uses what was measured.
#[derive(Args)]
pub struct Tiles {
    /// The card: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda", conflicts_with = "chip")]
    device: Device,
    /// Estimates for this chip instead of measurements; needs no card
    #[arg(long)]
    chip: Option<Known>,
    /// Add the slower tiles and cuBLASLt's time, as comments
    #[arg(long)]
    all: bool,
    /// Write the table to FILE, whole or not at all, instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Known {
    A100,
    H200,
}

impl Tiles {
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.output {
            check(path)?;
        }
        let table = match self.chip {
            Some(Known::A100) => predicted_tiles(&Chip::A100, self.all)?,
            Some(Known::H200) => predicted_tiles(&Chip::H200, self.all)?,
            None => measured_tiles(self.device, self.all, &mut |done, total, line| {
                eprintln!("{done} of {total}: {line}");
            })?,
        };
        let Some(path) = self.output else { return report::print(table) };
        Disk::default().replace(&path, table.as_bytes())?;
        eprintln!("made {}", path.display());
        Ok(())
    }
}

/// What cannot be written is known before a card is busy for a minute.
fn check(output: &Path) -> Result<()> {
    let is_other = output.exists() && !output.is_file();
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    if is_other || folder.is_some_and(|folder| !folder.is_dir()) {
        let found = if is_other { "something else" } else { "no such folder" };
        return Err(Error::invalid(output.display(), "a file in a folder that exists", found));
    }
    Ok(())
}
