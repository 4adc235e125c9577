//! What is in a model folder or a checkpoint: tensors, parameters by part, and the memory it takes
//! to run at each precision.

use super::quantize::{Choice, Precision};
use super::write::Spec;
use crate::checkpoint::Checkpoint;
use crate::model::Config;
use crate::weights::{SCALES, Weights};
use crate::{DType, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A model folder, file or checkpoint at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub path: String,
    pub format: String,
    pub tensors: Vec<Line>,
    pub parameters: u64,
    pub bytes: u64,
    /// Parameters by the part of the model they belong to.
    pub parts: Vec<Part>,
    /// Contents that are not tensors, with the reason why they are left out.
    pub ignored: Vec<(String, String)>,
    /// Only of a model folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// Some of the parameters.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    pub name: String,
    pub tensors: u64,
    pub parameters: u64,
    pub bytes: u64,
}

/// What a model folder's configuration implies.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    pub family: String,
    pub layers: usize,
    pub gated_blocks: usize,
    pub vocabulary: usize,
    pub context: usize,
    pub memory: Vec<Memory>,
}

/// Bytes needed to run at one precision; int8 and int4 are what `quantize` makes of all parts.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub precision: String,
    /// Weights.
    pub weights: u64,
    /// Self-attention keys and values of one token, and of the whole context.
    pub kv_per_token: u64,
    pub kv_full_context: u64,
    /// Media keys and values of one image in all gated blocks.
    pub per_image: u64,
    /// Weights, 300 tokens, and one image.
    pub at_300_tokens: u64,
    /// Weights, the whole context, and one image.
    pub total: u64,
}

/// Reads headers only.
///
/// # Errors
/// What cannot be opened as a model folder or a checkpoint.
pub fn inspect(path: &Path) -> Result<Report> {
    if path.is_dir() && super::is_model_folder(path) {
        let config = Config::read(&path.join("config.json"))?;
        let weights = Weights::open(path)?;
        let mut report = report(path, "model folder", joined(lines(weights.iter())));
        report.model = Some(model(&config));
        return Ok(report);
    }
    let checkpoint = Checkpoint::open(path)?;
    let mut report = report(path, &checkpoint.format().to_string(), lines(checkpoint.iter()));
    report.ignored = checkpoint.ignored().to_vec();
    Ok(report)
}

/// As [`inspect`], of a published model that need not be there.
///
/// # Errors
/// If no preset has this name.
pub fn inspect_preset(name: &str) -> Result<Report> {
    let config = crate::model::preset(name)?;
    let dtype = DType::from(config.dtype);
    let line = |(name, shape): (String, Vec<usize>)| {
        let bytes = (shape.iter().product::<usize>() * dtype.size()) as u64;
        Line { name, dtype: dtype.to_string(), shape, bytes }
    };
    let tensors = config.tensors().into_iter().map(line).collect();
    let mut report = report(Path::new(name), "preset", tensors);
    report.model = Some(model(&config));
    Ok(report)
}

/// Codes and their scales as the one matrix that they are.
fn joined(lines: Vec<Line>) -> Vec<Line> {
    let of = |line: &Line, ending: &str| line.name.strip_suffix(ending).map(String::from);
    let scales: BTreeMap<String, u64> =
        lines.iter().filter_map(|l| Some((of(l, SCALES)?, l.bytes))).collect();
    let mut joined: Vec<_> = lines.into_iter().filter(|l| of(l, SCALES).is_none()).collect();
    for line in &mut joined {
        let Some(scales) = of(line, ".weight").and_then(|at| scales.get(&at)) else { continue };
        line.bytes += scales;
        let is_int8 = line.dtype == DType::I8.name();
        let precision = if is_int8 { Precision::Int8 } else { Precision::Int4 };
        line.dtype = precision.name().into();
        if let (false, Some(cols)) = (is_int8, line.shape.last_mut()) {
            *cols *= 2;
        }
    }
    joined
}

fn lines<'a>(entries: impl Iterator<Item = (&'a str, &'a crate::checkpoint::Entry)>) -> Vec<Line> {
    entries
        .map(|(name, entry)| Line {
            name: name.into(),
            dtype: entry.dtype.to_string(),
            shape: entry.shape.clone(),
            bytes: entry.bytes() as u64,
        })
        .collect()
}

