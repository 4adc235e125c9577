//! The Perceiver resampler in training (arXiv:2204.14198 fig. 5). Unlike in inference the norm of
//! the media is not folded into weights: each layer's scale and shift have their own gradients.

use super::super::config::Config;
use super::layers::{Linear, Norm};
use super::parameters::{Id, Parameters};
use super::pass::{Keep, Kept, Pass};
use crate::ops::{self, Activation, Out, TokenIds};
use crate::tensor::{Arena, Tensor, View, ViewMut};
use crate::{DType, Result};

pub(super) struct Resampler {
    latents: Id,
    layers: Vec<Layer>,
    norm: Norm,
    heads: usize,
    inner: usize,
    hidden: usize,
    count: usize,
}

struct Layer {
    norm_media: Norm,
    norm_latents: Norm,
    q: Linear,
    kv: Linear,
    out: Linear,
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// What backward reads of a layer.
struct SavedLayer {
    input: Tensor,
    normed_media: Tensor,
    media_kv: Tensor,
    normed: Tensor,
    q: Tensor,
    kv: Tensor,
    attended: Tensor,
    middle: Tensor,
    mlp_normed: Tensor,
    /// Before the activation.
    fc1: Tensor,
    hidden: Tensor,
}

/// What backward reads.
pub(super) struct Saved {
    layers: Vec<Kept<SavedLayer>>,
    last: Tensor,
}

/// Of all norms here.
const EPS: f32 = 1e-5;

impl Resampler {
    pub fn new(params: &Parameters, config: &Config) -> Result<Self> {
        let r = &config.resampler;
        let norm = |at: String| Norm::layer(params, &at, true, EPS);
        let layer = |i: usize| {
            let at = format!("resampler.layers.{i}");
            let linear = |name: &str| Linear::new(params, &format!("{at}.{name}"), false);
            Ok(Layer {
                norm_media: norm(format!("{at}.attn.norm_media"))?,
                norm_latents: norm(format!("{at}.attn.norm_latents"))?,
                q: linear("attn.q")?,
                kv: linear("attn.kv")?,
                out: linear("attn.out")?,
                norm: norm(format!("{at}.mlp.norm"))?,
                fc1: linear("mlp.fc1")?,
                fc2: linear("mlp.fc2")?,
            })
        };
        Ok(Resampler {
            latents: params.id("resampler.latents")?,
            layers: (0..r.layers).map(layer).collect::<Result<_>>()?,
            norm: norm("resampler.norm".into())?,
            heads: r.heads,
            inner: r.heads * r.head_dim,
            hidden: r.mlp_width,
            count: r.latents,
        })
    }

    fn scale(&self) -> f32 {
        ((self.inner / self.heads) as f32).powf(-0.5)
    }

    /// Latents (images*L, Dv) of `media`, the patch tokens (images*P, Dv).
    pub fn forward(
        &self,
        pass: &mut Pass<'_>,
        media: &Tensor,
        images: usize,
        keep: Keep,
    ) -> Result<(Tensor, Saved)> {
        let (rows, d, dtype) = (images * self.count, media.shape().cols(), pass.dtype());
        let stream = pass.stream;
        let mut x = pass.lasting(dtype, &[rows, d])?;
        let each: Vec<i32> = (0..images).flat_map(|_| 0..self.count as i32).collect();
        let bytes = Arena::footprint(DType::I32, rows);
        let each = TokenIds::new(pass.kept_arena(bytes)?, &each, self.count)?;
        ops::embedding(stream, x.view_mut(), &each, pass.view(self.latents)?)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in self.layers.iter().filter(|_| images > 0) {
            let forward = |pass: &mut Pass<'_>, x: &mut Tensor| {
                self.forward_layer(pass, layer, x, media, images)
            };
            layers.push(pass.forward(keep, &mut x, forward)?);
        }
        let mut latents = pass.lasting(dtype, &[rows, d])?;
        self.norm.run(pass, latents.view_mut(), x.view())?;
        Ok((latents, Saved { layers, last: x }))
    }

