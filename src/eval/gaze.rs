//! Where a model looked: cross-attention's weights on latents, and through the resampler's own
//! weights on patches. Computed on the host from what a probe shows of a pass; the pass itself
//! never stores its weights.
//!
//! A picture of attention is not an explanation: it says where information was taken from, not what
//! was made of it.

use crate::engine::{Engine, ModelFolder, Request};
use crate::model::Config;
use crate::tensor::View;
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// Shares of the patches of each image, for one row of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// The image that the row may see.
    pub image: usize,
    /// Patches on a side.
    pub side: usize,
    /// `side * side` shares that sum to 1, row-major.
    pub patches: Vec<f32>,
}

/// The weights that attention was made of.
pub struct Gaze {
    folder: ModelFolder,
}

/// A matrix on the host.
#[derive(Clone, Debug, Default)]
struct Matrix {
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }

    fn rows(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }

    fn block(&self, rows: std::ops::Range<usize>) -> Matrix {
        let data = self.data[rows.start * self.cols..rows.end * self.cols].to_vec();
        Matrix { cols: self.cols, data }
    }

    /// self W^T, W (outputs, inputs).
    fn times(&self, w: &Matrix) -> Matrix {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let row = |r| (0..w.rows()).map(move |o| dot(self.row(r), w.row(o)));
        Matrix { cols: w.rows(), data: (0..self.rows()).flat_map(row).collect() }
    }

    fn add(&mut self, other: &Matrix) {
        self.data.iter_mut().zip(&other.data).for_each(|(a, b)| *a += b);
    }

    /// LayerNorm, eps 1e-5, row by row.
    fn norm(&self, scale: &[f32], shift: &[f32]) -> Matrix {
        let row = |r| {
            let x = self.row(r);
            let n = x.len() as f32;
            let mean = x.iter().sum::<f32>() / n;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n;
            let inverse = (variance + 1e-5).sqrt().recip();
            let affine = scale.iter().zip(shift);
            x.iter().zip(affine).map(move |(x, (s, b))| (x - mean) * inverse * s + b)
        };
        Matrix { cols: self.cols, data: (0..self.rows()).flat_map(row).collect() }
    }
}

/// Attention weights (queries, keys) of each head.
fn weights(q: &Matrix, k: &Matrix, heads: usize) -> Vec<Matrix> {
    let head_dim = q.cols / heads.max(1);
    let scale = (head_dim as f32).powf(-0.5);
    let head = |h: usize| {
        let part = h * head_dim..(h + 1) * head_dim;
        let mut data = Vec::with_capacity(q.rows() * k.rows());
        for r in 0..q.rows() {
            let own = &q.row(r)[part.clone()];
            let score = |j| {
                let key = &k.row(j)[part.clone()];
                scale * own.iter().zip(key).map(|(a, b)| a * b).sum::<f32>()
            };
            let scores: Vec<f32> = (0..k.rows()).map(score).collect();
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = scores.iter().map(|s| (s - most).exp()).collect();
            let sum: f32 = powers.iter().sum();
            data.extend(powers.iter().map(|p| p / sum));
        }
        Matrix { cols: k.rows(), data }
    };
    (0..heads).map(head).collect()
}

/// The mean of matrices of one size.
fn mean(all: &[Matrix]) -> Matrix {
    let mut sum = all.first().cloned().unwrap_or_default();
    all.iter().skip(1).for_each(|m| sum.add(m));
    sum.data.iter_mut().for_each(|x| *x /= all.len() as f32);
    sum
}

