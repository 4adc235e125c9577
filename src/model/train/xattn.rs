//! The gated cross-attention block in training (arXiv:2204.14198 sec. 2.3).
//!
//! The gradient of a gate needs the ungated branch only as a sum: with y the branch's input to its
//! last product W, sum(d * (y W^T)) = sum((d W) * y), so that the branch itself is never stored.

use super::super::config::Config;
use super::layers::{Linear, Norm};
use super::parameters::{Id, Parameters};
use super::pass::Pass;
use crate::ops::{self, Activation, Epilogue, Media, MediaSpans, Out};
use crate::tensor::{Arena, Tensor, View};
use crate::{DType, Result};

/// x += tanh(g1) attention(norm(x), media); x += tanh(g2) mlp(norm(x)).
pub(super) struct GatedBlock {
    gate: Id,
    norm: Norm,
    q: Linear,
    kv: Linear,
    out: Linear,
    mlp_gate: Id,
    mlp_norm: Norm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    inner: usize,
    hidden: usize,
}

/// What backward reads.
pub(super) struct Saved {
    /// None where there is no image: attention then adds nothing.
    attention: Option<SavedAttention>,
    middle: Tensor,
    mlp_normed: Tensor,
    /// Before the activation.
    fc1: Tensor,
    hidden: Tensor,
}

struct SavedAttention {
    input: Tensor,
    normed: Tensor,
    q: Tensor,
    /// Keys and values of all images, (N*L, 2*inner).
    kv: Tensor,
    attended: Tensor,
}

/// What all blocks see of the images.
pub(super) struct Seen<'a> {
    /// (N*L, Dv), images one after another.
    pub latents: &'a Tensor,
    pub spans: &'a MediaSpans,
    pub images: usize,
}

impl GatedBlock {
    pub fn new(params: &Parameters, config: &Config, layer: usize) -> Result<Self> {
        let (x, at) = (&config.cross_attention, format!("xattn.{layer}"));
        let linear = |name: &str| Linear::new(params, &format!("{at}.{name}"), false);
        let norm = |name: &str| Norm::layer(params, &format!("{at}.{name}"), true, 1e-5);
        Ok(GatedBlock {
            gate: params.id(&format!("{at}.attn.gate"))?,
            norm: norm("attn.norm")?,
            q: linear("attn.q")?,
            kv: linear("attn.kv")?,
            out: linear("attn.out")?,
            mlp_gate: params.id(&format!("{at}.mlp.gate"))?,
            mlp_norm: norm("mlp.norm")?,
            fc1: linear("mlp.fc1")?,
            fc2: linear("mlp.fc2")?,
            heads: x.heads,
            inner: x.heads * x.head_dim,
            hidden: x.mlp_width,
        })
    }

    fn scale(&self) -> f32 {
        ((self.inner / self.heads) as f32).powf(-0.5)
    }

    /// Adds the block to `x` (rows, D) in place.
    pub fn forward(&self, pass: &mut Pass<'_>, x: &mut Tensor, seen: &Seen<'_>) -> Result<Saved> {
        let (rows, d) = (x.shape().rows(), x.shape().cols());
        let is_seeing = seen.images > 0;
        let attention = is_seeing.then(|| self.add_attention(pass, x, seen)).transpose()?;
        let middle = pass.keep_copy(x.view())?;
        let mut mlp_normed = pass.keep(rows, d)?;
        self.mlp_norm.run(pass, mlp_normed.view_mut(), x.view())?;
        let mut fc1 = pass.keep(rows, self.hidden)?;
        self.fc1.apply(pass, &mut fc1, &mlp_normed)?;
        let mut hidden = pass.keep(rows, self.hidden)?;
        ops::activation(pass.stream, hidden.view_mut(), fc1.view(), Activation::Gelu)?;
        self.add_gated(pass, x, &self.fc2, &hidden, self.mlp_gate)?;
        Ok(Saved { attention, middle, mlp_normed, fc1, hidden })
    }

    fn add_attention(
        &self,
        pass: &mut Pass<'_>,
        x: &mut Tensor,
        seen: &Seen<'_>,
    ) -> Result<SavedAttention> {
        let (rows, d) = (x.shape().rows(), x.shape().cols());
        let input = pass.keep_copy(x.view())?;
        let mut normed = pass.keep(rows, d)?;
        self.norm.run(pass, normed.view_mut(), x.view())?;
        let mut q = pass.keep(rows, self.inner)?;
        self.q.apply(pass, &mut q, &normed)?;
        let mut kv = pass.keep(seen.latents.shape().rows(), 2 * self.inner)?;
        self.kv.apply(pass, &mut kv, seen.latents)?;
        let mut attended = pass.keep(rows, self.inner)?;
        self.attend(pass, &mut attended, &q, &kv, seen)?;
        self.add_gated(pass, x, &self.out, &attended, self.gate)?;
        Ok(SavedAttention { input, normed, q, kv, attended })
    }

