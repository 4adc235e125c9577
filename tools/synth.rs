//! `medflamingo-tools synth`.

use crate::convert::{Storage, size};
use crate::report;
use clap::Args;
use medflamingo::convert::synth::{self, Options, Start};
use medflamingo::{Result, model};
use std::path::PathBuf;

/// Make a model folder of a published shape with random weights.
///
/// For timing and for trying things out: the answers are noise, but every part of the model is
/// there and of the right size. The same preset and seed give the same weights.
#[derive(Args)]
pub struct Synth {
    /// The shape
    #[arg(long, value_name = "NAME", value_parser = model::PRESETS)]
    preset: String,
    /// The model folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// What the random numbers start from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Storage type of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Storage,
    /// Most bytes of weights in one file, such as 5GB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    max_shard_size: u64,
    /// Weights as before training, with closed gates, instead of weights as after it
    #[arg(long)]
    untrained: bool,
    /// With --untrained: what the outputs of gated blocks are multiplied by, for blocks that go
    /// beside a trained language model
    #[arg(long, value_name = "N", default_value_t = 1, requires = "untrained")]
    gain: u16,
    /// Print the files and their checksums as JSON
    #[arg(long)]
    json: bool,
    /// Replace the output if it is a model folder
    #[arg(long)]
    force: bool,
}

impl Synth {
    pub fn run(self) -> Result<()> {
        let options = Options {
            preset: self.preset,
            output: self.output,
            seed: self.seed,
            dtype: self.dtype.into(),
            max_shard: self.max_shard_size,
            is_forced: self.force,
            start: match self.untrained {
                true => Start::Untrained { gain: self.gain },
                false => Start::Trained,
            },
        };
        let bar = report::Bar::new();
        let start = std::time::Instant::now();
        let files = synth::synth(&options, &|done, total| bar.set(done, total))?;
        bar.finish();
        if self.json {
            return report::print_json(&files);
        }
        let bytes: u64 = files.iter().map(|f| f.bytes).sum();
        let seconds = start.elapsed().as_secs_f64();
        report::print(format!(
            "{} files, {} in {seconds:.1} s ({}/s)\n",
            files.len(),
            report::bytes(bytes),
            report::bytes((bytes as f64 / seconds) as u64)
        ))?;
        eprintln!("made {}", options.output.display());
        Ok(())
    }
}
