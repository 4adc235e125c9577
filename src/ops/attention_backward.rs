//! `attention_backward`: the gradients of every attention: those of queries, then those of keys and
//! values.

mod twin;

use super::batch::{MediaSpans, Ragged};
use super::check;
use super::layout;
use super::self_attention::check_slopes;
use crate::contracts::{AttendedRow, AttentionBackwardParams};
use crate::device::{Chip, Cost, Geometry, Kernel, Stream};
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};
use std::ptr::{null, null_mut};
use twin::attention_backward_twin;

/// See `kernels/attention_backward.h`.
pub static ATTENTION_BACKWARD: Kernel<AttentionBackwardParams> = Kernel {
    name: "attention_backward",
    twins: twins!(attention_backward_twin),
    geometry,
    cost,
    accounting: 1,
};

const OP: &str = "attention_backward";

/// The shape of the f32 scratch of a backward pass over `rows` queries: a softmax's sum, its delta
/// and its keys for each row and head. Nothing in it outlives the call.
pub fn attention_statistics(rows: usize, heads: usize) -> [usize; 2] {
    [heads, rows * size_of::<AttendedRow>() / size_of::<f32>()]
}

/// The gradients of [`attention`](super::attention), given d_o (batch*q_len, heads*head_dim): dq is
/// shaped as q, `gradients` (dk, dv) as `segments` (k, v). All are overwritten; rows may be
/// strided, where a segment's keys and values share a stride, and so do their gradients.
/// `statistics` is scratch, shaped as [`attention_statistics`] says.
///
/// # Errors
/// If a shape, stride or dtype differs, or there is no key.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn attention_backward(
    stream: &Stream,
    dq: ViewMut<'_>,
    gradients: &mut [(ViewMut<'_>, ViewMut<'_>)],
    statistics: ViewMut<'_>,
    d_o: View<'_>,
    q: View<'_>,
    segments: &[(View<'_>, View<'_>)],
    batch: usize,
    heads: usize,
    scale: f32,
) -> Result<()> {
    if !(1..=2).contains(&segments.len()) {
        return Err(invalid("keys", "one or two segments", segments.len()));
    }
    if gradients.len() != segments.len() {
        return Err(invalid("gradients", format!("{} segments", segments.len()), gradients.len()));
    }
    let mut p = begin(dq, statistics, d_o, q, batch, heads, scale)?;
    for (at, ((k, v), (dk, dv))) in segments.iter().zip(gradients).enumerate() {
        let len = per_entry(k.rows(), batch)?;
        if at == 0 || len > 0 {
            p = with_segment(p, at, &q, (*k, *v), (dk, dv), len)?;
        }
    }
    let keys = (p.k0_len + p.k1_len) as usize;
    if keys == 0 {
        return Err(invalid("keys", "at least one", 0));
    }
    check::small(OP, "keys", keys)?;
    p.pairs = p.batch * p.q_len * (p.k0_len + p.k1_len);
    // SAFETY: shapes, strides and dtypes were checked; what is written is borrowed exclusively.
    unsafe { launch(stream, q.dtype(), p) }
}

/// The gradients of causal attention within each of the batch's sequences, as
/// [`self_attention`](super::self_attention) computes it where no token is older than the step:
/// dqkv and qkv (rows, 3*heads*head_dim) are rows of [q | k | v] after `rope`, d_o (rows,
/// heads*head_dim), ALiBi slopes (heads) f32 if any. `statistics` as in [`attention_backward`].
///
/// # Errors
/// If a shape, stride or dtype differs, or a sequence has tokens that are no rows of the step.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn self_attention_backward(
    stream: &Stream,
    mut dqkv: ViewMut<'_>,
    statistics: ViewMut<'_>,
    d_o: View<'_>,
    qkv: View<'_>,
    batch: &Ragged,
    slopes: Option<View<'_>>,
    heads: usize,
    head_dim: usize,
    scale: f32,
) -> Result<()> {
    let (rows, width) = (batch.rows(), check::width(OP, 3, heads, head_dim)? / 3);
    if batch.keys() != rows {
        return Err(invalid("batch", format!("{rows} tokens, all new"), batch.keys()));
    }
    check::matrix(OP, "qkv", &qkv, rows, 3 * width)?;
    check::matrix(OP, "dqkv", &dqkv.as_view(), rows, 3 * width)?;
    check::dtype(OP, "dqkv", &dqkv.as_view(), qkv.dtype())?;
    check_slopes(OP, slopes.as_ref(), heads)?;
    let part = |i: usize| qkv.block(0..rows, i * width..(i + 1) * width);
    let ([q, k, v], stride) = ([part(0)?, part(1)?, part(2)?], dqkv.stride() as i64);
    let (gradient, bytes) = (dqkv.ptr::<u8>(), width * qkv.dtype().size());
    let dq = dqkv.block(0..rows, 0..width)?;
    let mut p = begin(dq, statistics, d_o, q, 1, heads, scale)?;
    (p.k0, p.v0) = (k.ptr(), v.ptr());
    (p.dk0, p.dv0) = (gradient.wrapping_add(bytes).cast(), gradient.wrapping_add(2 * bytes).cast());
    (p.kv0_stride, p.dkv0_stride) = (qkv.stride() as i64, stride);
    p.k0_len = rows as i64;
    p.batch = batch.sequences() as i64;
    p.begin = batch.q_begin();
    p.slopes = slopes.map_or(null(), |s| s.ptr());
    p.pairs = batch.pairs() as i64;
    // SAFETY: shapes, strides and dtypes were checked, the batch when it was made; what is written
    // is borrowed exclusively.
    unsafe { launch(stream, qkv.dtype(), p) }
}

