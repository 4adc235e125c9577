//! The language model in training: LLaMA, MPT and GPT-NeoX with their gated blocks. A frozen layer
//! passes the gradient of its input on and keeps no more than that needs.

use super::super::config::{Config, Family, Language, Position};
use super::super::decoder::alibi_slopes;
use super::super::kv::PAGE_TOKENS;
use super::layers::{Linear, Norm};
use super::packed::Packed;
use super::parameters::{EMBEDDING, Id, Parameters};
use super::pass::{Keep, Kept, Pass, Recompute};
use super::xattn::{self, GatedBlock, Seen};
use crate::device::Stream;
use crate::ops::{self, Activation, MediaSpans, Out, Ragged, Sequence, TokenGroups, TokenIds};
use crate::tensor::{Arena, Tensor, View};
use crate::{DType, Result};

pub(super) struct Decoder {
    pub embedding: Id,
    layers: Vec<Layer>,
    pub norm: Norm,
    /// The embedding, where it is the head too.
    pub head: Id,
    /// ALiBi slopes, (heads) f32.
    slopes: Option<Tensor>,
    pub shape: Language,
    /// The first layer that has a backward; those before it and the embedding have none.
    first: usize,
}

struct Layer {
    block: Option<GatedBlock>,
    norm_1: Norm,
    qkv: Linear,
    qk_norm: Option<(Norm, Norm)>,
    out: Linear,
    norm_2: Norm,
    /// [gate; up] for LLaMA.
    fc1: Linear,
    fc2: Linear,
}

/// What backward reads of a layer; inputs of linear layers only if those are trained.
struct SavedLayer {
    input: Tensor,
    normed: Option<Tensor>,
    /// Queries and keys before their norms.
    qk: Option<Tensor>,
    qkv: Tensor,
    attended: Option<Tensor>,
    /// The input of the second norm, where it is not that of the first.
    middle: Option<Tensor>,
    mlp_normed: Option<Tensor>,
    /// Before the activation.
    fc1: Tensor,
    hidden: Option<Tensor>,
}

/// What backward reads.
pub(super) struct Saved {
    layers: Vec<(Option<Kept<xattn::Saved>>, Kept<SavedLayer>)>,
}

/// The tokens of a micro-batch on the device.
pub(super) struct Text {
    ids: TokenIds,
    /// As the host knows them.
    tokens: Vec<i32>,
    batch: Ragged,
    /// Keys and values of one layer at a time.
    pages: Tensor,
}

impl Text {
    /// The tokens, and what each may look at.
    pub fn new(
        pass: &mut Pass<'_>,
        packed: &Packed<'_>,
        shape: &Language,
    ) -> Result<(Self, MediaSpans)> {
        let (rows, count) = (packed.rows(), packed.lengths.len());
        let longest = packed.lengths.iter().copied().max().unwrap_or(0);
        let bytes = Ragged::footprint(rows, count, longest, PAGE_TOKENS)
            + Arena::footprint(DType::I32, rows)
            + Arena::footprint(DType::I32, 3 * rows);
        let mut tables = Vec::with_capacity(count);
        let mut pages = 0;
        for length in &packed.lengths {
            let own = length.div_ceil(PAGE_TOKENS) as i32;
            tables.push((pages..pages + own).collect::<Vec<i32>>());
            pages += own;
        }
        let sequences: Vec<_> = packed
            .lengths
            .iter()
            .zip(&tables)
            .map(|(&n, table)| Sequence { table, kv_len: n, rows: n })
            .collect();
        let pages = pages as usize;
        let cols = 2 * PAGE_TOKENS * shape.width;
        let memory = pass.lasting(pass.dtype(), &[pages, cols])?;
        let arena = pass.kept_arena(bytes)?;
        let spans = MediaSpans::new(arena, &packed.spans, packed.images.len())?;
        let text = Text {
            ids: TokenIds::new(arena, &packed.ids, shape.vocabulary)?,
            tokens: packed.ids.clone(),
            batch: Ragged::new(arena, &sequences, PAGE_TOKENS, pages)?,
            pages: memory,
        };
        Ok((text, spans))
    }
}

impl Decoder {
    pub fn new(
        stream: &Stream,
        params: &Parameters,
        config: &Config,
        first: usize,
    ) -> Result<Self> {
        let l = &config.language;
        let slopes = match l.position {
            Position::Alibi { max_bias } => {
                Some(Tensor::upload(stream, &alibi_slopes(l.heads, max_bias), &[l.heads])?)
            }
            Position::Rope { .. } => None,
        };
        let head = if l.tied_head { EMBEDDING } else { "language.head.weight" };
        Ok(Decoder {
            embedding: params.id(EMBEDDING)?,
            layers: (0..l.layers).map(|i| Layer::new(params, config, i)).collect::<Result<_>>()?,
            norm: Norm::language(params, config, "language.norm")?,
            head: params.id(head)?,
            slopes,
            shape: l.clone(),
            first,
        })
    }

