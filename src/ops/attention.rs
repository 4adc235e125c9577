//! `attention`: O = softmax(scale * Q K^T) V, every query of a batch entry sees all its keys.

use super::check;
use super::rows::{Rows, with_scratch};
use crate::contracts::AttentionParams;
use crate::device::{Cost, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/attention.h`.
pub static ATTENTION: Kernel<AttentionParams> =
    Kernel { name: "attention", twins: twins!(attention_twin), cost };

/// O = softmax(scale * Q K^T) V per batch entry and head; o, q (batch*q_len, heads*head_dim) and
/// one or two segments of keys and values (batch*len, heads*head_dim), seen as if concatenated
/// within each batch entry. Rows may be strided; a segment's keys and values share a stride.
///
/// # Errors
/// If a shape, stride or dtype differs, or there is no key.
pub fn attention(
    stream: &Stream,
    mut o: ViewMut<'_>,
    q: View<'_>,
    segments: &[(View<'_>, View<'_>)],
    batch: usize,
    heads: usize,
    scale: f32,
) -> Result<()> {
    let op = "attention";
    let head_dim = check::head_dim(op, "q", q.cols(), heads)?;
    check::matrix(op, "o", &o.as_view(), q.rows(), q.cols())?;
    check::dtype(op, "o", &o.as_view(), q.dtype())?;
    if !(1..=2).contains(&segments.len()) {
        return Err(Error::invalid("attention: keys", "one or two segments", segments.len()));
    }
    for (k, v) in segments {
        check_segment(&q, k, v, batch)?;
    }
    let (q_len, k0_len) = (per_entry(q.rows(), batch)?, segments[0].0.rows() / batch);
    let second = segments.get(1).filter(|(k, _)| k.rows() > 0);
    let k1_len = second.map_or(0, |(k, _)| k.rows() / batch);
    if k0_len + k1_len == 0 {
        return Err(Error::invalid("attention: keys", "at least one", 0));
    }
    let params = AttentionParams {
        o: o.ptr(),
        q: q.ptr(),
        k0: segments[0].0.ptr(),
        v0: segments[0].1.ptr(),
        k1: second.map_or(std::ptr::null(), |(k, _)| k.ptr()),
        v1: second.map_or(std::ptr::null(), |(_, v)| v.ptr()),
        batch: batch as i64,
        q_len: q_len as i64,
        k0_len: k0_len as i64,
        k1_len: k1_len as i64,
        o_stride: o.stride() as i64,
        q_stride: q.stride() as i64,
        kv0_stride: segments[0].0.stride() as i64,
        kv1_stride: second.map_or(0, |(k, _)| k.stride()) as i64,
        heads: check::small(op, "heads", heads)?,
        head_dim: check::small(op, "head_dim", head_dim)?,
        scale,
        reserved: 0,
    };
    // SAFETY: shapes, strides and dtypes were checked; o is borrowed exclusively.
    unsafe { stream.launch(&ATTENTION, q.dtype(), &params) }
}

fn check_segment(q: &View<'_>, k: &View<'_>, v: &View<'_>, batch: usize) -> Result<()> {
    let op = "attention";
    per_entry(k.rows(), batch)?;
    check::matrix(op, "k", k, k.rows(), q.cols())?;
    check::matrix(op, "v", v, k.rows(), q.cols())?;
    check::dtype(op, "k", k, q.dtype())?;
    check::dtype(op, "v", v, q.dtype())?;
    if k.stride() != v.stride() {
        let found = format!("{} and {}", k.stride(), v.stride());
        return Err(Error::invalid("attention: k and v", "one row stride", found));
    }
    Ok(())
}

fn per_entry(rows: usize, batch: usize) -> Result<usize> {
    if batch > 0 && rows.is_multiple_of(batch) {
        return Ok(rows / batch);
    }
    let expected = format!("the same number for each of {batch} batch entries");
    Err(Error::invalid("attention: rows", expected, rows))
}

fn cost(p: &AttentionParams, dtype: DType) -> Cost {
    let width = p.heads as f64 * p.head_dim as f64;
    let (queries, keys) = (p.q_len as f64, (p.k0_len + p.k1_len) as f64);
    let batch = p.batch as f64;
    Cost {
        bytes: 2.0 * batch * (queries + keys) * width * dtype.size() as f64,
        flops: 4.0 * batch * queries * keys * width,
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn attention_twin<T: Real>(p: &AttentionParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (batch, q_len) = (p.batch as usize, p.q_len as usize);
    let (k0_len, k1_len) = (p.k0_len as usize, p.k1_len as usize);
    let (keys, scale) = (k0_len + k1_len, p.scale);
    let o = Rows::<T>::new(p.o, p.o_stride, heads * head_dim);
    let q = Rows::<T>::new(p.q, p.q_stride, heads * head_dim);
    let k = [Rows::<T>::new(p.k0, p.kv0_stride, 0), Rows::<T>::new(p.k1, p.kv1_stride, 0)];
    let v = [Rows::<T>::new(p.v0, p.kv0_stride, 0), Rows::<T>::new(p.v1, p.kv1_stride, 0)];
    host.pool.run(batch * heads, |task| {
        let (b, h) = (task / heads, task % heads);
        let place =
            |j: usize| if j < k0_len { (0, b * k0_len + j) } else { (1, b * k1_len + j - k0_len) };
        with_scratch(keys + head_dim, |scratch| {
            let (weights, sums) = scratch.split_at_mut(keys);
            for i in 0..q_len {
                let r = b * q_len + i;
                // SAFETY: rows inside the contract's extent; (row, head) of o is of this task only.
                unsafe {
                    let q = q.part(r, h * head_dim, head_dim);
                    super::softmax::plain(
                        q,
                        scale,
                        weights,
                        sums,
                        |j| {
                            let (s, row) = place(j);
                            (
                                k[s].part(row, h * head_dim, head_dim),
                                v[s].part(row, h * head_dim, head_dim),
                                0.0,
                            )
                        },
                        o.part_mut(r, h * head_dim, head_dim),
                    );
                }
            }
        });
    });
}