/// The gradients of [`cross_attention`](super::cross_attention), given d_o: dq and q (rows,
/// heads*head_dim); dkv and kv (images*latents, 2*heads*head_dim), rows of [k | v] of the images
/// that the spans count, one after the other. `statistics` as in [`attention_backward`].
///
/// # Errors
/// If a shape, stride or dtype differs, or the images do not share the rows of kv evenly.
#[expect(clippy::too_many_arguments, reason = "each one is a part of the equation")]
pub fn cross_attention_backward(
    stream: &Stream,
    dq: ViewMut<'_>,
    mut dkv: ViewMut<'_>,
    statistics: ViewMut<'_>,
    d_o: View<'_>,
    q: View<'_>,
    kv: View<'_>,
    spans: &MediaSpans,
    heads: usize,
    scale: f32,
) -> Result<()> {
    let (images, rows, width) = (spans.images(), kv.rows(), q.cols());
    check::matrix(OP, "q", &q, spans.rows(), width)?;
    check::matrix(OP, "kv", &kv, rows, 2 * width)?;
    check::matrix(OP, "dkv", &dkv.as_view(), rows, 2 * width)?;
    for (name, view) in [("kv", &kv), ("dkv", &dkv.as_view())] {
        check::dtype(OP, name, view, q.dtype())?;
    }
    if !rows.is_multiple_of(images.max(1)) || (rows == 0) != (images == 0) {
        let expected = format!("as many rows for each of {images} images");
        return Err(invalid("kv", expected, rows));
    }
    check::small(OP, "keys", rows)?;
    let mut p = begin(dq, statistics, d_o, q, 1, heads, scale)?;
    let stride = dkv.stride() as i64;
    let (dk, bytes) = (dkv.ptr::<u8>(), width * q.dtype().size());
    (p.k0, p.v0) = (kv.ptr(), kv.ptr::<u8>().wrapping_add(bytes).cast());
    (p.dk0, p.dv0) = (dk.cast(), dk.wrapping_add(bytes).cast());
    (p.kv0_stride, p.dkv0_stride) = (kv.stride() as i64, stride);
    p.k0_len = rows as i64;
    p.spans = spans.spans();
    p.latents = check::small(OP, "latents", rows / images.max(1))?;
    p.pairs = spans.visible() as i64 * i64::from(p.latents);
    // SAFETY: shapes, strides and dtypes were checked, the spans when they were made; what is
    // written is borrowed exclusively.
    unsafe { launch(stream, q.dtype(), p) }
}

fn invalid(what: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::invalid(format!("{OP}: {what}"), expected, found)
}

fn per_entry(rows: usize, batch: usize) -> Result<usize> {
    if batch > 0 && rows.is_multiple_of(batch) {
        return Ok(rows / batch);
    }
    Err(invalid("rows", format!("the same number for each of {batch} batch entries"), rows))
}

