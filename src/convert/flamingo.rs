//! The Flamingo part of a configuration, from the shapes in its checkpoint alone: interval of the
//! gated blocks, heads, latents, widths.

use super::names::{Layout, canonical, unwrapped};
use super::source::Source;
use crate::checkpoint::Checkpoint;
use crate::model::config::{CrossAttention, Language, Resampler};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Width of a head in every release (open_flamingo/src/helpers.py, `dim_head`).
const HEAD_DIM: usize = 64;

/// Opens a checkpoint under canonical names.
///
/// # Errors
/// A file that is no checkpoint; aliases that differ; one of another language model's family.
pub(super) fn open(path: &Path, layout: Layout) -> Result<Source> {
    let checkpoint = Checkpoint::open(path)?;
    // Releases before 2.0 keep CLIP's text tower beside `visual`.
    let is_v1 = checkpoint.names().any(|n| unwrapped(n).starts_with("vision_encoder.visual."));
    let source = Source::new("flamingo", checkpoint, |key| canonical(key, layout, is_v1))?;
    let has = |start: &str| source.names().any(|n| n.starts_with(start));
    let others = [Layout::Llama, Layout::Mpt, Layout::GptNeox];
    let other = others
        .iter()
        .filter(|o| o.layers() != layout.layers())
        .find(|o| has(&format!("lang_encoder.{}", o.embedding())));
    if let Some(other) = other {
        let expected = format!("lang_encoder.{}", layout.embedding());
        let found = format!("lang_encoder.{}", other.embedding());
        return Err(Error::invalid(path.display(), expected, found)
            .advise("the checkpoint belongs to another family of language models"));
    }
    if !has("perceiver.") || !has("gated.") {
        let expected = "an OpenFlamingo checkpoint (perceiver.*, lang_encoder.*gated_cross_attn*)";
        let found = source.names().min().unwrap_or("nothing").to_string();
        return Err(Error::invalid(path.display(), expected, format!("`{found}`")));
    }
    Ok(source)
}

fn dims<const N: usize>(source: &Source, name: &str) -> Result<[usize; N]> {
    let label = source.label(name);
    let entry =
        source.get(name).ok_or_else(|| Error::invalid(&label, "a tensor", "no such key"))?;
    let shape = entry.shape.as_slice();
    shape.try_into().map_err(|_| Error::invalid(&label, format!("{N} sizes"), format!("{shape:?}")))
}

fn heads(source: &Source, name: &str) -> Result<usize> {
    let [inner, _] = dims(source, name)?;
    if inner == 0 || !inner.is_multiple_of(HEAD_DIM) {
        let expected = format!("rows that are a multiple of {HEAD_DIM}");
        return Err(Error::invalid(source.label(name), expected, inner));
    }
    Ok(inner / HEAD_DIM)
}

/// # Errors
/// Tensors that are missing or shaped like no resampler; embeddings of frames or of media times,
/// which no release has.
pub(super) fn resampler(source: &Source) -> Result<Resampler> {
    for name in ["perceiver.frame_embs", "perceiver.media_time_embs"] {
        if source.get(name).is_some() {
            return Err(Error::invalid(source.label(name), "no such key", "one")
                .advise("resamplers with embeddings of frames or times are not supported"));
        }
    }
    let [latents, _] = dims(source, "perceiver.latents")?;
    let [mlp_width, _] = dims(source, "perceiver.layers.0.1.1.weight")?;
    let layers = source.layers("perceiver.layers.");
    let heads = heads(source, "perceiver.layers.0.0.to_q.weight")?;
    Ok(Resampler { layers, heads, head_dim: HEAD_DIM, latents, mlp_width })
}

/// # Errors
/// Blocks that do not stand at a fixed interval through all layers, or beyond the last layer.
pub(super) fn cross_attention(source: &Source, language: &Language) -> Result<CrossAttention> {
    let number = |n: &str| n.strip_prefix("gated.")?.split('.').next()?.parse::<usize>().ok();
    let blocks: BTreeSet<usize> = source.names().filter_map(number).collect();
    let who = format!("{}: decoder layers with a gated block", source.path().display());
    let (Some(&first), Some(&last)) = (blocks.first(), blocks.last()) else {
        return Err(Error::invalid(who, "at least one", "none"));
    };
    let every = first.saturating_add(1);
    let expected: BTreeSet<usize> =
        (0..language.layers).filter(|l| (l + 1).is_multiple_of(every)).collect();
    if blocks != expected {
        let expected = format!("every {every} of {} layers", language.layers);
        let found = format!("{} blocks, the last before layer {last}", blocks.len());
        return Err(Error::invalid(who, expected, found)
            .advise("the checkpoint was trained with another language model"));
    }
    let [width, _] = dims(source, &format!("gated.{first}.attn.to_out.weight"))?;
    if width != language.width {
        let who = source.label(&format!("gated.{first}.attn.to_out.weight"));
        let expected = format!("{} rows, the language model's width", language.width);
        return Err(Error::invalid(who, expected, width)
            .advise("the checkpoint was trained with another language model"));
    }
    let heads = heads(source, &format!("gated.{first}.attn.to_q.weight"))?;
    let [mlp_width, _] = dims(source, &format!("gated.{first}.ff.1.weight"))?;
    Ok(CrossAttention { every, heads, head_dim: HEAD_DIM, mlp_width })
}
