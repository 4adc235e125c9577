//! The Perceiver resampler: patch tokens of an image to a fixed number of latents
//! (arXiv:2204.14198 fig. 5; open_flamingo/src/helpers.py PerceiverResampler).

use super::config::Config;
use super::layers::{Linear, Norm};
use super::probe::Probe;
use crate::device::Stream;
use crate::dtype::Real;
use crate::ops::{self, Epilogue, Out};
use crate::tensor::{Arena, Tensor, View};
use crate::weights::Weights;
use crate::{DType, Result};
use half::{bf16, f16};
use std::sync::OnceLock;

pub struct Resampler {
    latents: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    /// Made of the layers when the first image comes.
    media: OnceLock<Media>,
    shape: super::config::Resampler,
    width: usize,
    patches: usize,
    dtype: DType,
}

struct Layer {
    norm_media: Norm,
    norm_latents: Norm,
    q: Linear,
    /// The weights of `kv`, which the media's are made of.
    media_kv: Tensor,
    kv: Linear,
    out: Linear,
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// Keys and values of the media, for all layers in one product. Every layer sees the same patch
/// tokens, but for the scale g and shift b of its norm, which go into the weights:
/// W (h g + b) = (W g) h + W b, h the centred and scaled tokens.
struct Media {
    norm: Norm,
    /// (layers * 2*inner, D): W g of each layer.
    w: Tensor,
    /// (layers * 2*inner): W b of each layer.
    b: Tensor,
}

impl Media {
    fn fold(stream: &Stream, layers: &[Layer], dtype: DType, width: usize) -> Result<Self> {
        let (mut w, mut b) = (Vec::new(), Vec::new());
        for layer in layers {
            let (scale, shift) = layer.norm_media.affine()?;
            for row in layer.media_kv.view().to_f32()?.chunks_exact(width) {
                w.extend(row.iter().zip(&scale).map(|(w, g)| w * g));
                b.push(row.iter().zip(&shift).map(|(w, b)| f64::from(w * b)).sum::<f64>() as f32);
            }
        }
        Ok(Media {
            norm: Norm::Layer {
                w: stored(stream, &vec![1.0; width], dtype, &[width])?,
                b: None,
                eps: EPS,
            },
            w: stored(stream, &w, dtype, &[b.len(), width])?,
            b: stored(stream, &b, dtype, &[b.len()])?,
        })
    }
}

/// A tensor of `values` rounded to `dtype`.
fn stored(stream: &Stream, values: &[f32], dtype: DType, shape: &[usize]) -> Result<Tensor> {
    fn rounded<T: Real>(values: &[f32]) -> Vec<T> {
        values.iter().map(|x| T::from_f32(*x)).collect()
    }
    match dtype {
        DType::F32 => Tensor::upload(stream, values, shape),
        DType::BF16 => Tensor::upload(stream, &rounded::<bf16>(values), shape),
        _ => Tensor::upload(stream, &rounded::<f16>(values), shape),
    }
}

/// Of all norms here.
const EPS: f32 = 1e-5;

impl Resampler {
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let r = &config.resampler;
        let (d, inner) = (config.vision.width, config.inner_widths().0);
        let norm = |at: String| Norm::layer(weights, &at, d, true, EPS);
        let layer = |i: usize| {
            let at = format!("resampler.layers.{i}");
            let linear = |name: &str, outputs, inputs| {
                Linear::load(weights, &format!("{at}.{name}"), outputs, inputs, false)
            };
            Ok(Layer {
                norm_media: norm(format!("{at}.attn.norm_media"))?,
                norm_latents: norm(format!("{at}.attn.norm_latents"))?,
                q: linear("attn.q", inner, d)?,
                media_kv: weights.get(&format!("{at}.attn.kv.weight"), &[2 * inner, d])?,
                kv: linear("attn.kv", 2 * inner, d)?,
                out: linear("attn.out", d, inner)?,
                norm: norm(format!("{at}.mlp.norm"))?,
                fc1: linear("mlp.fc1", r.mlp_width, d)?,
                fc2: linear("mlp.fc2", d, r.mlp_width)?,
            })
        };
        Ok(Resampler {
            latents: weights.get("resampler.latents", &[r.latents, d])?,
            layers: (0..r.layers).map(layer).collect::<Result<_>>()?,
            norm: norm("resampler.norm".into())?,
            media: OnceLock::new(),
            shape: r.clone(),
            width: d,
            patches: config.patches(),
            dtype: config.dtype.into(),
        })
    }

