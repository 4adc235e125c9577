//! What training made, for others: a checkpoint as upstream's own loader takes it, or a whole model
//! folder.
//!
//! Upstream's files hold what is trained and the input embedding, in f32, under the names of
//! `open_flamingo` (`filter_state_dict_to_trainable`). They are read with `strict=False`, so names
//! matter: what upstream would not find, it would not miss.

use super::cast::Caster;
use super::ledger::FileSum;
use super::names::{Layout, Op, upstream};
use super::pieces::Piece;
use super::quantize::Part;
use super::torch;
use super::write::{self, Progress, Sink, Spec, Staging};
use super::{CONFIG, LEDGER, described, pretty, synth};
use crate::checkpoint::{Checkpoint, Entry};
use crate::model::Config;
use crate::model::config::StoredDType;
use crate::weights::{INDEX, ROW_IDS, ROWS, SCALES, Weights};
use crate::{DType, Error, Result};
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The embedding, of which training may have changed some rows.
const EMBEDDING: &str = "language.embedding.weight";
const HEAD: &str = "language.head.weight";

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model folder that training began with; or, if that is a quantised one, the one that it
    /// was made from: the output is then of elements throughout.
    pub folder: PathBuf,
    /// What training changed, by the model's names, or rows of it ([`ROWS`]).
    pub trained: PathBuf,
    /// `.pt` or `.safetensors`: upstream's form. Anything else: a model folder.
    pub output: PathBuf,
    /// Parts of what training changed that are taken; all of them if there is none here.
    pub parts: Vec<Part>,
    /// Elements of a model folder; those of the folder that training began with, if not given.
    pub dtype: Option<StoredDType>,
    /// Most bytes of data in one file of a model folder.
    pub max_shard: u64,
    /// Replace an output that exists.
    pub is_forced: bool,
}

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Torch,
    SafeTensors,
    Folder,
}

impl Form {
    /// The one that a name's ending asks for.
    pub fn of(output: &Path) -> Self {
        match output.extension().and_then(|e| e.to_str()) {
            Some("pt" | "pth" | "bin") => Form::Torch,
            Some("safetensors") => Form::SafeTensors,
            _ => Form::Folder,
        }
    }
}

/// One tensor of the output and what it is made of.
struct Item {
    spec: Spec,
    pieces: Vec<Piece>,
}

/// Writes the output; its tensors by name.
///
/// # Errors
/// Tensors that are not the model's, an output that exists, a full disk. Nothing partial is left.
pub fn export(options: &Options, progress: &Progress) -> Result<Vec<Spec>> {
    let mut config = Config::read(&options.folder.join(CONFIG))?;
    let weights = Weights::open(&options.folder)?;
    let trained = Trained::open(&options.trained, &config, &options.parts)?;
    let form = Form::of(&options.output);
    match (options.dtype, form) {
        (None, _) => (),
        (Some(dtype), Form::Folder) => config.dtype = dtype,
        (Some(_), _) => {
            let who = options.output.display();
            return Err(Error::invalid(who, "a model folder, to choose its type", "a file")
                .advise("files of upstream's form are f32: leave the type out"));
        }
    }
    let items = match form {
        Form::Folder => folder_items(&config, &weights, &trained)?,
        _ => upstream_items(&config, &weights, &trained)?,
    };
    let mut caster = Caster::default();
    let mut fill = |i: usize, sink: &mut Sink<'_>| {
        let Item { spec, pieces } = &items[i];
        let mut pieces = pieces.iter();
        pieces
            .try_for_each(|p| p.stream(spec.dtype, &mut caster, sink))
            .map_err(|e| e.within(&spec.name))
    };
    let specs: Vec<Spec> = items.iter().map(|item| item.spec.clone()).collect();
    match form {
        Form::Folder => write_folder(options, &config, &specs, progress, &mut fill)?,
        Form::Torch => write_torch(options, &specs, progress, &mut fill)?,
        Form::SafeTensors => write_safetensors(options, &specs, progress, &mut fill)?,
    }
    Ok(specs)
}

