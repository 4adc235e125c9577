//! CLIP's vision transformer: pixels to patch tokens, as Flamingo uses them - the last block's
//! output, before `ln_post`, without the class token.

use super::config::{Activation, Config};
use super::layers::{Linear, Norm};
use super::probe::Probe;
use crate::device::Stream;
use crate::image::Preprocess;
use crate::ops::{self, Epilogue, Out};
use crate::tensor::{Arena, Tensor};
use crate::weights::Weights;
use crate::{DType, Result};

/// The tower (`open_clip` `VisionTransformer`).
pub struct Vision {
    /// What bytes stand for, (3, 256) f32.
    levels: Tensor,
    patch_embedding: Linear,
    /// Its inputs: the pixels of a patch, and zeros.
    patch_inputs: usize,
    class_embedding: Tensor,
    position_embedding: Tensor,
    ln_pre: Norm,
    layers: Vec<Layer>,
    ln_post: Norm,
    projection: Linear,
    shape: super::config::Vision,
    dtype: DType,
}

struct Layer {
    norm_1: Norm,
    qkv: Linear,
    out: Linear,
    norm_2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Vision {
    pub fn load(
        stream: &Stream,
        weights: &Weights,
        config: &Config,
        preprocess: &Preprocess,
    ) -> Result<Self> {
        let v = &config.vision;
        let (d, eps) = (v.width, v.norm_eps);
        let layer = |i: usize| {
            let at = format!("vision.layers.{i}");
            Ok(Layer {
                norm_1: Norm::layer(weights, &format!("{at}.norm_1"), d, true, eps)?,
                qkv: Linear::load(weights, &format!("{at}.attn.qkv"), 3 * d, d, true)?,
                out: Linear::load(weights, &format!("{at}.attn.out"), d, d, true)?,
                norm_2: Norm::layer(weights, &format!("{at}.norm_2"), d, true, eps)?,
                fc1: Linear::load(weights, &format!("{at}.mlp.fc1"), v.mlp_width, d, true)?,
                fc2: Linear::load(weights, &format!("{at}.mlp.fc2"), d, v.mlp_width, true)?,
            })
        };
        let pixels = 3 * v.patch_size * v.patch_size;
        let tokens = 1 + config.patches();
        let patch_embedding = Linear::load(weights, "vision.patch_embedding", d, pixels, false)?;
        let (patch_embedding, patch_inputs) = patch_embedding.reachable(stream, pixels)?;
        Ok(Vision {
            levels: upload_levels(stream, preprocess)?,
            patch_embedding,
            patch_inputs,
            class_embedding: weights.get("vision.class_embedding", &[d])?,
            position_embedding: weights.get("vision.position_embedding", &[tokens, d])?,
            ln_pre: Norm::layer(weights, "vision.ln_pre", d, true, eps)?,
            layers: (0..v.layers).map(layer).collect::<Result<_>>()?,
            ln_post: Norm::layer(weights, "vision.ln_post", d, true, eps)?,
            projection: Linear::load(weights, "vision.projection", v.projection, d, false)?,
            shape: v.clone(),
            dtype: config.dtype.into(),
        })
    }

    fn patches(&self) -> usize {
        let side = self.shape.image_size / self.shape.patch_size;
        side * side
    }

    /// Columns of the tokens.
    pub fn width(&self) -> usize {
        self.shape.width
    }

    /// Arena bytes that [`Vision::run`] takes for `images` images.
    pub fn scratch(&self, images: usize) -> usize {
        let v = &self.shape;
        let rows = images * (1 + self.patches());
        let columns =
            [self.patch_inputs, v.width, v.width, v.width, 3 * v.width, v.width, v.mlp_width];
        columns.iter().map(|c| Arena::footprint(self.dtype, rows * c)).sum()
    }

    /// Tokens (images * (1+P), Dv), class token first, of `pixels` (images, 3, S, S) u8.
    pub fn run(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        pixels: &Tensor,
        probe: &mut Probe<'_>,
    ) -> Result<Tensor> {
        let v = &self.shape;
        let (images, patches, d) = (pixels.shape().sizes()[0], self.patches(), v.width);
        let rows = images * (1 + patches);
        let mut x = arena.take(self.dtype, &[rows, d])?;
        let mut cut = arena.take(self.dtype, &[images * patches, self.patch_inputs])?;
        let mut embedded = arena.take(self.dtype, &[images * patches, d])?;
        let mut room = Room {
            normed: arena.take(self.dtype, &[rows, d])?,
            qkv: arena.take(self.dtype, &[rows, 3 * d])?,
            attended: arena.take(self.dtype, &[rows, d])?,
            hidden: arena.take(self.dtype, &[rows, v.mlp_width])?,
        };

        let levels = self.levels.view();
        ops::patchify(stream, cut.view_mut(), pixels.view(), levels, v.patch_size)?;
        self.patch_embedding.run(stream, embedded.view_mut(), cut.view(), Epilogue::default())?;
        let (class, position) = (self.class_embedding.view(), self.position_embedding.view());
        ops::vision_tokens(stream, x.view_mut(), embedded.view(), class, position)?;
        self.ln_pre.run_in_place(stream, x.view_mut())?;
        probe.see(|| "vision.ln_pre".into(), x.view());
        for (i, layer) in self.layers.iter().enumerate() {
            self.layer(stream, layer, &mut x, &mut room, images)?;
            probe.see(|| format!("vision.block.{i:02}"), x.view());
        }
        self.show(stream, probe, &x, images)?;
        Ok(x)
    }

    /// Shows a watcher the patch tokens without the class token, and CLIP's pooled embedding of
    /// each image: ln_post(class token) projected, (images, E).
    fn show(
        &self,
        stream: &Stream,
        probe: &mut Probe<'_>,
        x: &Tensor,
        images: usize,
    ) -> Result<()> {
        if !probe.is_watched() {
            return Ok(());
        }
        let (d, patches) = (self.shape.width, self.patches());
        let mut tokens = Tensor::zeros(stream, self.dtype, &[images * patches, d])?;
        let mut class = Tensor::zeros(stream, self.dtype, &[images, d])?;
        let mut normed = Tensor::zeros(stream, self.dtype, &[images, d])?;
        for i in 0..images {
            let first = i * (1 + patches);
            let own = x.view().block(first + 1..first + 1 + patches, 0..d)?;
            tokens.view_mut().block(i * patches..(i + 1) * patches, 0..d)?.copy_from(own)?;
            let own = x.view().block(first..first + 1, 0..d)?;
            class.view_mut().block(i..i + 1, 0..d)?.copy_from(own)?;
        }
        probe.see(|| "vision.tokens".into(), tokens.view());
        self.ln_post.run(stream, normed.view_mut(), class.view())?;
        self.projection.show(stream, probe, || "vision.pooled".into(), normed.view())
    }

    fn layer(
        &self,
        stream: &Stream,
        layer: &Layer,
        x: &mut Tensor,
        room: &mut Room,
        images: usize,
    ) -> Result<()> {
        let v = &self.shape;
        let (d, rows) = (v.width, x.shape().rows());
        let Room { normed, qkv, attended, hidden } = room;
        layer.norm_1.run(stream, normed.view_mut(), x.view())?;
        layer.qkv.run(stream, qkv.view_mut(), normed.view(), Epilogue::default())?;
        let part = |i: usize| qkv.view().block(0..rows, i * d..(i + 1) * d);
        let (q, k, value) = (part(0)?, part(1)?, part(2)?);
        let scale = ((d / v.heads) as f32).powf(-0.5);
        let keys = [(k, value)];
        ops::attention(stream, attended.view_mut(), q, &keys, images, v.heads, scale)?;
        let add = Epilogue { out: Out::Accumulate, ..Epilogue::default() };
        layer.out.run(stream, x.view_mut(), attended.view(), add)?;
        layer.norm_2.run(stream, normed.view_mut(), x.view())?;
        let activation = match v.activation {
            Activation::Gelu => ops::Activation::Gelu,
            Activation::QuickGelu => ops::Activation::QuickGelu,
        };
        let bend = Epilogue { activation, ..Epilogue::default() };
        layer.fc1.run(stream, hidden.view_mut(), normed.view(), bend)?;
        layer.fc2.run(stream, x.view_mut(), hidden.view(), add)
    }
}

/// What bytes of each channel stand for, (3, 256) f32.
pub(super) fn upload_levels(stream: &Stream, preprocess: &Preprocess) -> Result<Tensor> {
    Tensor::upload(stream, preprocess.levels().as_flattened(), &[3, 256])
}

/// Intermediates, shared by all layers.
struct Room {
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    hidden: Tensor,
}