/// Params of which everything that has to do with queries is checked and set.
fn begin(
    mut dq: ViewMut<'_>,
    mut statistics: ViewMut<'_>,
    d_o: View<'_>,
    q: View<'_>,
    batch: usize,
    heads: usize,
    scale: f32,
) -> Result<AttentionBackwardParams> {
    let (head_dim, rows) = (check::head_dim(OP, "q", q.cols(), heads)?, q.rows());
    check::matrix(OP, "d_o", &d_o, rows, q.cols())?;
    check::dtype(OP, "d_o", &d_o, q.dtype())?;
    check::matrix(OP, "dq", &dq.as_view(), rows, q.cols())?;
    check::dtype(OP, "dq", &dq.as_view(), q.dtype())?;
    let [count, cols] = attention_statistics(rows, heads);
    check::matrix(OP, "statistics", &statistics.as_view(), count, cols)?;
    check::dtype(OP, "statistics", &statistics.as_view(), DType::F32)?;
    check::dense(OP, "statistics", &statistics.as_view())?;
    check::aligned(OP, "statistics", &statistics.as_view(), size_of::<AttendedRow>())?;
    Ok(AttentionBackwardParams {
        dq: dq.ptr(),
        dk0: null_mut(),
        dv0: null_mut(),
        dk1: null_mut(),
        dv1: null_mut(),
        statistics: statistics.ptr(),
        d_o: d_o.ptr(),
        q: q.ptr(),
        k0: null(),
        v0: null(),
        k1: null(),
        v1: null(),
        begin: null(),
        spans: null(),
        slopes: null(),
        batch: batch as i64,
        q_len: per_entry(rows, batch)? as i64,
        k0_len: 0,
        k1_len: 0,
        dq_stride: dq.stride() as i64,
        dkv0_stride: 0,
        dkv1_stride: 0,
        do_stride: d_o.stride() as i64,
        q_stride: q.stride() as i64,
        kv0_stride: 0,
        kv1_stride: 0,
        heads: check::small(OP, "heads", heads)?,
        head_dim: check::small(OP, "head_dim", head_dim)?,
        scale,
        latents: 0,
        is_keys: 0,
        reserved: 0,
        pairs: 0,
    })
}

