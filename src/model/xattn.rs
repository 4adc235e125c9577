//! The gated cross-attention block before a decoder layer (arXiv:2204.14198 sec. 2.3;
//! open_flamingo/src/helpers.py GatedCrossAttentionBlock).

use super::config::Config;
use super::layers::{Linear, Norm};
use super::probe::Probe;
use crate::device::Stream;
use crate::ops::{self, Epilogue, Media, MediaSpans, Out};
use crate::tensor::{Arena, Tensor, View, ViewMut};
use crate::weights::Weights;
use crate::{DType, Result};

/// x += tanh(g1) attention(norm(x), media); x += tanh(g2) mlp(norm(x)).
pub struct GatedBlock {
    gate: Tensor,
    norm: Norm,
    q: Linear,
    kv: Linear,
    out: Linear,
    mlp_gate: Tensor,
    mlp_norm: Norm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    head_dim: usize,
}

/// A block's intermediates, shared by all blocks.
pub(super) struct CrossRoom {
    normed: Tensor,
    q: Tensor,
    o: Tensor,
    hidden: Tensor,
}

impl CrossRoom {
    pub fn take(
        arena: &mut Arena,
        dtype: DType,
        rows: usize,
        width: usize,
        inner: usize,
        hidden: usize,
    ) -> Result<Self> {
        let mut take = |cols| arena.take(dtype, &[rows, cols]);
        let (normed, q) = (take(width)?, take(inner)?);
        Ok(CrossRoom { normed, q, o: take(inner)?, hidden: take(hidden)? })
    }
}

impl GatedBlock {
    pub fn load(weights: &Weights, config: &Config, layer: usize) -> Result<Self> {
        let x = &config.cross_attention;
        let (d, inner, at) =
            (config.language.width, config.inner_widths().1, format!("xattn.{layer}"));
        let linear = |name: &str, outputs, inputs| {
            Linear::load(weights, &format!("{at}.{name}"), outputs, inputs, false)
        };
        let norm = |name: &str| Norm::layer(weights, &format!("{at}.{name}"), d, true, 1e-5);
        Ok(GatedBlock {
            gate: weights.get(&format!("{at}.attn.gate"), &[1])?,
            norm: norm("attn.norm")?,
            q: linear("attn.q", inner, d)?,
            kv: linear("attn.kv", 2 * inner, config.vision.width)?,
            out: linear("attn.out", d, inner)?,
            mlp_gate: weights.get(&format!("{at}.mlp.gate"), &[1])?,
            mlp_norm: norm("mlp.norm")?,
            fc1: linear("mlp.fc1", x.mlp_width, d)?,
            fc2: linear("mlp.fc2", d, x.mlp_width)?,
            heads: x.heads,
            head_dim: x.head_dim,
        })
    }

    /// Keys and values (L, 2*heads*head_dim) of an image's latents (L, Dv): constant while it is in
    /// use.
    pub fn media_kv(&self, stream: &Stream, kv: ViewMut<'_>, latents: View<'_>) -> Result<()> {
        self.kv.run(stream, kv, latents, Epilogue::default())
    }

    /// Adds the block to `x` (rows, D) in place.
    pub(super) fn run(
        &self,
        stream: &Stream,
        x: &mut Tensor,
        images: &Media<'_>,
        spans: &MediaSpans,
        room: &mut CrossRoom,
    ) -> Result<()> {
        let plain = Epilogue::default();
        let normed = self.norm.of(x.view(), room.normed.view_mut());
        self.q.run(stream, room.q.view_mut(), normed, plain)?;
        let scale = (self.head_dim as f32).powf(-0.5);
        let (o, q) = (room.o.view_mut(), room.q.view());
        ops::cross_attention(stream, o, q, images, spans, self.heads, scale)?;
        let gate = Some(self.gate.view());
        let add = Epilogue { gate, out: Out::Accumulate, ..plain };
        self.out.run(stream, x.view_mut(), room.o.view(), add)?;
        let normed = self.mlp_norm.of(x.view(), room.normed.view_mut());
        let bend = Epilogue { activation: ops::Activation::Gelu, ..plain };
        self.fc1.run(stream, room.hidden.view_mut(), normed, bend)?;
        let gate = Some(self.mlp_gate.view());
        let add = Epilogue { gate, out: Out::Accumulate, ..plain };
        self.fc2.run(stream, x.view_mut(), room.hidden.view(), add)
    }

    /// Shows a watcher what [`GatedBlock::run`] just added, before the gates.
    pub(super) fn show(
        &self,
        stream: &Stream,
        probe: &mut Probe<'_>,
        layer: usize,
        room: &CrossRoom,
    ) -> Result<()> {
        let (attended, hidden) = (room.o.view(), room.hidden.view());
        let name = |part: &'static str| move || format!("lm.{layer:02}.{part}");
        self.out.show(stream, probe, name("gated_attn_raw"), attended)?;
        self.fc2.show(stream, probe, name("gated_ff_raw"), hidden)
    }

    /// Bytes of weights that a decoded token reads; the image's keys and values are cached.
    pub fn decode_bytes(&self) -> usize {
        let linears = [&self.q, &self.out, &self.fc1, &self.fc2];
        linears.iter().map(|l| l.bytes()).sum::<usize>() + self.norm.bytes() + self.mlp_norm.bytes()
    }
}
