//! The Perceiver resampler: patch tokens of an image to a fixed number of latents
//! (arXiv:2204.14198 fig. 5; open_flamingo/src/helpers.py PerceiverResampler).

use super::config::Config;
use super::layers::{Linear, Norm};
use super::probe::Probe;
use crate::device::Stream;
use crate::ops::{self, Epilogue, Out};
use crate::tensor::{Arena, Tensor, View};
use crate::weights::Weights;
use crate::{DType, Result};

pub struct Resampler {
    latents: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    shape: super::config::Resampler,
    width: usize,
    patches: usize,
    dtype: DType,
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

impl Resampler {
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let r = &config.resampler;
        let (d, inner) = (config.vision.width, config.inner_widths().0);
        let norm = |at: String| Norm::layer(weights, &at, d, true, 1e-5);
        let layer = |i: usize| {
            let at = format!("resampler.layers.{i}");
            let linear = |name: &str, outputs, inputs| {
                Linear::load(weights, &format!("{at}.{name}"), outputs, inputs, false)
            };
            Ok(Layer {
                norm_media: norm(format!("{at}.attn.norm_media"))?,
                norm_latents: norm(format!("{at}.attn.norm_latents"))?,
                q: linear("attn.q", inner, d)?,
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
            media * 2 * inner,
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
            media_kv: arena.take(self.dtype, &[media, 2 * inner])?,
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
        for (i, layer) in self.layers.iter().enumerate() {
            self.layer(stream, layer, &mut x, &mut room, tokens, images)?;
            let name = |part: &'static str| move || format!("resampler.{i}.{part}");
            layer.out.show(stream, probe, name("attn_raw"), room.attended.view())?;
            layer.fc2.show(stream, probe, name("ff_raw"), room.hidden.view())?;
        }
        self.norm.run_in_place(stream, x.view_mut())?;
        Ok(x)
    }

    fn layer(
        &self,
        stream: &Stream,
        layer: &Layer,
        x: &mut Tensor,
        room: &mut Room,
        tokens: &Tensor,
        images: usize,
    ) -> Result<()> {
        let (d, inner, patches) = (self.width, self.inner(), self.patches);
        let plain = Epilogue::default();
        let add = Epilogue { out: Out::Accumulate, ..plain };
        for i in 0..images {
            let from = i * (1 + patches) + 1;
            let source = tokens.view().block(from..from + patches, 0..d)?;
            let target = room.media.view_mut().block(i * patches..(i + 1) * patches, 0..d)?;
            layer.norm_media.run(stream, target, source)?;
        }
        layer.kv.run(stream, room.media_kv.view_mut(), room.media.view(), plain)?;
        layer.norm_latents.run(stream, room.normed.view_mut(), x.view())?;
        layer.q.run(stream, room.q.view_mut(), room.normed.view(), plain)?;
        layer.kv.run(stream, room.kv.view_mut(), room.normed.view(), plain)?;
        let keys = [halves(room.media_kv.view(), inner)?, halves(room.kv.view(), inner)?];
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

/// Keys and values of rows [k | v].
fn halves(kv: View<'_>, inner: usize) -> Result<(View<'_>, View<'_>)> {
    let rows = 0..kv.rows();
    Ok((kv.block(rows.clone(), 0..inner)?, kv.block(rows, inner..2 * inner)?))
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