/// The tensors of a checkpoint, each of which the model has.
struct Trained {
    checkpoint: Checkpoint,
    parts: Vec<Part>,
}

impl Trained {
    fn open(path: &Path, config: &Config, parts: &[Part]) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let tensors = config.tensors();
        for (name, entry) in checkpoint.iter() {
            if name.ends_with(ROW_IDS) {
                continue;
            }
            let (name, is_part) = match name.strip_suffix(ROWS) {
                Some(name) => (name, true),
                None => (name, false),
            };
            let expected = tensors.iter().find(|(n, _)| n == name).map(|(_, shape)| shape);
            let fits = |shape: &Vec<usize>| match is_part {
                true => entry.shape.len() == 2 && entry.shape[1..] == shape[1..],
                false => entry.shape == *shape,
            };
            if !expected.is_some_and(fits) {
                let who = format!("{}: {name}", path.display());
                let expected =
                    expected.map_or("a tensor of the model".into(), |s| format!("{s:?}"));
                return Err(Error::invalid(who, expected, format!("{:?}", entry.shape))
                    .advise("the checkpoint is of another model than the folder"));
            }
        }
        Ok(Trained { checkpoint, parts: parts.to_vec() })
    }

    /// The checkpoint's `name`, if it is of a part that is taken.
    fn get(&self, name: &str) -> Option<&Entry> {
        let is_taken = self.parts.is_empty() || self.parts.contains(&Part::of(name));
        self.checkpoint.get(name).filter(|_| is_taken)
    }

    /// What tensor `name` is now: the whole of it, or the model's own with some rows exchanged.
    fn pieces(&self, name: &str, own: &Entry) -> Result<Vec<Piece>> {
        if let Some(entry) = self.get(name) {
            return Ok(vec![Piece::whole(entry)]);
        }
        let (rows, ids) = (format!("{name}{ROWS}"), format!("{name}{ROW_IDS}"));
        let Some(rows) = self.get(&rows) else { return Ok(vec![Piece::whole(own)]) };
        let wrong = |found: String| {
            let expected = format!("rising numbers of rows, i32, below {}", own.shape[0]);
            Error::invalid(&ids, expected, found)
        };
        let list = self.get(&ids).ok_or_else(|| wrong("no such tensor".into()))?;
        let numbers = list.to_vec();
        let numbers = numbers.chunks_exact(4).filter_map(|b| b.first_chunk().copied());
        let numbers: Vec<usize> = numbers.map(|b| i32::from_le_bytes(b) as usize).collect();
        let is_rising = numbers.windows(2).all(|pair| pair[0] < pair[1]);
        let fits = numbers.last().is_some_and(|&last| last < own.shape[0]);
        if list.dtype != DType::I32 || numbers.len() != rows.shape[0] || !is_rising || !fits {
            return Err(wrong(format!("{numbers:?} {}", list.dtype)));
        }
        let (cols, mut next, mut pieces) = (own.shape[1], 0, Vec::new());
        let range = |entry: &Entry, from: usize, to: usize| Piece::Ranges {
            entry: entry.clone(),
            ranges: vec![(from * cols, (to - from) * cols)],
        };
        for (i, &row) in numbers.iter().enumerate() {
            pieces.push(range(own, next, row));
            pieces.push(range(rows, i, i + 1));
            next = row + 1;
        }
        pieces.push(range(own, next, own.shape[0]));
        pieces.retain(|piece| piece.count() > 0);
        Ok(pieces)
    }

    /// True if training changed (some of) the tensor.
    fn has(&self, name: &str) -> bool {
        self.get(name).is_some() || self.get(&format!("{name}{ROWS}")).is_some()
    }
}