    fn inner(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Arena bytes that [`Resampler::run`] takes for `images` images.
    pub fn scratch(&self, images: usize) -> usize {
        let (d, inner) = (self.width, self.inner());
        let (media, latents) = (images * self.patches, images * self.shape.latents);
        let sizes = [
            media * d,
            media * self.layers.len() * 2 * inner,
            latents * d,
            latents * d,
            latents * inner,
            latents * 2 * inner,
            latents * inner,
            latents * self.shape.mlp_width,
        ];
        sizes.iter().map(|&n| Arena::footprint(self.dtype, n)).sum()
    }

    /// Latents (images * L, Dv) of vision `tokens` (images * (1+P), Dv), class token first and
    /// unused.
    pub fn run(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        tokens: &Tensor,
        probe: &mut Probe<'_>,
    ) -> Result<Tensor> {
        let (d, inner, patches) = (self.width, self.inner(), self.patches);
        let images = tokens.shape().rows() / (1 + patches);
        let (media, latents) = (images * patches, images * self.shape.latents);
        let mut x = arena.take(self.dtype, &[latents, d])?;
        let mut room = Room {
            media: arena.take(self.dtype, &[media, d])?,
            media_kv: arena.take(self.dtype, &[media, self.layers.len() * 2 * inner])?,
            normed: arena.take(self.dtype, &[latents, d])?,
            q: arena.take(self.dtype, &[latents, inner])?,
            kv: arena.take(self.dtype, &[latents, 2 * inner])?,
            attended: arena.take(self.dtype, &[latents, inner])?,
            hidden: arena.take(self.dtype, &[latents, self.shape.mlp_width])?,
        };
        for i in 0..images {
            let rows = i * self.shape.latents..(i + 1) * self.shape.latents;
            x.view_mut().block(rows, 0..d)?.copy_from(self.latents.view())?;
        }
        self.media_kv(stream, &mut room, tokens, images)?;
        for (i, layer) in self.layers.iter().enumerate() {
            self.layer(stream, i, &mut x, &mut room, images)?;
            let name = |part: &'static str| move || format!("resampler.{i}.{part}");
            layer.out.show(stream, probe, name("attn_raw"), room.attended.view())?;
            layer.fc2.show(stream, probe, name("ff_raw"), room.hidden.view())?;
        }
        self.norm.run_in_place(stream, x.view_mut())?;
        Ok(x)
    }

    /// Keys and values of the patch tokens for every layer, side by side.
    fn media_kv(
        &self,
        stream: &Stream,
        room: &mut Room,
        tokens: &Tensor,
        images: usize,
    ) -> Result<()> {
        let (d, patches) = (self.width, self.patches);
        let media = match self.media.get() {
            Some(media) => media,
            None => {
                let media = Media::fold(stream, &self.layers, self.dtype, d)?;
                self.media.get_or_init(|| media)
            }
        };
        for i in 0..images {
            let from = i * (1 + patches) + 1;
            let source = tokens.view().block(from..from + patches, 0..d)?;
            let target = room.media.view_mut().block(i * patches..(i + 1) * patches, 0..d)?;
            media.norm.run(stream, target, source)?;
        }
        let shift = Epilogue { bias: Some(media.b.view()), ..Epilogue::default() };
        ops::gemm(stream, room.media_kv.view_mut(), room.media.view(), media.w.view(), shift)
    }

    fn layer(
        &self,
        stream: &Stream,
        i: usize,
        x: &mut Tensor,
        room: &mut Room,
        images: usize,
    ) -> Result<()> {
        let (layer, inner) = (&self.layers[i], self.inner());
        let plain = Epilogue::default();
        let add = Epilogue { out: Out::Accumulate, ..plain };
        layer.norm_latents.run(stream, room.normed.view_mut(), x.view())?;
        layer.q.run(stream, room.q.view_mut(), room.normed.view(), plain)?;
        layer.kv.run(stream, room.kv.view_mut(), room.normed.view(), plain)?;
        let keys = [halves(room.media_kv.view(), i, inner)?, halves(room.kv.view(), 0, inner)?];
        let scale = (self.shape.head_dim as f32).powf(-0.5);
        ops::attention(
            stream,
            room.attended.view_mut(),
            room.q.view(),
            &keys,
            images,
            self.shape.heads,
            scale,
        )?;
        layer.out.run(stream, x.view_mut(), room.attended.view(), add)?;
        layer.norm.run(stream, room.normed.view_mut(), x.view())?;
        let bend = Epilogue { activation: ops::Activation::Gelu, ..plain };
        layer.fc1.run(stream, room.hidden.view_mut(), room.normed.view(), bend)?;
        layer.fc2.run(stream, x.view_mut(), room.hidden.view(), add)
    }
}

/// Keys and values of layer `i` in rows [k | v | k | v ...].
fn halves(kv: View<'_>, i: usize, inner: usize) -> Result<(View<'_>, View<'_>)> {
    let (rows, k) = (0..kv.rows(), 2 * i * inner);
    let v = k + inner;
    Ok((kv.block(rows.clone(), k..v)?, kv.block(rows, v..v + inner)?))
}

/// Intermediates, shared by all layers.
struct Room {
    media: Tensor,
    media_kv: Tensor,
    normed: Tensor,
    q: Tensor,
    kv: Tensor,
    attended: Tensor,
    hidden: Tensor,
}
