//! CLIP's vision transformer in training: pixels to patch tokens, before `ln_post`, without the
//! class token.

use super::super::config::{self, Config};
use super::super::vision::upload_levels;
use super::layers::{Linear, Norm, add_column_sums};
use super::parameters::{Id, Parameters};
use super::pass::{Keep, Kept, Pass};
use crate::device::Stream;
use crate::image::Preprocess;
use crate::ops::{self, Activation, Out};
use crate::tensor::{Tensor, View};
use crate::{DType, Result};

pub(super) struct Vision {
    /// What bytes stand for, (3, 256) f32.
    levels: Tensor,
    patch_embedding: Linear,
    class_embedding: Id,
    position_embedding: Id,
    ln_pre: Norm,
    layers: Vec<Layer>,
    shape: config::Vision,
}

struct Layer {
    norm_1: Norm,
    qkv: Linear,
    out: Linear,
    norm_2: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// What backward reads of a layer.
struct SavedLayer {
    input: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    middle: Tensor,
    mlp_normed: Tensor,
    /// Before the activation.
    fc1: Tensor,
    hidden: Tensor,
}

/// What backward reads.
pub(super) struct Saved {
    /// Patches as rows of pixels, (images*P, 3*patch^2).
    cut: Tensor,
    /// The tokens before `ln_pre`.
    tokens: Tensor,
    layers: Vec<Kept<SavedLayer>>,
}

impl Vision {
    pub fn new(
        stream: &Stream,
        params: &Parameters,
        config: &Config,
        preprocess: &Preprocess,
    ) -> Result<Self> {
        let eps = config.vision.norm_eps;
        let layer = |i: usize| {
            let at = format!("vision.layers.{i}");
            let linear = |name: &str| Linear::new(params, &format!("{at}.{name}"), true);
            Ok(Layer {
                norm_1: Norm::layer(params, &format!("{at}.norm_1"), true, eps)?,
                qkv: linear("attn.qkv")?,
                out: linear("attn.out")?,
                norm_2: Norm::layer(params, &format!("{at}.norm_2"), true, eps)?,
                fc1: linear("mlp.fc1")?,
                fc2: linear("mlp.fc2")?,
            })
        };
        Ok(Vision {
            levels: upload_levels(stream, preprocess)?,
            patch_embedding: Linear::new(params, "vision.patch_embedding", false)?,
            class_embedding: params.id("vision.class_embedding")?,
            position_embedding: params.id("vision.position_embedding")?,
            ln_pre: Norm::layer(params, "vision.ln_pre", true, eps)?,
            layers: (0..config.vision.layers).map(layer).collect::<Result<_>>()?,
            shape: config.vision.clone(),
        })
    }

    /// Columns of the tokens.
    pub fn width(&self) -> usize {
        self.shape.width
    }

    fn patches(&self) -> usize {
        let side = self.shape.image_size / self.shape.patch_size;
        side * side
    }

    fn activation(&self) -> Activation {
        match self.shape.activation {
            config::Activation::Gelu => Activation::Gelu,
            config::Activation::QuickGelu => Activation::QuickGelu,
        }
    }

    /// Patch tokens (images*P, Dv) of `pixels` (images, 3, S, S) u8.
    pub fn forward(
        &self,
        pass: &mut Pass<'_>,
        pixels: &Tensor,
        keep: Keep,
    ) -> Result<(Tensor, Saved)> {
        let (stream, dtype) = (pass.stream, pass.dtype());
        let (images, patches) = (pixels.shape().sizes()[0], self.patches());
        let (d, patch) = (self.shape.width, self.shape.patch_size);
        let rows = images * (1 + patches);
        let mut cut = pass.keep(images * patches, 3 * patch * patch)?;
        ops::patchify(stream, cut.view_mut(), pixels.view(), self.levels.view(), patch)?;
        let mut embedded = pass.temp(images * patches, d)?;
        self.patch_embedding.apply(pass, &mut embedded, &cut)?;
        let mut tokens = pass.keep(rows, d)?;
        let (class, position) = (pass.view(self.class_embedding)?, self.position_embedding);
        let position = pass.view(position)?;
        ops::vision_tokens(stream, tokens.view_mut(), embedded.view(), class, position)?;
        drop(embedded);
        let mut x = pass.lasting(dtype, &[rows, d])?;
        self.ln_pre.run(pass, x.view_mut(), tokens.view())?;
        pass.release()?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let forward =
                |pass: &mut Pass<'_>, x: &mut Tensor| self.forward_layer(pass, layer, x, images);
            layers.push(pass.forward(keep, &mut x, forward)?);
        }
        let mut media = pass.lasting(dtype, &[images * patches, d])?;
        media.view_mut().shaped(&[images, patches * d])?.copy_from(patches_of(&x, images)?)?;
        Ok((media, Saved { cut, tokens, layers }))
    }

