//! `self_attention`: causal attention of a ragged batch over paged keys and values.

use super::batch::Ragged;
use super::check;
use super::kv_append::check_pages;
use super::rows::{Rows, with_scratch};
use crate::contracts::SelfAttentionParams;
use crate::device::{Cost, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result, twins};

/// See `kernels/self_attention.h`.
pub static SELF_ATTENTION: Kernel<SelfAttentionParams> =
    Kernel { name: "self_attention", twins: twins!(self_attention_twin), cost };

/// Causal attention of the batch's rows over the pages of one layer; o and q (rows,
/// heads*head_dim), pages (pages, 2*heads*page_tokens*head_dim), ALiBi slopes (heads) f32 if any.
/// Rows of q and pages may be strided; the rows' own keys are in the pages already (`kv_append`).
///
/// # Errors
/// If a shape, stride or dtype differs.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn self_attention(
    stream: &Stream,
    mut o: ViewMut<'_>,
    q: View<'_>,
    pages: View<'_>,
    batch: &Ragged,
    slopes: Option<View<'_>>,
    heads: usize,
    head_dim: usize,
    scale: f32,
) -> Result<()> {
    let op = "self_attention";
    check::matrix(op, "q", &q, batch.rows(), heads * head_dim)?;
    check::matrix(op, "o", &o.as_view(), batch.rows(), heads * head_dim)?;
    check::dense(op, "o", &o.as_view())?;
    check::dtype(op, "o", &o.as_view(), q.dtype())?;
    check::dtype(op, "pages", &pages, q.dtype())?;
    check_pages(op, &pages, batch, heads, head_dim)?;
    if let Some(slopes) = &slopes {
        check::vector(op, "slopes", slopes, heads)?;
        check::dtype(op, "slopes", slopes, DType::F32)?;
    }
    let params = SelfAttentionParams {
        o: o.ptr(),
        q: q.ptr(),
        pages: pages.ptr(),
        tables: batch.tables(),
        q_begin: batch.q_begin(),
        kv_len: batch.kv_len(),
        slopes: slopes.map_or(std::ptr::null(), |s| s.ptr()),
        sequences: batch.sequences() as i64,
        table_stride: batch.table_stride(),
        q_stride: q.stride() as i64,
        page_stride: pages.stride() as i64,
        heads: check::small(op, "heads", heads)?,
        head_dim: check::small(op, "head_dim", head_dim)?,
        page_tokens: check::small(op, "page_tokens", batch.page_tokens())?,
        scale,
    };
    // SAFETY: shapes, strides and dtypes were checked, the batch when it was made; o is exclusive.
    unsafe { stream.launch(&SELF_ATTENTION, q.dtype(), &params) }
}

fn cost(p: &SelfAttentionParams, dtype: DType) -> Cost {
    let sequences = p.sequences as usize;
    // SAFETY: a launch's params point at the batch's host-readable sizes.
    let (begin, kv_len) = unsafe {
        (
            std::slice::from_raw_parts(p.q_begin, sequences + 1),
            std::slice::from_raw_parts(p.kv_len, sequences),
        )
    };
    let width = p.heads as f64 * p.head_dim as f64;
    let mut cost = Cost::default();
    for (rows, &kv) in begin.windows(2).map(|w| (w[1] - w[0]) as f64).zip(kv_len) {
        cost.bytes += 2.0 * (rows + kv as f64) * width * dtype.size() as f64;
        cost.flops += 4.0 * rows * (kv as f64 - (rows - 1.0) / 2.0) * width;
    }
    cost
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn self_attention_twin<T: Real>(p: &SelfAttentionParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (sequences, page_tokens) = (p.sequences as usize, p.page_tokens as usize);
    let o = Rows::<T>::dense(p.o, heads * head_dim);
    let q = Rows::<T>::new(p.q, p.q_stride, heads * head_dim);
    let pages = Rows::<T>::new(p.pages, p.page_stride, 0);
    let tables = Rows::<i32>::new(p.tables.cast(), p.table_stride, p.table_stride as usize);
    let begin = Rows::<i32>::dense(p.q_begin.cast(), sequences + 1);
    let lengths = Rows::<i32>::dense(p.kv_len.cast(), sequences);
    let slopes = Rows::<f32>::dense(p.slopes.cast(), heads);
    let (has_slopes, scale) = (!p.slopes.is_null(), p.scale);
    host.pool.run(sequences * heads, |task| {
        let (s, h) = (task / heads, task % heads);
        // SAFETY: the batch's arrays have an entry for sequence s.
        let (rows, kv_len, table) = unsafe {
            let begin = begin.get(0);
            (begin[s] as usize..begin[s + 1] as usize, lengths.get(0)[s] as usize, tables.get(s))
        };
        // SAFETY: slopes has `heads` entries if it is not null.
        let slope = if has_slopes { unsafe { slopes.get(0)[h] } } else { 0.0 };
        with_scratch(kv_len + head_dim, |scratch| {
            let (weights, sums) = scratch.split_at_mut(kv_len);
            for r in rows.clone() {
                let position = kv_len - (rows.end - r);
                // SAFETY: tables name pages of the pool; (row, head) of o is of this task only.
                unsafe {
                    super::softmax::plain(
                        q.part(r, h * head_dim, head_dim),
                        scale,
                        &mut weights[..position + 1],
                        sums,
                        |j| {
                            let page = table[j / page_tokens] as usize;
                            let k = (h * page_tokens + j % page_tokens) * head_dim;
                            let v = k + heads * page_tokens * head_dim;
                            (
                                pages.part(page, k, head_dim),
                                pages.part(page, v, head_dim),
                                slope * (j as f32 - position as f32),
                            )
                        },
                        o.part_mut(r, h * head_dim, head_dim),
                    );
                }
            }
        });
    });
}