impl Gaze {
    /// Of the model folder that the engine was opened with.
    ///
    /// # Errors
    /// As [`ModelFolder::open`].
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Gaze { folder: ModelFolder::open(folder)? })
    }

    /// Where each of `rows` (places among the prompt's tokens) looked, averaged over gated layers
    /// and heads; nothing for rows before the first image.
    ///
    /// # Errors
    /// As [`Engine::inspect`]; few-bit weights.
    pub fn looks(
        &self,
        engine: &mut Engine,
        request: &Request,
        rows: &[usize],
    ) -> Result<Vec<Option<Look>>> {
        let config = &self.folder.config;
        let mut shown: HashMap<String, Matrix> = HashMap::new();
        let mut failed = None;
        engine.inspect(request, &mut |name, view: View<'_>| {
            if is_needed(&name) {
                match view.to_f32() {
                    Ok(data) => drop(shown.insert(name, Matrix { cols: view.cols(), data })),
                    Err(e) => failed = Some(e),
                }
            }
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        let images = request.prompt.images().len();
        let patches: Vec<Matrix> =
            (0..images).map(|i| self.of_latents(&shown, i)).collect::<Result<_>>()?;
        let side = config.vision.image_size / config.vision.patch_size;
        let mut looks = Vec::with_capacity(rows.len());
        for &row in rows {
            let before = request.prompt.markers().iter().filter(|&&m| m <= row).count();
            let Some(image) = before.checked_sub(1) else {
                looks.push(None);
                continue;
            };
            let shares = self.of_row(&shown, row, image)?;
            let mut seen = vec![0.0; side * side];
            for (l, share) in shares.iter().enumerate() {
                seen.iter_mut().zip(patches[image].row(l)).for_each(|(s, p)| *s += share * p);
            }
            looks.push(Some(Look { image, side, patches: seen }));
        }
        Ok(looks)
    }

    /// Shares (latents) of one row of text, averaged over the gated layers.
    fn of_row(&self, shown: &Shown, row: usize, image: usize) -> Result<Vec<f32>> {
        let layers = self.folder.config.gated_layers();
        let shares = layers.map(|layer| Ok(mean(&self.of_layer(shown, layer, row, image)?.0)));
        Ok(mean(&shares.collect::<Result<Vec<_>>>()?).data)
    }

    /// Shares (1, latents) of one row in one gated layer, head by head, and the values (latents,
    /// heads * head_dim) that they weigh.
    fn of_layer(
        &self,
        shown: &Shown,
        layer: usize,
        row: usize,
        image: usize,
    ) -> Result<(Vec<Matrix>, Matrix)> {
        let config = &self.folder.config;
        let (count, inner) = (config.resampler.latents, config.inner_widths().1);
        let latents = get(shown, "resampler.out")?.block(image * count..(image + 1) * count);
        let at = format!("xattn.{layer}.attn");
        let x = match layer {
            0 => get(shown, "lm.embed")?,
            _ => get(shown, &format!("lm.{:02}.layer_out", layer - 1))?,
        };
        let q = self.norm(&x.block(row..row + 1), &format!("{at}.norm"))?;
        let q = q.times(&self.weight(&format!("{at}.q.weight"))?);
        let kv = self.weight(&format!("{at}.kv.weight"))?;
        let k = latents.times(&kv.block(0..inner));
        let v = latents.times(&kv.block(inner..2 * inner));
        Ok((weights(&q, &k, config.cross_attention.heads), v))
    }

    /// Shares (latents, patches) of an image's latents, averaged over the resampler's layers; what
    /// latents took from each other is left out.
    fn of_latents(&self, shown: &Shown, image: usize) -> Result<Matrix> {
        let Config { resampler: r, .. } = &self.folder.config;
        let (patches, inner) = (self.folder.config.patches(), r.heads * r.head_dim);
        let media = get(shown, "vision.tokens")?.block(image * patches..(image + 1) * patches);
        let mut x = self.weight("resampler.latents")?;
        let mut seen = Matrix { cols: patches, data: vec![0.0; r.latents * patches] };
        for i in 0..r.layers {
            let at = format!("resampler.layers.{i}.attn");
            let latents = self.norm(&x, &format!("{at}.norm_latents"))?;
            let mut keys = self.norm(&media, &format!("{at}.norm_media"))?;
            keys.data.extend(&latents.data);
            let q = latents.times(&self.weight(&format!("{at}.q.weight"))?);
            let kv = self.weight(&format!("{at}.kv.weight"))?;
            let shares = mean(&weights(&q, &keys.times(&kv.block(0..inner)), r.heads));
            for l in 0..r.latents {
                let own = &shares.row(l)[..patches];
                let sum = own.iter().sum::<f32>().max(f32::MIN_POSITIVE) * r.layers as f32;
                let cells = &mut seen.data[l * patches..(l + 1) * patches];
                cells.iter_mut().zip(own).for_each(|(c, s)| *c += s / sum);
            }
            // The layer itself, from what it added.
            for part in ["attn_raw", "ff_raw"] {
                let added = get(shown, &format!("resampler.{i}.{part}"))?;
                x.add(&added.block(image * r.latents..(image + 1) * r.latents));
            }
        }
        Ok(seen)
    }

    fn weight(&self, name: &str) -> Result<Matrix> {
        let tensors = self.folder.config.tensors();
        let shape = tensors.into_iter().find(|(n, _)| n == name).map(|(_, shape)| shape);
        let shape = shape.ok_or_else(|| Error::invalid(name, "a tensor of the model", "none"))?;
        let data = self.folder.weights.get(name, &shape)?.view().to_f32()?;
        Ok(Matrix { cols: shape.last().copied().unwrap_or(1), data })
    }

    fn norm(&self, x: &Matrix, at: &str) -> Result<Matrix> {
        let part = |name: &str| self.weight(&format!("{at}.{name}"));
        Ok(x.norm(&part("weight")?.data, &part("bias")?.data))
    }
}