    fn forward_layer(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        x: &mut Tensor,
        media: &Tensor,
        images: usize,
    ) -> Result<SavedLayer> {
        let (rows, d, inner) = (x.shape().rows(), x.shape().cols(), self.inner);
        let seen = media.shape().rows();
        let input = pass.keep_copy(x.view())?;
        let mut normed_media = pass.keep(seen, d)?;
        layer.norm_media.run(pass, normed_media.view_mut(), media.view())?;
        let mut media_kv = pass.keep(seen, 2 * inner)?;
        layer.kv.apply(pass, &mut media_kv, &normed_media)?;
        let mut normed = pass.keep(rows, d)?;
        layer.norm_latents.run(pass, normed.view_mut(), x.view())?;
        let mut q = pass.keep(rows, inner)?;
        layer.q.apply(pass, &mut q, &normed)?;
        let mut kv = pass.keep(rows, 2 * inner)?;
        layer.kv.apply(pass, &mut kv, &normed)?;
        let mut attended = pass.keep(rows, inner)?;
        let keys = [halves(&media_kv, inner)?, halves(&kv, inner)?];
        let (o, scale) = (attended.view_mut(), self.scale());
        ops::attention(pass.stream, o, q.view(), &keys, images, self.heads, scale)?;
        layer.out.add(pass, x, &attended)?;
        let middle = pass.keep_copy(x.view())?;
        let mut mlp_normed = pass.keep(rows, d)?;
        layer.norm.run(pass, mlp_normed.view_mut(), x.view())?;
        let mut fc1 = pass.keep(rows, self.hidden)?;
        layer.fc1.apply(pass, &mut fc1, &mlp_normed)?;
        let mut hidden = pass.keep(rows, self.hidden)?;
        ops::activation(pass.stream, hidden.view_mut(), fc1.view(), Activation::Gelu)?;
        layer.fc2.add(pass, x, &hidden)?;
        Ok(SavedLayer {
            input,
            normed_media,
            media_kv,
            normed,
            q,
            kv,
            attended,
            middle,
            mlp_normed,
            fc1,
            hidden,
        })
    }

