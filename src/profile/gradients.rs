//! Operands of the cases of `attention_backward`.

use super::cases::{Body, GATED_HEADS, HEAD, LATENTS, PAGE, VISION_HEAD};
use super::operands::{Ring, scale, spans};
use crate::ops::{self, MediaSpans, Ragged, Sequence};
use crate::tensor::Tensor;
use crate::{DType, Result};

impl Ring<'_> {
    /// Scratch, and the gradient of an output.
    fn of_output(&self, rows: usize, heads: usize, head_dim: usize) -> Result<(Tensor, Tensor)> {
        let statistics = self.zeros(DType::F32, &ops::attention_statistics(rows, heads))?;
        Ok((statistics, self.input(&[rows, heads * head_dim])?))
    }

    pub(super) fn full_backward(
        &self,
        batch: usize,
        [q_len, k_len]: [usize; 2],
        heads: usize,
        body: Body<'_>,
    ) -> Result<()> {
        let (width, rows, keys) = (heads * VISION_HEAD, batch * q_len, batch * k_len);
        let mut sets = self.copies(|| {
            let of_output = self.of_output(rows, heads, VISION_HEAD)?;
            let (q, kv) = (self.input(&[rows, width])?, self.input(&[keys, 2 * width])?);
            Ok((self.output(&[rows, width])?, self.output(&[keys, 2 * width])?, of_output, q, kv))
        })?;
        body(sets.len(), &mut |i| {
            let (dq, dkv, (statistics, d_o), q, kv) = &mut sets[i];
            let part = |i: usize| kv.view().block(0..keys, i * width..(i + 1) * width);
            let gradients = &mut [dkv.view_mut().split_columns(width)?];
            let (dq, statistics) = (dq.view_mut(), statistics.view_mut());
            let (d_o, q, segments) = (d_o.view(), q.view(), [(part(0)?, part(1)?)]);
            let (stream, scale) = (self.stream(), scale(VISION_HEAD));
            ops::attention_backward(
                stream, dq, gradients, statistics, d_o, q, &segments, batch, heads, scale,
            )
        })
    }

    pub(super) fn causal_backward(&self, rows: usize, heads: usize, body: Body<'_>) -> Result<()> {
        let table: Vec<i32> = (0..rows.div_ceil(PAGE) as i32).collect();
        let all = [Sequence { table: &table, kv_len: rows, rows }];
        let mut sets = self.copies(|| {
            let batch = Ragged::new(&mut self.arena()?, &all, PAGE, table.len())?;
            let shape = [rows, 3 * heads * HEAD];
            let of_output = self.of_output(rows, heads, HEAD)?;
            Ok((self.output(&shape)?, of_output, self.input(&shape)?, batch))
        })?;
        body(sets.len(), &mut |i| {
            let (dqkv, (statistics, d_o), qkv, batch) = &mut sets[i];
            let (dqkv, statistics) = (dqkv.view_mut(), statistics.view_mut());
            let (d_o, qkv, scale) = (d_o.view(), qkv.view(), scale(HEAD));
            ops::self_attention_backward(
                self.stream(),
                dqkv,
                statistics,
                d_o,
                qkv,
                batch,
                None,
                heads,
                HEAD,
                scale,
            )
        })
    }

    pub(super) fn cross_backward(&self, rows: usize, images: usize, body: Body<'_>) -> Result<()> {
        let (heads, width) = (GATED_HEADS, GATED_HEADS * VISION_HEAD);
        let spans = spans(rows, images);
        let mut sets = self.copies(|| {
            let spans = MediaSpans::new(&mut self.arena()?, &spans, images)?;
            let media = [images * LATENTS, 2 * width];
            let of_output = self.of_output(rows, heads, VISION_HEAD)?;
            let gradients = (self.output(&[rows, width])?, self.output(&media)?);
            Ok((gradients, of_output, self.input(&[rows, width])?, self.input(&media)?, spans))
        })?;
        body(sets.len(), &mut |i| {
            let ((dq, dkv), (statistics, d_o), q, kv, spans) = &mut sets[i];
            let (dq, dkv, statistics) = (dq.view_mut(), dkv.view_mut(), statistics.view_mut());
            let (d_o, q, kv, scale) = (d_o.view(), q.view(), kv.view(), scale(VISION_HEAD));
            ops::cross_attention_backward(
                self.stream(),
                dq,
                dkv,
                statistics,
                d_o,
                q,
                kv,
                spans,
                heads,
                scale,
            )
        })
    }
}
