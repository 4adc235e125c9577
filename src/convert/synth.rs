//! Model folders of any published shape with random weights: for timing, for trying things out, and
//! for tests. Written at the speed of the disk.

use super::cast::Caster;
use super::ledger::FileSum;
use super::vocabulary::{self, Form};
use super::write::{self, Progress, Sink, Spec, Staging};
use super::{Scratch, describing, pretty};
use super::{mimetic, positions};
use crate::dtype::Real;
use crate::model::config::{Config, Family, StoredDType};
pub use crate::weights::CHECKSUMS;
use crate::weights::INDEX;
use crate::{DType, Error, Result};
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Elements made at a time.
const CHUNK: usize = 1 << 18;

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// One of [`crate::model::PRESETS`].
    pub preset: String,
    pub output: PathBuf,
    /// The same seed gives the same weights, tensor by tensor.
    pub seed: u64,
    /// Storage type of every weight.
    pub dtype: StoredDType,
    /// Most bytes of data in one file.
    pub max_shard: u64,
    /// Replace an output that exists.
    pub is_forced: bool,
    pub start: Start,
}

/// What the random weights are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Activations keep their size through all layers and gates are open, as after training.
    #[default]
    Trained,
    /// As before training: gates closed, self-attention as in [`mimetic`], positions of patches as
    /// in [`positions`].
    Untrained {
        /// What the outputs of gated blocks are multiplied by. A residual stream is many times as
        /// long after training as before (70 beside 0.5 in the language model of phantom studies):
        /// beside one that is trained already, blocks with a gain of 1 are slow to matter.
        gain: u16,
    },
}

/// A folder of holes: it has every tensor, reads as zeros and takes no space.
///
/// # Errors
/// If the system does not let it be made.
pub fn hollow(tensors: &[Spec]) -> Result<Scratch> {
    let scratch = Scratch::new("holes")?;
    for shard in write::shards(tensors, u64::MAX)? {
        shard.hollow(scratch.path())?;
    }
    Ok(scratch)
}

/// Makes the folder. Returns its files with their checksums, which `checksums.json` lists too.
///
/// # Errors
/// An unknown preset; an output that exists; a full disk.
pub fn synth(options: &Options, progress: &Progress) -> Result<Vec<FileSum>> {
    let config = Config { dtype: options.dtype, ..crate::model::preset(&options.preset)? };
    let dtype = DType::from(options.dtype);
    let spec = |(name, shape)| Spec { name, shape, dtype };
    let specs: Vec<_> = config.tensors().into_iter().map(spec).collect();
    let shards = write::shards(&specs, options.max_shard)?;
    let needed: u64 = shards.iter().map(write::Shard::bytes).sum::<u64>() + (16 << 20);
    let staging = Staging::new(&options.output, needed, options.is_forced)?;
    let mut files = match options.preset.as_str() {
        "phantom" => {
            let files = crate::phantom::tokenizer_files()?;
            files.iter().map(|(name, bytes)| staging.file(name, bytes)).collect::<Result<_>>()?
        }
        _ => tokenizer(&config, &staging)?,
    };
    let suppress = [config.tokens.image, config.tokens.pad];
    for (name, value) in describing(&config, None, &suppress)? {
        files.push(staging.file(name, &pretty(&value)?)?);
    }
    let mut fill = |i: usize, sink: &mut Sink| {
        let Spec { name, shape, .. } = &specs[i];
        let spread = match options.start {
            Start::Trained => Spread::of(name, shape, &config),
            Start::Untrained { gain } => Spread::untrained(name, shape, &config, gain),
        };
        if let Start::Untrained { gain } = options.start {
            let width = *shape.last().unwrap_or(&1);
            if name == "vision.position_embedding" {
                return write_values(&positions::grid(shape[0], width)?, dtype, sink);
            }
            let mut draw = |name: &str, n: usize| {
                Spread::untrained(name, &[n / width, width], &config, gain)
                    .values(n, (options.seed, name))
            };
            if let Some(values) = mimetic::values(name, width, &mut draw)? {
                return write_values(&values, dtype, sink);
            }
        }
        spread.stream(shape.iter().product(), (options.seed, name), dtype, sink)
    };
    let (sums, _) = write::write(staging.folder(), &shards, false, progress, &mut fill)?;
    files.extend(sums);
    if shards.len() > 1 {
        files.push(staging.file(INDEX, &write::index(&shards, &specs)?)?);
    }
    let origin = json!({"preset": options.preset, "seed": options.seed});
    let list = json!({"made_by": "medflamingo-tools synth", "from": origin, "files": files});
    staging.file(CHECKSUMS, &pretty(&list)?)?;
    staging.commit()?;
    Ok(files)
}

