//! From a model folder to one whose matrices have 8 or 4 bits a weight.
//!
//! Matrices of linear layers are quantised where their rows fit ([`Precision::multiple`]); norms,
//! biases, gates, latents, position and token embeddings stay as they are: together they are 3 % of
//! a 9B model, and embedding rows are looked up, not multiplied. An output head of its own takes 8
//! bits even where the rest takes 4: what it loses goes straight into the logits, and 4 more bits
//! of it are 1.5 % of the model.

use super::codes::{Coder, Loss};
use super::ledger::{Fate, FileSum, Key, Ledger, SourceFile, Target};
use super::pieces::hex;
use super::write::{self, Progress, Sink, Spec, Staging};
use super::{LEDGER, verify};
use crate::checkpoint::Entry;
use crate::device::Device;
use crate::model::Config;
use crate::weights::{INDEX, SCALES, Weights};
use crate::{DType, Error, Result};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use super::codes::Precision;

/// A part of the model whose matrices can be quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Vision,
    Resampler,
    /// The gated cross-attention blocks.
    Xattn,
    /// The layers of the language model.
    Language,
    /// The output head, where it is not the embedding.
    Head,
}

impl Part {
    pub const ALL: [Part; 5] =
        [Part::Vision, Part::Resampler, Part::Xattn, Part::Language, Part::Head];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Vision => "vision",
            Part::Resampler => "resampler",
            Part::Xattn => "xattn",
            Part::Language => "language",
            Part::Head => "head",
        }
    }

    /// The part that a tensor belongs to.
    pub(super) fn of(name: &str) -> Part {
        let first = |part: Part| name.split('.').next() == Some(part.name());
        match name {
            "language.head.weight" => Part::Head,
            _ => Part::ALL.into_iter().find(|&p| first(p)).unwrap_or(Part::Language),
        }
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Part::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| {
            Error::invalid("part", Part::ALL.map(Part::name).join(", "), format!("`{s}`"))
        })
    }
}

/// How each tensor will be stored.
#[derive(Clone, Debug)]
pub struct Choice {
    pub weights: Precision,
    pub parts: Vec<Part>,
}

impl Choice {
    /// All parts.
    pub fn all(weights: Precision) -> Self {
        Choice { weights, parts: Part::ALL.to_vec() }
    }

    /// The precision of a tensor, or why it keeps the folder's.
    pub fn of(&self, name: &str, shape: &[usize]) -> std::result::Result<Precision, String> {
        let part = Part::of(name);
        let Some((_, _, cols)) = matrix(name, shape) else {
            return Err("no matrix that is multiplied".into());
        };
        if !self.parts.contains(&part) {
            return Err(format!("{} is not in --parts", part.name()));
        }
        if is_folded(name) {
            return Err("the resampler's norms are folded into it".into());
        }
        let precision = if part == Part::Head { Precision::Int8 } else { self.weights };
        match cols.is_multiple_of(precision.multiple()) {
            true => Ok(precision),
            false => {
                let (name, of) = (precision.name(), precision.multiple());
                Err(format!("rows of {cols} are not a multiple of {of}, as {name} needs"))
            }
        }
    }

    /// Every tensor of a folder of `config`, as it is stored: codes are followed by their scales.
    pub fn stored(&self, config: &Config) -> Vec<Spec> {
        let mut specs = Vec::new();
        for (name, shape) in config.tensors() {
            let Ok(precision) = self.of(&name, &shape) else {
                specs.push(Spec { name, shape, dtype: config.dtype.into() });
                continue;
            };
            let (bytes, scales) = precision.row(shape[1]);
            let (rows, at) = (shape[0], scales_of(&name));
            let (dtype, scales) = match precision {
                Precision::Int8 => (DType::I8, vec![rows]),
                Precision::Int4 => (DType::U8, vec![rows, scales]),
            };
            specs.push(Spec { name, shape: vec![rows, bytes], dtype });
            specs.push(Spec { name: at, shape: scales, dtype: DType::BF16 });
        }
        specs
    }
}

/// Where the weights of a linear layer are, their rows and columns; None for other tensors.
pub(super) fn matrix<'a>(name: &'a str, shape: &[usize]) -> Option<(&'a str, usize, usize)> {
    let [rows, cols] = *shape else { return None };
    let at = name.strip_suffix(".weight").filter(|at| *at != "language.embedding")?;
    Some((at, rows, cols))
}