    /// Adds up the gradients of all layers, given that of the latents; that of `media` goes to
    /// `dmedia` if anyone wants it.
    pub fn backward(
        &self,
        pass: &mut Pass<'_>,
        dlatents: &Tensor,
        saved: Saved,
        media: &Tensor,
        images: usize,
        mut dmedia: Option<&mut Tensor>,
    ) -> Result<()> {
        let (rows, cols) = (dlatents.shape().rows(), dlatents.shape().cols());
        let mut d = pass.lasting(pass.dtype(), &[rows, cols])?;
        let (dy, x) = (dlatents.view(), saved.last.view());
        self.norm.backward(pass, d.view_mut(), Out::Overwrite, dy, x)?;
        pass.done("resampler.norm.")?;
        let mut out = Out::Overwrite;
        for ((i, layer), kept) in self.layers.iter().enumerate().zip(saved.layers).rev() {
            let forward = |pass: &mut Pass<'_>, x: &mut Tensor| {
                self.forward_layer(pass, layer, x, media, images)
            };
            let saved = pass.saved(kept, forward)?;
            self.mlp_backward(pass, layer, &mut d, &saved)?;
            let to = dmedia.as_mut().map(|to| (to.view_mut(), out));
            self.attention_backward(pass, layer, &mut d, &saved, media, images, to)?;
            out = Out::Accumulate;
            drop(saved);
            pass.release()?;
            pass.done(&format!("resampler.layers.{i}."))?;
        }
        let (stream, params) = (pass.stream, pass.params);
        if let Some(i) = params.trained_as(self.latents) {
            let (to, out) = pass.grads.of(stream, params, i)?;
            let each = self.count * cols;
            let d = d.view().shaped(&[images, each])?;
            ops::column_sums(stream, to.shaped(&[1, each])?, out, d)?;
        }
        pass.done("resampler.latents")
    }

    fn mlp_backward(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        d: &mut Tensor,
        saved: &SavedLayer,
    ) -> Result<()> {
        let (rows, cols) = (d.shape().rows(), d.shape().cols());
        let mut dhidden = pass.temp(rows, self.hidden)?;
        let mut dfc1 = pass.temp(rows, self.hidden)?;
        let mut dnormed = pass.temp(rows, cols)?;
        layer.fc2.weight_gradient(pass, d.view(), saved.hidden.view(), None)?;
        layer.fc2.input_gradient(pass, dhidden.view_mut(), Out::Overwrite, d.view())?;
        let (dy, x) = (dhidden.view(), saved.fc1.view());
        ops::activation_backward(pass.stream, dfc1.view_mut(), dy, x, Activation::Gelu)?;
        layer.fc1.weight_gradient(pass, dfc1.view(), saved.mlp_normed.view(), None)?;
        layer.fc1.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dfc1.view())?;
        let (dy, x) = (dnormed.view(), saved.middle.view());
        layer.norm.backward(pass, d.view_mut(), Out::Accumulate, dy, x)
    }

    #[expect(clippy::too_many_arguments, reason = "what a layer sees, and what it is told")]
    fn attention_backward(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        d: &mut Tensor,
        saved: &SavedLayer,
        media: &Tensor,
        images: usize,
        dmedia: Option<(ViewMut<'_>, Out)>,
    ) -> Result<()> {
        let (rows, cols, inner) = (d.shape().rows(), d.shape().cols(), self.inner);
        let seen = media.shape().rows();
        let mut d_o = pass.temp(rows, inner)?;
        let mut dq = pass.temp(rows, inner)?;
        let (mut dmedia_kv, mut dkv) = (pass.temp(seen, 2 * inner)?, pass.temp(rows, 2 * inner)?);
        let [a, b] = ops::attention_statistics(rows, self.heads);
        let mut statistics = pass.temp_of(DType::F32, a, b)?;
        layer.out.weight_gradient(pass, d.view(), saved.attended.view(), None)?;
        layer.out.input_gradient(pass, d_o.view_mut(), Out::Overwrite, d.view())?;
        ops::attention_backward(
            pass.stream,
            dq.view_mut(),
            &mut [dmedia_kv.view_mut().split_columns(inner)?, dkv.view_mut().split_columns(inner)?],
            statistics.view_mut(),
            d_o.view(),
            saved.q.view(),
            &[halves(&saved.media_kv, inner)?, halves(&saved.kv, inner)?],
            images,
            self.heads,
            self.scale(),
        )?;
        layer.q.weight_gradient(pass, dq.view(), saved.normed.view(), None)?;
        layer.kv.weight_gradient(pass, dkv.view(), saved.normed.view(), None)?;
        layer.kv.weight_gradient(pass, dmedia_kv.view(), saved.normed_media.view(), None)?;
        let mut dnormed = pass.temp(rows, cols)?;
        layer.q.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dq.view())?;
        layer.kv.input_gradient(pass, dnormed.view_mut(), Out::Accumulate, dkv.view())?;
        let (dy, x) = (dnormed.view(), saved.input.view());
        layer.norm_latents.backward(pass, d.view_mut(), Out::Accumulate, dy, x)?;
        if dmedia.is_none() && !layer.kv.is_trained(pass) {
            return Ok(());
        }
        let mut dnormed = pass.temp(seen, cols)?;
        layer.kv.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dmedia_kv.view())?;
        let (dy, x) = (dnormed.view(), media.view());
        match dmedia {
            Some((to, out)) => layer.norm_media.backward(pass, to, out, dy, x),
            None => {
                let mut unread = pass.temp(seen, cols)?;
                layer.norm_media.backward(pass, unread.view_mut(), Out::Overwrite, dy, x)
            }
        }
    }
}

/// Keys and values in rows of [k | v].
fn halves(kv: &Tensor, inner: usize) -> Result<(View<'_>, View<'_>)> {
    let rows = kv.shape().rows();
    Ok((kv.view().block(0..rows, 0..inner)?, kv.view().block(0..rows, inner..2 * inner)?))
}
