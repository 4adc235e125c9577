//! `medflamingo-tools convert`.

use crate::report;
use clap::{Args, ValueEnum};
use medflamingo::convert::{self, NewHeadRows, Options, Progress};
use medflamingo::model::config::{Activation, StoredDType};
use medflamingo::{Error, Result};
use std::path::PathBuf;

/// Make a model folder from a language model, CLIP and a Flamingo checkpoint.
///
/// Reads torch files (zip, older layout, TorchScript), safetensors, and Hugging Face folders of
/// either. Every key is mapped, tied or ignored with a reason, every tensor says what filled it;
/// the ledger is written as conversion.json. Nothing in the inputs is executed.
///
/// Example:
///
///   medflamingo-tools convert --language-model llama-7b-hf --vision ViT-L-14.pt
///   --flamingo model.pt --output med-flamingo-9b
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Convert {
    /// Hugging Face folder of the language model: LLaMA, MPT or GPT-NeoX, with its tokenizer
    #[arg(long, value_name = "DIR")]
    language_model: PathBuf,
    /// CLIP ViT: an open_clip file, OpenAI's TorchScript archive, or a Hugging Face folder
    #[arg(long, value_name = "FILE|DIR")]
    vision: PathBuf,
    /// OpenFlamingo's or Med-Flamingo's checkpoint, or one that training wrote
    #[arg(long, value_name = "FILE")]
    flamingo: PathBuf,
    /// The model folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Storage type of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Storage,
    /// Rows of an untied output head for added tokens that no file has
    ///
    /// eos: <|endofchunk|> takes the row of the language model's end token, <image> and <PAD> are
    /// never generated. random:SEED: N(0, 0.02) as upstream draws them at each load. zero: zeros.
    /// Anything else: a safetensors file with a tensor `lm_head_new_rows`.
    #[arg(long, value_name = "eos|zero|random:SEED|FILE", default_value = "eos")]
    new_head_rows: NewHeadRows,
    /// Activation of CLIP's MLP, where the files beside it are wrong or silent
    #[arg(long, value_enum)]
    vision_activation: Option<VisionActivation>,
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
}

/// A storage type on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub enum Storage {
    Bf16,
    F16,
    F32,
}

impl From<Storage> for StoredDType {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::Bf16 => StoredDType::Bf16,
            Storage::F16 => StoredDType::F16,
            Storage::F32 => StoredDType::F32,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum VisionActivation {
    QuickGelu,
    Gelu,
}

/// `5GB`, `500MB`, `64kB` or bytes; powers of ten, as Hugging Face has them.
pub fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => Some(1),
        "KB" => Some(1000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        _ => None,
    };
    let bytes = unit.zip(digits.parse::<u64>().ok()).and_then(|(u, n)| n.checked_mul(u));
    bytes.filter(|&n| n > 0).ok_or_else(|| Error::invalid("size", "5GB, 500MB or bytes", text))
}

impl Convert {
    /// Converts and prints the ledger.
    pub fn run(self) -> Result<()> {
        let options = Options {
            language_model: self.language_model,
            vision: self.vision,
            flamingo: self.flamingo,
            output: self.output,
            dtype: self.dtype.into(),
            new_head_rows: self.new_head_rows,
            activation: self.vision_activation.map(|a| match a {
                VisionActivation::QuickGelu => Activation::QuickGelu,
                VisionActivation::Gelu => Activation::Gelu,
            }),
            max_shard: self.max_shard_size,
            is_forced: self.force,
        };
        let plan = || convert::dry_run(&options);
        let make = |progress: &Progress<'_>| convert::convert(&options, progress);
        report::folder(&options.output, self.dry_run, self.json, plan, make)
    }
}