/// True for the keys and values of the resampler, which are used as elements.
fn is_folded(name: &str) -> bool {
    name.starts_with("resampler.layers.") && name.ends_with(".attn.kv.weight")
}

/// The name of the scales of the matrix `name`.
fn scales_of(name: &str) -> String {
    format!("{}{SCALES}", name.strip_suffix(".weight").unwrap_or(name))
}

/// What to quantise, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A model folder of f32, bf16 or f16.
    pub model: PathBuf,
    pub output: PathBuf,
    pub choice: Choice,
    /// Most bytes of data in one file.
    pub max_shard: u64,
    /// Replace an output that exists.
    pub is_forced: bool,
    /// What makes the codes: the same ones everywhere.
    pub device: Device,
    /// Of the host; 0 for all.
    pub threads: usize,
}

/// Says what would be done; writes nothing.
///
/// # Errors
/// A folder that is damaged, quantised already, or was not made by this program.
pub fn dry_run(options: &Options) -> Result<Ledger> {
    Ok(Source::open(options)?.ledger(options))
}

/// Makes the quantised folder and returns its ledger.
///
/// # Errors
/// As [`dry_run`]; an output that exists; a full disk. No partial folder is left behind.
pub fn quantize(options: &Options, progress: &Progress) -> Result<Ledger> {
    let source = Source::open(options)?;
    let mut ledger = source.ledger(options);
    let shards = write::shards(&source.specs, options.max_shard)?;
    let needed: u64 = shards.iter().map(write::Shard::bytes).sum::<u64>() + (16 << 20);
    let staging = Staging::new(&options.output, needed, options.is_forced)?;
    let coder = Coder::new(options.device.open(options.threads)?);
    let mut work = Work::new(&source, &options.choice, coder);
    let mut fill = |i: usize, sink: &mut Sink| work.fill(&source.specs[i].name, sink);
    write::weights(&staging, &shards, &source.specs, &mut ledger, progress, &mut fill)?;
    for target in &mut ledger.tensors {
        target.relative_error = work.losses.get(&target.name).map(Loss::relative);
    }
    for file in &source.beside {
        ledger.files.push(staging.file(&file.name, &unchanged(&options.model, file)?)?);
    }
    staging.file(LEDGER, &ledger.to_json()?)?;
    staging.commit()?;
    Ok(ledger)
}

/// The folder to be quantised.
struct Source {
    config: Config,
    weights: Weights,
    /// What its own ledger says of where it came from.
    origin: Option<Ledger>,
    /// Its files beside the weights.
    beside: Vec<FileSum>,
    /// What will be written.
    specs: Vec<Spec>,
}

impl Source {
    fn open(options: &Options) -> Result<Self> {
        let folder = &options.model;
        let config = Config::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder)?;
        for (name, shape) in config.tensors() {
            if weights.iter().any(|(n, e)| n == name && !e.dtype.is_float()) {
                let expected = "a model of f32, bf16 or f16 weights";
                return Err(Error::invalid(folder.display(), expected, "a quantised one")
                    .advise("quantise the folder that it was made from"));
            }
            weights.get(&name, &shape)?;
        }
        let (ledger, files) = verify::listed(folder)?;
        let is_beside = |f: &FileSum| !f.name.ends_with(".safetensors") && f.name != INDEX;
        let beside = files.into_iter().filter(is_beside).collect();
        let specs = options.choice.stored(&config);
        if specs.iter().all(|s| s.dtype.is_float()) {
            let expected = "matrices whose rows are whole groups";
            let found = "none in the chosen parts";
            return Err(Error::invalid(folder.display(), expected, found)
                .advise("choose other --parts, or int8, which needs rows of a multiple of 16"));
        }
        Ok(Source { config, weights, origin: ledger, beside, specs })
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let found = self.weights.iter().find(|(n, _)| *n == name).map(|(_, entry)| entry);
        found.ok_or_else(|| Error::invalid(name, "a tensor of the model", "none"))
    }

    /// The ledger before anything is written.
    fn ledger(&self, options: &Options) -> Ledger {
        let (choice, dtype) = (&options.choice, DType::from(self.config.dtype));
        let role = "model";
        let mut ledger = Ledger {
            program: format!("medflamingo-tools {}", env!("CARGO_PKG_VERSION")),
            dtype: format!("{} and {dtype}", choice.weights.name()),
            sources: vec![SourceFile {
                role: role.into(),
                path: options.model.display().to_string(),
                format: format!("model folder, {dtype}"),
                tensors: self.weights.iter().count(),
                ignored: Vec::new(),
            }],
            new_head_rows: "as in the source".into(),
            ..Ledger::default()
        };
        if let Some(origin) = &self.origin {
            ledger.notes.extend(origin.sources.iter().map(|s| format!("{}: {}", s.role, s.path)));
            ledger.notes.extend(origin.notes.iter().cloned());
            ledger.new_head_rows = origin.new_head_rows.clone();
            ledger.suppress_tokens = origin.suppress_tokens.clone();
        }
        for (name, shape) in self.config.tensors() {
            let fate = Fate::Mapped(name.clone());
            let dtype = dtype.to_string();
            ledger.keys.push(Key { source: role.into(), name, dtype, shape, fate });
        }
        for Spec { name, shape, .. } in &self.specs {
            let matrix = match name.strip_suffix(SCALES) {
                Some(at) => format!("{at}.weight"),
                None => name.clone(),
            };
            let how = match choice.of(&matrix, self.shape(&matrix)) {
                Ok(precision) if *name == matrix => format!("{} codes", precision.name()),
                Ok(precision) => format!("{} scales", precision.name()),
                Err(why) => format!("copied: {why}"),
            };
            ledger.tensors.push(Target {
                name: name.clone(),
                shape: shape.clone(),
                from: vec![format!("{role}:{matrix}")],
                how,
                source_dtype: dtype.to_string(),
                ..Target::default()
            });
        }
        ledger
    }

    fn shape(&self, name: &str) -> &[usize] {
        self.entry(name).map_or(&[], |entry| &entry.shape)
    }
}

