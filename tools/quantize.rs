//! `medflamingo-tools quantize`.

use crate::convert::size;
use crate::report;
use clap::{Args, ValueEnum};
use medflamingo::Result;
use medflamingo::convert::Progress;
use medflamingo::convert::quantize::{self, Choice, Options, Part, Precision};
use medflamingo::device::Device;
use std::path::PathBuf;

/// Make a model folder with 8 or 4 bits a weight from one of f32, bf16 or f16.
///
/// Matrices of linear layers become codes with bf16 scales: int8 with one a row, int4 with one for
/// each 128 weights. Embeddings, norms, biases, gates and the resampler's keys and values stay, and
/// so does a matrix whose rows do not fit (int8: a multiple of 16 weights, int4: of 128). An output
/// head takes int8 in both. Runs on every device, as any model folder; `medflamingo-tools quality`
/// compares it with its source.
#[derive(Args)]
pub struct Quantize {
    /// A folder made by `convert` or `synth`
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Bits of a weight
    #[arg(long, value_enum)]
    weights: Weights,
    /// Parts to quantise: vision, resampler, xattn, language, head; all unless given
    #[arg(long, value_name = "PART,..", value_delimiter = ',')]
    parts: Vec<Part>,
    /// The model folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Most bytes of weights in one file, such as 5GB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    max_shard_size: u64,
    /// Check everything and print the ledger, but write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the ledger as JSON
    #[arg(long)]
    json: bool,
    /// Replace the output if it is a model folder
    #[arg(long)]
    force: bool,
    /// What makes the codes, the same ones everywhere: cpu, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads of the host; 0 for one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    Int8,
    Int4,
}

impl Quantize {
    pub fn run(self) -> Result<()> {
        let weights = match self.weights {
            Weights::Int8 => Precision::Int8,
            Weights::Int4 => Precision::Int4,
        };
        let mut choice = Choice::all(weights);
        if !self.parts.is_empty() {
            choice.parts = self.parts;
        }
        let options = Options {
            model: self.model,
            output: self.output,
            choice,
            max_shard: self.max_shard_size,
            is_forced: self.force,
            device: self.device,
            threads: self.threads,
        };
        let plan = || quantize::dry_run(&options);
        let make = |progress: &Progress<'_>| quantize::quantize(&options, progress);
        report::folder(&options.output, self.dry_run, self.json, plan, make)
    }
}