/// The folder's own tensor.
fn own<'w>(weights: &'w Weights, name: &str) -> Result<&'w Entry> {
    let found = weights.iter().find(|(n, _)| *n == name).map(|(_, entry)| entry);
    found.ok_or_else(|| Error::invalid(name, "a tensor of the folder", "no such tensor"))
}

/// Every tensor of a model folder; what is frozen and has few bits keeps them.
fn folder_items(config: &Config, weights: &Weights, trained: &Trained) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for (name, shape) in config.tensors() {
        let stored = own(weights, &name)?;
        if stored.dtype.is_float() || trained.has(&name) {
            let pieces = trained.pieces(&name, stored)?;
            items.push(Item { spec: Spec { name, shape, dtype: config.dtype.into() }, pieces });
            continue;
        }
        let scales = format!("{}{SCALES}", name.strip_suffix(".weight").unwrap_or(&name));
        for name in [name, scales] {
            let stored = own(weights, &name)?;
            let (shape, dtype) = (stored.shape.clone(), stored.dtype);
            let pieces = vec![Piece::Stored(stored.clone())];
            items.push(Item { spec: Spec { name, shape, dtype }, pieces });
        }
    }
    Ok(items)
}

/// What is trained, and the embeddings, under upstream's names, f32.
fn upstream_items(config: &Config, weights: &Weights, trained: &Trained) -> Result<Vec<Item>> {
    let layout = Layout::of(&config.language);
    let has_head = layout == Layout::GptNeox;
    let mut items = Vec::new();
    for (name, shape) in config.tensors() {
        // Upstream keeps every tensor with "embed" in its name; only GPT-NeoX's head has.
        let is_kept = name == EMBEDDING || (has_head && name == HEAD);
        if !trained.has(&name) && !is_kept {
            continue;
        }
        let stored = own(weights, &name)?;
        if !stored.dtype.is_float() && !trained.has(&name) {
            let who = format!("{}: {name}", weights.folder().display());
            let found = format!("{} codes", stored.dtype);
            return Err(Error::invalid(who, "elements, as upstream's form has them", found)
                .advise("give the folder that this one was quantised from with --model"));
        }
        let whole = trained.pieces(&name, stored)?;
        let recipe = upstream(&name, layout);
        let recipe = recipe.ok_or_else(|| Error::invalid(&name, "one of upstream's", "none"))?;
        let parts = recipe.sources.len();
        for (i, source) in recipe.sources.into_iter().enumerate() {
            let mut shape = upstream_shape(&name, &shape, config);
            let pieces = match (recipe.op, whole.as_slice()) {
                (Op::Stack, _) if parts == 1 => whole.clone(),
                (Op::Stack, [Piece::Ranges { entry, .. }]) => {
                    shape[0] /= parts;
                    let each = entry.count() / parts;
                    let ranges = vec![(i * each, each)];
                    vec![Piece::Ranges { entry: entry.clone(), ranges }]
                }
                (Op::Transpose, [Piece::Ranges { entry, .. }]) => {
                    shape.reverse();
                    vec![Piece::Transposed(entry.clone())]
                }
                (Op::SplitHeads, [Piece::Ranges { entry, .. }]) => {
                    vec![gathered_heads(entry, config.language.heads)]
                }
                _ => return Err(Error::invalid(&name, "whole", "some rows of it")),
            };
            items.push(Item { spec: Spec { name: source, shape, dtype: DType::F32 }, pieces });
        }
    }
    Ok(items)
}

/// The sizes that upstream's modules have; they differ for the patches of CLIP only.
fn upstream_shape(name: &str, shape: &[usize], config: &Config) -> Vec<usize> {
    let patch = config.vision.patch_size;
    match name {
        "vision.patch_embedding.weight" => vec![shape[0], 3, patch, patch],
        _ => shape.to_vec(),
    }
}

