//! `medflamingo-tools export`.

use crate::convert::{Storage, size};
use crate::report;
use clap::Args;
use medflamingo::convert::Spec;
use medflamingo::convert::export::{self, Form, Options};
use medflamingo::convert::quantize::Part;
use medflamingo::run::{Checkpoints, Disk, checkpoint};
use medflamingo::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write what a run has trained as OpenFlamingo's own loader takes it, or as a model folder.
///
/// FILE.pt and FILE.safetensors hold the trained part and the embeddings in f32 under upstream's
/// names: `model.load_state_dict(torch.load("FILE.pt"), strict=False)`. Any other name becomes a
/// folder for `medflamingo generate`; what was frozen with 8 or 4 bits a weight keeps them there.
#[derive(Args)]
pub struct Export {
    /// A run's folder, whose newest checkpoint that holds is taken, or one checkpoint
    #[arg(value_name = "RUN|CHECKPOINT")]
    source: PathBuf,
    /// What to make
    #[arg(long, value_name = "FILE.pt|FILE.safetensors|DIR")]
    output: PathBuf,
    /// The model folder that training began with, if it is no longer where the run found it; or the
    /// one that it was quantised from
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Parts of what was trained to take: vision, resampler, xattn, language, head; all unless
    /// given
    #[arg(long, value_name = "PART,..", value_delimiter = ',')]
    parts: Vec<Part>,
    /// Storage type of a model folder's weights [default: that of the folder training began with]
    #[arg(long, value_enum)]
    dtype: Option<Storage>,
    /// Most bytes of weights in one file of a model folder, such as 5GB or 500MB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    max_shard_size: u64,
    /// Print the tensors as JSON
    #[arg(long)]
    json: bool,
    /// Replace the output if it is a file, or a model folder
    #[arg(long)]
    force: bool,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let saved = checkpoint_of(&self.source)?;
        let folder = match self.model {
            Some(folder) => folder,
            None => model_of(&saved)?,
        };
        let options = Options {
            folder,
            trained: saved.folder.join(checkpoint::TRAINABLE),
            output: self.output,
            parts: self.parts,
            dtype: self.dtype.map(Into::into),
            max_shard: self.max_shard_size,
            is_forced: self.force,
        };
        let bar = report::Bar::new();
        let specs = export::export(&options, &|done, total| bar.set(done, total))?;
        bar.finish();
        let form = match Form::of(&options.output) {
            Form::Folder => "a model folder",
            _ => "upstream's names, f32",
        };
        if self.json {
            let tensor =
                |s: &Spec| json!({"name": s.name, "shape": s.shape, "dtype": s.dtype.name()});
            return report::print_json(&specs.iter().map(tensor).collect::<Vec<_>>());
        }
        let bytes: usize = specs.iter().filter_map(Spec::bytes).sum();
        let (step, count) = (saved.manifest.step, specs.len());
        let size = report::bytes(bytes as u64);
        report::print(format!("step {step}: {count} tensors, {size} ({form})\n"))?;
        eprintln!("made {}", options.output.display());
        Ok(())
    }
}

/// The checkpoint in a folder, or the newest that holds of a run.
fn checkpoint_of(source: &Path) -> Result<checkpoint::Saved> {
    if source.join(checkpoint::MANIFEST).exists() {
        return checkpoint::verified(source);
    }
    let all = Checkpoints::new(&source.join(checkpoint::FOLDER), 1, Disk::default());
    let (newest, damaged) = all.newest();
    for e in &damaged {
        eprintln!("note: passed over: {e}");
    }
    newest.ok_or_else(|| {
        Error::invalid(source.display(), "a run or a checkpoint that holds", "none")
            .advise("give the folder of a run, or one of its checkpoints/step-*")
    })
}

/// Where the run found its model.
fn model_of(saved: &checkpoint::Saved) -> Result<PathBuf> {
    let state = saved.state(0)?;
    let folder = state["model_folder"].as_str().map(PathBuf::from);
    folder.filter(|f| f.is_dir()).ok_or_else(|| {
        let found = state["model_folder"].to_string();
        Error::invalid(saved.folder.display(), "a run whose model folder is there", found)
            .advise("say where it is now with --model DIR")
    })
}