fn report(path: &Path, format: &str, tensors: Vec<Line>) -> Report {
    let count = |line: &Line| line.shape.iter().map(|&d| d as u64).product::<u64>();
    let mut parts: BTreeMap<&str, Part> = BTreeMap::new();
    for line in &tensors {
        let name = part_of(&line.name);
        let new = || Part { name: name.into(), tensors: 0, parameters: 0, bytes: 0 };
        let part = parts.entry(name).or_insert_with(new);
        part.tensors += 1;
        part.parameters += count(line);
        part.bytes += line.bytes;
    }
    Report {
        path: path.display().to_string(),
        format: format.into(),
        parameters: tensors.iter().map(count).sum(),
        bytes: tensors.iter().map(|t| t.bytes).sum(),
        parts: parts.into_values().collect(),
        tensors,
        ignored: Vec::new(),
        model: None,
    }
}

/// Which part of a Flamingo model a key belongs to, in ours or in anybody's naming.
fn part_of(name: &str) -> &'static str {
    let has = |part: &str| name.contains(part);
    if has("optimizer") {
        "optimiser"
    } else if name.starts_with("resampler.") || has("perceiver.") {
        "resampler"
    } else if name.starts_with("xattn.") || has("gated_cross_attn") {
        "gated cross-attention"
    } else if name.starts_with("vision.") || has("visual.") || has("vision_model.") {
        "vision"
    } else if has("vision_encoder.") {
        "vision and CLIP's text tower"
    } else if has("embedding.weight") || has("embed_tokens") || has("wte") || has("embed_in") {
        "embedding"
    } else if has("language.head") || has("lm_head") || has("embed_out") {
        "output head"
    } else if name.starts_with("language.") || has("layers.") || has("blocks.") {
        "decoder"
    } else {
        "other"
    }
}

fn model(config: &Config) -> Model {
    let l = &config.language;
    let parameters: u64 =
        config.tensors().iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum();
    let quantized = |precision| {
        let specs = Choice::all(precision).stored(config);
        specs.iter().filter_map(Spec::bytes).sum::<usize>() as u64
    };
    let kv = 2 * (l.layers * l.width) as u64;
    let blocks = config.gated_layers().count();
    let media = (2 * blocks * config.resampler.latents * config.inner_widths().1) as u64;
    let memory = |precision: &str, weights: u64, cache: u64| {
        let (kv_full_context, per_image) = (kv * cache * l.context as u64, media * cache);
        Memory {
            precision: precision.into(),
            weights,
            kv_per_token: kv * cache,
            kv_full_context,
            per_image,
            at_300_tokens: weights + 300 * kv * cache + per_image,
            total: weights + kv_full_context + per_image,
        }
    };
    Model {
        family: serde_json::json!(l.family).as_str().unwrap_or_default().into(),
        layers: l.layers,
        gated_blocks: blocks,
        vocabulary: l.vocabulary,
        context: l.context,
        memory: vec![
            memory("f32", parameters * 4, 4),
            memory("bf16", parameters * 2, 2),
            memory("f16", parameters * 2, 2),
            memory("int8", quantized(Precision::Int8), 2),
            memory("int4", quantized(Precision::Int4), 2),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn med_flamingo_takes_what_it_takes() {
        let model = model(&crate::model::preset("med-flamingo-9b").unwrap());
        let of = |p: &str| model.memory.iter().find(|m| m.precision == p).unwrap().clone();
        // 2 (k, v) x 32 layers x 4096 x 2 bytes.
        assert_eq!(of("bf16").kv_per_token, 524_288);
        assert_eq!(of("bf16").kv_full_context, 1 << 30);
        assert_eq!(of("f32").weights, 2 * of("bf16").weights);
        assert_eq!(model.gated_blocks, 8);
        // 6.74 G of LLaMA, 1.12 G of blocks, 0.37 G of CLIP and resampler.
        assert!((of("bf16").weights as f64 / 2e9 - 8.22).abs() < 0.02, "{}", of("bf16").weights);
        // The promises, with 300 tokens of 512 KiB each and an image.
        assert_eq!(of("int4").at_300_tokens - of("int4").weights, 300 * 524_288 + (1 << 20));
        assert!(of("bf16").at_300_tokens <= 17_200_000_000);
        assert!(of("int8").at_300_tokens <= 8_900_000_000, "{:?}", of("int8"));
        assert!(of("int4").at_300_tokens <= 5_200_000_000, "{:?}", of("int4"));
    }

    #[test]
    fn keys_of_every_naming_have_a_part() {
        for (name, part) in [
            (
                "lang_encoder.model.layers.3.gated_cross_attn_layer.ff.1.weight",
                "gated cross-attention",
            ),
            ("module.perceiver.latents", "resampler"),
            ("vision_encoder.visual.proj", "vision"),
            ("vision.layers.0.norm_1.bias", "vision"),
            ("language.layers.0.norm_1.weight", "decoder"),
            ("gpt_neox.embed_in.weight", "embedding"),
            ("lm_head.weight", "output head"),
        ] {
            assert_eq!(part_of(name), part);
        }
    }
}