/// `p` with segment `at`, which has `len` keys per batch entry.
fn with_segment(
    mut p: AttentionBackwardParams,
    at: usize,
    q: &View<'_>,
    (k, v): (View<'_>, View<'_>),
    (dk, dv): (&mut ViewMut<'_>, &mut ViewMut<'_>),
    len: usize,
) -> Result<AttentionBackwardParams> {
    let all = [("k", k), ("v", v), ("dk", dk.as_view()), ("dv", dv.as_view())];
    for (name, view) in &all {
        check::matrix(OP, name, view, k.rows(), q.cols())?;
        check::dtype(OP, name, view, q.dtype())?;
    }
    for [(one, a), (other, b)] in [[&all[0], &all[1]], [&all[2], &all[3]]] {
        if a.stride() != b.stride() {
            let found = format!("{} and {}", a.stride(), b.stride());
            return Err(invalid(&format!("{one} and {other}"), "one row stride", found));
        }
    }
    let (stride, gradient_stride) = (k.stride() as i64, dk.stride() as i64);
    if at == 0 {
        (p.k0, p.v0, p.dk0, p.dv0) = (k.ptr(), v.ptr(), dk.ptr(), dv.ptr());
        (p.k0_len, p.kv0_stride, p.dkv0_stride) = (len as i64, stride, gradient_stride);
    } else {
        (p.k1, p.v1, p.dk1, p.dv1) = (k.ptr(), v.ptr(), dk.ptr(), dv.ptr());
        (p.k1_len, p.kv1_stride, p.dkv1_stride) = (len as i64, stride, gradient_stride);
    }
    Ok(p)
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn launch(stream: &Stream, dtype: DType, p: AttentionBackwardParams) -> Result<()> {
    // SAFETY: the caller's; the second launch reads what the first has written.
    unsafe {
        stream.launch(&ATTENTION_BACKWARD, dtype, &p)?;
        stream.launch(&ATTENTION_BACKWARD, dtype, &AttentionBackwardParams { is_keys: 1, ..p })
    }
}

/// `TILE_ROWS` and `ATTEND_THREADS` of the kernels.
const TILE: i64 = 64;
const THREADS: u32 = 128;

fn geometry(p: &AttentionBackwardParams, dtype: DType, _: &Chip) -> Geometry {
    let (is_ragged, keys) = (!p.begin.is_null(), p.k0_len + p.k1_len);
    let own = if p.is_keys != 0 { keys } else { p.q_len };
    let (head_dim, heads) = (p.head_dim as usize, p.heads as u32);
    let addresses = [p.q, p.k0, p.v0, p.k1, p.v1, p.d_o];
    let written = [p.dq, p.dk0, p.dv0, p.dk1, p.dv1].map(<*mut _>::cast_const);
    let distances = [
        i64::from(p.head_dim),
        p.dq_stride,
        p.dkv0_stride,
        p.dkv1_stride,
        p.do_stride,
        p.q_stride,
        p.kv0_stride,
        p.kv1_stride,
    ];
    let is_packable = layout::is_packable(&addresses, &distances, dtype)
        && layout::is_packable(&written, &[], dtype);
    let side = |queries, keys| if p.is_keys != 0 { keys } else { queries };
    if dtype.size() != 2 || !is_packable || head_dim > 128 {
        let rows = if is_ragged { own } else { p.batch * own };
        let blocks = layout::groups(rows, i64::from(THREADS / 32)) as u32;
        let grid = [blocks, heads, head_dim.div_ceil(256) as u32];
        let variant = side("_queries_row", "_keys_row");
        return Geometry { variant, grid, ..Geometry::linear(blocks, THREADS) };
    }
    let (variant, width) = match head_dim {
        ..=64 => (side("_queries_64", "_keys_64"), 64),
        _ => (side("_queries_128", "_keys_128"), 128),
    };
    // Own rows of two operands, two stages of 32 rows of two, what those came to, and a range.
    let shared = (2 * 64 + 4 * 32) * width * 2 + 2 * 32 * size_of::<AttendedRow>() as u32 + 128;
    let (blocks, entries) = match is_ragged {
        // Every sequence may end within a tile.
        true => (own / TILE + p.batch, 1),
        false => (layout::groups(own, TILE), p.batch as u32),
    };
    let grid = [blocks as u32, heads, entries];
    Geometry { variant, grid, shared, ..Geometry::linear(0, THREADS) }
}

/// Operands moved once; the products of a launch, of which there are five and four.
fn cost(p: &AttentionBackwardParams, dtype: DType) -> Cost {
    let width = p.heads as f64 * f64::from(p.head_dim);
    let entries = if p.begin.is_null() { p.batch as f64 } else { 1.0 };
    let (queries, keys) = (entries * p.q_len as f64, entries * (p.k0_len + p.k1_len) as f64);
    let rows = if p.is_keys != 0 { 2.0 * queries + 4.0 * keys } else { 3.0 * queries + 2.0 * keys };
    let statistics = queries * p.heads as f64 * size_of::<AttendedRow>() as f64;
    Cost {
        bytes: rows * width * dtype.size() as f64 + statistics,
        flops: if p.is_keys != 0 { 8.0 } else { 10.0 } * p.pairs as f64 * width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of the vision tower of the 9B model.
    fn params() -> AttentionBackwardParams {
        let somewhere = std::ptr::without_provenance_mut(64);
        AttentionBackwardParams {
            dq: somewhere,
            dk0: somewhere,
            dv0: somewhere,
            dk1: null_mut(),
            dv1: null_mut(),
            statistics: std::ptr::without_provenance_mut(64),
            d_o: somewhere,
            q: somewhere,
            k0: somewhere,
            v0: somewhere,
            k1: null(),
            v1: null(),
            begin: null(),
            spans: null(),
            slopes: null(),
            batch: 2,
            q_len: 257,
            k0_len: 257,
            k1_len: 0,
            dq_stride: 1024,
            dkv0_stride: 1024,
            dkv1_stride: 0,
            do_stride: 1024,
            q_stride: 3072,
            kv0_stride: 3072,
            kv1_stride: 0,
            heads: 16,
            head_dim: 64,
            scale: 0.125,
            latents: 0,
            is_keys: 0,
            reserved: 0,
            pairs: 2 * 257 * 257,
        }
    }

    #[test]
    fn a_block_takes_64_rows_of_what_its_launch_is_about() {
        let chip = Chip::A100;
        let resampler = AttentionBackwardParams { q_len: 64, k0_len: 256, k1_len: 64, ..params() };
        for (is_keys, variant, grid) in
            [(0, "_queries_64", [1, 16, 2]), (1, "_keys_64", [5, 16, 2])]
        {
            let g = geometry(&AttentionBackwardParams { is_keys, ..resampler }, DType::BF16, &chip);
            assert_eq!((g.variant, g.grid), (variant, grid));
            // More blocks than registers allow.
            assert!(3 * g.shared <= chip.shared_bytes);
            let wide = AttentionBackwardParams { is_keys, head_dim: 128, ..resampler };
            assert!(2 * geometry(&wide, DType::F16, &chip).shared <= chip.shared_bytes);
        }
        let begin = std::ptr::without_provenance(64);
        let ragged = AttentionBackwardParams { begin, ..params() };
        assert_eq!(geometry(&ragged, DType::BF16, &chip).grid, [6, 16, 1]);
        assert_eq!(geometry(&ragged, DType::F32, &chip).grid, [65, 16, 1]);
        let odd = AttentionBackwardParams { q_stride: 3076, ..params() };
        assert_eq!(geometry(&odd, DType::BF16, &chip).variant, "_queries_row");
    }

    #[test]
    fn cost_counts_the_products_of_each_launch() {
        let p = params();
        let pairs = 2.0 * 257.0 * 257.0 * 1024.0;
        assert_eq!(cost(&p, DType::BF16).flops, 10.0 * pairs);
        let keys = AttentionBackwardParams { is_keys: 1, ..p };
        assert_eq!(cost(&keys, DType::BF16).flops, 8.0 * pairs);
        // q, d_o, k, v, dk and dv, and 16 bytes a row and head.
        assert_eq!(cost(&keys, DType::BF16).bytes, 514.0 * (6.0 * 1024.0 * 2.0 + 16.0 * 16.0));
    }
}
