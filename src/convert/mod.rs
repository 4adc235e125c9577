//! From the files a researcher has - a language model, CLIP, a Flamingo checkpoint - to one model
//! folder, with every key accounted for.
//!
//! Nothing is guessed: sizes come from the tensors and are checked against the configurations, keys
//! that nothing explains are errors, and what upstream leaves to chance is a choice with a name
//! ([`NewHeadRows`]). Tensors stream from the mapped sources to the disk a few MiB at a time.

mod cast;
mod codes;
pub mod export;
mod flamingo;
pub mod inspect;
mod json;
mod language;
pub mod ledger;
mod mimetic;
mod names;
mod pieces;
mod plan;
mod positions;
pub mod quantize;
mod rows;
mod scratch;
mod source;
pub mod synth;
mod torch;
pub mod verify;
mod vision;
mod vocabulary;
mod write;

pub use ledger::Ledger;
pub use rows::NewHeadRows;
pub use scratch::Scratch;
pub use write::{Progress, Spec};

pub use crate::weights::LEDGER;

use crate::model::config::{Activation, Config, StoredDType};
use crate::{DType, Error, Result};
use cast::Caster;
use ledger::Target;
use pieces::Piece;
use plan::{Inputs, Item, Plan};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use write::{Sink, Staging};

/// The file of a model folder that holds its configuration.
const CONFIG: &str = "config.json";

/// What to convert, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Hugging Face folder of the language model.
    pub language_model: PathBuf,
    /// CLIP: a file, or a Hugging Face or open_clip folder.
    pub vision: PathBuf,
    /// OpenFlamingo's or Med-Flamingo's checkpoint.
    pub flamingo: PathBuf,
    /// The model folder to make.
    pub output: PathBuf,
    /// Storage type of every weight.
    pub dtype: StoredDType,
    pub new_head_rows: NewHeadRows,
    /// Overrides what the files beside CLIP say.
    pub activation: Option<Activation>,
    /// Most bytes of data in one file.
    pub max_shard: u64,
    /// Replace an output that exists.
    pub is_forced: bool,
}

/// Opens and checks everything and says what would be done; writes nothing.
///
/// # Errors
/// Inputs that are missing, damaged, unsupported, or do not belong together.
pub fn dry_run(options: &Options) -> Result<Ledger> {
    let (inputs, plan) = prepare(options)?;
    Ok(ledger(options, inputs, plan).0)
}

/// Makes the model folder and returns its ledger.
///
/// # Errors
/// As [`dry_run`]; an output that exists; a full disk. No partial folder is left behind.
pub fn convert(options: &Options, progress: &Progress) -> Result<Ledger> {
    let (inputs, plan) = prepare(options)?;
    let config = inputs.config.clone();
    let tokenizer = inputs.tokenizer.files()?;
    let eos = inputs.tokenizer.specials;
    let suppress = plan.suppress.clone();
    let dtype = DType::from(options.dtype);
    let spec = |i: &Item| Spec { name: i.name.clone(), shape: i.shape.clone(), dtype };
    let specs: Vec<_> = plan.items.iter().map(spec).collect();
    let shards = write::shards(&specs, options.max_shard)?;
    let needed: u64 = shards.iter().map(write::Shard::bytes).sum::<u64>() + (16 << 20);
    let staging = Staging::new(&options.output, needed, options.is_forced)?;
    let (mut ledger, items) = ledger(options, inputs, plan);

    let mut caster = Caster::default();
    let mut fill = |i: usize, sink: &mut Sink| {
        let item: &(String, Vec<Piece>) = &items[i];
        let mut pieces = item.1.iter();
        pieces.try_for_each(|p| p.stream(dtype, &mut caster, sink)).map_err(|e| e.within(&item.0))
    };
    write::weights(&staging, &shards, &specs, &mut ledger, progress, &mut fill)?;
    for (name, bytes) in tokenizer {
        ledger.files.push(staging.file(name, &bytes)?);
    }
    for (name, value) in describing(&config, eos.bos, &suppress)? {
        ledger.files.push(staging.file(name, &pretty(&value)?)?);
    }
    staging.file(LEDGER, &ledger.to_json()?)?;
    staging.commit()?;
    Ok(ledger)
}

fn prepare(options: &Options) -> Result<(Inputs, Plan)> {
    let Options { language_model, vision, flamingo, dtype, activation, .. } = options;
    let mut inputs = Inputs::open(language_model, vision, flamingo, (*dtype, *activation))?;
    let plan = inputs.plan(&options.new_head_rows)?;
    for item in &plan.items {
        let count: usize = item.pieces.iter().map(Piece::count).sum();
        let expected: usize = item.shape.iter().product();
        if count != expected {
            let expected = format!("{expected} elements");
            return Err(Error::invalid(&item.name, expected, format!("pieces of {count}")));
        }
    }
    Ok((inputs, plan))
}

/// The ledger before anything is written, and the pieces of each tensor with where they come from.
fn ledger(options: &Options, inputs: Inputs, plan: Plan) -> (Ledger, Vec<(String, Vec<Piece>)>) {
    let sources = [inputs.language, inputs.clip.source, inputs.flamingo];
    let mut ledger = Ledger {
        program: format!("medflamingo-tools {}", env!("CARGO_PKG_VERSION")),
        dtype: DType::from(options.dtype).to_string(),
        sources: sources.iter().map(source::Source::file).collect(),
        notes: plan.notes,
        new_head_rows: plan.new_head_rows,
        suppress_tokens: plan.suppress,
        keys: sources.into_iter().flat_map(source::Source::into_keys).collect(),
        ..Ledger::default()
    };
    let mut items = Vec::with_capacity(plan.items.len());
    for Item { name, shape, pieces, from, how } in plan.items {
        let mut dtypes: Vec<_> = pieces.iter().filter_map(|p| Some(p.dtype()?.name())).collect();
        dtypes.dedup();
        let source_dtype = dtypes.join(", ");
        items.push((from.join(" + "), pieces));
        let target = Target { name, shape, from, how, source_dtype, ..Target::default() };
        ledger.tensors.push(target);
    }
    (ledger, items)
}

/// The JSON files that describe a model beside its weights and its tokenizer.
pub(crate) fn describing(
    config: &Config,
    bos: Option<u32>,
    suppress: &[u32],
) -> Result<Vec<(&'static str, Value)>> {
    let side = config.vision.image_size;
    let preprocessor = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": true,
        "crop_size": {"height": side, "width": side},
        "do_convert_rgb": true,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": vision::MEAN,
        "image_std": vision::STD,
    });
    let mut generation = json!({
        "eos_token_id": config.tokens.end_of_chunk,
        "pad_token_id": config.tokens.pad,
        "suppress_tokens": suppress,
    });
    if let Some(bos) = bos {
        generation["bos_token_id"] = json!(bos);
    }
    Ok(vec![
        (CONFIG, described(config)?),
        ("preprocessor_config.json", preprocessor),
        ("generation_config.json", generation),
    ])
}

/// What a model folder's `config.json` says.
fn described(config: &Config) -> Result<Value> {
    serde_json::to_value(config).map_err(|e| Error::invalid(CONFIG, "JSON", e))
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| Error::invalid("a file", "JSON", e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// True if `path` is a model folder: it has a `config.json` of ours.
pub fn is_model_folder(path: &Path) -> bool {
    Config::read(&path.join(CONFIG)).is_ok()
}