    fn rotary(&self) -> Option<(usize, f32)> {
        match self.shape.position {
            Position::Rope { dims, base } => Some((dims, base)),
            Position::Alibi { .. } => None,
        }
    }

    fn scale(&self) -> f32 {
        ((self.shape.width / self.shape.heads) as f32).powf(-0.5)
    }

    /// The last layer's output (rows, D), before the final norm; None for `recompute` keeps nothing
    /// for a backward.
    pub fn forward(
        &self,
        pass: &mut Pass<'_>,
        text: &mut Text,
        seen: &Seen<'_>,
        recompute: Option<Recompute>,
    ) -> Result<(Tensor, Saved)> {
        let (stream, dtype) = (pass.stream, pass.dtype());
        let mut x = pass.lasting(dtype, &[text.ids.rows(), self.shape.width])?;
        ops::embedding(stream, x.view_mut(), &text.ids, pass.view(self.embedding)?)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let keep = |is_block: bool| match recompute {
                Some(policy) if i >= self.first => policy.keep(is_block),
                _ => Keep::Nothing,
            };
            let block = match &layer.block {
                Some(block) => {
                    let forward =
                        |pass: &mut Pass<'_>, x: &mut Tensor| block.forward(pass, x, seen);
                    Some(pass.forward(keep(true), &mut x, forward)?)
                }
                None => None,
            };
            let forward =
                |pass: &mut Pass<'_>, x: &mut Tensor| self.forward_layer(pass, layer, x, text);
            layers.push((block, pass.forward(keep(false), &mut x, forward)?));
        }
        Ok((x, Saved { layers }))
    }

    fn forward_layer(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        x: &mut Tensor,
        text: &mut Text,
    ) -> Result<SavedLayer> {
        let (rows, d, l) = (x.shape().rows(), x.shape().cols(), &self.shape);
        let trained = layer.fc1.is_trained(pass);
        let input = pass.keep_copy(x.view())?;
        let mut normed = pass.keep_if(trained, rows, d)?;
        layer.norm_1.run(pass, normed.view_mut(), x.view())?;
        let mut qkv = pass.keep(rows, 3 * d)?;
        layer.qkv.apply(pass, &mut qkv, &normed)?;
        let qk = self.normalise(pass, layer, &mut qkv)?;
        let mut attended = pass.keep_if(trained, rows, d)?;
        self.attend(pass, &mut attended, &mut qkv, text)?;
        let mut middle = None;
        let mut mlp_normed = pass.keep_if(trained, rows, d)?;
        if l.parallel_residual {
            layer.norm_2.run(pass, mlp_normed.view_mut(), x.view())?;
            layer.out.add(pass, x, &attended)?;
        } else {
            layer.out.add(pass, x, &attended)?;
            middle = Some(pass.keep_copy(x.view())?);
            layer.norm_2.run(pass, mlp_normed.view_mut(), x.view())?;
        }
        let is_llama = l.family == Family::Llama;
        let mut fc1 = pass.keep(rows, if is_llama { 2 * l.mlp_width } else { l.mlp_width })?;
        layer.fc1.apply(pass, &mut fc1, &mlp_normed)?;
        let mut hidden = pass.keep_if(trained, rows, l.mlp_width)?;
        if is_llama {
            ops::swiglu(pass.stream, hidden.view_mut(), fc1.view())?;
        } else {
            ops::activation(pass.stream, hidden.view_mut(), fc1.view(), Activation::Gelu)?;
        }
        layer.fc2.add(pass, x, &hidden)?;
        let [normed, attended, mlp_normed, hidden] =
            [normed, attended, mlp_normed, hidden].map(|t| trained.then_some(t));
        Ok(SavedLayer { input, normed, qk, qkv, attended, middle, mlp_normed, fc1, hidden })
    }

    /// Norms of the whole query and key vectors, where the model has them; what they were before.
    fn normalise(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        qkv: &mut Tensor,
    ) -> Result<Option<Tensor>> {
        let Some((q, k)) = &layer.qk_norm else { return Ok(None) };
        let (rows, d) = (qkv.shape().rows(), self.shape.width);
        let before = pass.keep_copy(qkv.view().block(0..rows, 0..2 * d)?)?;
        for (norm, cols) in [(q, 0..d), (k, d..2 * d)] {
            let x = before.view().block(0..rows, cols.clone())?;
            norm.run(pass, qkv.view_mut().block(0..rows, cols)?, x)?;
        }
        Ok(Some(before))
    }

    fn attend(
        &self,
        pass: &Pass<'_>,
        o: &mut Tensor,
        qkv: &mut Tensor,
        text: &mut Text,
    ) -> Result<()> {
        let (stream, rows, d) = (pass.stream, qkv.shape().rows(), self.shape.width);
        let (heads, head_dim, batch) = (self.shape.heads, d / self.shape.heads, &text.batch);
        if let Some((dims, base)) = self.rotary() {
            ops::rope(stream, qkv.view_mut(), batch, heads, head_dim, dims, base)?;
        }
        // Turned already: backward reads the keys in qkv.
        let (pages, turned) = (text.pages.view_mut(), qkv.view_mut());
        ops::kv_append(stream, pages, turned, batch, heads, head_dim, None)?;
        let q = qkv.view().block(0..rows, 0..d)?;
        let (o, pages, slopes) = (o.view_mut(), text.pages.view(), self.slopes());
        let scale = self.scale();
        ops::self_attention(stream, o, q, pages, batch, slopes, heads, head_dim, scale)
    }

    fn slopes(&self) -> Option<View<'_>> {
        self.slopes.as_ref().map(Tensor::view)
    }

    /// Adds up the gradients of everything down to the embedding. `d` is the gradient of the last
    /// layer's output; that of the latents goes to `dlatents` if anyone wants it.
    pub fn backward(
        &self,
        pass: &mut Pass<'_>,
        mut d: Tensor,
        saved: Saved,
        text: &mut Text,
        seen: &Seen<'_>,
        mut dlatents: Option<&mut Tensor>,
    ) -> Result<()> {
        let mut out = Out::Overwrite;
        let layers = self.layers.iter().enumerate().zip(saved.layers).skip(self.first);
        for ((i, layer), (kept_block, kept)) in layers.rev() {
            let forward =
                |pass: &mut Pass<'_>, x: &mut Tensor| self.forward_layer(pass, layer, x, text);
            let saved = pass.saved(kept, forward)?;
            self.backward_layer(pass, layer, &mut d, &saved, &text.batch)?;
            drop(saved);
            pass.release()?;
            pass.done(&format!("language.layers.{i}."))?;
            let (Some(block), Some(kept)) = (&layer.block, kept_block) else { continue };
            let forward = |pass: &mut Pass<'_>, x: &mut Tensor| block.forward(pass, x, seen);
            let saved = pass.saved(kept, forward)?;
            let to = dlatents.as_mut().map(|to| (&mut **to, out));
            block.backward(pass, &mut d, &saved, seen, to)?;
            out = Out::Accumulate;
            drop(saved);
            pass.release()?;
            pass.done(&format!("xattn.{i}."))?;
        }
        self.embedding_backward(pass, &d, text)?;
        pass.done("language.embedding.")
    }

    fn backward_layer(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        d: &mut Tensor,
        saved: &SavedLayer,
        batch: &Ragged,
    ) -> Result<()> {
        let add = Out::Accumulate;
        if let Some(middle) = &saved.middle {
            let dnormed = self.mlp_backward(pass, layer, d, saved)?;
            layer.norm_2.backward(pass, d.view_mut(), add, dnormed.view(), middle.view())?;
            let dnormed = self.attention_backward(pass, layer, d, saved, batch)?;
            let x = saved.input.view();
            return layer.norm_1.backward(pass, d.view_mut(), add, dnormed.view(), x);
        }
        // Both branches read the layer's input, so both need the gradient of its output.
        let dmlp = self.mlp_backward(pass, layer, d, saved)?;
        let dattention = self.attention_backward(pass, layer, d, saved, batch)?;
        let x = saved.input.view();
        layer.norm_2.backward(pass, d.view_mut(), add, dmlp.view(), x)?;
        layer.norm_1.backward(pass, d.view_mut(), add, dattention.view(), x)
    }

    /// The gradient of the MLP's normed input, given that of its output.
    fn mlp_backward(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        d: &Tensor,
        saved: &SavedLayer,
    ) -> Result<Tensor> {
        let (rows, cols, l) = (d.shape().rows(), d.shape().cols(), &self.shape);
        let mut dhidden = pass.temp(rows, l.mlp_width)?;
        let mut dfc1 = pass.temp(rows, saved.fc1.shape().cols())?;
        let mut dnormed = pass.temp(rows, cols)?;
        if let Some(hidden) = &saved.hidden {
            layer.fc2.weight_gradient(pass, d.view(), hidden.view(), None)?;
        }
        layer.fc2.input_gradient(pass, dhidden.view_mut(), Out::Overwrite, d.view())?;
        let (to, dy, x) = (dfc1.view_mut(), dhidden.view(), saved.fc1.view());
        if l.family == Family::Llama {
            ops::swiglu_backward(pass.stream, to, dy, x)?;
        } else {
            ops::activation_backward(pass.stream, to, dy, x, Activation::Gelu)?;
        }
        if let Some(normed) = &saved.mlp_normed {
            layer.fc1.weight_gradient(pass, dfc1.view(), normed.view(), None)?;
        }
        layer.fc1.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dfc1.view())?;
        Ok(dnormed)
    }

    /// The gradient of the attention's normed input, given that of its output.
    fn attention_backward(
        &self,
        pass: &mut Pass<'_>,
        layer: &Layer,
        d: &Tensor,
        saved: &SavedLayer,
        batch: &Ragged,
    ) -> Result<Tensor> {
        let (stream, rows, cols) = (pass.stream, d.shape().rows(), d.shape().cols());
        let (heads, head_dim) = (self.shape.heads, cols / self.shape.heads);
        let (mut d_o, mut dqkv) = (pass.temp(rows, cols)?, pass.temp(rows, 3 * cols)?);
        let [a, b] = ops::attention_statistics(rows, heads);
        let mut statistics = pass.temp_of(DType::F32, a, b)?;
        if let Some(attended) = &saved.attended {
            layer.out.weight_gradient(pass, d.view(), attended.view(), None)?;
        }
        layer.out.input_gradient(pass, d_o.view_mut(), Out::Overwrite, d.view())?;
        ops::self_attention_backward(
            stream,
            dqkv.view_mut(),
            statistics.view_mut(),
            d_o.view(),
            saved.qkv.view(),
            batch,
            self.slopes(),
            heads,
            head_dim,
            self.scale(),
        )?;
        if let Some((dims, base)) = self.rotary() {
            ops::rope_backward(stream, dqkv.view_mut(), batch, heads, head_dim, dims, base)?;
        }
        if let (Some((q, k)), Some(before)) = (&layer.qk_norm, &saved.qk) {
            let mut turned = pass.temp(rows, 2 * cols)?;
            for (norm, part) in [(q, 0..cols), (k, cols..2 * cols)] {
                let to = turned.view_mut().block(0..rows, part.clone())?;
                let dy = dqkv.view().block(0..rows, part.clone())?;
                let x = before.view().block(0..rows, part)?;
                norm.backward(pass, to, Out::Overwrite, dy, x)?;
            }
            dqkv.view_mut().block(0..rows, 0..2 * cols)?.copy_from(turned.view())?;
        }
        if let Some(normed) = &saved.normed {
            layer.qkv.weight_gradient(pass, dqkv.view(), normed.view(), None)?;
        }
        let mut dnormed = pass.temp(rows, cols)?;
        layer.qkv.input_gradient(pass, dnormed.view_mut(), Out::Overwrite, dqkv.view())?;
        Ok(dnormed)
    }

    /// Adds `d`, the gradient of the first layer's input, to that of the tokens' embeddings.
    fn embedding_backward(&self, pass: &mut Pass<'_>, d: &Tensor, text: &Text) -> Result<()> {
        let (stream, params) = (pass.stream, pass.params);
        let (i, rows) = match (params.trained_as(self.embedding), params.embedding_rows()) {
            (Some(i), _) => (i, None),
            (None, Some((i, rows))) => (i, Some(rows)),
            (None, None) => return Ok(()),
        };
        let row_of = |id: i32| match rows {
            None => Some(id as usize),
            Some(rows) => rows.iter().position(|&row| row as i32 == id),
        };
        let bytes = TokenGroups::footprint(text.ids.rows());
        let groups = TokenGroups::new(pass.scratch_arena(bytes)?, &text.tokens, row_of)?;
        pass.grads.start(stream, params, i)?;
        let (dw, _) = pass.grads.of(stream, params, i)?;
        ops::embedding_backward(stream, dw, &groups, d.view())?;
        drop(groups);
        pass.release()
    }
}

impl Layer {
    fn new(params: &Parameters, config: &Config, i: usize) -> Result<Self> {
        let l = &config.language;
        let (bias, at) = (l.family.has_bias(), format!("language.layers.{i}"));
        let linear = |name: &str| Linear::new(params, &format!("{at}.{name}"), bias);
        let has_block = config.has_block(i);
        let qk_norm = if l.qk_norm {
            let norm =
                |name: &str| Norm::layer(params, &format!("{at}.attn.{name}"), false, l.norm_eps);
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        Ok(Layer {
            block: has_block.then(|| GatedBlock::new(params, config, i)).transpose()?,
            norm_1: Norm::language(params, config, &format!("{at}.norm_1"))?,
            qkv: linear("attn.qkv")?,
            qk_norm,
            out: linear("attn.out")?,
            norm_2: Norm::language(params, config, &format!("{at}.norm_2"))?,
            fc1: linear(if l.family == Family::Llama { "mlp.gate_up" } else { "mlp.fc1" })?,
            fc2: linear("mlp.fc2")?,
        })
    }
}