/// Rows `q | k | v` of all heads as `[head: q k v]`, which GPT-NeoX has.
fn gathered_heads(entry: &Entry, heads: usize) -> Piece {
    let part = entry.count() / (3 * heads);
    let start = |head: usize, which: usize| (which * heads + head) * part;
    let ranges = (0..heads).flat_map(|h| (0..3).map(move |w| (start(h, w), part))).collect();
    Piece::Ranges { entry: entry.clone(), ranges }
}

/// Passes the bytes of tensor `i` on.
type Fill<'a> = dyn FnMut(usize, &mut Sink<'_>) -> Result<()> + 'a;

fn write_folder(
    options: &Options,
    config: &Config,
    specs: &[Spec],
    progress: &Progress,
    fill: &mut Fill<'_>,
) -> Result<()> {
    let shards = write::shards(specs, options.max_shard)?;
    let needed: u64 = shards.iter().map(write::Shard::bytes).sum::<u64>() + (16 << 20);
    let staging = Staging::new(&options.output, needed, options.is_forced)?;
    let (mut files, _) = write::write(staging.folder(), &shards, false, progress, fill)?;
    if shards.len() > 1 {
        files.push(staging.file(INDEX, &write::index(&shards, specs)?)?);
    }
    files.push(staging.file(CONFIG, &pretty(&described(config)?)?)?);
    files.extend(copy_others(&options.folder, &staging)?);
    let list = json!({"made_by": "medflamingo-tools export", "files": files});
    staging.file(synth::CHECKSUMS, &pretty(&list)?)?;
    staging.commit()
}

/// Everything in a model folder but its configuration, its weights and records of how they came
/// about.
fn copy_others(folder: &Path, staging: &Staging) -> Result<Vec<FileSum>> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .map_err(|e| Error::io("read", folder, e))?
        .flatten()
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let is_record = |n: &str| [CONFIG, INDEX, LEDGER, synth::CHECKSUMS].contains(&n);
    names.retain(|n| !n.ends_with(".safetensors") && !is_record(n));
    let copy = |name: &String| {
        let path = folder.join(name);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        staging.file(name, &bytes)
    };
    names.iter().map(copy).collect()
}

fn write_torch(
    options: &Options,
    specs: &[Spec],
    progress: &Progress,
    fill: &mut Fill<'_>,
) -> Result<()> {
    let total: usize = specs.iter().filter_map(Spec::bytes).sum();
    single(options, |path| {
        let failed = |e| Error::io("write", path, e);
        let mut file = BufWriter::new(File::create_new(path).map_err(failed)?);
        let mut done = 0;
        torch::save(specs, fill, &mut |bytes| {
            done += bytes.len() as u64;
            progress(done, total as u64);
            file.write_all(bytes).map_err(failed)
        })?;
        let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)
    })
}

fn write_safetensors(
    options: &Options,
    specs: &[Spec],
    progress: &Progress,
    fill: &mut Fill<'_>,
) -> Result<()> {
    single(options, |path| {
        let mut shards = write::shards(specs, u64::MAX)?;
        let (parent, name) = (path.parent().unwrap_or(Path::new(".")), path.file_name());
        for shard in &mut shards {
            shard.file = name.unwrap_or_default().to_string_lossy().into_owned();
        }
        write::write(parent, &shards, false, progress, fill).map(drop)
    })
}

/// Has a file written under another name, and gives it its own when it is complete.
fn single(options: &Options, body: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let output = &options.output;
    let who = output.display();
    if output.exists() && !(options.is_forced && output.is_file()) {
        return Err(Error::invalid(who, "a file that does not exist yet", "one that does")
            .advise("choose another --output, or replace it with --force"));
    }
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{name}.partial-{}", std::process::id()));
    let sync = |path: &Path| File::open(path).and_then(|folder| folder.sync_all());
    let written = body(&partial).and_then(|()| {
        std::fs::rename(&partial, output)
            .and_then(|()| sync(parent))
            .map_err(|e| Error::io("create", output, e))
    });
    if written.is_err() {
        // It may not have been made.
        let _ = std::fs::remove_file(&partial);
    }
    written
}