    fn forward_layer(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        x: &mut Tensor,
        images: usize,
    ) -> Result<SavedLayer> {
        let (rows, d, heads) = (x.shape().rows(), x.shape().cols(), self.shape.heads);
        let input = pass.keep_copy(x.view())?;
        let mut normed = pass.keep(rows, d)?;
        layer.norm_1.run(pass, normed.view_mut(), x.view())?;
        let mut qkv = pass.keep(rows, 3 * d)?;
        layer.qkv.apply(pass, &mut qkv, &normed)?;
        let mut attended = pass.keep(rows, d)?;
        let [q, k, v] = thirds(&qkv, d)?;
        let (o, scale) = (attended.view_mut(), self.scale());
        ops::attention(pass.stream, o, q, &[(k, v)], images, heads, scale)?;
        layer.out.add(pass, x, &attended)?;
        let middle = pass.keep_copy(x.view())?;
        let mut mlp_normed = pass.keep(rows, d)?;
        layer.norm_2.run(pass, mlp_normed.view_mut(), x.view())?;
        let mut fc1 = pass.keep(rows, self.shape.mlp_width)?;
        layer.fc1.apply(pass, &mut fc1, &mlp_normed)?;
        let mut hidden = pass.keep(rows, self.shape.mlp_width)?;
        ops::activation(pass.stream, hidden.view_mut(), fc1.view(), self.activation())?;
        layer.fc2.add(pass, x, &hidden)?;
        Ok(SavedLayer { input, normed, qkv, attended, middle, mlp_normed, fc1, hidden })
    }

    fn scale(&self) -> f32 {
        ((self.shape.width / self.shape.heads) as f32).powf(-0.5)
    }

    /// Adds up the gradients of all layers, given that of the patch tokens (images*P, Dv).
    pub fn backward(
        &self,
        pass: &mut Pass<'_>,
        dmedia: &Tensor,
        saved: Saved,
        images: usize,
    ) -> Result<()> {
        let (d, patches, rows) = (self.shape.width, self.patches(), saved.tokens.shape().rows());
        let mut dx = pass.lasting(pass.dtype(), &[rows, d])?;
        let own = dmedia.view().shaped(&[images, patches * d])?;
        let each = dx.view_mut().shaped(&[images, (1 + patches) * d])?;
        let (mut class, mut rest) = each.split_columns(d)?;
        class.zero()?;
        rest.copy_from(own)?;
        for ((i, layer), kept) in self.layers.iter().enumerate().zip(saved.layers).rev() {
            let forward =
                |pass: &mut Pass<'_>, x: &mut Tensor| self.forward_layer(pass, layer, x, images);
            let saved = pass.saved(kept, forward)?;
            self.backward_layer(pass, layer, &mut dx, &saved, images)?;
            drop(saved);
            pass.release()?;
            pass.done(&format!("vision.layers.{i}."))?;
        }
        let mut dtokens = pass.temp(rows, d)?;
        let (dy, x) = (dx.view(), saved.tokens.view());
        self.ln_pre.backward(pass, dtokens.view_mut(), Out::Overwrite, dy, x)?;
        pass.done("vision.ln_pre.")?;
        self.embedding_backward(pass, &dtokens, &saved.cut, images)
    }