    fn attend(
        &self,
        pass: &mut Pass<'_>,
        o: &mut Tensor,
        q: &Tensor,
        kv: &Tensor,
        seen: &Seen<'_>,
    ) -> Result<()> {
        let stream = pass.stream;
        let latents = kv.shape().rows() / seen.images.max(1);
        let own = |i: usize| kv.view().block(i * latents..(i + 1) * latents, 0..2 * self.inner);
        let views: Vec<View<'_>> = (0..seen.images).map(own).collect::<Result<_>>()?;
        let bytes = Arena::footprint(DType::I64, views.len());
        let media = Media::new(pass.scratch_arena(bytes)?, &views)?;
        let (o, q) = (o.view_mut(), q.view());
        ops::cross_attention(stream, o, q, &media, seen.spans, self.heads, self.scale())
    }

    /// x += tanh(gate) y W^T.
    fn add_gated(
        &self,
        pass: &Pass<'_>,
        x: &mut Tensor,
        linear: &Linear,
        y: &Tensor,
        gate: Id,
    ) -> Result<()> {
        let gate = Some(pass.view(gate)?);
        let add = Epilogue { gate, out: Out::Accumulate, ..Epilogue::default() };
        linear.run(pass, x.view_mut(), y.view(), add)
    }

    /// Turns `d`, the gradient of the block's output, into that of its input; adds the gradient of
    /// the latents to `dlatents` if anyone wants it.
    pub fn backward(
        &self,
        pass: &mut Pass<'_>,
        d: &mut Tensor,
        saved: &Saved,
        seen: &Seen<'_>,
        dlatents: Option<(&mut Tensor, Out)>,
    ) -> Result<()> {
        let (rows, cols) = (d.shape().rows(), d.shape().cols());
        let mut dnormed = pass.temp(rows, cols)?;
        let dhidden = self.gated_gradient(pass, &self.fc2, d, &saved.hidden, self.mlp_gate)?;
        let mut dfc1 = pass.temp(rows, self.hidden)?;
        let (dy, x) = (dhidden.view(), saved.fc1.view());
        ops::activation_backward(pass.stream, dfc1.view_mut(), dy, x, Activation::Gelu)?;
        self.fc1.weight_gradient(pass, dfc1.view(), saved.mlp_normed.view(), None)?;
        self.fc1.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dfc1.view())?;
        let (dy, x) = (dnormed.view(), saved.middle.view());
        self.mlp_norm.backward(pass, d.view_mut(), Out::Accumulate, dy, x)?;
        match &saved.attention {
            Some(saved) => self.attention_backward(pass, d, saved, seen, dlatents),
            None => Ok(()),
        }
    }

    fn attention_backward(
        &self,
        pass: &mut Pass<'_>,
        d: &mut Tensor,
        saved: &SavedAttention,
        seen: &Seen<'_>,
        dlatents: Option<(&mut Tensor, Out)>,
    ) -> Result<()> {
        let (rows, cols) = (d.shape().rows(), d.shape().cols());
        let d_o = self.gated_gradient(pass, &self.out, d, &saved.attended, self.gate)?;
        let mut dq = pass.temp(rows, self.inner)?;
        let mut dkv = pass.temp(saved.kv.shape().rows(), 2 * self.inner)?;
        let [a, b] = ops::attention_statistics(rows, self.heads);
        let mut statistics = pass.temp_of(DType::F32, a, b)?;
        ops::cross_attention_backward(
            pass.stream,
            dq.view_mut(),
            dkv.view_mut(),
            statistics.view_mut(),
            d_o.view(),
            saved.q.view(),
            saved.kv.view(),
            seen.spans,
            self.heads,
            self.scale(),
        )?;
        let mut dnormed = pass.temp(rows, cols)?;
        self.q.weight_gradient(pass, dq.view(), saved.normed.view(), None)?;
        self.q.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dq.view())?;
        let (dy, x) = (dnormed.view(), saved.input.view());
        self.norm.backward(pass, d.view_mut(), Out::Accumulate, dy, x)?;
        self.kv.weight_gradient(pass, dkv.view(), seen.latents.view(), None)?;
        match dlatents {
            Some((to, out)) => self.kv.input_gradient(pass, to.view_mut(), out, dkv.view()),
            None => Ok(()),
        }
    }

    /// The gradient of y in x += tanh(gate) y W^T, given that of x; those of W and gate are added
    /// up.
    fn gated_gradient(
        &self,
        pass: &mut Pass<'_>,
        linear: &Linear,
        d: &Tensor,
        y: &Tensor,
        gate: Id,
    ) -> Result<Tensor> {
        linear.weight_gradient(pass, d.view(), y.view(), Some(gate))?;
        let (stream, params) = (pass.stream, pass.params);
        let mut dy = pass.temp(y.shape().rows(), y.shape().cols())?;
        linear.input_gradient(pass, dy.view_mut(), Out::Overwrite, d.view())?;
        let mut parts = pass.temp_of(DType::F32, GATE_PARTS, 1)?;
        let factor = pass.view(gate)?;
        ops::gate_backward(stream, dy.view_mut(), parts.view_mut(), y.view(), factor)?;
        if let Some(i) = params.trained_as(gate) {
            let (dgate, out) = pass.grads.of(stream, params, i)?;
            ops::column_sums(stream, dgate.shaped(&[1, 1])?, out, parts.view())?;
        }
        Ok(dy)
    }
}

/// Parts that a gate's gradient is summed by.
const GATE_PARTS: usize = 256;