type Shown = HashMap<String, Matrix>;

fn get<'a>(shown: &'a Shown, name: &str) -> Result<&'a Matrix> {
    shown.get(name).ok_or_else(|| Error::invalid("probe", name, "nothing of that name"))
}

fn is_needed(name: &str) -> bool {
    name == "vision.tokens"
        || name == "lm.embed"
        || name.starts_with("resampler.")
        || name.ends_with(".layer_out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::synth::{Options, Start, synth};
    use crate::engine::{EngineOptions, GenerateOptions};
    use crate::model::config::StoredDType;
    use crate::phantom::{Control, Exam};

    /// The shares are the ones that the pass used: with them, values give what each gated block
    /// added, and the resampler's last layer what the probe shows of it.
    #[test]
    fn shares_and_values_give_what_the_pass_added() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model");
        let (dtype, start, seed) = (StoredDType::F32, Start::Trained, 8);
        let (preset, max_shard) = ("phantom".to_string(), 1 << 30);
        let (is_forced, path) = (false, output.clone());
        synth(&Options { preset, output, seed, dtype, max_shard, is_forced, start }, &|_, _| {})
            .unwrap();
        let mut engine = Engine::open(&path, &EngineOptions::default()).unwrap();
        let gaze = Gaze::open(&path).unwrap();
        let item = &Exam::new(7, 1, 2).unwrap().known[0];
        let (text, pictures) = item.prompt(Control::Normal, false).unwrap();
        let images = pictures.iter().map(|p| engine.picture(p).unwrap()).collect();
        let request = engine.request(&text, images, GenerateOptions::default()).unwrap();
        let mut shown = Shown::new();
        let mut see = |name: String, view: View<'_>| {
            let data = view.to_f32().unwrap();
            shown.insert(name, Matrix { cols: view.cols(), data });
        };
        engine.inspect(&request, &mut see).unwrap();
        let row = request.prompt.len() - 1;
        for layer in engine.model().config().gated_layers() {
            let (shares, values) = gaze.of_layer(&shown, layer, row, 2).unwrap();
            let head_dim = values.cols / shares.len();
            let cell = |c: usize| -> f32 {
                let share = &shares[c / head_dim];
                (0..values.rows()).map(|l| share.data[l] * values.row(l)[c]).sum()
            };
            let data = (0..values.cols).map(cell).collect();
            let attended = Matrix { cols: values.cols, data };
            let out = gaze.weight(&format!("xattn.{layer}.attn.out.weight")).unwrap();
            let expected = &shown[&format!("lm.{layer:02}.gated_attn_raw")];
            for (a, b) in attended.times(&out).data.iter().zip(expected.row(row)) {
                assert!((a - b).abs() < 2e-4, "layer {layer}: {a} {b}");
            }
        }
    }
}