/// Filling tensors one by one. Scales are known when their codes have been written, and wait.
struct Work<'a> {
    source: &'a Source,
    choice: &'a Choice,
    coder: Coder,
    waiting: HashMap<String, Vec<u8>>,
    losses: BTreeMap<String, Loss>,
}

impl<'a> Work<'a> {
    fn new(source: &'a Source, choice: &'a Choice, coder: Coder) -> Self {
        let (waiting, losses) = Default::default();
        Work { source, choice, coder, waiting, losses }
    }

    fn fill(&mut self, name: &str, sink: &mut Sink) -> Result<()> {
        if let Some(at) = name.strip_suffix(SCALES) {
            // Scales are aligned to less than their codes, and so come after them in any file.
            let scales = self.waiting.remove(name).ok_or_else(|| {
                Error::invalid(name, "scales after their codes", format!("{at}.weight later"))
            })?;
            return sink(&scales);
        }
        let entry = self.source.entry(name)?;
        match self.choice.of(name, &entry.shape) {
            Ok(precision) => self.quantize(name, entry, precision, sink),
            Err(_) => entry.read(sink),
        }
    }

    fn quantize(
        &mut self,
        name: &str,
        entry: &Entry,
        precision: Precision,
        sink: &mut Sink,
    ) -> Result<()> {
        let cols = entry.shape[1];
        let bytes = entry.contiguous().ok_or_else(|| {
            Error::invalid(name, "a tensor that is mapped as it is", "one in pieces")
        })?;
        let (mut scales, mut loss) = (Vec::new(), Loss::default());
        let row_bytes = cols * entry.dtype.size();
        for rows in bytes.chunks((CHUNK / row_bytes).max(1) * row_bytes) {
            let coded = self.coder.code(precision, entry.dtype, cols, rows);
            let coded = coded.map_err(|e| e.within(name))?;
            scales.extend(coded.scales);
            loss.add(coded.loss.difference, coded.loss.weights);
            sink(&coded.codes)?;
        }
        self.waiting.insert(scales_of(name), scales);
        self.losses.insert(name.to_string(), loss);
        Ok(())
    }
}

/// Bytes of the source that are quantised at a time.
const CHUNK: usize = 8 << 20;

/// A file beside the weights, if it is as the folder's checksums say.
fn unchanged(folder: &Path, file: &FileSum) -> Result<Vec<u8>> {
    let path = folder.join(&file.name);
    let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
    let mut hash = Sha256::new();
    hash.update(&bytes);
    let found = hex(hash);
    match found == file.sha256 {
        true => Ok(bytes),
        false => {
            let expected = format!("sha256 {}", file.sha256);
            Err(Error::invalid(path.display(), expected, found)
                .advise("the file has changed since it was written; convert again"))
        }
    }
}
