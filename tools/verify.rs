//! `medflamingo-tools verify`.

use crate::report;
use clap::Args;
use medflamingo::Result;
use medflamingo::convert::verify;
use std::path::PathBuf;

/// Check a model folder: shapes against config.json, bytes against the checksums written with it.
///
/// Reads every byte. Ends with status 2 at the first thing that is not as it was written.
#[derive(Args)]
pub struct Verify {
    /// A folder made by `convert` or `synth`
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Print what was compared as JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub fn run(self) -> Result<()> {
        let bar = report::Bar::new();
        let found = verify::verify(&self.folder, &|done, total| bar.set(done, total))?;
        bar.finish();
        if self.json {
            return report::print_json(&found);
        }
        report::print(format!(
            "{}: {} tensors as config.json has them; {} files ({}) and {} tensors as {} has them\n",
            self.folder.display(),
            found.shapes,
            found.files,
            report::bytes(found.bytes),
            found.tensors,
            found.checksums
        ))
    }
}