    /// Gradients of patches, class and positions, given that of the first tokens.
    fn embedding_backward(
        &self,
        pass: &mut Pass<'_>,
        dtokens: &Tensor,
        cut: &Tensor,
        images: usize,
    ) -> Result<()> {
        let (d, patches) = (self.shape.width, self.patches());
        let mut dembedded = pass.temp(images * patches, d)?;
        let mut target = dembedded.view_mut().shaped(&[images, patches * d])?;
        target.copy_from(patches_of(dtokens, images)?)?;
        self.patch_embedding.weight_gradient(pass, dembedded.view(), cut.view(), None)?;
        pass.done("vision.patch_embedding.")?;
        let each = dtokens.view().shaped(&[images, (1 + patches) * d])?;
        if let Some(i) = pass.params.trained_as(self.position_embedding) {
            add_column_sums(pass, i, each)?;
        }
        pass.done("vision.position_embedding")?;
        if let Some(i) = pass.params.trained_as(self.class_embedding) {
            add_column_sums(pass, i, each.block(0..images, 0..d)?)?;
        }
        pass.done("vision.class_embedding")
    }

    fn backward_layer(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        d: &mut Tensor,
        saved: &SavedLayer,
        images: usize,
    ) -> Result<()> {
        let (stream, width, heads) = (pass.stream, self.shape.width, self.shape.heads);
        let (rows, hidden) = (d.shape().rows(), self.shape.mlp_width);
        let mut dnormed = pass.temp(rows, width)?;
        let (mut dhidden, mut dfc1) = (pass.temp(rows, hidden)?, pass.temp(rows, hidden)?);
        layer.fc2.weight_gradient(pass, d.view(), saved.hidden.view(), None)?;
        layer.fc2.input_gradient(pass, dhidden.view_mut(), Out::Overwrite, d.view())?;
        let (dy, x) = (dhidden.view(), saved.fc1.view());
        ops::activation_backward(stream, dfc1.view_mut(), dy, x, self.activation())?;
        layer.fc1.weight_gradient(pass, dfc1.view(), saved.mlp_normed.view(), None)?;
        layer.fc1.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dfc1.view())?;
        let (dy, x) = (dnormed.view(), saved.middle.view());
        layer.norm_2.backward(pass, d.view_mut(), Out::Accumulate, dy, x)?;

        let (mut d_o, mut dqkv) = (pass.temp(rows, width)?, pass.temp(rows, 3 * width)?);
        let [a, b] = ops::attention_statistics(rows, heads);
        let mut statistics = pass.temp_of(DType::F32, a, b)?;
        layer.out.weight_gradient(pass, d.view(), saved.attended.view(), None)?;
        layer.out.input_gradient(pass, d_o.view_mut(), Out::Overwrite, d.view())?;
        let (dq, dkv) = dqkv.view_mut().split_columns(width)?;
        let [q, k, v] = thirds(&saved.qkv, width)?;
        ops::attention_backward(
            stream,
            dq,
            &mut [dkv.split_columns(width)?],
            statistics.view_mut(),
            d_o.view(),
            q,
            &[(k, v)],
            images,
            heads,
            self.scale(),
        )?;
        layer.qkv.weight_gradient(pass, dqkv.view(), saved.normed.view(), None)?;
        layer.qkv.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dqkv.view())?;
        let (dy, x) = (dnormed.view(), saved.input.view());
        layer.norm_1.backward(pass, d.view_mut(), Out::Accumulate, dy, x)
    }
}

/// Tokens of all patches, an image per row, without the class token that each begins with.
fn patches_of(tokens: &Tensor, images: usize) -> Result<View<'_>> {
    let d = tokens.shape().cols();
    let each = tokens.shape().elements() / images.max(1);
    tokens.view().shaped(&[images, each])?.block(0..images, d..each)
}

/// Queries, keys and values in rows of [q | k | v].
fn thirds(qkv: &Tensor, d: usize) -> Result<[View<'_>; 3]> {
    let part = |i: usize| qkv.view().block(0..qkv.shape().rows(), i * d..(i + 1) * d);
    Ok([part(0)?, part(1)?, part(2)?])
}
