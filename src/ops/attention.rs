//! `attention`: O = softmax(scale * Q K^T) V, every query of a batch entry sees all its keys.

use super::check;
use super::lanes::{self, Grid, Lanes};
use super::layout::{self, Attend};
use super::rows::Rows;
use super::softmax::{self, Keys, Queries, Run};
use crate::contracts::AttentionParams;
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Stream};
use crate::dtype::Real;
use crate::tensor::{View, ViewMut};
use crate::{DType, Error, Result, twins};

/// See `kernels/attention.h`.
pub static ATTENTION: Kernel<AttentionParams> =
    Kernel { name: "attention", twins: twins!(attention_twin), geometry, cost, accounting: 0 };

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
    check::small(op, "keys", k0_len + k1_len)?;
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
        scale: check::scale(op, scale)?,
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

fn geometry(p: &AttentionParams, dtype: DType, _: &Chip) -> Geometry {
    let addresses = [p.o.cast_const(), p.q, p.k0, p.v0, p.k1, p.v1];
    let distances = [i64::from(p.head_dim), p.o_stride, p.q_stride, p.kv0_stride, p.kv1_stride];
    let attend = Attend {
        blocks: layout::groups(p.q_len, 64),
        rows: p.batch * p.q_len,
        batch: p.batch,
        heads: p.heads,
        head_dim: p.head_dim,
        // Queries, and two stages of keys and of values.
        tiles: 5,
    };
    let packable = layout::is_packable(&addresses, &distances, dtype);
    let geometry = layout::attend(&attend, dtype, packable);
    let [tiles, heads, batch] = geometry.grid;
    // The tiles with the fewest rows begin last.
    let grid = if geometry.variant == "_row" { geometry.grid } else { [heads, batch, tiles] };
    Geometry { grid, ..geometry }
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

struct Task<T> {
    o: Rows<T>,
    q: Rows<T>,
    segments: [Segment<T>; 2],
    q_len: usize,
    heads: usize,
    head_dim: usize,
    chunks: usize,
    scale: f32,
}

#[derive(Clone, Copy)]
struct Segment<T> {
    k: Rows<T>,
    v: Rows<T>,
    len: usize,
}

/// The keys of one batch entry and head.
struct EntryKeys<T> {
    segments: [Segment<T>; 2],
    entry: usize,
    start: usize,
    head_dim: usize,
}

impl<T: Real> Keys<T> for EntryKeys<T> {
    #[inline(always)]
    unsafe fn run(&self, j: usize) -> Run<T> {
        let [first, second] = self.segments;
        let (segment, j) = if j < first.len { (first, j) } else { (second, j - first.len) };
        let row = self.entry * segment.len + j;
        // SAFETY: the caller's.
        let (k, v) = unsafe {
            (
                segment.k.part(row, self.start, self.head_dim).as_ptr(),
                segment.v.part(row, self.start, self.head_dim).as_ptr(),
            )
        };
        Run { k, v, stride: segment.k.stride(), len: segment.len - j }
    }
}

impl<T: Real> Grid for Task<T> {
    fn scratch(&self, m: usize) -> usize {
        softmax::scratch(self.head_dim, m)
    }

    #[inline(always)]
    unsafe fn task<L: Lanes, const M: usize>(&self, task: usize, scratch: &mut [f32]) {
        let (chunk, head) = (task % self.chunks, task / self.chunks);
        let (entry, start) = (head / self.heads, head % self.heads * self.head_dim);
        let per_chunk = self.q_len.div_ceil(self.chunks);
        let first = chunk * per_chunk;
        let row = entry * self.q_len + first;
        let [a, b] = self.segments;
        // SAFETY: the caller's; (row, head) of o is of this task only.
        unsafe {
            let queries = Queries {
                o: self.o.part_mut(row, start, self.head_dim).as_mut_ptr(),
                q: self.q.part(row, start, self.head_dim).as_ptr(),
                o_stride: self.o.stride(),
                q_stride: self.q.stride(),
                rows: per_chunk.min(self.q_len - first),
                head_dim: self.head_dim,
                seen: a.len + b.len,
                step: 0,
                scale: self.scale,
                slope: 0.0,
            };
            let head_dim = self.head_dim;
            let keys = EntryKeys { segments: self.segments, entry, start, head_dim };
            softmax::attend::<T, L, M>(&queries, &keys, scratch);
        }
    }
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn attention_twin<T: Real>(p: &AttentionParams, host: &Host) {
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let segment = |k, v, stride, len: i64| {
        let len = len as usize;
        Segment { k: Rows::<T>::new(k, stride, 0), v: Rows::new(v, stride, 0), len }
    };
    let chunks = (p.q_len as usize).div_ceil(softmax::QUERIES);
    let grid = Task {
        o: Rows::<T>::new(p.o, p.o_stride, 0),
        q: Rows::new(p.q, p.q_stride, 0),
        segments: [
            segment(p.k0, p.v0, p.kv0_stride, p.k0_len),
            segment(p.k1, p.v1, p.kv1_stride, p.k1_len),
        ],
        q_len: p.q_len as usize,
        heads,
        head_dim,
        chunks,
        scale: p.scale,
    };
    // SAFETY: the caller's.
    unsafe { lanes::run(host, p.batch as usize * heads * chunks, &grid) }
}
