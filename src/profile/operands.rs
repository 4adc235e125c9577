//! Operands of the cases: copies, and what launches on one of them.

use super::cases::{Body, GATED_HEADS, HEAD, LATENTS, PAGE, PATCH, VISION_HEAD};
use super::filled;
use crate::device::Stream;
use crate::ops::{
    self, Activation, AdamwStep, Choices, Codebooks, Draw, Draws, Edits, Epilogue, INT4_GROUP,
    Input, Media, MediaSpan, MediaSpans, Moments8, Norm, Out, Quantized, Ragged, SecondMomentMap,
    Sequence, TokenIds, Weight,
};
use crate::tensor::{Arena, Tensor};
use crate::{DType, Result};
use std::cell::Cell;

/// Most copies of the operands of a case.
const COPIES: usize = 256;

/// Makes operands.
pub(super) struct Ring<'a> {
    stream: &'a Stream,
    dtype: DType,
    bytes: usize,
    made: Cell<usize>,
}

impl<'a> Ring<'a> {
    pub(super) fn new(stream: &'a Stream, dtype: DType, bytes: usize) -> Self {
        Ring { stream, dtype, bytes, made: Cell::new(0) }
    }

    pub(super) fn stream(&self) -> &'a Stream {
        self.stream
    }

    pub(super) fn input(&self, shape: &[usize]) -> Result<Tensor> {
        let tensor = filled(self.stream, self.dtype, shape)?;
        self.made.set(self.made.get() + tensor.bytes());
        Ok(tensor)
    }

    pub(super) fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let tensor = Tensor::zeros(self.stream, dtype, shape)?;
        self.made.set(self.made.get() + tensor.bytes());
        Ok(tensor)
    }

    /// Counts a tensor made otherwise among the operands.
    pub(super) fn count(&self, tensor: &Tensor) {
        self.made.set(self.made.get() + tensor.bytes());
    }

    pub(super) fn output(&self, shape: &[usize]) -> Result<Tensor> {
        self.zeros(self.dtype, shape)
    }

    /// Room for the indices of one launch.
    pub(super) fn arena(&self) -> Result<Arena> {
        Arena::new(self.stream, 256 << 10)
    }

    /// As many as fill the ring.
    pub(super) fn copies<T>(&self, make: impl Fn() -> Result<T>) -> Result<Vec<T>> {
        let mut all = vec![make()?];
        let count = (self.bytes / self.made.get().max(1)).clamp(1, COPIES);
        for _ in 1..count {
            all.push(make()?);
        }
        Ok(all)
    }

    pub(super) fn bytes(&self, bytes: usize, body: Body<'_>) -> Result<()> {
        let words = [bytes / self.dtype.size()];
        let make = || Ok((self.zeros(DType::I32, &[4096])?, self.input(&words)?));
        let mut sets = self.copies(make)?;
        body(sets.len(), &mut |i| {
            let (y, x) = &mut sets[i];
            ops::checksum(self.stream, y.view_mut(), x.view())
        })
    }

    pub(super) fn product(
        &self,
        [m, n, k]: [usize; 3],
        activation: Activation,
        is_gated: bool,
        body: Body<'_>,
    ) -> Result<()> {
        let mut sets = self.copies(|| {
            let (a, b) = (self.input(&[m, k])?, self.input(&[n, k])?);
            Ok((self.output(&[m, n])?, a, b, self.input(&[1])?))
        })?;
        body(sets.len(), &mut |i| {
            let (c, a, b, gate) = &mut sets[i];
            let (gate, out) = match is_gated {
                true => (Some(gate.view()), Out::Accumulate),
                false => (None, Out::Overwrite),
            };
            let epilogue = Epilogue { bias: None, activation, gate, out };
            ops::gemm(self.stream, c.view_mut(), a.view(), b.view(), epilogue)
        })
    }

    /// A product with weights of few bits; or making those of `n` rows, or elements of them.
    pub(super) fn quantized(
        &self,
        kernel: &str,
        [m, n, k]: [usize; 3],
        bits: usize,
        body: Body<'_>,
    ) -> Result<()> {
        let (dtype, groups) = if bits == 8 { (DType::I8, 1) } else { (DType::U8, k / INT4_GROUP) };
        let wide = if kernel == "gemm_quantized" { 0 } else { n };
        let mut sets = self.copies(|| {
            let codes = filled(self.stream, dtype, &[n, k * bits / 8])?;
            let scales = filled(self.stream, DType::BF16, &[n, groups])?;
            self.made.set(self.made.get() + codes.bytes() + scales.bytes());
            let product = (self.output(&[m, n])?, self.input(&[m, k])?);
            Ok((product, codes, scales, self.input(&[wide, k])?))
        })?;
        body(sets.len(), &mut |i| {
            let ((c, a), codes, scales, w) = &mut sets[i];
            if kernel == "quantize" {
                let (codes, scales) = (codes.view_mut(), scales.view_mut());
                return ops::quantize(self.stream, codes, scales, None, w.view());
            }
            let b = Quantized { codes: codes.view(), scales: scales.view() };
            match kernel {
                "dequantize" => ops::dequantize(self.stream, w.view_mut(), b),
                _ => {
                    let (c, a, epilogue) = (c.view_mut(), a.view(), Epilogue::default());
                    ops::gemm_quantized(self.stream, c, a, b, epilogue)
                }
            }
        })
    }

    /// A product that ends in SwiGLU, and may begin with a norm; what the host needs for as many
    /// launches is there.
    pub(super) fn swiglu(
        &self,
        [m, n, k]: [usize; 3],
        bits: usize,
        is_normed: bool,
        body: Body<'_>,
    ) -> Result<()> {
        let (wide, codes) = if bits == 16 { (n, 0) } else { (0, n) };
        let (dtype, groups) = if bits == 8 { (DType::I8, 1) } else { (DType::U8, k / INT4_GROUP) };
        let mut sets = self.copies(|| {
            let codes = filled(self.stream, dtype, &[codes, k * bits.min(8) / 8])?;
            let scales = filled(self.stream, DType::BF16, &[codes.shape().rows(), groups])?;
            self.made.set(self.made.get() + codes.bytes() + scales.bytes());
            let y = (self.output(&[m, n / 2])?, self.output(&[m, n])?, self.output(&[m, k])?);
            let x = (self.input(&[m, k])?, self.input(&[k])?);
            Ok((y, x, self.input(&[wide, k])?, codes, scales))
        })?;
        body(sets.len(), &mut |i| {
            let ((y, room, normed), (x, norm), w, codes, scales) = &mut sets[i];
            let w = match bits {
                16 => Weight::Dense(w.view()),
                _ => Weight::Quantized(Quantized { codes: codes.view(), scales: scales.view() }),
            };
            let norm = Norm::Rms { w: norm.view(), eps: 1e-6 };
            let x = match is_normed {
                true => Input::normed(x.view(), norm, normed.view_mut()),
                false => x.view().into(),
            };
            ops::linear_swiglu(self.stream, y.view_mut(), room.view_mut(), x, w)
        })
    }

    /// One step of an optimiser, of parameters with an f32 master copy.
    pub(super) fn parameters(&self, kernel: &str, count: usize, body: Body<'_>) -> Result<()> {
        const BLOCK: usize = 256;
        let (betas, eps, weight_decay) = ([0.9, 0.999], 1e-8, 0.1);
        let step = AdamwStep { step: 7, lr: 1e-4, betas, eps, weight_decay, seed: 0 };
        let books = Codebooks::new(self.stream, SecondMomentMap::default())?;
        let (wide, coded) = if kernel == "adamw" { (count, 0) } else { (0, count) };
        let mut sets = self.copies(|| {
            let pair = |dtype, n| Ok([self.zeros(dtype, &[n])?, self.zeros(dtype, &[n])?]);
            let kept = filled(self.stream, DType::F32, &[count])?;
            let grad = filled(self.stream, DType::F32, &[count])?;
            self.made.set(self.made.get() + kept.bytes() + grad.bytes());
            let moments = (pair(DType::F32, wide)?, pair(DType::U8, coded)?);
            let absmax = pair(DType::F32, coded.div_ceil(BLOCK))?;
            Ok((self.input(&[count])?, kept, grad, moments, absmax))
        })?;
        let stream = self.stream;
        body(sets.len(), &mut |i| {
            let (param, kept, grad, (wide, codes), absmax) = &mut sets[i];
            let (param, kept, grad) = (param.view_mut(), Some(kept.view_mut()), grad.view());
            if kernel == "adamw" {
                let [m, v] = wide.each_mut().map(Tensor::view_mut);
                return ops::adamw(stream, param, kept, m, v, grad, None, &step);
            }
            let codes = codes.each_mut().map(Tensor::view_mut);
            let absmax = absmax.each_mut().map(Tensor::view_mut);
            let moments = Moments8 { codes, absmax };
            ops::adamw8(stream, param, kept, moments, grad, None, &books, BLOCK, &step)
        })
    }

    /// A token from each row of logits.
    pub(super) fn sampling(
        &self,
        rows: usize,
        vocabulary: usize,
        is_greedy: bool,
        body: Body<'_>,
    ) -> Result<()> {
        let (temperature, top_p) = if is_greedy { (0.0, 1.0) } else { (1.0, 0.9) };
        let draw = |row| Draw {
            row,
            temperature,
            top_k: 0,
            top_p,
            min_p: 0.0,
            uniform: 1 << 63,
            alternatives: 0,
            edits: Edits::default(),
        };
        let draws: Vec<Draw<'_>> = (0..rows).map(draw).collect();
        let mut sets = self.copies(|| {
            let logits = filled(self.stream, DType::F32, &[rows, vocabulary])?;
            self.made.set(self.made.get() + logits.bytes());
            let mut arena = self.arena()?;
            let packed = Draws::new(&mut arena, &draws, rows, vocabulary)?;
            Ok((Choices::new(&mut arena, rows, vocabulary)?, logits, packed))
        })?;
        body(sets.len(), &mut |i| {
            let (choices, logits, draws) = &mut sets[i];
            ops::sampling(self.stream, choices, logits.view(), draws)
        })
    }

    pub(super) fn rows(
        &self,
        kernel: &str,
        [rows, cols, of]: [usize; 3],
        body: Body<'_>,
    ) -> Result<()> {
        let ids: Vec<i32> = (0..rows).map(|i| (i * 7919 % of) as i32).collect();
        let mut sets = self.copies(|| {
            let x = match kernel {
                "swiglu" | "swiglu_backward" => self.input(&[rows, 2 * cols])?,
                "embedding" => self.input(&[of, cols])?,
                "vision_tokens" => self.input(&[rows / of * (of - 1), cols])?,
                _ => self.input(&[rows, cols])?,
            };
            let (w, b) = (self.input(&[cols])?, self.input(&[cols])?);
            let positions = match kernel {
                "vision_tokens" => self.input(&[of, cols])?,
                _ => self.input(&[1, 1])?,
            };
            let ids = TokenIds::new(&mut self.arena()?, &ids, of)?;
            let made = match kernel {
                "norm_backward" | "swiglu_backward" => {
                    (self.output(x.shape().sizes())?, self.input(&[rows, cols])?)
                }
                "column_sums" => (self.zeros(DType::F32, &[1, cols])?, self.input(&[1])?),
                _ => (self.output(&[rows, cols])?, self.input(&[1])?),
            };
            Ok((made, x, w, b, positions, ids))
        })?;
        let stream = self.stream;
        body(sets.len(), &mut |i| {
            let ((y, dy), x, w, b, positions, ids) = &mut sets[i];
            let (y, dy, x, w) = (y.view_mut(), dy.view(), x.view(), w.view());
            match kernel {
                "norm_backward" => {
                    ops::rmsnorm_backward(stream, y, Out::Overwrite, dy, x, w, 1e-6, None)
                }
                "swiglu_backward" => ops::swiglu_backward(stream, y, dy, x),
                "column_sums" => ops::column_sums(stream, y, Out::Overwrite, x),
                "layernorm" => ops::layernorm(stream, y, x, w, Some(b.view()), 1e-5),
                "rmsnorm" => ops::rmsnorm(stream, y, x, w, 1e-6),
                "swiglu" => ops::swiglu(stream, y, x),
                "embedding" => ops::embedding(stream, y, ids, x),
                _ => ops::vision_tokens(stream, y, x, w, positions.view()),
            }
        })
    }

    pub(super) fn attention(
        &self,
        batch: usize,
        [q_len, k_len]: [usize; 2],
        heads: usize,
        head_dim: usize,
        body: Body<'_>,
    ) -> Result<()> {
        let width = heads * head_dim;
        let mut sets = self.copies(|| {
            let kv = self.input(&[batch * k_len, 2 * width])?;
            Ok((self.output(&[batch * q_len, width])?, self.input(&[batch * q_len, width])?, kv))
        })?;
        body(sets.len(), &mut |i| {
            let (o, q, kv) = &mut sets[i];
            let part = |i: usize| kv.view().block(0..batch * k_len, i * width..(i + 1) * width);
            let (q, segments) = (q.view(), [(part(0)?, part(1)?)]);
            let scale = scale(head_dim);
            ops::attention(self.stream, o.view_mut(), q, &segments, batch, heads, scale)
        })
    }

    /// The last `rows` of each sequence of `kv_len` tokens.
    pub(super) fn paged(
        &self,
        kernel: &str,
        [sequences, rows, kv_len]: [usize; 3],
        heads: usize,
        body: Body<'_>,
    ) -> Result<()> {
        let (own, width, rows) = (kv_len.div_ceil(PAGE), heads * HEAD, sequences * rows);
        let pages = sequences * own;
        let table: Vec<i32> = (0..pages as i32).collect();
        let sequence = |table| Sequence { table, kv_len, rows: rows / sequences };
        let all: Vec<_> = table.chunks(own).map(sequence).collect();
        let mut sets = self.copies(|| {
            let batch = Ragged::new(&mut self.arena()?, &all, PAGE, pages)?;
            // rope reads and writes its rows, whatever the pages hold.
            let pages = if kernel == "rope" { 1 } else { pages };
            let pool = self.input(&[pages, PAGE * 2 * width])?;
            Ok((self.output(&[rows, width])?, self.input(&[rows, 3 * width])?, pool, batch))
        })?;
        let stream = self.stream;
        body(sets.len(), &mut |i| {
            let (o, qkv, pool, batch) = &mut sets[i];
            match kernel {
                "rope" => ops::rope(stream, qkv.view_mut(), batch, heads, HEAD, HEAD, 1e4),
                "kv_append" => {
                    let (pool, qkv) = (pool.view_mut(), qkv.view_mut());
                    ops::kv_append(stream, pool, qkv, batch, heads, HEAD, Some((HEAD, 1e4)))
                }
                "attention_decode" => {
                    let (o, qkv, pool) = (o.view_mut(), qkv.view_mut(), pool.view_mut());
                    let (turned, scale) = (Some((HEAD, 1e4)), scale(HEAD));
                    ops::attention_decode(stream, o, qkv, pool, batch, turned, None, heads, scale)
                }
                _ => {
                    let q = qkv.view().block(0..rows, 0..width)?;
                    let (o, pool, scale) = (o.view_mut(), pool.view(), scale(HEAD));
                    ops::self_attention(stream, o, q, pool, batch, None, heads, HEAD, scale)
                }
            }
        })
    }

    pub(super) fn cross(&self, rows: usize, images: usize, body: Body<'_>) -> Result<()> {
        let (width, spans) = (GATED_HEADS * VISION_HEAD, spans(rows, images));
        let sets = self.copies(|| {
            let image = |_| self.input(&[LATENTS, 2 * width]);
            let kv: Vec<Tensor> = (0..images).map(image).collect::<Result<_>>()?;
            let spans = MediaSpans::new(&mut self.arena()?, &spans, images)?;
            Ok((self.input(&[rows, width])?, kv, spans))
        })?;
        // The table of an image's addresses borrows the images.
        let mut launches = Vec::new();
        for (q, kv, spans) in &sets {
            let views: Vec<_> = kv.iter().map(Tensor::view).collect();
            let media = Media::new(&mut self.arena()?, &views)?;
            launches.push((self.output(&[rows, width])?, q, media, spans));
        }
        body(launches.len(), &mut |i| {
            let (o, q, media, spans) = &mut launches[i];
            let (o, q, scale) = (o.view_mut(), q.view(), scale(VISION_HEAD));
            ops::cross_attention(self.stream, o, q, media, spans, GATED_HEADS, scale)
        })
    }

    pub(super) fn patches(&self, images: usize, side: usize, body: Body<'_>) -> Result<()> {
        let patches = images * (side / PATCH) * (side / PATCH);
        let mut sets = self.copies(|| {
            let pixels = filled(self.stream, DType::U8, &[images, 3, side, side])?;
            let levels = filled(self.stream, DType::F32, &[3, 256])?;
            Ok((self.output(&[patches, 3 * PATCH * PATCH])?, pixels, levels))
        })?;
        body(sets.len(), &mut |i| {
            let (y, pixels, levels) = &mut sets[i];
            ops::patchify(self.stream, y.view_mut(), pixels.view(), levels.view(), PATCH)
        })
    }
}

pub(super) fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// Images in turn, each seen by its share of the rows; one row sees the last.
pub(super) fn spans(rows: usize, images: usize) -> Vec<MediaSpan> {
    (0..rows)
        .map(|r| ((r + 1) * images - 1) / rows)
        .map(|i| MediaSpan { begin: i as i32, end: i as i32 + 1, uniform: 0 })
        .collect()
}