/// Writes a tokenizer of the preset's form with Flamingo's tokens.
fn tokenizer(config: &Config, staging: &Staging) -> Result<Vec<FileSum>> {
    let tokens = &config.tokens;
    let form = match (config.language.family, tokens.leading) {
        (Family::Llama, Some(0)) => Form::SentencePiece,
        (Family::Llama, _) => Form::ByteLevelWithStart,
        _ => Form::ByteLevel,
    };
    let base = vocabulary::files(form, config.language.vocabulary - 3)?;
    for (name, bytes) in &base {
        staging.file(name, bytes)?;
    }
    let prepared = crate::text::prepare(staging.folder())?;
    for (name, _) in &base {
        let path = staging.folder().join(name);
        std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    let s = prepared.specials;
    let found = (prepared.len, prepared.leading, s.end_of_chunk, s.image, s.pad);
    let expected =
        (config.language.vocabulary, tokens.leading, tokens.end_of_chunk, tokens.image, tokens.pad);
    if found != expected {
        let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
        return Err(Error::invalid("tokenizer of the preset", expected, found));
    }
    prepared.files()?.iter().map(|(name, bytes)| staging.file(name, bytes)).collect()
}

fn write_values(values: &[f32], dtype: DType, sink: &mut Sink) -> Result<()> {
    let (mut caster, mut out) = (Caster::default(), Vec::new());
    for some in values.chunks(CHUNK) {
        out.clear();
        caster.cast(DType::F32, bytemuck::cast_slice(some), dtype, &mut out)?;
        sink(&out)?;
    }
    Ok(())
}

/// A uniform distribution: mean, and half its width.
struct Spread {
    mean: f32,
    reach: f32,
}

impl Spread {
    /// Such that activations keep their size through any number of layers, as after training.
    fn of(name: &str, shape: &[usize], config: &Config) -> Self {
        // A uniform distribution of this half-width has deviation 1.
        let unit = 3f32.sqrt();
        let centred = |deviation: f32| Spread { mean: 0.0, reach: deviation * unit };
        let last = *shape.last().unwrap_or(&1) as f32;
        let layers = match name.split('.').next() {
            Some("vision") => config.vision.layers,
            Some("resampler") => config.resampler.layers,
            _ => config.language.layers,
        };
        let is_output = name.ends_with("attn.out.weight") || name.ends_with("mlp.fc2.weight");
        match name {
            _ if name.ends_with("gate") => {
                let layer = name.split('.').nth(1).and_then(|n| n.parse::<usize>().ok());
                let sign = if layer.unwrap_or(0).is_multiple_of(2) { 1.0 } else { -1.0 };
                Spread { mean: 0.5 * sign, reach: 0.2 }
            }
            "resampler.latents" => centred(1.0),
            "vision.class_embedding" | "vision.position_embedding" => centred(0.2),
            "language.embedding.weight" | "language.head.weight" => centred(2.0 / last.sqrt()),
            _ if name.ends_with(".bias") => centred(0.02),
            _ if shape.len() == 1 => Spread { mean: 1.0, reach: 0.1 },
            _ if is_output => centred(1.0 / (last * 2.0 * layers as f32).sqrt()),
            _ => centred(1.0 / last.sqrt()),
        }
    }

    /// What training from nothing starts from. Resampler and gated blocks as upstream makes them
    /// (uniform to 1/sqrt(inputs), gates 0: `open_flamingo/src/helpers.py`); the vision tower as
    /// `open_clip` does; the language model's outputs scaled down by depth, as in GPT-2.
    fn untrained(name: &str, shape: &[usize], config: &Config, gain: u16) -> Self {
        let centred = |deviation: f32| Spread { mean: 0.0, reach: deviation * 3f32.sqrt() };
        let last = *shape.last().unwrap_or(&1) as f32;
        let part = name.split('.').next().unwrap_or_default();
        let depth = match part {
            "vision" => 2.0 * config.vision.layers as f32,
            _ => 2.0 * config.language.layers as f32,
        };
        let is_output = name.ends_with("attn.out.weight") || name.ends_with("mlp.fc2.weight");
        match name {
            _ if name.ends_with("gate") || name.ends_with(".bias") => centred(0.0),
            "resampler.latents" => centred(1.0),
            "vision.class_embedding" => centred(last.powf(-0.5)),
            // Logits of a tied head start small.
            "language.embedding.weight" | "language.head.weight" => centred(0.5 * last.powf(-0.5)),
            _ if shape.len() == 1 => Spread { mean: 1.0, reach: 0.0 },
            _ if part == "xattn" && is_output => {
                Spread { mean: 0.0, reach: f32::from(gain) * last.powf(-0.5) }
            }
            _ if part == "resampler" || part == "xattn" => {
                Spread { mean: 0.0, reach: last.powf(-0.5) }
            }
            _ if is_output => centred((last * depth).powf(-0.5)),
            _ => centred(last.powf(-0.5)),
        }
    }

    fn stream(
        &self,
        count: usize,
        (seed, name): (u64, &str),
        dtype: DType,
        sink: &mut Sink,
    ) -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let digest = Sha256::digest(name.as_bytes());
        rng.set_stream(digest.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)));
        let mut random = vec![0u8; 2 * CHUNK.min(count)];
        let mut out = vec![0u8; dtype.size() * CHUNK.min(count)];
        let mut left = count;
        while left > 0 {
            let n = left.min(CHUNK);
            rng.fill_bytes(&mut random[..2 * n]);
            let out = &mut out[..dtype.size() * n];
            match dtype {
                DType::F32 => self.fill::<f32, 4>(&random, out, f32::to_le_bytes),
                DType::BF16 => self.fill::<bf16, 2>(&random, out, bf16::to_le_bytes),
                _ => self.fill::<f16, 2>(&random, out, f16::to_le_bytes),
            }
            sink(out)?;
            left -= n;
        }
        Ok(())
    }

    /// The same numbers in memory.
    fn values(&self, count: usize, address: (u64, &str)) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(count);
        let mut sink = |bytes: &[u8]| {
            let cells = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            values.extend(cells);
            Ok(())
        };
        self.stream(count, address, DType::F32, &mut sink)?;
        Ok(values)
    }

    /// Two random bytes make one element.
    fn fill<T: Real, const N: usize>(
        &self,
        random: &[u8],
        out: &mut [u8],
        bytes: impl Fn(T) -> [u8; N],
    ) {
        let step = self.reach / 32768.0;
        for (cell, r) in out.chunks_exact_mut(N).zip(random.chunks_exact(2)) {
            let x = self.mean + f32::from(i16::from_le_bytes([r[0], r[1]])) * step;
            cell.copy_from_slice(&bytes(T::from_f32(x)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(seed: u64, max_shard: u64, dtype: StoredDType) -> (tempfile::TempDir, Vec<FileSum>) {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model");
        let (preset, is_forced, start) = ("tiny".into(), false, Start::default());
        let options = Options { preset, output, seed, dtype, max_shard, is_forced, start };
        let files = synth(&options, &|_, _| {}).unwrap();
        (folder, files)
    }

    #[test]
    fn a_tiny_model_has_every_tensor_and_a_tokenizer() {
        let (folder, _) = make(1, 1 << 30, StoredDType::Bf16);
        let folder = folder.path().join("model");
        let config = Config::read(&folder.join("config.json")).unwrap();
        let weights = crate::weights::Weights::open(&folder).unwrap();
        for (name, shape) in config.tensors() {
            let tensor = weights.get(&name, &shape).unwrap();
            let values: Vec<f32> =
                tensor.view().read::<bf16>().unwrap().iter().map(|x| x.to_f32()).collect();
            assert!(values.iter().all(|x| x.is_finite()) && values.iter().any(|x| *x != 0.0));
            if name.contains("norm") && name.ends_with("weight") {
                assert!(values.iter().all(|x| (x - 1.0).abs() < 0.11), "{name}");
            }
        }
        assert!(weights.unused().is_empty());
        let tokenizer = crate::text::Tokenizer::open(&folder).unwrap();
        assert_eq!(tokenizer.vocab_size(), config.language.vocabulary);
        assert_eq!(tokenizer.leading(), config.tokens.leading);
    }

    #[test]
    fn the_seed_decides_and_shards_do_not() {
        let sum = |files: &[FileSum]| {
            let weights = files.iter().filter(|f| f.name.ends_with(".safetensors"));
            weights.map(|f| f.sha256.clone()).collect::<Vec<_>>()
        };
        let (_a, one) = make(1, 1 << 30, StoredDType::F32);
        let (_b, same) = make(1, 1 << 30, StoredDType::F32);
        let (_c, other) = make(2, 1 << 30, StoredDType::F32);
        assert_eq!(sum(&one), sum(&same));
        assert_ne!(sum(&one), sum(&other));
        let (sharded, files) = make(1, 300_000, StoredDType::F32);
        assert!(sum(&files).len() > 1);
        let value = |folder: &tempfile::TempDir| {
            let weights = crate::weights::Weights::open(&folder.path().join("model")).unwrap();
            let shape = [403, 64];
            weights.get("language.head.weight", &shape).unwrap().view().read::<f32>().unwrap()
        };
        assert_eq!(value(&_a), value(&sharded));
    }

    #[test]
    fn a_phantom_model_before_training_has_closed_gates_and_its_own_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model");
        let start = Start::Untrained { gain: 4 };
        let (preset, dtype) = ("phantom".into(), StoredDType::F32);
        let (max_shard, is_forced) = (1 << 30, false);
        let options = Options { preset, output, seed: 1, dtype, max_shard, is_forced, start };
        synth(&options, &|_, _| {}).unwrap();
        let opened = crate::engine::ModelFolder::open(&options.output).unwrap();
        for (name, shape) in opened.config.tensors() {
            let values = opened.weights.get(&name, &shape).unwrap().view().to_f32().unwrap();
            let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
            let expected = match name.as_str() {
                _ if name.ends_with("gate") || name.ends_with("bias") => 0.0,
                "resampler.latents" => 1.0,
                "vision.position_embedding" => 0.5,
                "xattn.3.attn.q.weight" => 1.0 / (3.0 * 128.0),
                "xattn.3.attn.out.weight" => 16.0 / (3.0 * 128.0),
                "language.layers.0.mlp.fc2.weight" => 1.0 / (256.0 * 12.0),
                _ if name.contains("norm") => 1.0,
                _ => continue,
            };
            assert!((square - expected).abs() <= 0.1 * expected, "{name}: {square}");
        }
    }
}
